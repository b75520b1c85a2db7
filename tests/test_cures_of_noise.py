"""Cures of schemes with noise, and of free energies."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.analysis import log_sobolev
from otflow.schemes import (
    MALA,
    Anneal,
    DualAveraging,
    EntropicFictitiousPlay,
    FrankWolfe,
    UnderdampedLangevin,
)
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SQUARE = of.Potential(lambda x: 0.5 * x.square().sum(-1))
CONVEX = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
STEEP = of.Potential(lambda x: x.square().square().sum(-1))
WALL = of.Potential(lambda x: -(1 - x).log().sum(-1) + x.square().sum(-1))
ATTRACTION = of.Interaction(of.kernels.Gaussian(1.0))
BOX = of.optimality.BoxDomain(-3.0, 3.0)
HEAT = of.Entropy()
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
INSIDE = of.Particles(0.1 * normal(50, 1))


def draws():
    return of.Particles(LINE.sample(6, torch.Generator()))


def flow(F, mu, scheme, dt=0.1, steps=2):
    return of.flow(F, mu, scheme, dt=dt, steps=steps, generator=0)


def cells():
    return of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(), -3, 3, 60, dtype=F64
    )


def growing(k):
    return 1.5 + 0 * k


CASES: dict[str, Case] = {
    "a density sampled by MALA": (
        of.errors.Unsupported,
        r"use JKO\(\), or Particles\(mu\.sample\(n, generator\)\)",
        lambda: flow(SQUARE + HEAT, LINE, MALA()),
        [
            lambda: flow(SQUARE + HEAT, LINE, of.JKO()),
            lambda: flow(SQUARE + HEAT, draws(), MALA()),
        ],
    ),
    "no entropy to sample by": (
        ValueError,
        r"add temperature \* Entropy\(\), or use ExplicitEuler\(\)",
        lambda: flow(SQUARE, CLOUD, MALA()),
        [
            lambda: flow(SQUARE + 0.1 * HEAT, CLOUD, MALA()),
            lambda: flow(SQUARE, CLOUD, of.ExplicitEuler()),
        ],
    ),
    "a rest that is not linear": (
        of.errors.Unsupported,
        r"not known to be linear.*use Langevin\(\), or UnderdampedLangevin\(\)",
        lambda: flow(ATTRACTION + HEAT, CLOUD, MALA()),
        [
            lambda: flow(ATTRACTION + HEAT, CLOUD, of.Langevin()),
            lambda: flow(ATTRACTION + HEAT, CLOUD, UnderdampedLangevin()),
        ],
    ),
    "a proposal where V is not finite": (
        of.errors.Diverged,
        r"not finite at a proposal.*take a smaller dt, or a V that is finite",
        lambda: flow(WALL + HEAT, INSIDE, MALA(), dt=1.0, steps=30),
        [
            lambda: flow(WALL + HEAT, INSIDE, MALA(), dt=1e-3, steps=30),
            lambda: flow(SQUARE + HEAT, INSIDE, MALA(), dt=1.0, steps=30),
        ],
    ),
    "velocities that diverge": (
        of.errors.Diverged,
        r"take a smaller dt$",
        lambda: flow(STEEP + HEAT, CLOUD, UnderdampedLangevin(), dt=2.0, steps=50),
        [lambda: flow(STEEP + HEAT, CLOUD, UnderdampedLangevin(), dt=0.01, steps=50)],
    ),
    "velocities beside a density": (
        of.errors.Unsupported,
        r"use JKO\(\), or Particles\(mu\.sample\(n, generator\)\)",
        lambda: flow(SQUARE + HEAT, LINE, UnderdampedLangevin()),
        [
            lambda: flow(SQUARE + HEAT, LINE, of.JKO()),
            lambda: flow(SQUARE + HEAT, draws(), UnderdampedLangevin()),
        ],
    ),
    "a factor that grows": (
        ValueError,
        r"give a function of k if it is to grow, e\.g\. lambda k: 1\.5",
        lambda: Anneal(of.Langevin(), 1.5),
        [lambda: flow(SQUARE + HEAT, CLOUD, Anneal(of.Langevin(), growing))],
    ),
    "no temperature to anneal": (
        ValueError,
        r"add temperature \* Entropy\(\), or anneal dt by lengths=True",
        lambda: flow(SQUARE, CLOUD, Anneal(of.ExplicitEuler(), 0.9)),
        [
            lambda: flow(SQUARE + 0.1 * HEAT, CLOUD, Anneal(of.Langevin(), 0.9)),
            lambda: flow(SQUARE, CLOUD, Anneal(of.ExplicitEuler(), 0.9, lengths=True)),
        ],
    ),
    "a rate without an entropy": (
        ValueError,
        r"add T \* Entropy\(\) with T > 0",
        lambda: log_sobolev(CONVEX),
        [lambda: log_sobolev(CONVEX + HEAT)],
    ),
    "a rate of an attraction of which nothing is declared": (
        ValueError,
        r"give oscillation=, a bound on.*or convexity=",
        lambda: log_sobolev(CONVEX + ATTRACTION + HEAT),
        [
            lambda: log_sobolev(CONVEX + ATTRACTION + HEAT, oscillation=2.0),
            lambda: log_sobolev(CONVEX + ATTRACTION + HEAT, convexity=-0.5),
        ],
    ),
    "a rate without convexity": (
        ValueError,
        r"add a ridge, e\.g\..*or declare modulus= of its potentials",
        lambda: log_sobolev(SQUARE + HEAT, oscillation=1.0),
        [
            lambda: log_sobolev(SQUARE + 0.1 * CONVEX + HEAT, oscillation=1.0),
            lambda: log_sobolev(CONVEX + HEAT),
        ],
    ),
    "no entropy to play by": (
        ValueError,
        r"add temperature \* Entropy\(\), or use FrankWolfe\(domain\)",
        lambda: flow(SQUARE, CLOUD, EntropicFictitiousPlay(inner_dt=0.1)),
        [
            lambda: flow(SQUARE + HEAT, CLOUD, EntropicFictitiousPlay(inner_dt=0.1)),
            lambda: flow(SQUARE, CLOUD, FrankWolfe(BOX)),
        ],
    ),
    "quantiles that play": (
        of.errors.Unsupported,
        r"use JKO\(\), or Particles\(mu\.sample\(n, generator\)\)",
        lambda: flow(SQUARE + HEAT, LINE, DualAveraging(inner_dt=0.1)),
        [
            lambda: flow(SQUARE + HEAT, LINE, of.JKO()),
            lambda: flow(SQUARE + HEAT, draws(), DualAveraging(inner_dt=0.1)),
        ],
    ),
    "particles without inner steps": (
        ValueError,
        r"give inner_dt=\.\.\., or use a GridDensity",
        lambda: flow(SQUARE + HEAT, CLOUD, DualAveraging()),
        [
            lambda: flow(SQUARE + HEAT, CLOUD, DualAveraging(inner_dt=0.1)),
            lambda: flow(SQUARE + HEAT, cells(), DualAveraging()),
        ],
    ),
    "inner steps that diverge": (
        of.errors.Diverged,
        r"take a smaller inner_dt",
        lambda: flow(STEEP + HEAT, CLOUD, DualAveraging(inner_dt=5.0)),
        [lambda: flow(STEEP + HEAT, CLOUD, DualAveraging(inner_dt=0.005))],
    ),
    "a risk that is a number": (
        TypeError,
        r"e\.g\. Risk\(TwoLayer\('tanh'\), X, y\)",
        lambda: of.meanfield.free_energy(0.5, 0.1),
        [
            lambda: of.meanfield.free_energy(
                of.meanfield.Risk(
                    of.meanfield.TwoLayer("tanh"), normal(5, 2), normal(5)
                ),
                0.1,
            )
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_that_an_error_names_works(case):
    check_cures(case)
