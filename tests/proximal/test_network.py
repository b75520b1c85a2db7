"""JKO on the loss of a network: dissipation, the implicit equation, order one."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.proximal import ParticleProximal
from otflow.testing.clouds import normal

HORIZON = 2.0
STEPS = (0.5, 0.25, 0.125)


@functools.cache
def problem() -> tuple[of.meanfield.Risk, of.Particles]:
    """Return a smooth risk on 16 points of the line and 60 neurons."""
    X = normal(16, 1, seed=3)
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, (2 * X[:, 0]).sin())
    return risk, of.Particles(normal(60, 3))


@functools.cache
def by_jko(dt: float) -> of.Trajectory:
    risk, neurons = problem()
    solver = ParticleProximal(tolerance=1e-11)
    return of.flow(risk, neurons, of.JKO(solver), dt=dt, steps=round(HORIZON / dt))


@functools.cache
def by_euler(dt: float) -> of.Trajectory:
    risk, neurons = problem()
    return of.flow(
        risk, neurons, of.ExplicitEuler(), dt=dt, steps=round(HORIZON / dt), every=10**6
    )


@functools.cache
def by_flow() -> torch.Tensor:
    """Return the neurons at the horizon, by Runge-Kutta of order 4."""
    risk, mu = problem()
    h, count = HORIZON / 400, 400
    for _ in range(count):
        a = risk.velocity(mu)
        b = risk.velocity(mu.push(a, h / 2))
        c = risk.velocity(mu.push(b, h / 2))
        d = risk.velocity(mu.push(c, h))
        mu = mu.push((a + 2 * b + 2 * c + d) / 6, h)
    return mu.points


@pytest.mark.parametrize("dt", STEPS)
def test_every_step_pays_for_its_distance(dt):
    for info in by_jko(dt).info:
        assert info["certified"]
        fall = info["energy_before"] - info["energy_after"]
        assert info["w2"] ** 2 / (2 * dt) <= fall + 1e-14


@pytest.mark.parametrize("dt", STEPS)
def test_the_new_neurons_obey_the_implicit_equation(dt):
    """x+ = x + dt v[mu+](x+)."""
    risk, _ = problem()
    run = by_jko(dt)
    for mu, nu in pairwise(run.snapshots):
        residual = nu.points - mu.points - dt * risk.velocity(nu)
        assert float(residual.abs().max()) <= 2e-8


def test_the_error_to_the_flow_halves_with_the_step():
    for runs in (by_jko, by_euler):
        errors = [
            float((runs(dt).final.points - by_flow()).square().sum(1).mean().sqrt())
            for dt in STEPS
        ]
        for coarse, fine in pairwise(errors):
            assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize("dt", STEPS)
def test_the_implicit_scheme_lags_and_the_explicit_one_leads(dt):
    """F(JKO) > F(flow) > F(Euler) at the horizon."""
    risk, _ = problem()
    truth = float(risk(of.Particles(by_flow())))
    assert float(by_jko(dt).records["energy"][-1]) > truth
    assert float(by_euler(dt).records["energy"][-1]) < truth
