"""The laws of functionals of the density, on the representations that have one."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract
from otflow.testing.clouds import normal


def shifted(r):
    return r / (1 + r)


class OnQuantiles(FunctionalContract):
    has_first_variation = False
    dim = 1

    def measure(self, dtype=torch.float64, seed=0):
        gaps = 0.5 + normal(9, seed=seed, dtype=dtype).sigmoid()
        masses = 1 + normal(8, seed=seed + 9, dtype=dtype).sigmoid()
        return of.Quantiles(gaps.cumsum(0) - 4.0, masses, normalize=True)

    def measures(self):
        return [self.measure(), self.measure(seed=1)]

    def tangent(self, mu, seed=0):
        return 0.05 * normal(mu.n + 1, 1, seed=seed + 55, dtype=mu.dtype).tanh()


class OnGaussian(FunctionalContract):
    has_first_variation = False

    def measure(self, dtype=torch.float64, seed=0):
        A = normal(2, 2, seed=seed)
        covariance = torch.eye(2, dtype=torch.float64) + 0.3 * A @ A.T
        return of.Gaussian(normal(2, seed=seed + 9).to(dtype), covariance.to(dtype))

    def measures(self):
        return [self.measure(), self.measure(seed=1)]

    def tangent(self, mu, seed=0):
        return 0.3 * normal(3, 2, seed=seed + 55, dtype=mu.dtype).tanh()


class TestEntropyOnQuantiles(OnQuantiles):
    def make(self, dtype=torch.float64):
        return of.Entropy()


class TestPowerOnQuantiles(OnQuantiles):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(2.5)


class TestFastOnQuantiles(OnQuantiles):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(0.4)


class TestInternalOnQuantiles(OnQuantiles):
    def make(self, dtype=torch.float64):
        return of.Internal(shifted)


class TestKLOnQuantiles(OnQuantiles):
    def make(self, dtype=torch.float64):
        return of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)


class TestCongestionOnQuantiles(OnQuantiles):
    def make(self, dtype=torch.float64):
        return of.Congestion(9.0) + of.PowerEntropy(2.0)


class TestEntropyOnGaussian(OnGaussian):
    def make(self, dtype=torch.float64):
        return of.Entropy()


class TestPowerOnGaussian(OnGaussian):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(2.5)


class TestFastOnGaussian(OnGaussian):
    def make(self, dtype=torch.float64):
        return of.PowerEntropy(0.7)


class TestInternalOnGaussian(OnGaussian):
    def make(self, dtype=torch.float64):
        return of.Internal(shifted)


class TestKLOnGaussian(OnGaussian):
    def make(self, dtype=torch.float64):
        return of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)


# McCann's condition ------------------------------------------------------------------


def uniform(width, n=40):
    return of.Quantiles(torch.linspace(0, width, n + 1, dtype=torch.float64))


@pytest.mark.parametrize("m", [0.3, 0.9, 1.5, 2.0, 6.0])
def test_every_power_is_displacement_convex_on_the_line(m):
    report = of.analysis.displacement_convexity(
        of.PowerEntropy(m), uniform(0.5), uniform(3.0)
    )
    assert report.minimum > 0
    assert not report.violates_declared


def test_a_false_claim_of_convexity_is_refuted():
    """U = 3 r^2 - r^3 is convex below density 1 and concave above."""
    r = torch.linspace(0.3, 2.0, 9, dtype=torch.float64)
    F = of.Internal(lambda r: 3 * r - r * r)
    assert bool((F.convexity_margin(r, 1) < 0).any())
    report = of.analysis.displacement_convexity(F, uniform(0.5), uniform(3.0))
    assert report.minimum < -report.roundoff
    with pytest.raises(of.errors.InvalidFunctional, match="McCann's condition"):
        of.Internal(F.e, modulus=0.0).modulus(1)


@pytest.mark.parametrize(("m", "convex"), [(0.3, False), (0.5, True), (0.7, True)])
def test_the_condition_depends_on_the_dimension(m, convex):
    """m >= 1/2 in the plane: along dilations of a Gaussian (0.3 has tails to spare)."""
    eye = torch.eye(2, dtype=torch.float64)
    a, b = (of.Gaussian(torch.zeros(2).double(), s * eye) for s in (0.3, 4.0))
    F = of.PowerEntropy(m)
    assert (F.modulus(2) == 0.0) == convex
    report = of.analysis.displacement_convexity(F, a, b)
    assert (report.minimum >= -report.roundoff) == convex
