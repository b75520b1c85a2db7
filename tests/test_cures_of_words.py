"""Cures of words that will go, of mixtures, and of measures of one's own."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.proximal import (
    Certificate,
    ParticleProximal,
    ProxResult,
    SinkhornParticles,
    TangentProximal,
    certify,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures
from tests.proximal.test_tangent import Atoms, Scales

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1), modulus=2.0)
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
BELL = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
KNOWN = {
    "energy_before": 2.0,
    "energy_after": 1.0,
    "dt": 0.5,
    "w2": 0.5,
    "residual": 1e-9,
    "converged": True,
    "guarantee": "stationary",
    "iterations": 3,
}


def square(z):
    return z.square().sum(-1)


def draws(mu):
    return of.Particles(mu.sample(50, torch.Generator().manual_seed(0)))


def room(blocked):
    """Return a density on ten cells, of which some are obstacles."""
    obstacles = torch.zeros(10, dtype=torch.bool)
    obstacles[blocked] = True
    rho = torch.ones(10, dtype=F64).masked_fill(obstacles, 0.0)
    return of.GridDensity(rho, 0, 1, walls=True, obstacles=obstacles, normalize=True)


def anew(rho, blocked):
    """Return the same density in a room with these obstacles."""
    obstacles = torch.zeros(10, dtype=torch.bool)
    obstacles[blocked] = True
    return of.GridDensity(rho.grid, 0, 1, walls=True, obstacles=obstacles)


class Degenerate(Atoms):
    """Atoms that count the sum of their coordinates alone."""

    def inner(self, u, v):
        return (u.sum(-1) * v.sum(-1)).mean()


class DegenerateWithTheVerb(Degenerate):
    """The same, with the gradient in closed form."""

    def pull_back(self, tangent, gradient):
        return gradient


def own(**words):
    """Define a functional of one's own with these words beside its value."""
    value = {"value": lambda _, mu: mu.expectation(square)}
    return type("Own", (of.Functional,), value | words)()


def numbered(name):
    """Give a functional an attribute that is a number."""
    F = own()
    setattr(F, name, 2.0)
    return F


def stepped(mu):
    return TangentProximal().solve(of.Potential(lambda x: x[..., 0]), mu, 0.1)


class Doubled(of.Functional):
    """A functional whose terms are not its own."""

    def value(self, mu):
        return mu.expectation(square)

    def terms(self):
        return ((2.0, SQUARE),)


class Whole(Doubled):
    terms = of.Functional.terms


class Halved(Doubled):
    def terms(self):
        return ((0.5, SQUARE), (0.5, SQUARE))


class Answering(of.schemes.Scheme):
    """A scheme that answers with a function of the measure."""

    def __init__(self, answer):
        self.answer = answer

    def step(self, F, mu, dt, state, generator):
        return self.answer(F, mu)


def answering(answer):
    return lambda: of.flow(SQUARE, CLOUD, Answering(answer), dt=0.1, steps=1)


def log(z):
    return -z.norm(dim=-1).log()


def quantiles(n=100, reach=4.0, grading=1.0):
    return of.Quantiles.from_function(
        lambda x: (-2 * x.square().sum(-1)).exp(),
        -reach,
        reach,
        n,
        grading=grading,
        dtype=F64,
    )


CASES: dict[str, Case] = {
    "cells that are wide in the tails": (
        of.errors.CellWarning,
        r"take grading=2 or more, a larger n, or an interval closer about the mass",
        quantiles,
        [
            lambda: quantiles(grading=2.0),
            lambda: quantiles(n=1600),
            lambda: quantiles(reach=1.5),
        ],
    ),
    "a step that is a measure": (
        TypeError,
        r"return otflow\.schemes\.Step\(measure, state\)",
        answering(lambda _, mu: mu),
        [answering(lambda _, mu: of.schemes.Step(mu, None))],
    ),
    "the energy of a step as a float": (
        TypeError,
        r"hand over F\.value\(mu\), or leave it out",
        answering(lambda F, mu: of.schemes.Step(mu, None, energy=float(F(mu)))),
        [
            answering(lambda F, mu: of.schemes.Step(mu, None, energy=F.value(mu))),
            answering(lambda _, mu: of.schemes.Step(mu, None)),
        ],
    ),
    "a kernel without a value at 0": (
        of.errors.NonFinite,
        r"kernels\.Function\(W, singular=True\)",
        lambda: CLOUD.convolve(log),
        [lambda: CLOUD.convolve(of.kernels.Function(log, singular=True))],
    ),
    "a solver's own word as an attribute": (
        AttributeError,
        r"words as info\['stalled'\]",
        lambda: ParticleProximal().solve(SQUARE, CLOUD, 0.1).certificate.stalled,
        [lambda: ParticleProximal().solve(SQUARE, CLOUD, 0.1).certificate["stalled"]],
    ),
    "terms that sum to something else": (
        ValueError,
        r"functionals that sum to `value`, or leave `terms` out",
        lambda: of.flow(Doubled(), LINE, of.JKO(), dt=0.1, steps=1),
        [
            lambda: of.flow(Whole(), LINE, of.JKO(), dt=0.1, steps=1),
            lambda: of.flow(Halved(), LINE, of.JKO(), dt=0.1, steps=1),
        ],
    ),
    "a modulus that is a number": (
        TypeError,
        "modulus\\(dim\\) is a method",
        lambda: numbered("modulus"),
        [
            lambda: own(modulus=lambda _, dim: 2.0 + 0 * dim).modulus(2),
            lambda: [SQUARE.convexity],
            lambda: numbered("stiffness"),
        ],
    ),
    "a bound in the old words": (
        DeprecationWarning,
        "displacement_modulus goes in the next release",
        lambda: SQUARE.displacement_modulus,
        [lambda: SQUARE.modulus(2)],
    ),
    "pairs left out by an option": (
        DeprecationWarning,
        "diagonal= goes in the next release",
        lambda: CLOUD.interaction(square, diagonal=False),
        [lambda: CLOUD.interaction(of.kernels.Function(square, singular=True))],
    ),
    "a result by its numbers": (
        DeprecationWarning,
        "ProxResult reads iterations and residual from its certificate",
        lambda: ProxResult(CLOUD, None, 3, 1e-9, certify(**KNOWN)),
        [lambda: ProxResult(CLOUD, None, certificate=certify(**KNOWN))],
    ),
    "a blur of the exact solver": (
        DeprecationWarning,
        "use otflow.proximal.SinkhornParticles",
        lambda: ParticleProximal(blur=0.1),
        [lambda: SinkhornParticles(0.1).solve(SQUARE, CLOUD, 0.1)],
    ),
    "a claim without energies": (
        TypeError,
        "both its energies are known; name them",
        lambda: Certificate.of({"guarantee": "optimal", "converged": True}),
        [lambda: Certificate.of(KNOWN)],
    ),
    "a word that is no number": (
        TypeError,
        "give an entry of your own another name",
        lambda: Certificate.of({"residual": "small"}),
        [lambda: Certificate.of({"verdict": "small"})],
    ),
    "a mixture of two kinds": (
        of.errors.Unsupported,
        "mix draws of both, each Particles",
        lambda: CLOUD.mix(BELL, 0.5),
        [lambda: draws(LINE).mix(draws(BELL), 0.5)],
    ),
    "a mixture of Gaussians": (
        of.errors.Unsupported,
        "a mixture of Gaussians is no Gaussian",
        lambda: BELL.mix(BELL, 0.5),
        [lambda: draws(BELL).mix(draws(BELL), 0.5)],
    ),
    "a mixture of quantiles": (
        of.errors.Unsupported,
        "or densities on one grid",
        lambda: LINE.mix(LINE, 0.5),
        [
            lambda: draws(LINE).mix(draws(LINE), 0.5),
            lambda: room([]).mix(room([]), 0.5),
        ],
    ),
    "a mixture across obstacles": (
        ValueError,
        "make both anew with the obstacles that they share",
        lambda: room([0, 1]).mix(room([0, 9]), 0.5),
        [lambda: anew(room([0, 1]), [0]).mix(anew(room([0, 9]), [0]), 0.5)],
    ),
    "a transposed differential that is not there": (
        of.errors.Unsupported,
        "differentiate value\\(mu.push\\(tangent, 1.0\\)\\) in the tangent",
        lambda: Scales(normal(3, 1).exp()).pull_back(normal(3, 1), normal(3, 1)),
        [
            lambda: torch.func.grad(
                lambda t: SQUARE.value(Scales(normal(3, 1).exp()).push(t, 1.0))
            )(normal(3, 1))
        ],
    ),
    "a degenerate product": (
        of.errors.Unsupported,
        "add the verb pull_back, which gives it",
        lambda: stepped(Degenerate(normal(3, 2))),
        [lambda: stepped(DegenerateWithTheVerb(normal(3, 2)))],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])


def test_a_report_names_its_words():
    info = of.flow(SQUARE, CLOUD, of.ExplicitEuler(), dt=0.1, steps=1).info[0]
    with pytest.raises(KeyError, match=r"certified: .* energy_before"):
        info["certified"]
    assert "certified" not in info
    assert info.get("certified") is None
    with pytest.raises(AttributeError, match=r"no attribute 'mass'$"):
        _ = info.mass
