"""Cures of kernels of two points, of blobs, and of schemes with kernels."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.schemes import SVGD, NoisyEuler
from otflow.testing.clouds import normal
from tests.cures import Case, check_cures

F64 = torch.float64
CLOUD = of.Particles(normal(5, 2))
LINE = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
SQUARE = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
BELL = of.kernels.Gaussian(1.0)
MULTIQUADRIC = of.kernels.InverseMultiquadric(1.0)
CELLS = of.GridDensity(torch.ones(6, dtype=F64), 0, 1, walls=True, normalize=True)


def inner(x, y):
    return (x * y).sum(-1)


def minus(x):
    return -x


def step(F, mu, scheme):
    return scheme.step(F, mu, 0.1, None, torch.Generator().manual_seed(0))


def draws():
    return of.Particles(LINE.sample(20, torch.Generator().manual_seed(0)))


def grown():
    return of.Particles(normal(5, 2).requires_grad_())


CASES: dict[str, Case] = {
    "a kernel without size": (
        ValueError,
        r"in another unit, e.g. Particles\(points / 1e-300\) with sigma=1",
        lambda: of.kernels.Gaussian(1e-300),
        [lambda: of.kernels.Gaussian(1.0).modulus],
    ),
    "a kernel beyond all sizes": (
        ValueError,
        r"Particles\(points / 1e\+100\) with scale=1",
        lambda: of.kernels.InverseMultiquadric(1e100),
        [lambda: of.kernels.InverseMultiquadric(1.0).modulus],
    ),
    "an entropy of particles": (
        of.errors.Unsupported,
        r"smooth the particles by a width, as in Blob\(Entropy\(\), width\)",
        lambda: of.flow(
            SQUARE + of.Entropy(), CLOUD, of.ExplicitEuler(), dt=1, steps=1
        ),
        [
            lambda: of.flow(
                SQUARE + of.Blob(of.Entropy(), 0.5),
                CLOUD,
                of.ExplicitEuler(),
                dt=0.01,
                steps=2,
            ),
            lambda: of.flow(
                SQUARE + of.Entropy(),
                CLOUD,
                of.Langevin(),
                dt=0.01,
                steps=2,
                generator=0,
            ),
        ],
    ),
    "blobs of a bounded density": (
        ValueError,
        r"approach it by PowerEntropy\(m\) with a large m",
        lambda: of.Blob(of.Congestion(1.0), 0.1),
        [lambda: of.Blob(of.PowerEntropy(20.0), 0.5).velocity(CLOUD)],
    ),
    "blobs of a function": (
        TypeError,
        r"give e\.g\. Entropy\(\) or PowerEntropy\(2\.0\), or wrap e: Internal\(e\)",
        lambda: of.Blob(torch.log, 0.1),
        [
            lambda: of.Blob(of.Entropy(), 0.1).value(CLOUD),
            lambda: of.Blob(of.PowerEntropy(2.0), 0.1).value(CLOUD),
            lambda: of.Blob(of.Internal(torch.log), 0.1).value(CLOUD),
        ],
    ),
    "a function of two points": (
        TypeError,
        r"for a function of both points write kernels\.TwoPoint\(W\)",
        lambda: of.Interaction(inner),
        [lambda: of.Interaction(of.kernels.TwoPoint(inner)).velocity(CLOUD)],
    ),
    "two points that are not reduced": (
        of.errors.InvalidFunctional,
        r"a kernel K\(x, y\) must map .*; reduce over the last axis: \.sum\(-1\)",
        lambda: CLOUD.interaction(of.kernels.TwoPoint(torch.mul)),
        [lambda: CLOUD.interaction(of.kernels.TwoPoint(inner))],
    ),
    "features of no rows": (
        of.errors.InvalidFunctional,
        "the features must map .*; return one row for each point",
        lambda: CLOUD.interaction(
            of.kernels.TwoPoint(inner, features=lambda x: x.sum())
        ),
        [
            lambda: CLOUD.interaction(
                of.kernels.TwoPoint(inner, features=lambda x: x.sum(-1, keepdim=True))
            )
        ],
    ),
    "a convolution by two points": (
        TypeError,
        r"is no function of differences; call mu\.convolve\(W\)",
        lambda: of.measures.Convolution(
            CELLS.box,
            of.kernels.TwoPoint(inner),
            torch.ones(6, dtype=F64),
        ),
        [lambda: CELLS.convolve(of.kernels.TwoPoint(inner))],
    ),
    "a Stein kernel that is not radial": (
        TypeError,
        r"use kernels\.InverseMultiquadric\(scale\), or subclass kernels\.RadialKernel",
        lambda: of.KSD(
            minus, of.kernels.Function(lambda z: (-z.square().sum(-1)).exp())
        ),
        [lambda: of.KSD(minus, MULTIQUADRIC).value(CLOUD)],
    ),
    "a Stein kernel with a kink": (
        ValueError,
        r"is not smooth at 0.*use kernels\.InverseMultiquadric\(scale\)",
        lambda: of.KSD(minus, of.kernels.Energy()),
        [lambda: of.KSD(minus, MULTIQUADRIC).velocity(CLOUD)],
    ),
    "a score of one number": (
        of.errors.InvalidFunctional,
        "return the gradient of log pi, a row for each point",
        lambda: of.KSD(lambda x: x.sum(-1), BELL).value(CLOUD),
        [lambda: of.KSD(minus, BELL).value(CLOUD)],
    ),
    "a singular kernel for SVGD": (
        ValueError,
        r"use kernels\.Gaussian\(sigma\) or kernels\.InverseMultiquadric\(scale\)",
        lambda: SVGD(of.kernels.Log()),
        [
            lambda: step(SQUARE, CLOUD, SVGD(BELL)),
            lambda: step(SQUARE, CLOUD, SVGD(MULTIQUADRIC)),
        ],
    ),
    "SVGD of a density": (
        of.errors.Unsupported,
        r"use JKO\(\), or Particles\(mu\.sample\(n, generator\)\)",
        lambda: step(SQUARE + of.Entropy(), LINE, SVGD(BELL)),
        [
            lambda: step(SQUARE + of.Entropy(), LINE, of.JKO()),
            lambda: step(SQUARE + of.Entropy(), draws(), SVGD(BELL)),
        ],
    ),
    "a graph through SVGD": (
        of.errors.Unsupported,
        r"mu\.detach\(\)",
        lambda: step(SQUARE, grown(), SVGD(BELL)),
        [lambda: step(SQUARE, grown().detach(), SVGD(BELL))],
    ),
    "a tolerance above the kernel": (
        ValueError,
        r"tolerance must lie in \[0, 1\), got 1:",
        lambda: of.kernels.Gaussian(1.0, tolerance=1.0),
        [lambda: of.kernels.Gaussian(1.0, tolerance=1e-6)],
    ),
    "noise beside a density": (
        of.errors.Unsupported,
        r"use ExplicitEuler\(\), or Particles\(mu\.sample\(n, generator\)\)",
        lambda: step(SQUARE, LINE, NoisyEuler(0.1)),
        [
            lambda: step(SQUARE, LINE, of.ExplicitEuler()),
            lambda: step(SQUARE, draws(), NoisyEuler(0.1)),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cure_that_an_error_names_works(case):
    check_cures(case)
