"""Flows to data: few particles that stand for a law known by draws."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import otflow as of
from otflow.metrics import wasserstein2

F64 = torch.float64
N = 500


def moons(n, seed):
    """Return draws from two half circles with a little noise."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(n, generator=g, dtype=F64)
    up = torch.rand(n, generator=g, dtype=F64) < 0.5
    x = torch.where(up, angle.cos(), 1 - angle.cos())
    y = torch.where(up, angle.sin(), 0.5 - angle.sin())
    noise = torch.randn(n, 2, generator=g, dtype=F64)
    return torch.stack([x, y], 1) + 0.06 * noise


TARGET, FRESH = moons(1000, 1), moons(2000, 2)


@cache
def of_exact_draws():
    """Return the mean distance of N exact draws to fresh ones."""
    return sum(distance(moons(N, seed)) for seed in (3, 4, 5)) / 3


def distance(x):
    """Return the distance to the fresh draws, from above and to a hundredth."""
    return float(wasserstein2(x, FRESH, tolerance=0.01))


FLOWS = {
    "distance": (of.SquaredDistanceTo(TARGET, tolerance=0.01), 0.5, 6),
    "sinkhorn": (of.SinkhornDivergenceTo(TARGET, blur=0.1), 1.0, 4),
    "sliced": (of.SlicedWassersteinTo(TARGET, 32), 2.0, 60),
    "energy distance": (of.EnergyDistanceTo(TARGET), 0.5, 60),
}


def start(seed=0):
    """Return draws of a normal law about the moons."""
    g = torch.Generator().manual_seed(seed)
    return of.Particles(0.5 * torch.randn(N, 2, generator=g, dtype=F64))


@pytest.mark.slow  # distances of 500 to 2,000 points, and flows to 1,000
@pytest.mark.parametrize("name", FLOWS)
def test_particles_come_as_close_to_two_moons_as_exact_draws(name):
    F, dt, steps = FLOWS[name]
    assert distance(start().points) > 4 * of_exact_draws()
    run = of.flow(F, start(), of.ExplicitEuler(), dt=dt, steps=steps, every=steps)
    assert distance(run.final.points) <= 1.3 * of_exact_draws()


@pytest.mark.slow  # 3,000 steps
def test_noise_brings_a_gaussian_discrepancy_to_two_moons():
    """Without noise atoms rest away from the moons: the kernel is blind to details."""
    F, steps = of.MMDTo(TARGET, of.kernels.Gaussian(0.6)), 3000

    def level(k):
        return 2.0 * math.exp(-6.9 * k / steps) if k < 0.95 * steps else 0.0

    def ratio(scheme):
        options = {"dt": 2 * 0.6**2, "steps": steps, "every": steps, "generator": 0}
        end = of.flow(F, start(), scheme, **options).final
        return distance(end.points) / of_exact_draws()

    assert ratio(of.schemes.NoisyEuler(level)) <= 1.3 < ratio(of.ExplicitEuler())
