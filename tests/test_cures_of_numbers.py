"""Cures of what is infinite, singular, too narrow or out of range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
SQUARE = of.Potential(lambda x: x.square().sum(-1))
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
STANDARD = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
SINGULAR = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=F64)
POLE = torch.zeros(24, dtype=torch.bool)
POLE[:2] = True


def bump(**options):
    """Return a bell on a segment with walls."""
    return of.GridDensity.from_function(
        lambda x: (-30 * (x - 0.5).square().sum(-1)).exp(),
        lower=0,
        upper=1,
        shape=(24,),
        walls=True,
        dtype=F64,
        **options,
    )


def wide(lower, upper):
    """Return a bell in a box that stands for the whole line."""
    return of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(), lower, upper, 64, dtype=F64
    )


def step(F, mu, solver=None, dt=1e-2):
    """Make a step and require that it converged."""
    assert of.JKO(solver).step(F, mu, dt, None, torch.Generator()).info["converged"]


def euler(F, mu, dt=1e-4):
    return of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=1)


def barrier(x):
    """Return a potential that is infinite in the first two cells of a bump."""
    return torch.where(x[..., 0] < 2 / 24, torch.inf, x[..., 0])


def spike(width):
    return of.Interaction(lambda z: torch.exp(-z.square().sum(-1) / (2 * width**2)))


def far_spike(width):
    return of.Interaction(
        lambda z: torch.exp(-(z.norm(dim=-1) - 0.3).square() / (2 * width**2))
    )


def ring(z):
    return (z.norm(dim=-1) - 1).relu()


CASES: dict[str, Case] = {
    "an energy that overflows": (
        of.errors.NonFinite,
        "use float64",
        lambda: of.Internal(lambda r: (r * 70).exp()).value(bump_of(torch.float32)),
        [lambda: of.Internal(lambda r: (r * 70).exp()).value(bump_of(F64))],
    ),
    "a user's concave energy and its logarithms": (
        (ValueError, of.errors.Unsupported),
        r"flow it with ExplicitEuler\(\), or add a convex term",
        lambda: step(CONCAVE, bump()),
        [
            lambda: euler(CONCAVE, bump()),
            lambda: step(SQUARE + of.Internal(lambda r: -r + 2.0 * r), bump()),
        ],
    ),
    "a user's concave pressure": (
        (ValueError, of.errors.Unsupported),
        r"flow it with ExplicitEuler\(\), or add a convex term",
        lambda: step(CONCAVE, bump(), of.proximal.BackAndForth()),
        [
            lambda: step(
                SQUARE + of.Internal(lambda r: -r + 2.0 * r),
                bump(),
                of.proximal.BackAndForth(),
            )
        ],
    ),
    "a point outside": (
        ValueError,
        "enlarge the box or drop the point",
        lambda: wide(-4, 4).density_at(normal(3, 1) + 9),
        [lambda: wide(-14, 14).density_at(normal(3, 1) + 9)],
    ),
    "a kernel with a kink away from 0, on a law": (
        of.errors.KernelWarning,
        r"more nodes \(mu\.refined\(.*\)\), a smoother kernel, or on a line Quantiles",
        lambda: STANDARD.interaction(ring),
        [
            lambda: STANDARD.refined(400).interaction(ring),
            lambda: STANDARD.interaction(lambda z: (z.square().sum(-1) + 1).sqrt()),
            lambda: LINE.interaction(ring),
        ],
    ),
    "atoms that coincide under a singular kernel": (
        of.errors.NonFinite,
        "move atoms apart that coincide",
        lambda: of.Particles(torch.zeros(2, 1)).interaction(of.kernels.Log()),
        [
            lambda: of.Particles(torch.tensor([[-1e-6], [1e-6]])).interaction(
                of.kernels.Log()
            )
        ],
    ),
    "an own pole on the line": (
        of.errors.NonFinite,
        "not integrable at 0 on the line: .*; use Particles, which leave out the pairs",
        lambda: LINE.interaction(lambda z: 1 / z.norm(dim=-1)),
        [
            lambda: of.Particles(LINE.points).interaction(
                of.kernels.Function(lambda z: 1 / z.norm(dim=-1), singular=True)
            )
        ],
    ),
    "a pole on the line": (
        (ValueError, of.errors.Unsupported, of.errors.NonFinite),
        "use Particles",
        lambda: of.Interaction(of.kernels.Riesz(1.5)).value(LINE),
        [lambda: of.Interaction(of.kernels.Riesz(1.5)).value(CLOUD)],
    ),
    "a singular covariance": (
        ValueError,
        "add a multiple of the identity above",
        lambda: of.Gaussian(torch.zeros(2, dtype=F64), SINGULAR),
        [
            lambda: of.Gaussian(
                torch.zeros(2, dtype=F64), SINGULAR + 1e-10 * torch.eye(2, dtype=F64)
            )
        ],
    ),
    "a start of two columns": (
        ValueError,
        r"\.sum\(-1\)",
        lambda: of.GridDensity.from_function(lambda x: x, 0, 1, (4, 4), walls=True),
        [
            lambda: of.GridDensity.from_function(
                lambda x: x.sum(-1), 0, 1, (4, 4), walls=True
            )
        ],
    ),
    "a box too small": (
        of.errors.BoxWarning,
        "enlarge it, or pass walls=True",
        lambda: wide(-1, 1),
        [
            lambda: wide(-6, 6),
            lambda: of.GridDensity.from_function(
                lambda x: (-x.square().sum(-1)).exp(), -1, 1, 64, walls=True
            ),
        ],
    ),
    "a kernel between the nodes": (
        of.errors.KernelWarning,
        r"take kernels\.Gaussian, .* more nodes .*, or on a line Quantiles",
        lambda: spike(0.02).value(STANDARD),
        [
            lambda: of.Interaction(of.kernels.Gaussian(0.02)).value(STANDARD),
            lambda: spike(0.02).value(STANDARD.refined(2000)),
            lambda: spike(0.02).value(LINE),
        ],
    ),
    "a kernel at a point between the nodes": (
        of.errors.KernelWarning,
        r"narrower than .* take kernels\.Gaussian, .* more nodes .*, or on a line",
        lambda: spike(0.002).value(STANDARD),
        [
            lambda: of.Interaction(of.kernels.Gaussian(0.002)).value(STANDARD),
            lambda: spike(0.002).value(STANDARD.refined(4000)),
            lambda: spike(0.002).value(LINE),
        ],
    ),
    "a ring narrower than the cells": (
        of.errors.KernelWarning,
        "widen them, or take smaller cells or Particles",
        lambda: far_spike(0.002).value(bump()),
        [
            lambda: far_spike(0.1).value(bump()),
            lambda: far_spike(0.002).value(FINE),
            lambda: far_spike(0.002).value(CLOUD),
        ],
    ),
    "a kernel too singular for a density": (
        of.errors.InvalidFunctional,
        "use a weaker singularity, or Particles",
        lambda: of.Interaction(lambda z: z.norm(dim=-1) ** -1.5).value(bump()),
        [
            lambda: of.Interaction(lambda z: z.norm(dim=-1) ** -0.5).value(bump()),
        ],
    ),
    "a picture that is a path": (
        TypeError,
        r"matplotlib\.image\.imread\(path\), or numpy\.asarray\(image\)",
        lambda: of.GridDensity.from_image("picture.png"),
        [lambda: of.GridDensity.from_image(np.asarray([[0.0, 1.0], [1.0, 1.0]]))],
    ),
    "a dimension beyond Sobol's": (
        ValueError,
        "draw samples, and flow them as Particles",
        lambda: of.Gaussian(torch.zeros(21202), torch.ones(1, 1).expand(21202, 21202)),
        [lambda: of.Particles(torch.randn(2, 21202))],
    ),
    "a cell without mass": (
        ValueError,
        r"drop edges\[2\]",
        lambda: of.Quantiles(
            torch.arange(4.0, dtype=F64), torch.tensor([0.5, 0.0, 0.5], dtype=F64)
        ),
        [
            lambda: of.Quantiles(
                torch.tensor([0.0, 1.0, 3.0], dtype=F64),
                torch.tensor([0.5, 0.5], dtype=F64),
            )
        ],
    ),
    "a potential of another dtype": (
        of.errors.InvalidFunctional,
        "constants with the dtype of x",
        lambda: of.Potential(lambda x: (x * torch.ones(1, dtype=F64)).sum(-1)).value(
            of.Particles(normal(3, 2).float())
        ),
        [
            lambda: of.Potential(lambda x: (x * x.new_ones(1)).sum(-1)).value(
                of.Particles(normal(3, 2).float())
            )
        ],
    ),
    "a kernel of another dtype": (
        of.errors.InvalidFunctional,
        "constants with the dtype of z",
        lambda: of.Interaction(lambda z: (z * torch.ones(1, dtype=F64)).sum(-1)).value(
            of.Particles(normal(3, 2).float())
        ),
        [
            lambda: of.Interaction(lambda z: (z * z.new_ones(1)).sum(-1)).value(
                of.Particles(normal(3, 2).float())
            )
        ],
    ),
    "an order of weighted neurons": (
        (ValueError, of.errors.Unsupported),
        "neurons are matched one to one",
        lambda: of.metrics.best_matching(HEAVY, HEAVY),
        [
            lambda: of.metrics.aligned_networks(HEAVY, HEAVY),
            lambda: of.metrics.quotient_distance(HEAVY, HEAVY),
        ],
    ),
    "a barrier in the potential": (
        (ValueError, of.errors.NonFinite),
        "make the cells where it is not obstacles|finite",
        lambda: step(of.Potential(barrier), bump(), of.proximal.BackAndForth()),
        [
            lambda: step(
                of.Potential(barrier) + of.Entropy(),
                bump_with(POLE),
                of.proximal.FiniteVolume(),
            )
        ],
    ),
    "an entropy too negative": (
        (ValueError, of.errors.Unsupported),
        "take a smaller dt or a larger eps",
        lambda: step(-1.0 * of.Entropy(), bump(), of.proximal.GridSinkhorn(), dt=0.1),
        [
            lambda: step(
                SQUARE + -0.01 * of.Entropy(),
                bump(),
                of.proximal.GridSinkhorn(),
                dt=0.01,
            )
        ],
    ),
    "quantiles beyond the upper wall": (
        ValueError,
        "start inside of the walls",
        lambda: step(SQUARE, LINE, of.proximal.QuantileProximal(upper=0.5)),
        [lambda: step(SQUARE, LINE, of.proximal.QuantileProximal(upper=1.5))],
    ),
    "a threshold in atoms": (
        ValueError,
        "threshold is a fraction",
        lambda: of.schemes.Resample(threshold=10.0),
        [lambda: of.schemes.Resample(threshold=0.5)],
    ),
    "animation on the line": (
        (ValueError, of.errors.Unsupported),
        "on the line use trails",
        lambda: of.plotting.animate(RUN_ON_A_LINE),
        [lambda: of.plotting.trails(RUN_ON_A_LINE)],
    ),
    "a curve without a record": (
        (ValueError, KeyError),
        "there are",
        lambda: of.plotting.energy(RUN_ON_A_LINE, record="loss"),
        [lambda: of.plotting.energy(RUN_ON_A_LINE, record="energy")],
    ),
    "a blur that outweighs a short step": (
        of.errors.BlurWarning,
        r"a longer dt, or JKO\(BackAndForth\(\)\)",
        lambda: step(SQUARE + of.Entropy(), wide(-6, 6), dt=1e-4),
        [
            lambda: step(SQUARE + of.Entropy(), wide(-6, 6), dt=0.1),
            lambda: step(
                SQUARE + of.Entropy(), wide(-6, 6), of.proximal.BackAndForth(), dt=1e-4
            ),
        ],
    ),
}


def bump_of(dtype):
    return of.GridDensity(torch.tensor([0.5, 1.5], dtype=dtype), 0, 1, walls=True)


def bump_with(obstacles):
    rho = bump().density().masked_fill(obstacles, 0.0)
    return of.GridDensity(rho, 0, 1, obstacles=obstacles, normalize=True, walls=True)


CONCAVE: of.Internal = of.Internal(lambda r: -r)
HEAVY: of.Particles = of.Particles(
    normal(4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
)
FINE: of.GridDensity = of.GridDensity(torch.ones(4096, dtype=F64), 0, 1, walls=True)
RUN_ON_A_LINE: of.Trajectory = of.flow(
    SQUARE, of.Particles(normal(5, 1)), of.JKO(), dt=0.1, steps=2
)


@pytest.mark.parametrize("case", CASES)
def test_the_cures_that_an_error_names_work(case):
    check_cures(CASES[case])
