"""Cures of what is given in the place of a domain, of a measure, or of a corner."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import Unsupported
from otflow.meanfield import PathBall, Risk, TwoLayer, VariationBall
from otflow.optimality import (
    BoxDomain,
    OnGrid,
    entropic_bracket,
    entropic_gap,
    gibbs,
    optimality_gap,
)
from otflow.schemes import FrankWolfe
from tests.cures import Case, check_cures

F64, F32 = torch.float64, torch.float32
CLOUD = of.Particles(torch.linspace(0, 1, 5, dtype=F64)[:, None])
X = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
NEURON = of.Particles(torch.tensor([[0.5, 1.0, 0.0]], dtype=F64))
V = of.Potential(lambda x: x.square().sum(-1))
FREE = V + 0.5 * of.Entropy()
PLACES = torch.tensor([[0.0, -1.0], [2.0, 1.0]], dtype=F64)


def density(dtype=F64):
    w = torch.linspace(1, 2, 8, dtype=dtype)
    return of.GridDensity(w, 0, 1, walls=True, normalize=True)


def risk(activation="tanh", dtype=F64):
    return Risk(TwoLayer(activation), X.to(dtype), X[:, 0].to(dtype))


def gap(domain, F=V, mu=CLOUD, kind="proved"):
    found = optimality_gap(F, mu, domain)
    assert found.kind == kind
    return found


def variation(lower, upper):
    return gap(VariationBall(1.0, lower, upper), risk(), NEURON)


def moves(scheme, F=V, mu=CLOUD):
    return of.flow(F, mu, scheme, dt=1.0, steps=1)


def mmd(dtype):
    return of.MMDTo(CLOUD.to(dtype), of.kernels.Gaussian(1.0))


CASES: dict[str, Case] = {
    "a box that is larger than the grid": (
        ValueError,
        r"reaches beyond the grid.*take BoxDomain\(\[0.0\], \[1.0\]\), or OnGrid\(\)",
        lambda: gap(BoxDomain(-1, 2), V, density()),
        [
            lambda: gap(BoxDomain([0.0], [1.0]), V, density(), "searched"),
            lambda: gap(OnGrid(), V, density()),
        ],
    ),
    "a fixed point for a density": (
        TypeError,
        "optimum must be a GridDensity.*take its .measure",
        lambda: entropic_bracket(FREE, density(), gibbs(FREE, density())),
        [lambda: entropic_bracket(FREE, density(), gibbs(FREE, density()).measure)],
    ),
    "a fixed point for the measure": (
        TypeError,
        "rho must be a GridDensity.*take its .measure",
        lambda: entropic_gap(FREE, gibbs(FREE, density())),
        [lambda: entropic_gap(FREE, gibbs(FREE, density()).measure)],
    ),
    "a run for its end": (
        TypeError,
        "mu must be a Measure.*take its .final",
        lambda: V.value(moves(of.ExplicitEuler())),
        [lambda: V.value(moves(of.ExplicitEuler()).final)],
    ),
    "a false word in a bracket": (
        ValueError,
        r"and that is false.*compare F.value\(rho\) with F.value\(optimum\)",
        lambda: entropic_bracket(attraction("convex"), density(), density()),
        [lambda: attraction(None).value(density())],
    ),
    "two corners for a domain": (
        TypeError,
        r"domain must be a Domain.*write optimality.BoxDomain\(-1, 2\)",
        lambda: gap((-1, 2)),
        [lambda: gap(of.optimality.BoxDomain(-1, 2))],
    ),
    "two corners for the domain of a report": (
        TypeError,
        r"domain must be a Domain.*write optimality.BoxDomain\(\[-1\], \[2\]\)",
        lambda: of.analysis.certify(moves(of.ExplicitEuler()), V, domain=[[-1], [2]]),
        [
            lambda: of.analysis.certify(
                moves(of.ExplicitEuler()), V, domain=BoxDomain([-1], [2])
            )
        ],
    ),
    "a number for a domain": (
        TypeError,
        r"domain must be a Domain.*give e.g. optimality.BoxDomain\(lower, upper\)",
        lambda: gap(1.0),
        [lambda: gap(BoxDomain(0.0, 1.0))],
    ),
    "a ball for a potential": (
        Unsupported,
        r"holds none; give meanfield.Risk\(.*\), or take for this F .*BoxDomain\(l",
        lambda: gap(PathBall(1.0)),
        [
            lambda: gap(PathBall(1.0), risk("relu"), NEURON),
            lambda: gap(BoxDomain(0.0, 1.0)),
        ],
    ),
    "candidates first": (
        TypeError,
        r"second: write FrankWolfe\(BoxDomain\(\[0.0, -1.0\], \[2.0, 1.0\]\), cand",
        lambda: FrankWolfe(PLACES),
        [lambda: FrankWolfe(BoxDomain([0.0, -1.0], [2.0, 1.0]), PLACES)],
    ),
    "candidates of many axes first": (
        TypeError,
        r"write FrankWolfe\(BoxDomain\(lower, upper\), candidates\)",
        lambda: FrankWolfe(torch.zeros(3, 9).numpy()),
        [lambda: FrankWolfe(BoxDomain(-1, 1), torch.zeros(3, 9).numpy())],
    ),
    "the number of candidates first": (
        TypeError,
        r"write FrankWolfe\(BoxDomain\(lower, upper\), 256\)",
        lambda: FrankWolfe(256, 50),
        [lambda: moves(FrankWolfe(BoxDomain(0, 1), 256, 50))],
    ),
    "two corners for a Frank-Wolfe box": (
        TypeError,
        r"write FrankWolfe\(BoxDomain\(0, 1\)\)",
        lambda: FrankWolfe((0, 1)),
        [lambda: moves(FrankWolfe(BoxDomain(0, 1)))],
    ),
    "corners of two dimensions": (
        ValueError,
        "lower has 2 numbers and upper 3; give one per inner weight, or one for all",
        lambda: variation([-3, -3], [3, 3, 3]),
        [lambda: variation([-3, -3], [3, 3]), lambda: variation([-3, -3], 3)],
    ),
    "corners of another network": (
        ValueError,
        "upper has 3 numbers and a neuron 2 inner weights; give 2 numbers, or one",
        lambda: variation(-3, [3, 3, 3]),
        [lambda: variation(-3, [3, 3]), lambda: variation(-3, 3.0)],
    ),
    "a number of a gap that bounds nothing": (
        ValueError,
        "it is no number: the domain is unbounded.*read gap.kind before, or gap.value",
        lambda: float(gap(BoxDomain(0, math.inf), kind="none")),
        [
            lambda: gap(BoxDomain(0, math.inf), kind="none").value,
            lambda: float(gap(BoxDomain(0, 1))),
        ],
    ),
    "a measure of float32 beside a target of float64": (
        TypeError,
        r"nothing is cast silently: convert one with .to\(torch.float32\)",
        lambda: gap(BoxDomain(0, 1), mmd(F64), CLOUD.to(F32)),
        [
            lambda: gap(BoxDomain(0, 1), mmd(F64).to(F32), CLOUD.to(F32)),
            lambda: gap(BoxDomain(0, 1), mmd(F64), CLOUD.to(F32).to(F64)),
        ],
    ),
}


def attraction(word):
    return of.Interaction(lambda z: z.square().sum(-1), mixture=word) + of.Entropy()


@pytest.mark.parametrize("name", CASES)
def test_the_cure_works(name):
    check_cures(CASES[name])


@pytest.mark.parametrize(
    "corners",
    [
        (-3, 3),
        (-3.0, [3, 3.0]),
        ((-3, -3), 3),
        (torch.full((2,), -3.0), X.new_full((2,), 3).numpy()),
    ],
)
def test_corners_of_a_ball_are_numbers_or_lists(corners):
    """As those of a box are; one number stands for all inner weights."""
    plain = variation([-3.0, -3.0], [3.0, 3.0])
    found = variation(*corners)
    assert found.value == plain.value
    assert torch.equal(found.argmin, plain.argmin)


# What computes in float64 must not hide that F takes another dtype.
PAIRS = {
    "a target": (mmd(F64), mmd(F32), CLOUD.to(F32)),
    "four atoms": (mmd(F64), mmd(F32), of.Particles(CLOUD.to(F32).points[:4])),
    "a target of float32": (mmd(F32), mmd(F64), CLOUD),
    "data": (risk(), risk(dtype=F32), NEURON.to(F32)),
    "a constant": (
        of.Potential(lambda x: (x - X[0]).square().sum(-1)),
        of.Potential(lambda x: (x - X[0].to(x)).square().sum(-1)),
        CLOUD.to(F32),
    ),
    "a grid": (mmd(F64), mmd(F32), density(F32)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_gap_and_a_flow_say_the_same_of_two_dtypes(name):
    mixed, alike, mu = PAIRS[name]
    scheme = of.ExplicitEuler()
    box = BoxDomain(0, 1) if mu.dim == 1 else BoxDomain(-2, 2)
    words = []
    for F, error in ((mixed, TypeError), (alike, None)):
        for run in (
            lambda F=F: of.flow(F, mu, scheme, dt=1e-3, steps=1),
            lambda F=F: optimality_gap(F, mu, box),
        ):
            if error is None:
                run()
                continue
            with pytest.raises(error) as caught:
                run()
            words.append(str(caught.value))
    assert words[0] == words[1]
