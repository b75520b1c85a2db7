"""Sums and multiples of functionals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

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
    with pytest.raises(TypeError):
        F * F
    two = torch.tensor(2.0)
    for wrong in (lambda: F * two, lambda: two * F, lambda: F / two):
        with pytest.raises(TypeError, match=r"got Tensor .*; give float\(the "):
            wrong()
    assert (float(two) * F).terms() == ((2.0, F),)  # the cure


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


# Differences, quotients, sums ---------------------------------------------------------

V: Any = exact.quadratic(2.0)
PAIRS: Any = of.Interaction(of.kernels.Gaussian(0.7))


class TestDifference(FunctionalContract):
    def make(self, dtype=torch.float64):
        return exact.quadratic(2.0) - of.Interaction(of.kernels.Gaussian(0.7))


class TestQuotientOfANegative(FunctionalContract):
    def make(self, dtype=torch.float64):
        return -(exact.quadratic(2.0) + of.Interaction(of.kernels.Gaussian(0.7))) / 3


def test_differences_quotients_and_sums_have_the_values_of_arithmetic():
    mu = clouds.uniform()
    v, w = float(V.value(mu)), float(PAIRS.value(mu))
    for F, expected in [
        (V - PAIRS, v - w),
        (-V, -v),
        (V / 4, v / 4),
        (V / -0.5, -2 * v),
        (-(V - PAIRS), w - v),
        (V - (PAIRS - V), 2 * v - w),
        (V - 2 * PAIRS, v - 2 * w),
        (sum([V, PAIRS, -V]), w),
        (sum([V]), v),
    ]:
        assert isinstance(F, of.Functional)
        assert float(F.value(mu)) == pytest.approx(expected, rel=1e-13)


def test_a_sum_of_one_and_a_double_negative_are_the_functional_itself():
    assert sum([V]) is V
    minus = -V
    assert -minus is V
    assert (-(2 * V)).factor == -2.0
    assert (-(2 * V)).functional is V


def test_terms_and_moduli_of_differences():
    assert (V - PAIRS).terms() == ((1.0, V), (-1.0, PAIRS))
    assert (V - (PAIRS + 2 * V) / 4).terms() == ((1.0, V), (-0.25, PAIRS), (-0.5, V))
    assert (V / 4).modulus(2) == 0.5
    assert (V - PAIRS).modulus(2) is None
    assert (V / -2).modulus(2) is None
    assert (V - 0 * PAIRS).modulus(2) == 2.0
    assert (V - of.Entropy()).split_entropy()[0] == -1.0


class Named(of.Functional):
    def __init__(self, name):
        self.name = name

    def value(self, mu):
        return mu.expectation(lambda x: (x.sum(-1) + len(self.name)).sin())

    def __repr__(self):
        return self.name


F, GG = Named("F"), Named("GG")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (F - GG, "F - GG"),
        (-F, "-F"),
        (-F + GG, "-F + GG"),
        (F / 2, "0.5 * F"),
        (F / 3, "0.3333333333333333 * F"),
        (2 * (F + GG), "2 * (F + GG)"),
        ((F + GG) / 2, "0.5 * (F + GG)"),
        (-(F - GG), "-(F - GG)"),
        (F - (GG - F), "F - (GG - F)"),
        (F - 2 * (F + GG), "F - 2 * (F + GG)"),
        (2 * (3 * F), "2 * 3 * F"),
        (F + 2 * (-3 * GG), "F + 2 * -3 * GG"),
        (F - -GG, "F + GG"),
        (-1 * (-2 * F), "--2 * F"),
        (sum([F, -GG, 1e-7 * F]), "F - GG + 1e-07 * F"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_a_text_reads_back_as_the_same_functional(made, text):
    assert repr(made) == text
    mu, again = clouds.uniform(), eval(text, {"F": F, "GG": GG})
    torch.testing.assert_close(again.value(mu), made.value(mu))
    if text not in ("2 * 3 * F", "F + 2 * -3 * GG", "--2 * F"):
        assert repr(again) == text  # not only the same value: the same terms


def test_a_division_by_zero_is_told():
    for zero in (0, 0.0, -0.0, np.float64(0)):
        with pytest.raises(ZeroDivisionError, match=r"^the divisor of a functional is"):
            V / zero
    with pytest.raises(ValueError, match="must be finite"):
        V / 5e-324
    for bad in (V, torch.tensor(2.0), "2", None, True):
        with pytest.raises(TypeError):
            V / bad
    with pytest.raises(TypeError):
        2 / V


@pytest.mark.parametrize("other", [1.0, 1, False, None, "0"])
def test_a_sum_begins_with_nothing_but_zero(other):
    with pytest.raises(TypeError):
        other + V
    with pytest.raises(TypeError):
        V - other
    with pytest.raises(TypeError):
        other - V


def test_an_array_is_no_factor_and_does_not_take_a_functional_apart():
    for wrong in (
        lambda: np.array([1.0, 2.0]) * V,
        lambda: np.array([1.0, 2.0]) + V,
        lambda: np.float64(2.0) - V,
    ):
        with pytest.raises(TypeError):
            wrong()
    assert (np.float64(2.0) * V).factor == 2.0


def test_parts_and_factors_are_checked_where_they_are_given():
    bad: Any
    for bad in (True, "2", None, torch.tensor(2.0)):
        with pytest.raises(TypeError, match=r"^the factor of a functional must be "):
            of.functionals.Scaled(bad, V)
    for bad in (float("nan"), 10**400, Fraction(-(10**400))):
        with pytest.raises(ValueError, match=r"^the factor of .* must be finite, got"):
            of.functionals.Scaled(bad, V)
    for bad in (3, square_of, None, of.Potential):
        with pytest.raises(TypeError, match=r"^F must be a Functional"):
            of.functionals.Scaled(2.0, bad)
        with pytest.raises(TypeError, match=r"^F must be a Functional"):
            of.functionals.Sum((V, bad))
    with pytest.raises(ValueError, match="must be finite"):
        10**400 * of.kernels.Log()
    assert of.functionals.Scaled(Fraction(1, 2), V).factor == 0.5


def square_of(x):
    return x.square().sum(-1)


def test_no_bound_is_claimed_where_numbers_overflow():
    """An infinite bound on convexity would be false."""
    strong = exact.quadratic(2.0)
    assert (1e308 * strong).modulus(1) is None
    assert (1e200 * (1e200 * strong)).modulus(1) is None
    assert (6e307 * strong + 6e307 * strong).modulus(1) is None
    assert (-1e308 * strong).modulus(1) is None
    W = of.kernels.Function(square_of, modulus=2.0)
    assert (1e308 * W).modulus is None
    twice = 1e200 * (1e200 * of.Potential(lambda x: 1e-300 * square_of(x)))
    ones = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    assert abs(float(twice.value(ones)) / 1e100 - 1) < 1e-14  # the value is known
    with pytest.raises(ValueError, match=r"^a product of factors must be finite"):
        twice.terms()
