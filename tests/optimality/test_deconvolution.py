"""Three spikes on a circle, seen through four frequencies: gaps along a flow."""

import math

import pytest
import torch

import otflow as of
from otflow.optimality import BoxDomain, optimality_gap

F64 = torch.float64
PERIOD = BoxDomain(0, 1)


def ripple(rows, theta):
    """Return sqrt(2) cos(2 pi k theta - phase), rows (k, phase)."""
    angle = 2 * math.pi * rows[:, :1] * theta[:, 0] - rows[:, 1:]
    return math.sqrt(2) * torch.cos(angle)


def deconvolution():
    waves = [[k, phase] for k in range(1, 5) for phase in (0.0, math.pi / 2)]
    rows = torch.tensor(waves, dtype=F64)
    spikes = torch.tensor([[0.15], [0.42], [0.77]], dtype=F64)
    target = of.Particles(spikes, torch.tensor([0.5, 0.3, 0.2], dtype=F64))
    network = of.meanfield.CustomLayer(ripple)
    return of.meanfield.Risk(network, rows, network(target, rows)), target


def even(m):
    return of.Particles((torch.arange(m, dtype=F64)[:, None] + 0.5) / m)


def wrapped(mu):
    return of.Particles(mu.points.remainder(1.0), mu.weights)


def flowed(m, steps):
    F, _ = deconvolution()
    scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=50.0))
    run = of.flow(F, even(m), scheme, dt=0.007, steps=steps, every=steps // 10)
    return F, [wrapped(mu) for mu in run.snapshots]


@pytest.mark.parametrize(
    ("m", "steps", "last"),
    [
        (3, 600, 1e-11),
        (5, 1500, 1e-6),
        pytest.param(40, 6000, 4e-8, marks=pytest.mark.slow),
    ],
)
def test_the_gap_bounds_the_error_at_every_logged_step(m, steps, last):
    F, measures = flowed(m, steps)
    gaps = [optimality_gap(F, mu, PERIOD) for mu in measures]
    assert {gap.kind for gap in gaps} == {"proved"}
    for mu, gap in zip(measures, gaps, strict=True):
        assert float(F.value(mu)) <= gap.value  # the infimum is 0
        assert gap.value - gap.found <= 0.0101 * gap.found + 1e-13
    assert gaps[-1].value < last
    # The gap is of the order of the root of the error: F is quadratic, and exact data
    # leave no slope at the minimum.
    assert gaps[-1].value > float(F.value(measures[-1]))


def test_the_gap_is_sharp_at_the_spikes_and_after_small_moves():
    F, target = deconvolution()
    assert 0 <= optimality_gap(F, target, PERIOD).value < 1e-14
    fine = torch.linspace(0, 1, 200_001, dtype=F64)[:, None]
    for move in (1e-2, 1e-4, 1e-6, 1e-8):
        mu = of.Particles(target.points + move, target.weights)
        gap = optimality_gap(F, mu, BoxDomain(0, 1, sharpness=1e-4))
        variation = F.first_variation(mu)
        known = float(mu.weights @ variation - F.first_variation(mu, fine).min())
        assert known <= gap.value <= known * (1 + 3e-4)


def test_a_box_of_one_period_is_enough():
    F, target = deconvolution()
    mu = of.Particles(target.points + 0.01, target.weights)
    one = optimality_gap(F, mu, PERIOD).value
    other = optimality_gap(F, mu, BoxDomain(-0.2, 1.3)).value
    assert one == pytest.approx(other, rel=0.011)


def test_two_atoms_that_no_longer_move_are_told_from_a_minimiser():
    F, _ = deconvolution()
    run = of.flow(F, even(2), of.ExplicitEuler(), dt=0.007, steps=3000, every=3000)
    mu = wrapped(run.final)
    assert float(F.velocity(mu).norm()) < 1e-9
    gap = optimality_gap(F, mu, PERIOD)
    assert gap.kind == "proved"
    assert gap.value >= float(F.value(mu)) > 0.01
