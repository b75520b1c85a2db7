"""Cures of what does not fit a check at the door, or the arrays of a measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

# The cells are few, or wide in the tails: what is tried here does not need them narrow.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.CellWarning")

F64 = torch.float64
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
STANDARD = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
SQUARE = of.Potential(lambda x: x.square().sum(-1))
GENERATOR = torch.Generator()


def cells(n=8):
    return of.GridDensity(torch.ones(n, dtype=F64), 0, 1, walls=True)


def pole(y):
    """Return a density that is singular at 0."""
    return y[:, 0].abs() ** -0.8


def steep(y):
    """Return one that overflows in float32."""
    return y[:, 0] ** -0.93


def quantiles(f, lower=-4.0, upper=4.0, **options):
    options = {"n": 16, "dtype": F64, **options}
    return of.Quantiles.from_function(f, lower, upper, **options)


def bell(x):
    return (-x.square().sum(-1)).exp()


def needle(x):
    return (-(1e8 * (x[:, 0] - 0.3)).square()).exp()


def rough(x):
    """Return noise that looks like no function."""
    return 1 + (1e6 * (x[:, 0] * 12.9898).sin()).sin()


def slope_in_masses(keep):
    """Ask for the second derivative of a velocity in masses, one of which is zero."""
    x = normal(3, 2)
    w = torch.tensor([0.5, 0.5, 0.0], dtype=F64, requires_grad=True)
    mu = keep(x, w)
    v = SQUARE.velocity(mu)
    return v.square().sum()


class Bare(of.Particles):
    """Atoms of one's own, that say nothing of what they cannot do."""

    cures: ClassVar[Mapping[str, str]] = MappingProxyType({})


class Writes(of.Functional):
    """A functional that writes into the masses where no derivative is recorded."""

    def __init__(self, own):
        self.own = own

    def value(self, mu):
        w = self.own(mu.points)
        with torch.no_grad():
            w.mul_(1.0)
        return mu.points.square().sum()


CASES: dict[str, Case] = {
    "points on the line in one row": (
        ValueError,
        r"use points\[:, None\] for points on the line",
        lambda: of.Particles(normal(5)),
        [lambda: of.Particles(normal(5)[:, None])],
    ),
    "coordinates too large": (
        ValueError,
        "rescale the points",
        lambda: of.Particles(1e200 * normal(5, 2)),
        [lambda: of.Particles(1e200 * normal(5, 2) / 1e200)],
    ),
    "an option misspelt": (
        ValueError,
        "did you mean 'square'",
        lambda: of.meanfield.Risk(
            of.meanfield.TwoLayer("tanh"), normal(4, 1), normal(4), loss="sqare"
        ),
        [
            lambda: of.meanfield.Risk(
                of.meanfield.TwoLayer("tanh"), normal(4, 1), normal(4), loss="square"
            )
        ],
    ),
    "the logarithm of 0": (
        of.errors.NonFinite,
        r"look for log\(0\)",
        lambda: of.Potential(lambda x: (0 * x).log().sum(-1)).value(CLOUD),
        [lambda: of.Potential(lambda x: x.square().log().sum(-1)).value(CLOUD)],
    ),
    "a covariance that is a vector": (
        ValueError,
        r"use torch\.diag\(covariance\)",
        lambda: of.Gaussian(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)),
        [
            lambda: of.Gaussian(
                torch.zeros(2, dtype=F64), torch.diag(torch.ones(2, dtype=F64))
            )
        ],
    ),
    "a mean that is a number": (
        ValueError,
        r"use mean\[None\] for a number",
        lambda: of.Gaussian(torch.zeros((), dtype=F64), torch.eye(1, dtype=F64)),
        [
            lambda: of.Gaussian(
                torch.zeros((), dtype=F64)[None], torch.eye(1, dtype=F64)
            )
        ],
    ),
    "a first variation of a Gaussian": (
        of.errors.Unsupported,
        r"use `velocity`, or ask a GridDensity or Particles\(mu\.sample",
        lambda: SQUARE.first_variation(STANDARD),
        [
            lambda: SQUARE.velocity(STANDARD),
            lambda: SQUARE.first_variation(cells()),
            lambda: SQUARE.first_variation(of.Particles(STANDARD.sample(9, GENERATOR))),
        ],
    ),
    "birth and death of a Gaussian": (
        of.errors.Unsupported,
        r"use a GridDensity, or Particles\(mu\.sample\(\.\.\.\)\), for birth and death",
        lambda: STANDARD.reweight(STANDARD.points[:, 0], 0.1),
        [
            lambda: cells().reweight(cells().points[:, 0], 0.1),
            lambda: of.Particles(STANDARD.sample(5, GENERATOR)).reweight(
                normal(5), 0.1
            ),
        ],
    ),
    "a kernel infinite at a node": (
        of.errors.NonFinite,
        "use a smooth kernel, or Quantiles, GridDensity or Particles",
        lambda: of.Interaction(ball).value(STANDARD),
        [
            lambda: of.Interaction(of.kernels.Gaussian(1.0)).value(STANDARD),
            lambda: of.Interaction(ball).value(LINE),
            lambda: of.Interaction(ball).value(cells()),
            lambda: of.Interaction(ball).value(of.Particles(0.1 * normal(5, 2))),
        ],
    ),
    "a first variation of quantiles": (
        of.errors.Unsupported,
        "ask a GridDensity or Particles for a first variation",
        lambda: SQUARE.first_variation(LINE),
        [
            lambda: SQUARE.first_variation(cells()),
            lambda: SQUARE.first_variation(CLOUD),
        ],
    ),
    "noise on quantiles": (
        of.errors.Unsupported,
        r"add Entropy\(\) to the functional and flow it with JKO\(\) or Explicit",
        lambda: LINE.diffuse(0.1, GENERATOR),
        [
            lambda: of.flow(SQUARE + of.Entropy(), LINE, of.JKO(), dt=0.1, steps=1),
            lambda: of.flow(
                SQUARE + of.Entropy(), LINE, of.ExplicitEuler(), dt=1e-3, steps=1
            ),
        ],
    ),
    "birth and death of quantiles": (
        of.errors.Unsupported,
        "use a GridDensity or Particles for birth and death",
        lambda: LINE.reweight(torch.ones(8, dtype=F64), 0.1),
        [
            lambda: cells().reweight(cells().points[:, 0], 0.1),
            lambda: CLOUD.reweight(normal(5), 0.1),
        ],
    ),
    "the entropy of particles": (
        of.errors.Unsupported,
        r"represent the measure by a density .*, or flow an entropy with Langevin\(\)",
        lambda: of.Entropy().value(CLOUD),
        [
            lambda: of.Entropy().value(cells()),
            lambda: of.Entropy().value(LINE),
            lambda: of.Entropy().value(STANDARD),
            lambda: of.flow(
                SQUARE + of.Entropy(),
                CLOUD,
                of.Langevin(),
                dt=0.1,
                steps=1,
                generator=0,
            ),
        ],
    ),
    "a narrow density that no panel sees": (
        ValueError,
        r"around=\(x,\), or take an interval",
        lambda: quantiles(needle, 0.0, 1.0),
        [
            lambda: quantiles(needle, 0.0, 1.0, n=2, around=(0.3,)),
            lambda: quantiles(needle, 0.3 - 1e-7, 0.3 + 1e-7, n=2),
        ],
    ),
    "a density whose integral overflows": (
        ValueError,
        "divide f by",
        lambda: quantiles(lambda x: 1e308 * (1 + 0 * x[:, 0])),
        [lambda: quantiles(lambda x: 1e308 * (1 + 0 * x[:, 0]) / 1e308)],
    ),
    "an interval too long": (
        ValueError,
        "take a shorter interval",
        lambda: quantiles(bell, -1e200, 1e200),
        [lambda: quantiles(bell, -10.0, 10.0)],
    ),
    "a place that is no sequence": (
        TypeError,
        r"use around=\(x,\)",
        lambda: quantiles(bell, around=1.0),
        [lambda: quantiles(bell, around=(1.0,))],
    ),
    "a place outside": (
        ValueError,
        "leave it out",
        lambda: quantiles(bell, around=(9.0,)),
        [lambda: quantiles(bell, around=())],
    ),
    "a density of a column": (
        of.errors.InvalidFunctional,
        r"reduce over the last axis, e\.g\. \.sum\(-1\)",
        lambda: quantiles(lambda x: (-x.square()).exp()),
        [lambda: quantiles(lambda x: (-x.square()).exp().sum(-1))],
    ),
    "a complex density": (
        of.errors.InvalidFunctional,
        r"take \.real or \.abs\(\) of it",
        lambda: quantiles(lambda x: bell(x).to(torch.complex128)),
        [
            lambda: quantiles(lambda x: bell(x).to(torch.complex128).real),
            lambda: quantiles(lambda x: bell(x).to(torch.complex128).abs()),
        ],
    ),
    "a density with a parameter to learn": (
        of.errors.Unsupported,
        r"use Quantiles\(edges, weights\), or from_quantile",
        lambda: quantiles(lambda x: bell(RATE * x)),
        [
            lambda: of.Quantiles(RATE * torch.linspace(-1, 1, 9, dtype=F64)),
            lambda: of.Quantiles.from_quantile(lambda u: RATE * u, 8, dtype=F64),
        ],
    ),
    "a rough density": (
        of.errors.NotConverged,
        "take a shorter interval, a smoother f, .* or from_quantile or from_samples",
        lambda: quantiles(rough),
        [
            lambda: quantiles(rough, 0.0, 1e-7),
            lambda: quantiles(bell),
            lambda: of.Quantiles.from_quantile(lambda u: u, 8, dtype=F64),
            lambda: of.Quantiles.from_samples(normal(50, 1), 8),
        ],
    ),
    "a density that is singular off the origin": (
        of.errors.NotConverged,
        r"write f in y = x - m, .*; or smooth f .*; or use from_quantile",
        lambda: quantiles(lambda x: pole(x - 0.3), 0.0, 1.0),
        [
            lambda: quantiles(pole, -0.3, 0.7),
            lambda: quantiles(
                lambda x: (1e-6 + (x - 0.3).square().sum(-1)) ** -0.4,
                0.0,
                1.0,
                around=(0.3,),
            ),
            lambda: of.Quantiles.from_quantile(lambda u: u**5, 8, dtype=F64),
        ],
    ),
    "a density that overflows at the origin": (
        ValueError,
        r"singular there, take dtype=torch\.float64 .*, or smooth f, or use from_quant",
        lambda: quantiles(steep, 0.0, 1.0, dtype=torch.float32),
        [
            lambda: quantiles(steep, 0.0, 1.0),
            lambda: quantiles(
                lambda x: (x[:, 0] + 1e-3) ** -0.93, 0.0, 1.0, dtype=torch.float32
            ),
            lambda: of.Quantiles.from_quantile(lambda u: u**14, 8, dtype=F64),
        ],
    ),
    "cells below the last place": (
        ValueError,
        r"take a smaller n, dtype=torch\.float64 .*, or the origin near there",
        lambda: quantiles(spot, -1.0, 1e3, n=64, dtype=torch.float32, around=(999.0,)),
        [
            lambda: quantiles(spot, -1.0, 1e3, n=2, around=(999.0,)),
            lambda: quantiles(spot, -1.0, 1e3, n=64, around=(999.0,)),
            lambda: quantiles(
                lambda x: spot(x + 999.0),
                -1.0,
                1.0,
                n=64,
                dtype=torch.float32,
            ),
        ],
    ),
    "a ground function of one number": (
        of.errors.InvalidFunctional,
        r"reduce over the last axis, e\.g\. \.sum\(-1\)",
        lambda: CLOUD.expectation(lambda x: x.sum()),
        [lambda: CLOUD.expectation(lambda x: x.sum(-1))],
    ),
    "a measure of one's own": (
        of.errors.Unsupported,
        "use a representation that has it",
        lambda: Bare(normal(3, 2)).density(),
        [lambda: LINE.density(), lambda: STANDARD.density()],
    ),
    "a written copy": (
        of.errors.InvalidFunctional,
        r"work on a copy: mu\.points\.clone\(\)",
        lambda: Writes(lambda x: x.detach()).velocity(of.Particles(normal(3, 2))),
        [lambda: Writes(lambda x: x.clone()).velocity(of.Particles(normal(3, 2)))],
    ),
    "a velocity of masses of zero": (
        of.errors.Unsupported,
        r"leave these atoms out .*, or give weights\.detach\(\)",
        lambda: slope_in_masses(of.Particles),
        [
            lambda: slope_in_masses(lambda x, w: of.Particles(x[w > 0], w[w > 0])),
            lambda: slope_in_masses(lambda x, w: of.Particles(x, w.detach())),
        ],
    ),
    "a step that leaves the numbers": (
        of.errors.Diverged,
        r"smaller dt, or use JKO or ExplicitEuler\(backtracking=True\)",
        lambda: of.flow(SQUARE, CLOUD, of.ExplicitEuler(), dt=1e160, steps=1),
        [
            lambda: of.flow(SQUARE, CLOUD, of.ExplicitEuler(), dt=0.1, steps=1),
            lambda: of.flow(SQUARE, CLOUD, of.JKO(), dt=1e3, steps=1),
            lambda: of.flow(
                SQUARE, CLOUD, of.ExplicitEuler(backtracking=True), dt=1e9, steps=1
            ),
        ],
    ),
    "a step of quantiles that leaves the numbers": (
        of.errors.Diverged,
        r"take a smaller dt, or use JKO\(\)",
        lambda: of.flow(SQUARE, LINE, of.ExplicitEuler(), dt=1e160, steps=1),
        [
            lambda: of.flow(SQUARE, LINE, of.ExplicitEuler(), dt=0.1, steps=1),
            lambda: of.flow(SQUARE, LINE, of.JKO(), dt=1.0, steps=1),
        ],
    ),
    "a step of a Gaussian that leaves the numbers": (
        of.errors.Diverged,
        r"smaller dt, or use JKO or ExplicitEuler\(backtracking=True\)",
        lambda: of.flow(SQUARE, STANDARD, of.ExplicitEuler(), dt=1e160, steps=1),
        [
            lambda: of.flow(SQUARE, STANDARD, of.ExplicitEuler(), dt=0.1, steps=1),
            lambda: of.flow(SQUARE, STANDARD, of.JKO(), dt=1.0, steps=1),
            lambda: of.flow(
                SQUARE, STANDARD, of.ExplicitEuler(backtracking=True), dt=1e3, steps=1
            ),
        ],
    ),
    "a step to a singular Gaussian": (
        of.errors.Diverged,
        "take a smaller dt, or use JKO, whose steps keep it regular",
        lambda: STANDARD.push(FLAT, 1.0),
        [
            lambda: STANDARD.push(FLAT, 0.9),
            lambda: of.flow(SQUARE, STANDARD, of.JKO(), dt=0.5, steps=1),
        ],
    ),
    "masses of a grid that overflow": (
        of.errors.Diverged,
        "take a smaller dt or use JKO",
        lambda: cells().moved(cells().weights - 1.0),
        [
            lambda: of.flow(SQUARE, cells(), of.ExplicitEuler(), dt=1e-3, steps=1),
            lambda: of.flow(SQUARE, cells(64), of.JKO(), dt=0.1, steps=1),
        ],
    ),
    "mass that leaves a grid": (
        of.errors.Diverged,
        "stop the velocity there",
        lambda: cells().moved(1.5 * cells().weights),
        [lambda: cells().moved(cells().weights)],
    ),
    "densities too far for one upwind step": (
        of.errors.Unsupported,
        r"less than a cell apart, compare them by metrics.wasserstein2\(mu, nu\)",
        lambda: one_cell(0).displacement_to(one_cell(5)),
        [
            lambda: cells().displacement_to(cells()),
            lambda: of.metrics.wasserstein2(one_cell(0), one_cell(5)),
            lambda: LINE.displacement_to(LINE),
            lambda: STANDARD.displacement_to(STANDARD),
            lambda: CLOUD.displacement_to(CLOUD),
        ],
    ),
    "a box beyond its dtype": (
        ValueError,
        "measure lengths in another unit",
        lambda: of.GridDensity(torch.ones(4), 0, 1e200, walls=True, normalize=True),
        [lambda: of.GridDensity(torch.ones(4), 0, 1.0, walls=True, normalize=True)],
    ),
    "the potential of a fast diffusion": (
        of.errors.NonFinite,
        "fix their additive constant so that they are negative",
        lambda: of.PowerEntropy(0.7).conjugate_slope(torch.ones(3, dtype=F64)),
        [lambda: of.PowerEntropy(0.7).conjugate_slope(-torch.ones(3, dtype=F64))],
    ),
    "a potential above all slopes": (
        of.errors.NonFinite,
        "fix the additive constant of the potentials so that they are smaller",
        lambda: SATURATED.conjugate_slope(torch.full((3,), 5.0, dtype=F64)),
        [lambda: SATURATED.conjugate_slope(torch.full((3,), 5.0 - 5.5, dtype=F64))],
    ),
    "a grid too large for the memory": (
        MemoryError,
        "take fewer cells",
        lambda: of.GridDensity.from_function(bell, -9, 9, (10**5,) * 3, dtype=F64),
        [lambda: of.GridDensity.from_function(bell, -9, 9, (8,) * 3, dtype=F64)],
    ),
    "a rule too large for the memory": (
        MemoryError,
        "take fewer nodes",
        lambda: STANDARD.refined(10**6),
        [lambda: STANDARD.refined(40)],
    ),
}
# It takes away the spread along one axis.
FLAT: torch.Tensor = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], dtype=F64)
RATE: torch.Tensor = torch.tensor(2.0, dtype=F64, requires_grad=True)
# U = sqrt(1 + r^2) - 1 has slopes below 1 only.
SATURATED: of.Internal = of.Internal(lambda r: ((1 + r.square()).sqrt() - 1) / r)


def spot(x):
    return (-((x[:, 0] - 999.0) / 1e-4).square()).exp()


def ball(z):
    """Return a kernel that is infinite beyond a distance of 3."""
    return torch.where(z.norm(dim=-1) > 3, math.inf, z.square().sum(-1))


def one_cell(k):
    rho = torch.zeros(8, dtype=F64)
    rho[k] = 8.0
    return of.GridDensity(rho, 0, 1, walls=True)


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
