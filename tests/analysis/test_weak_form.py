"""The continuity equation in weak form, and the orders of its residual."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import otflow as of
from otflow.analysis import continuity_residual, observed_order
from otflow.testing.clouds import normal
from tests.metrics.test_geodesics import gaussian, quantiles

F64 = torch.float64
NUMBERS: Any = [1, 2]
WELL = of.Potential(lambda x: 0.5 * x.square().sum(-1))
PAIR = WELL + of.Interaction(of.kernels.Gaussian(1.0))


def sine(x):
    return x.sin().sum(-1)


def product(x):
    return x.prod(-1)


STARTS = {
    "particles": lambda: of.Particles(normal(20, 2)),
    "quantiles": lambda: of.Quantiles(0.2 * quantiles(20, 1).edges - 1.0),
    "Gaussian": lambda: gaussian(2, 1),
}


def worst(residual):
    return float(residual.abs().max())


@pytest.mark.parametrize("name", STARTS)
def test_along_an_exact_flow_the_residual_has_order_two(name):
    """Under V = |x|^2/2 every point moves along exp(-t) x."""
    mu, errors, counts = STARTS[name](), [], (40, 80, 160)
    still = -WELL.velocity(mu)
    for n in counts:
        times = [k / n for k in range(n + 1)]
        path = [mu.push(still, math.exp(-t) - 1) for t in times]
        residual = continuity_residual(path, [sine, product], WELL, times=times)
        assert residual.shape == (n, 2)
        errors.append(worst(residual))
    order = observed_order([1 / n for n in counts], errors)
    assert order == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", STARTS)
def test_along_explicit_euler_it_has_order_one(name):
    errors, steps = [], (0.04, 0.02, 0.01)
    for dt in steps:
        run = of.flow(
            PAIR, STARTS[name](), of.ExplicitEuler(), dt=dt, steps=round(0.4 / dt)
        )
        errors.append(worst(continuity_residual(run, sine, PAIR)))
    assert observed_order(steps, errors) == pytest.approx(1.0, abs=0.15)


def test_a_false_velocity_leaves_a_residual_that_does_not_fall():
    mu, last = STARTS["particles"](), []
    still = -WELL.velocity(mu)
    for n in (10, 40):
        times = [k / n for k in range(n + 1)]
        path = [mu.push(still, math.exp(-t) - 1) for t in times]
        last.append(worst(continuity_residual(path, sine, 2 * WELL, times=times)))
    assert min(last) > 0.05
    assert last[1] == pytest.approx(last[0], rel=0.1)


@pytest.mark.parametrize("name", STARTS)
def test_a_geodesic_has_the_velocity_of_its_displacement(name):
    """Without a velocity the natural coupling is taken, of order 2."""
    mu = STARTS[name]()
    nu = mu.push(0.3 * WELL.velocity(mu) + 0.1, 1.0)
    errors, counts = [], (5, 10, 20)
    for n in counts:
        path = of.metrics.geodesic(mu, nu, torch.linspace(0, 1, n + 1, dtype=F64))
        errors.append(worst(continuity_residual(path, [sine, product])))
    order = observed_order([1 / n for n in counts], errors)
    assert order == pytest.approx(2.0, abs=0.15)


def test_a_linear_test_function_leaves_round_off_alone():
    mu, nu = (of.Particles(normal(9, 2, seed=k)) for k in (1, 2))
    path = of.metrics.geodesic(mu, nu, [0.0, 0.3, 1.0])
    residual = continuity_residual(path, lambda x: x.sum(-1), times=[0.0, 0.3, 1.0])
    assert worst(residual) < 1e-12


def test_on_a_grid_the_upwind_flow_has_order_one_in_the_cells():
    """The flux takes the density of one side, the product that of both."""
    errors, spacings = [], (1 / 10, 1 / 20, 1 / 40)
    for h in spacings:
        mu = of.GridDensity.from_function(
            lambda x: torch.exp(-8 * (x - 0.3).square().sum(-1)),
            -3,
            3,
            round(6 / h),
            dtype=F64,
        )
        run = of.flow(WELL, mu, of.ExplicitEuler(), dt=0.1 * h, steps=round(1 / h))
        errors.append(worst(continuity_residual(run, sine, WELL)))
    assert observed_order(spacings, errors) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        (
            lambda: continuity_residual([quantiles(3, 1)], sine),
            ValueError,
            "two measures",
        ),
        (lambda: continuity_residual(NUMBERS, sine), TypeError, "path\\[0\\]"),
        (
            lambda: continuity_residual([quantiles(3, 1)] * 2, sine, times=[0, 0]),
            ValueError,
            "must increase",
        ),
        (
            lambda: continuity_residual([quantiles(3, 1)] * 2, sine, times=[0]),
            ValueError,
            "one per measure",
        ),
        (
            lambda: continuity_residual([quantiles(3, 1)] * 2, NUMBERS),
            TypeError,
            "tests",
        ),
    ],
)
def test_what_is_no_path_raises(wrong, kind, words):
    with pytest.raises(kind, match=words):
        wrong()


@pytest.mark.parametrize(
    ("tests", "velocity", "words"),
    [(3, None, "tests must be functions"), (sine, 3, "velocity must be a Functional")],
)
def test_what_is_no_function_raises(tests, velocity, words):
    path: Any = [of.Particles(normal(4, 2, seed=k)) for k in (0, 1)]
    with pytest.raises(TypeError, match=words):
        continuity_residual(path, tests, velocity)
