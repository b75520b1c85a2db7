"""Functions of an expectation."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract, clouds


class TestVector(FunctionalContract):
    def make(self, dtype=torch.float64):
        return of.OfExpectation(lambda m: m.square().sum(), lambda x: (2 * x).sin())


class TestScalar(FunctionalContract):
    dim = 3

    def make(self, dtype=torch.float64):
        return of.OfExpectation(torch.exp, lambda x: x.square().mean(-1))


class TestOfTheUser(FunctionalContract):
    """A functional written as `value` alone has everything else."""

    def make(self, dtype=torch.float64):
        class Kurtosis(of.Functional):
            def value(self, mu):
                x = mu.points - mu.expectation(lambda x: x)
                fourth = mu.weights @ x.square().sum(-1).square()
                return fourth / (mu.weights @ x.square().sum(-1)) ** 2

        return Kurtosis()


def test_the_first_variation_is_grad_r_times_phi():
    mu = clouds.weighted()
    F = of.OfExpectation(lambda m: m[0] * m[1], lambda x: x)
    a, b = mu.expectation(lambda x: x)
    expected = b * mu.points[:, 0] + a * mu.points[:, 1]
    torch.testing.assert_close(F.first_variation(mu), expected)


def test_it_is_convex_along_mixtures_when_r_is():
    F = of.OfExpectation(lambda m: m.square().sum(), lambda x: x)
    mu, x = clouds.weighted(), clouds.uniform(7, seed=3).points
    both = torch.cat([mu.points, x])

    def mixture(t):
        weights = torch.cat([(1 - t) * mu.weights, t * mu.weights])
        return float(F.value(of.Particles(both, weights)))

    assert mixture(0.5) <= 0.5 * (mixture(0.0) + mixture(1.0))


def test_it_refuses_what_is_no_function():
    with pytest.raises(TypeError, match=r"^R must be a function, got float"):
        of.OfExpectation(1.0, lambda x: x)
    with pytest.raises(TypeError, match=r"^Phi must be a function, got Tensor"):
        of.OfExpectation(lambda m: m.sum(), torch.ones(2))
