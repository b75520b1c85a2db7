"""A search along a line: where a concave function turns, found by its slope alone."""

from __future__ import annotations

import math

import pytest

from otflow.numerics.line_search import MAX_TRIALS, OVERSHOOT, STEEP, turning_point


@pytest.mark.parametrize("top", [1e-4, 0.3, 1.0, 7.0, 1e3])
@pytest.mark.parametrize("power", [1, 3])
def test_the_slope_at_the_end_is_small_beside_that_at_the_start(top, power):
    # The slope (1 - x/top)^power falls through 0 at x = top.
    def trial(x):
        return x, math.copysign(abs(1 - x / top) ** power, 1 - x / top), False

    x, length, used = turning_point(trial, 1.0)
    assert x == length
    assert used <= MAX_TRIALS
    slope = trial(x)[1]
    assert slope >= -OVERSHOOT
    # Steeper only if the point that is twice as far overshoots.
    assert slope <= STEEP or trial(2 * x)[1] < -OVERSHOOT


def test_a_fall_at_the_start_has_no_point_and_costs_nothing():
    for start in (0.0, -1.0, math.nan):
        assert turning_point(pytest.fail, start) == (None, 0.0, 0)


def test_slopes_that_are_not_finite_are_too_far():
    def trial(x):
        return x, math.nan if x > 0.02 else 0.4, False

    near, _, _ = turning_point(trial, 1.0)
    assert near is not None
    assert near <= 0.02
    point, _, used = turning_point(lambda x: (x, math.inf, False), 1.0)
    assert (point, used) == (None, MAX_TRIALS)


def test_a_direction_that_was_bent_is_tried_at_the_same_length():
    lengths, steep = [], [8.0]

    def trial(x):
        lengths.append(x)
        return x, 1 - steep[0] * x, False

    def bent():
        steep[0] /= 2
        return steep[0] >= 2

    point, length, used = turning_point(trial, 1.0, bent)
    assert lengths[:3] == [1.0, 1.0, 1.0]
    assert point == length < 1
    assert used == len(lengths)
    # What is good anyway ends it where the slope is small.
    assert turning_point(lambda x: (x, -9.0, True), 1.0) == (1.0, 1.0, 1)
