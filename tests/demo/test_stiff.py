"""JKO reaches the minimum of the stiff energy; the others do not, by work alone."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from demo import stiff

N, STEPS = 200, 200


@pytest.fixture(scope="module")
def found() -> stiff.Stiff:
    return stiff.race(N, STEPS)


def test_the_energy_by_hand_is_the_functional():
    mu = stiff.quantiles(30)
    by_hand = stiff.energy_by_hand(mu.edges, mu.weights)
    torch.testing.assert_close(by_hand, stiff.F.value(mu), rtol=1e-13, atol=0)


def test_the_partition_function_is_that_of_the_quartic():
    x = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    Z = torch.trapezoid((-(x**4) / 4 / stiff.TEMPERATURE).exp(), x)
    assert pytest.approx(-stiff.TEMPERATURE * math.log(Z), rel=1e-9) == stiff.LEAST


def test_the_least_energy_of_the_cells_is_above_the_exact_one(found):
    # The value of quantiles is that of a density, with a larger integral of a convex V.
    assert 0 < found.least - stiff.LEAST < 1e-5


def test_jko_is_certified_and_falls_to_the_minimum(found):
    energies = torch.tensor(found.jko.energies)
    assert (energies.diff() <= 1e-15).all()
    assert found.jko.certificate == "15/15 steps certified"
    assert energies[-1] - found.least < 1e-12


def test_jko_keeps_the_bound_of_convex_energies(found):
    # F(mu_k) - min F <= W2(mu_0, minimiser)^2 / (2 k dt), in the metric of the cells.
    start, end = stiff.quantiles(N), found.jko.end
    assert end is not None
    square = float(start.lumped @ (start.edges - end.edges).square())
    for k, energy in enumerate(found.jko.energies[1:], 1):
        assert energy - found.least <= square / (2 * k * stiff.STEP)


def test_explicit_euler_diverges_at_the_step_of_jko(found):
    assert found.diverged == "raised Diverged in step 0"
    with pytest.raises(of.errors.Diverged, match="crossed"):
        of.flow(stiff.F, stiff.quantiles(N), of.ExplicitEuler(), dt=stiff.STEP, steps=1)


def test_adam_is_the_best_of_its_rates_and_far_after_many_more_steps(found):
    ends = [curve.energies[-1] for curve in found.adams.values()]
    assert found.adam.energies[-1] == min(ends)
    assert set(found.adams) == set(stiff.RATES)
    # The best rate is inside of the range that was tried, not at its edge.
    assert min(stiff.RATES) < found.rate < max(stiff.RATES)
    assert len(found.adam.energies) > 10 * len(found.jko.energies)
    assert found.adam.energies[-1] - found.least > stiff.GOAL


def test_careful_euler_falls_but_slowly(found):
    assert found.euler.certificate == f"none; energy rose in 0 of {STEPS} steps"
    assert found.euler.energies[-1] - found.least > 1e-2


def test_seconds_to_an_energy():
    curve = stiff.Curve("a", [0.0, 1.0, 2.0], [3.0, 2.0, 1.0], "-")
    assert curve.seconds_to(2.5) == 1.0
    assert curve.seconds_to(0.5) == math.inf


def test_each_energy_has_its_second(found, tmp_path):
    for curve in (found.jko, found.euler, found.adam):
        assert len(curve.seconds) == len(curve.energies)
        assert curve.seconds == sorted(curve.seconds)
    stiff.draw(found, tmp_path / "stiff.png")
    assert (tmp_path / "stiff.png").stat().st_size > 10_000
