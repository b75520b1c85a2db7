"""Sums and multiples of functionals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract, clouds
from tests import exact


class TestSum(FunctionalContract):
    def make(self, dtype=torch.float64):
        return exact.quadratic(2.0) + of.Interaction(of.kernels.Gaussian(0.7))


class TestMultiple(FunctionalContract):
    def make(self, dtype=torch.float64):
        return 2.5 * exact.quadratic(2.0)


class TestNegativeMultiple(FunctionalContract):
    def make(self, dtype=torch.float64):
        return -1.5 * (exact.quadratic(2.0) + of.Interaction(of.kernels.Gaussian(0.7)))


class TestZeroMultiple(FunctionalContract):
    def make(self, dtype=torch.float64):
        return 0.0 * of.Potential(lambda x: x.sum(-1).sin())


class TestEmptySum(FunctionalContract):
    def make(self, dtype=torch.float64):
        return of.functionals.Sum(())

    def test_its_own_derivatives_are_those_of_autodiff(self):
        # A constant has no graph to differentiate; its derivatives are zero.
        F, mu = self.make(), self.measure()
        for entry in (*F.value_and_velocity(mu), F.first_variation(mu)):
            assert not bool(entry.any())


def test_moduli_combine():
    F, G, H = exact.quadratic(2.0), exact.quadratic(-0.5), of.Potential(lambda x: x)
    assert (F + G).modulus(2) == 1.5
    assert (3 * F).modulus(2) == 6.0
    assert (3 * G + F).modulus(2) == 0.5
    assert (0 * H).modulus(2) == 0.0
    assert (0 * H + F).modulus(2) == 2.0
    assert (F + 1e-3 * of.Entropy()).modulus(2) == 2.0
    assert of.functionals.Sum(()).modulus(2) == 0
    # A bound from below says nothing of -F, and an unknown part of nothing.
    assert (-1 * F).modulus(2) is None
    assert (-1 * G).modulus(2) is None
    assert (F + H).modulus(2) is None
    assert (2 * H).modulus(2) is None
    assert (F + -1 * (F + G)).modulus(2) is None


def test_temperatures_combine():
    V = exact.quadratic()
    F = V + 2 * (of.Entropy() + 3 * (V + -0.5 * of.Entropy()))
    assert F.split_entropy()[0] == -1.0
    assert (-1 * of.Entropy()).split_entropy()[0] == -1.0
    assert (V + V).split_entropy()[0] == 0


def test_nested_sums_are_flat():
    F = exact.quadratic()
    G = (F + F) + (F + 2 * F)
    assert isinstance(G, of.functionals.Sum)
    assert len(G.parts) == 4
    assert repr(F + 2 * F) == "Potential(<lambda>) + 2 * Potential(<lambda>)"


@pytest.mark.parametrize(
    "factor",
    [2, 2.0, np.float64(2), np.float32(2), np.int64(2)],
    ids=lambda f: str(type(f)),
)
def test_a_factor_is_any_real_number_from_either_side(factor):
    F, mu = exact.quadratic(), clouds.uniform()
    for G in (factor * F, F * factor):
        assert isinstance(G, of.Functional)
        torch.testing.assert_close(G.value(mu), 2 * F.value(mu))


@pytest.mark.parametrize("bad", ["2", None, 1j, True, [1.0]])
def test_a_factor_is_nothing_else(bad):
    with pytest.raises(TypeError):
        bad * exact.quadratic()
    with pytest.raises(TypeError):
        exact.quadratic() * bad


def test_a_tensor_or_a_functional_is_no_factor():
    F = exact.quadratic()
    for bad in (torch.tensor(2.0), F):
        with pytest.raises(TypeError):
            F * bad
        with pytest.raises(TypeError):
            bad * F


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_factor_is_finite(bad):
    with pytest.raises(ValueError, match=r"^the factor of a functional must be finite"):
        bad * exact.quadratic()


@pytest.mark.parametrize("other", [1.0, 0, None, lambda mu: mu.weights.sum()])
def test_only_functionals_are_added(other):
    with pytest.raises(TypeError, match="unsupported operand"):
        exact.quadratic() + other


def test_a_draw_of_a_sum_draws_each_part(generator):
    class Noisy(of.Functional):
        def __init__(self, level=0.0):
            self.level = level

        def value(self, mu):
            return mu.expectation(lambda x: x.sum(-1)) + self.level

        def resample(self, generator):
            level = torch.randn((), generator=generator, dtype=torch.float64)
            return Noisy(float(level))

    mu = clouds.uniform()
    F = Noisy() + 2 * Noisy()
    levels = {round(float(F.resample(generator).value(mu)), 9) for _ in range(3)}
    assert len(levels) == 3
    assert float(F.value(mu)) == pytest.approx(float(3 * Noisy().value(mu)))
