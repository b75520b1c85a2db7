"""Slopes on logarithms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from otflow.analysis import exponential_rate, observed_order


@pytest.mark.parametrize("order", [-1.0, 0.5, 2.0])
def test_a_power_has_its_exponent(order):
    steps = [0.4, 0.1, 0.05, 0.003]
    errors = [7.0 * h**order for h in steps]
    for kind in (list, np.array, lambda v: torch.tensor(v, dtype=torch.float64)):
        found = observed_order(kind(steps), kind(errors))
        assert isinstance(found, float)
        assert found == pytest.approx(order, rel=1e-12)


def test_the_fit_is_by_least_squares():
    steps, errors = [1.0, math.e, math.e**2], [1.0, 1.0, math.e**3]
    assert observed_order(steps, errors) == pytest.approx(1.5)


def test_an_exponential_has_its_rate():
    t = torch.linspace(0, 3, 13, dtype=torch.float64)
    assert exponential_rate(t, 5 * (-0.7 * t).exp()) == pytest.approx(0.7, rel=1e-12)
    shifted = 2 - 0 * t + (-0.7 * t).exp()
    assert exponential_rate(t, shifted, limit=2.0) == pytest.approx(0.7, rel=1e-12)
    assert exponential_rate(t, (0.5 * t).exp()) == pytest.approx(-0.5, rel=1e-12)


BAD = [
    ([1.0], [1.0], r"^steps must be at least two numbers, got shape \(1,\)"),
    ([[1.0, 2.0]], [1.0, 2.0], r"^steps must be at least two numbers"),
    (1.0, [1.0, 2.0], r"^steps must be at least two numbers, got shape \(\)"),
    ([1.0, 2.0], 1.0, r"^errors must be at least two numbers, got shape \(\)"),
    ([1.0, 2.0], [1.0, 2.0, 3.0], "^steps has 2 entries, but there are 3 to fit"),
    ([1.0, 2.0], [1.0, 0.0], "^errors must be positive .* got 0 at index 1; leave out"),
    ([1.0, -2.0], [1.0, 1.0], "^steps must be positive"),
    ([1.0, 2.0], [math.nan, 1.0], "^errors must be finite, got nan at index 0"),
    ([0.1, 0.1], [1.0, 2.0], "^steps are all equal: no slope can be fitted; vary"),
]


@pytest.mark.parametrize(("steps", "errors", "message"), BAD)
def test_bad_tables_are_refused(steps, errors, message):
    with pytest.raises(ValueError, match=message):
        observed_order(steps, errors)


def test_values_must_exceed_their_limit():
    with pytest.raises(ValueError, match=r"^values - limit must be positive"):
        exponential_rate([0.0, 1.0], [2.0, 1.0], limit=1.0)
    with pytest.raises(TypeError, match=r"^limit must be a real number"):
        exponential_rate([0.0, 1.0], [2.0, 1.0], limit="0")
