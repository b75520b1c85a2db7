"""No statement of a functional or a kernel is stale after an assignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import otflow as of
from otflow import kernels

F64 = torch.float64
X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
Y = torch.linspace(0, 1, 4, dtype=F64)[:, None]
MU = of.Particles(torch.tensor([[0.9], [-0.2]], dtype=F64))
RHO = of.GridDensity(torch.full((8,), 0.5, dtype=F64), -1, 1, walls=True)


def bowl(x):
    return x.square().sum(-1)


def steep(x):
    return 5 * x.square().sum(-1)


def product(x, y):
    return (x * y).sum(-1)


def distance(x, y):
    return (x - y).square().sum(-1)


def gaussian(sigma):
    return of.Gaussian(torch.zeros(1, dtype=F64), torch.full((1, 1), sigma, dtype=F64))


# How each is made, with its arguments: those of the first and of another one.
MADE: dict[str, tuple[Any, dict[str, tuple[Any, Any]]]] = {
    "Potential": (of.Potential, {"V": (bowl, steep), "modulus": (2.0, 10.0)}),
    "Potential undeclared": (of.Potential, {"V": (bowl, steep)}),
    "Interaction": (
        of.Interaction,
        {"W": (kernels.Gaussian(0.3), kernels.Gaussian(0.5))},
    ),
    "Interaction declared": (
        of.Interaction,
        {"W": (bowl, steep), "modulus": (2.0, 10.0), "mixture": (None, "concave")},
    ),
    "Interaction of a sum": (
        of.Interaction,
        {
            "W": (
                2 * kernels.Gaussian(0.3) + kernels.Quadratic(),
                kernels.Gaussian(0.5) - kernels.Quadratic(),
            )
        },
    ),
    "OfExpectation": (
        of.OfExpectation,
        {
            "R": (lambda m: m.square().sum(), lambda m: -m.square().sum()),
            "Phi": (lambda x: x, lambda x: x.square()),
            "mixture": ("convex", "concave"),
        },
    ),
    "MMDTo": (
        of.MMDTo,
        {"nu": (X, Y), "kernel": (kernels.Gaussian(0.3), kernels.Gaussian(0.5))},
    ),
    "EnergyDistanceTo": (of.EnergyDistanceTo, {"nu": (X, Y)}),
    "KSD": (
        of.KSD,
        {
            "score": (lambda x: -x, lambda x: -2 * x),
            "kernel": (kernels.Gaussian(0.3), kernels.InverseMultiquadric(0.5)),
        },
    ),
    "KL": (
        of.KL,
        {"target": (bowl, steep), "modulus": (2.0, 10.0), "mass": (1.0, 3.0)},
    ),
    "KL of a Gaussian": (of.KL, {"target": (gaussian(1.0), gaussian(4.0))}),
    "SquaredDistanceTo": (of.SquaredDistanceTo, {"nu": (X, Y)}),
    "SinkhornDivergenceTo": (
        of.SinkhornDivergenceTo,
        {"nu": (X, Y), "blur": (0.3, 0.5), "reach": (None, 1.0)},
    ),
    "SlicedWassersteinTo": (
        of.SlicedWassersteinTo,
        {"nu": (X, Y), "directions": (X[-1:], X[:1])},
    ),
    "Blob": (
        of.Blob,
        {"internal": (of.PowerEntropy(2.0), of.Entropy()), "width": (0.3, 0.5)},
    ),
    "Internal": (
        of.Internal,
        {"e": (lambda r: r, lambda r: -r.sqrt()), "modulus": (0.0, None)},
    ),
    "PowerEntropy": (of.PowerEntropy, {"m": (2.0, 0.6)}),
    "Scaled": (
        of.functionals.Scaled,
        {
            "factor": (2.0, -3.0),
            "functional": (of.Potential(bowl), of.Potential(steep)),
        },
    ),
    "Function": (
        kernels.Function,
        {"function": (bowl, steep), "modulus": (2.0, 10.0)},
    ),
    "TwoPoint": (
        kernels.TwoPoint,
        {"function": (product, distance), "mixture": ("convex", "concave")},
    ),
    "Gaussian": (kernels.Gaussian, {"sigma": (0.3, 0.5)}),
    "InverseMultiquadric": (
        kernels.InverseMultiquadric,
        {"scale": (0.3, 0.5), "power": (0.5, 1.5)},
    ),
    "PowerLaw": (
        kernels.PowerLaw,
        {"attraction": (4.0, 6.0), "repulsion": (2.0, 1.0)},
    ),
    "Riesz": (kernels.Riesz, {"p": (0.5, 0.8)}),
    "Combination": (
        kernels.Combination,
        {
            "parts": (
                ((1.0, kernels.Gaussian(0.3)),),
                ((-1.0, kernels.Log()),),
            )
        },
    ),
}


def answers(thing):
    """Return what a functional or a kernel says, by name."""
    if isinstance(thing, kernels.PairKernel):
        told = {
            name: getattr(thing, name)
            for name in ("modulus", "mixture", "singular", "smooth", "is_radial")
            if hasattr(thing, name)
        }
        told["why"] = thing.why_modulus(), thing.why_mixture()
        value = of.Interaction(thing).value(MU)
        return {**told, "value": value}
    found: dict[Any, Any] = {
        "repr": repr(thing),
        "modulus": (thing.modulus(1), thing.modulus(3)),
    }
    found["why"] = thing.why(1)
    found["mixture"] = thing.mixture_curvature()
    found["terms"] = [(c, repr(term), term.modulus(1)) for c, term in thing.terms()]
    for mu in (MU, RHO, gaussian(2.0)):
        for name in ("value", "first_variation", "value_and_velocity"):
            try:
                found[name, type(mu)] = getattr(thing, name)(mu)
            except (of.errors.OtflowError, TypeError, ValueError) as error:
                found[name, type(mu)] = type(error)
    return found


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def made(name, changed=None):
    make, arguments = MADE[name]
    given = {key: pair[key == changed] for key, pair in arguments.items()}
    return make(**given)


# What an attribute is called, where the argument has another name.
CALLED = {"nu": "target", "modulus": "convexity"}


def check_assigned(thing, attribute, other, fresh):
    """Check that an assignment raises, or that every answer is a fresh one's."""
    answers(thing)  # so that what is kept is kept
    before = answers(thing)
    try:
        setattr(thing, attribute, other)
    except AttributeError:
        after, expected = answers(thing), before
    else:
        after, expected = answers(thing), answers(fresh)
    for key in expected:
        assert same(after[key], expected[key]), key


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, (_, held) in MADE.items() for a in held]
)
def test_an_assignment_raises_or_reaches_every_answer(name, argument):
    thing, fresh = made(name), made(name, argument)
    attribute = argument
    if argument in CALLED and not isinstance(thing, kernels.PairKernel):
        attribute = CALLED[argument]
    check_assigned(thing, attribute, getattr(fresh, attribute), fresh)


# What holds a kernel, and where.
HOLDERS: dict[str, tuple[Any, Any]] = {
    "Interaction": (of.Interaction, lambda F: F.kernel),
    "a multiple": (lambda W: 2 * of.Interaction(W), lambda F: F.functional.kernel),
    "a sum of kernels": (
        lambda W: of.Interaction(2 * W + kernels.Quadratic()),
        lambda F: F.kernel.parts[0][1],
    ),
    "MMDTo": (lambda W: of.MMDTo(X, W), lambda F: F.kernel),
    "MMDTo of a density": (lambda W: of.MMDTo(RHO, W), lambda F: F.kernel),
    "KSD": (lambda W: of.KSD(lambda x: -x, W), lambda F: F.kernel),
    "Combination": (lambda W: W - kernels.Log(), lambda K: K.parts[0][1]),
    "Function": (kernels.Function, lambda K: K.function),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_kernel_that_changes_changes_what_holds_it(name):
    make, kernel_of = HOLDERS[name]
    thing, fresh = make(kernels.Gaussian(0.3)), make(kernels.Gaussian(0.05))
    check_assigned(kernel_of(thing), "sigma", 0.05, kernels.Gaussian(0.05))
    expected = answers(fresh)
    found = answers(thing)
    for key in expected:
        assert same(found[key], expected[key]), key


def test_the_modulus_of_an_interaction_follows_its_kernel():
    W = kernels.Gaussian(0.3)
    F = of.Interaction(W)
    W.sigma = 0.05
    assert F.modulus(1) == pytest.approx(-400.0)
    assert F.convexity == pytest.approx(-400.0)
    F.convexity = -500.0  # a declaration of the user's own
    assert F.modulus(1) == -500.0
    assert "declares" in F.why_modulus(1)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: of.Potential(bowl, modulus=2.0), "V"),
        (lambda: of.Interaction(bowl), "W"),
        (lambda: of.MMDTo(X, kernels.Gaussian(1.0)), "target"),
        (lambda: kernels.Function(bowl), "function"),
        (lambda: kernels.TwoPoint(product), "function"),
    ],
)
def test_a_fixed_attribute_names_the_cure(make, name):
    thing = make()
    kind = type(thing).__name__
    match = f"{name} of {kind} is fixed.*make a new {kind}"
    with pytest.raises(AttributeError, match=match):
        setattr(thing, name, steep)
