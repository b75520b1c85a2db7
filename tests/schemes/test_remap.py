"""Explicit steps on grids by remap: order in the spacing, no CFL limit, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

import otflow as of
from otflow.errors import Diverged, Unsupported

F64 = torch.float64
SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1))
DT, STEPS = 0.05, 10


def bell(n):
    """Return a bell of variance 1/16 at 1."""
    return of.GridDensity.from_function(
        lambda x: torch.exp(-8 * (x - 1).square().sum(-1)), -4, 4, (n,), dtype=F64
    )


def variance(mu):
    mean = mu.expectation(lambda x: x[..., 0])
    return float(mu.expectation(lambda x: (x[..., 0] - mean).square()))


def test_euler_by_remap_has_second_order_in_the_spacing():
    scheme, errors = of.ExplicitEuler(remap=True), []
    for n in (80, 160, 320):
        mu = bell(n)
        nu = of.flow(SPRING, mu, scheme, dt=DT, steps=STEPS).final
        mean = float(nu.expectation(lambda x: x[..., 0]))
        assert mean == pytest.approx((1 - DT) ** STEPS, abs=1e-4)
        # The push-forward contracts the variance by (1 - dt)^2 a step.
        errors.append(abs(variance(nu) - variance(mu) * (1 - DT) ** (2 * STEPS)))
    for one, other in itertools.pairwise(errors):
        assert other <= one / 3.5
    # A push is upwind, and the finer grids need a shorter step.
    with pytest.raises(Diverged, match="CFL"):
        of.flow(SPRING, bell(80), of.ExplicitEuler(), dt=DT, steps=STEPS)
    push = of.flow(SPRING, bell(80), of.ExplicitEuler(), dt=DT / 10, steps=10 * STEPS)
    exact = variance(bell(80)) * (1 - DT / 10) ** (20 * STEPS)
    assert abs(variance(push.final) - exact) >= 10 * errors[0]


def test_backtracking_goes_with_remap():
    scheme = of.ExplicitEuler(backtracking=True, remap=True)
    run = of.flow(SPRING, bell(80), scheme, dt=1.5, steps=4)
    assert bool((run.records["energy"].diff() < 0).all())
    assert max(info.dt or 0 for info in run.info) > DT


def test_langevin_by_remap_rests_at_the_law_of_its_steps():
    """Its variance is 1 / (1 - dt / 2), cut off at the walls of the box."""
    F = SPRING + of.Entropy()
    nu = of.flow(F, bell(160), of.Langevin(remap=True), dt=DT, steps=200).final
    assert variance(nu) == pytest.approx(1 / (1 - DT / 2), abs=2e-3)
    assert abs(variance(nu) - 1) >= 0.02
    with pytest.raises(Diverged, match="CFL"):
        of.flow(F, bell(160), of.Langevin(), dt=DT, steps=200)


@pytest.mark.parametrize("scheme", [of.ExplicitEuler, of.Langevin])
def test_points_that_move_are_not_remapped(scheme):
    mu = of.Particles(torch.ones(3, 1))
    with pytest.raises(Unsupported, match="no fixed cells to remap onto"):
        of.flow(SPRING, mu, scheme(remap=True), dt=0.1, steps=1)
    with pytest.raises(TypeError, match="remap must be True or False"):
        scheme(remap=1)
