"""Dissipation: the rate, the identity along a flow, and the inequality of JKO."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import (
    dissipation,
    energy_dissipation,
    minimizing_movement,
    observed_order,
)
from otflow.testing import clouds
from otflow.testing.differences import derivative
from tests import exact
from tests.measures.intervals import uniform


def trajectory(snapshots, times, F, steps=None):
    """Return the record of a flow that was not computed by otflow."""
    return of.Trajectory(
        times=torch.as_tensor(times, dtype=torch.float64),
        records={"energy": torch.stack([F.value(nu) for nu in snapshots])},
        snapshots=tuple(snapshots),
        final=snapshots[-1],
        info=({},) * (len(snapshots) - 1 if steps is None else steps),
        seed=0,
        status="finished",
        message="by hand",
    )


def dyson_flow(times, *, n=9, c=0.8):
    """Return the exact flow of the Dyson gas."""
    scales = [exact.breathing(c, float(t), kappa=1 / n) for t in times]
    return trajectory([exact.hermite(n, s) for s in scales], times, exact.dyson())


# The rate -----------------------------------------------------------------------------

FUNCTIONALS = [
    exact.quadratic(1.3),
    of.Interaction(of.kernels.Gaussian(0.8)) + exact.quadratic(),
    of.OfExpectation(lambda m: m.square().sum(), torch.tanh),
]


@pytest.mark.parametrize("F", FUNCTIONALS, ids=repr)
@pytest.mark.parametrize("make", [clouds.uniform, clouds.weighted, clouds.degenerate])
def test_dissipation_is_minus_the_derivative_of_the_energy(F, make):
    mu = make()
    velocity = F.velocity(mu)
    expected = -derivative(lambda t: F.value(mu.push(velocity, t)))
    rate = dissipation(F, mu)
    torch.testing.assert_close(rate, expected, rtol=1e-8, atol=0)
    assert rate.shape == ()
    clouds.assert_plain(rate)


def test_dissipation_of_entropy_where_there_is_a_density():
    # The uniform density spreads from its ends: n = 1 cell of length 1 with end masses
    # 1/2 has velocity 1/(L m) = 2 at each end.
    assert float(dissipation(of.Entropy(), uniform(0.0, 1.0, n=1))) == pytest.approx(4)


def test_dissipation_vanishes_at_a_critical_point():
    n = 9
    mu = exact.hermite(n, 1 / math.sqrt(n))
    assert float(dissipation(exact.dyson(), mu)) < 1e-24


# The identity -------------------------------------------------------------------------


def test_the_identity_holds_along_the_exact_flow_to_the_order_of_the_rule():
    residuals, sizes = [], (10, 20, 40)
    for m in sizes:
        times = torch.linspace(0, 1, m + 1, dtype=torch.float64)
        report = energy_dissipation(exact.dyson(), dyson_flow(times))
        assert report.drop.shape == report.dissipated.shape == (m,)
        residuals.append(abs(report.residual))
        whole = exact.dyson_energy(9, 0.8)
        whole -= exact.dyson_energy(9, exact.breathing(0.8, 1.0, kappa=1 / 9))
        assert float(report.drop.sum()) == pytest.approx(whole, rel=1e-12)
    assert observed_order(sizes, residuals) == pytest.approx(-2, abs=0.1)
    assert residuals[-1] < 1e-3


def test_explicit_euler_violates_the_identity_at_order_one():
    residuals, steps = [], (0.1, 0.05, 0.025)
    F = FUNCTIONALS[1]
    for dt in steps:
        run = of.flow(
            F, clouds.weighted(), of.ExplicitEuler(), dt=dt, steps=round(1 / dt)
        )
        residuals.append(abs(energy_dissipation(F, run).residual))
    assert observed_order(steps, residuals) == pytest.approx(1, abs=0.1)


def test_a_flow_of_something_else_does_not_satisfy_it():
    run = of.flow(
        exact.quadratic(), clouds.weighted(), of.ExplicitEuler(), dt=0.01, steps=100
    )
    wrong = energy_dissipation(2 * exact.quadratic(), run)
    right = energy_dissipation(exact.quadratic(), run)
    assert abs(right.residual) < 0.02 * float(right.drop.sum())
    assert abs(wrong.residual) > 0.5 * float(wrong.drop.sum())


# The inequality of minimising movements -----------------------------------------------


def test_an_exact_jko_sequence_satisfies_it():
    n, c, tau = 9, 0.8, 0.3
    scales = [exact.breathing_jko(c, tau, k, kappa=1 / n) for k in range(6)]
    times = [tau * k for k in range(6)]
    run = trajectory([exact.hermite(n, s) for s in scales], times, exact.dyson())
    report = minimizing_movement(run)
    assert report.slack > 0
    moved = torch.tensor(scales, dtype=torch.float64).diff().square()
    squares = moved * exact.hermite_zeros(n).square().mean()
    torch.testing.assert_close(report.dissipated, squares / (2 * tau))


@pytest.mark.parametrize("dt", [0.1, 1.0, 30.0])
def test_the_jko_scheme_satisfies_it_whatever_dt(dt):
    F = of.Interaction(of.kernels.Gaussian(0.8)) + exact.quadratic()
    run = of.flow(F, clouds.uniform(), of.JKO(), dt=dt, steps=5)
    report = minimizing_movement(run)
    assert report.slack >= -1e-12
    assert float(report.drop[0]) > 0


def test_explicit_euler_breaks_it_when_dt_is_large():
    # For |x|^2/2 and one atom the slack of a step is dt (1 - dt) |x|^2 / 2.
    for dt, sign in ((0.5, 1), (1.5, -1)):
        mu = clouds.uniform(1)
        run = of.flow(exact.quadratic(), mu, of.ExplicitEuler(), dt=dt, steps=1)
        second = float(mu.points.square().sum(-1).mean())
        report = minimizing_movement(run)
        assert report.slack == pytest.approx(dt * (1 - dt) * second / 2, rel=1e-10)
        assert math.copysign(1, report.slack) == sign


def test_distances_are_those_between_particles():
    F, mu = of.Potential(lambda x: x.square().sum(-1)), uniform(0.0, 1.0)
    run = of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=2)
    assert energy_dissipation(F, run).residual == pytest.approx(0, abs=1e-2)
    with pytest.raises(
        of.errors.Unsupported, match=r"between particles, got Intervals"
    ):
        minimizing_movement(run)


DENSITIES = [
    of.Gaussian(torch.ones(1).double(), 0.2 * torch.eye(1).double()),
    of.Quantiles.from_quantile(
        lambda u: 1 + 0.4 * torch.special.ndtri(u), 50, dtype=torch.float64
    ),
    of.GridDensity.from_function(
        lambda x: torch.exp(-3 * (x - 1).square().sum(-1)),
        -4,
        4,
        (80,),
        dtype=torch.float64,
    ),
]


@pytest.mark.parametrize("mu", DENSITIES)
def test_elsewhere_distances_are_those_that_the_steps_report(mu):
    F = exact.quadratic() + of.Entropy()
    run = of.flow(F, mu, of.JKO(), dt=0.3, steps=4)
    report = minimizing_movement(run)
    assert report.slack > 0
    least = min(info["decrease"] for info in run.info)
    assert report.slack == pytest.approx(least, rel=1e-6)


def test_every_step_must_be_recorded():
    run = of.flow(
        exact.quadratic(),
        clouds.uniform(),
        of.ExplicitEuler(),
        dt=0.1,
        steps=4,
        every=2,
    )
    with pytest.raises(ValueError, match=r"^4 steps were made and 3 measures recorded"):
        minimizing_movement(run)
    alone = of.flow(
        exact.quadratic(), clouds.uniform(), of.ExplicitEuler(), dt=1, steps=0
    )
    for ask in (
        minimizing_movement,
        lambda r: energy_dissipation(exact.quadratic(), r),
    ):
        with pytest.raises(ValueError, match=r"trajectory has 1 records; at least 2"):
            ask(alone)


def test_steps_that_took_no_time_cost_nothing():
    mu = of.Particles(clouds.normal(5, 2))
    F = of.Potential(lambda x: x.abs().sum(-1))
    euler = of.ExplicitEuler(backtracking=True, max_halvings=3)
    run = of.flow(F, mu, euler, dt=1.0, steps=20)
    rested = run.times.diff() == 0
    assert rested.any()
    report = of.analysis.minimizing_movement(run)
    assert report.dissipated.isfinite().all()
    assert (report.dissipated[rested] == 0).all()
    assert math.isfinite(report.slack)
    assert math.isfinite(report.residual)


@pytest.mark.parametrize("snapshots", [5, [0.0, 0.11, 0.2]])
def test_dissipation_takes_the_times_of_the_snapshots(snapshots):
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    run = of.flow(
        F, mu, of.ExplicitEuler(), dt=0.01, steps=20, every=3, snapshots=snapshots
    )
    report = of.analysis.energy_dissipation(F, run)
    assert torch.equal(report.times, run.snapshot_times)
    assert abs(report.residual) < 0.02
