"""Entropy: exact where there is a density, refused with the cure elsewhere."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from tests import clouds
from tests.clouds import normal
from tests.contracts.functional import FunctionalContract
from tests.measures.intervals import Intervals, uniform


class OnIntervals(FunctionalContract):
    has_first_variation = False

    def measure(self, dtype=torch.float64, seed=0):
        gaps = 0.5 + normal(9, seed=seed, dtype=dtype).sigmoid()
        return Intervals(gaps.cumsum(0) - 4.0)

    def measures(self):
        return [self.measure(), uniform(-1.0, 2.0)]

    def tangent(self, mu, seed=0):
        # Small beside the gaps, so that a push for time 1 does not cross.
        return 0.05 * normal(mu.n + 1, 1, seed=seed + 55, dtype=mu.dtype).tanh()


class TestEntropy(OnIntervals):
    def make(self):
        return of.Entropy()


class TestFreeEnergy(OnIntervals):
    def make(self):
        return (
            of.Potential(lambda x: x.square().sum(-1), modulus=2.0) + 0.3 * of.Entropy()
        )


class TestPotentialOnIntervals(OnIntervals):
    """A functional of points and masses does not care who carries them."""

    def make(self):
        return of.Potential(lambda x: x.sin().sum(-1), modulus=-1.0)


CURE = (
    r"Particles has no density: a sum of Diracs is singular, so internal energies such "
    r"as Entropy, PowerEntropy and Congestion mean nothing on it; represent the "
    r"measure by a density \(GridDensity, Quantiles, Gaussian\), or flow an entropy "
    r"with Langevin\(\), which turns it into noise"
)


def test_particles_refuse_it_in_every_derivative():
    mu, F = clouds.uniform(), of.Entropy()
    for ask in (F.value, F.velocity, F.first_variation, F.value_and_velocity):
        with pytest.raises(of.errors.Unsupported, match=CURE):
            ask(mu)


def test_it_splits_off_itself_with_its_factor():
    V = of.Potential(lambda x: x.sum(-1))
    F = 0.5 * (V + 4.0 * of.Entropy()) + of.Entropy()
    temperature, rest = F.split_entropy()
    assert temperature == 3.0
    mu = clouds.uniform()
    torch.testing.assert_close(rest.value(mu), 0.5 * V.value(mu))
    assert V.split_entropy() == (0.0, V)


def test_entropy_alone_leaves_nothing():
    temperature, rest = of.Entropy().split_entropy()
    mu = clouds.uniform()
    assert temperature == 1.0
    assert float(rest.value(mu)) == 0
    assert not bool(rest.velocity(mu).any())
    assert not bool(rest.first_variation(mu).any())
    assert repr(rest) == "0"
