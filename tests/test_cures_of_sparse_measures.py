"""Cures of a Frank-Wolfe step that does not fit its measure, its box or its time."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.errors import NotConvergedWarning, Unsupported
from otflow.optimality import BoxDomain
from otflow.schemes import FrankWolfe
from tests.cures import Case, check_cures

F64 = torch.float64
UNIT = BoxDomain(0, 1)
DOTS = of.Particles(torch.linspace(0, 1, 5, dtype=F64)[:, None])
FAR = of.Particles(torch.linspace(0, 2, 5, dtype=F64)[:, None])
CELLS = of.Quantiles(torch.linspace(0, 1, 9, dtype=F64))
WELL = of.Potential(lambda x: (x - 0.3).square().sum(-1))
KINK = of.MMDTo(DOTS, of.kernels.Gaussian(0.2)) + of.Potential(
    lambda x: (x - 1 / 3).abs().sum(-1)
)
SMOOTH = of.MMDTo(DOTS, of.kernels.Gaussian(0.2)) + of.Potential(
    lambda x: ((x - 1 / 3).square() + 1e-4).sqrt().sum(-1)
)


ROOM = BoxDomain(-1, 4)
LOW = of.Particles(torch.zeros(1, 1, dtype=F64))


class Priced(of.Functional):
    """A potential with a low and a high well, and a price for each atom."""

    def __init__(self, price):
        self.price = price

    def value(self, mu):
        well = mu.expectation(lambda x: (-0.05 * x - x.cos().pow(8)).sum(-1))
        return well + self.price * mu.n


def go(scheme, mu=DOTS, F=WELL, dt=1.0, steps=2):
    return of.flow(F, mu, scheme, dt=dt, steps=steps)


def live():
    return of.Particles(torch.linspace(0, 1, 5, dtype=F64)[:, None].requires_grad_())


def one_step(mu):
    scheme = FrankWolfe(UNIT)
    scheme.step(WELL, mu, 1.0, scheme.init(WELL, mu), torch.Generator())


CASES: dict[str, Case] = {
    "a step beyond all mass": (
        ValueError,
        r"at most 1, got 2; take dt=1\.0",
        lambda: go(FrankWolfe(UNIT), dt=2.0),
        [lambda: go(FrankWolfe(UNIT), dt=1.0)],
    ),
    "a measure without atoms": (
        Unsupported,
        "FrankWolfe adds atoms, and Quantiles has none",
        lambda: go(FrankWolfe(UNIT), CELLS),
        [
            lambda: go(
                FrankWolfe(UNIT), of.Particles(CELLS.sample(9, torch.Generator()))
            ),
            lambda: go(FrankWolfe(UNIT), of.Particles(DOTS.points[:1])),
        ],
    ),
    "a graph": (
        Unsupported,
        r"the place of the new atom is found by trial.*mu\.detach\(\)",
        lambda: one_step(live()),
        [lambda: one_step(live().detach())],
    ),
    "atoms outside the box": (
        ValueError,
        "2 of 5 atoms of the measure lie outside the box",
        lambda: go(FrankWolfe(UNIT), FAR),
        [
            lambda: go(FrankWolfe(BoxDomain(0, 2)), FAR),
            lambda: go(FrankWolfe(UNIT), of.Particles(FAR.points[:3])),
        ],
    ),
    "candidates outside the box": (
        ValueError,
        "2 of 5 candidates lie outside the box",
        lambda: go(FrankWolfe(UNIT, FAR.points)),
        [
            lambda: go(FrankWolfe(BoxDomain(0, 2), FAR.points)),
            lambda: go(FrankWolfe(UNIT, FAR.points[:3])),
        ],
    ),
    "a box of another dimension": (
        ValueError,
        r"dimension 2 and the measure 1; give BoxDomain\(lower, upper\) with 1 numbers",
        lambda: go(FrankWolfe(BoxDomain([0, 0], [1, 1]))),
        [lambda: go(FrankWolfe(BoxDomain([0], [1])))],
    ),
    "an unbounded box": (
        ValueError,
        r"must be bounded; take e\.g\. BoxDomain\(-10, 10\)",
        lambda: go(FrankWolfe(BoxDomain(0, math.inf))),
        [lambda: go(FrankWolfe(BoxDomain(-10, 10)))],
    ),
    "a slide and a line search": (
        ValueError,
        "leave sliding or line_search out",
        lambda: FrankWolfe(BoxDomain(0, 1), sliding=True, line_search=True),
        [
            lambda: FrankWolfe(BoxDomain(0, 1), sliding=True),
            lambda: FrankWolfe(BoxDomain(0, 1), line_search=True),
        ],
    ),
    "corners for a domain": (
        TypeError,
        r"domain must be a BoxDomain.*write FrankWolfe\(BoxDomain\(0, 1\)\)",
        lambda: FrankWolfe((0, 1)),
        [lambda: FrankWolfe(BoxDomain(0, 1))],
    ),
    "a slide to a kink": (
        NotConvergedWarning,
        "smooth the kink of F, or take",
        lambda: go(FrankWolfe(UNIT, sliding=True), F=KINK),
        [
            lambda: go(FrankWolfe(UNIT, sliding=True), F=SMOOTH),
            lambda: go(FrankWolfe(UNIT, sliding=False), F=KINK),
        ],
    ),
    "a price for each atom": (
        NotConvergedWarning,
        "F falls for no share of the atom.*make F continuous along mixtures, or",
        lambda: go(FrankWolfe(ROOM, sliding=True), LOW, Priced(0.1), 0.5),
        [
            lambda: go(FrankWolfe(ROOM, sliding=True), LOW, Priced(0.0), 0.5),
            lambda: go(FrankWolfe(ROOM, sliding=False), LOW, Priced(0.1), 0.5),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cure_cures(name):
    check_cures(CASES[name])
