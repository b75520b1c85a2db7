"""MALA: the law at rest is exact for every dt."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.schemes import MALA
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64
SMOOTH = of.Potential(lambda x: (x.square().sum(-1) + 1).sqrt(), modulus=0.0)


class TestMALA(SchemeContract):
    stochastic = True
    descends = False
    diverges = False  # a proposal far away is rejected
    steps = ()

    def make(self):
        return MALA()

    def problem(self, dtype=F64):
        return SMOOTH + 0.1 * of.Entropy(), clouds.weighted(7, 2, dtype=dtype)


@pytest.mark.parametrize("h", [0.1, 1.0, 1.7])
def test_the_variance_at_rest_has_no_error_at_any_dt(h):
    n, lam, temperature = 40_000, 1.0, 0.5
    F = exact.quadratic(lam) + temperature * of.Entropy()
    mu = of.Particles((temperature / lam) ** 0.5 * normal(n, 1))
    run = of.flow(F, mu, MALA(), dt=h, steps=30, every=30, generator=0)
    found, noise = float(run.final.points.square().mean()), 5 * (2 / n) ** 0.5
    assert found == pytest.approx(temperature / lam, rel=noise)
    # Langevin's is off by the factor 1 / (1 - h lam / 2), which this number tells.
    euler = exact.langevin_moments(0, 1, h, 999, lam=lam, temperature=temperature)[1]
    assert abs(euler - temperature / lam) > noise * temperature / lam


def test_the_law_at_rest_in_a_double_well():
    V = lambda x: 2 * (x.square() - 1).square().sum(-1)
    n, grid = 20_000, torch.linspace(-3, 3, 4001, dtype=F64)
    density = (-V(grid[:, None])).exp()
    density = density / density.sum()
    mu = of.Particles(torch.linspace(-1.5, 1.5, n, dtype=F64)[:, None])
    run = of.flow(of.KL(V), mu, MALA(), dt=0.1, steps=150, every=150, generator=0)
    x = run.final.points[:, 0]
    for power in (2, 4):
        expected = float(density @ grid**power)
        spread = float(density @ grid ** (2 * power)) - expected**2
        found = float((x**power).mean())
        assert found == pytest.approx(expected, abs=5 * (spread / n) ** 0.5)


def test_acceptance_is_the_share_that_moved_and_falls_with_dt():
    F, mu = of.KL(lambda x: 0.5 * x.square().sum(-1)), of.Particles(normal(2000, 3))
    rates = []
    for dt in (1e-4, 0.5, 1.5):
        step = MALA().step(F, mu, dt, None, torch.Generator().manual_seed(0))
        moved = (step.measure.points != mu.points).any(-1)
        assert step.info["acceptance"] == pytest.approx(float(moved.to(F64).mean()))
        rates.append(step.info["acceptance"])
    assert rates[0] > 0.999
    assert rates[0] > rates[1] > rates[2] > 0


def test_short_steps_are_those_of_langevin():
    # The same draws: all are accepted where dt is short.
    F, mu = SMOOTH + 0.1 * of.Entropy(), clouds.weighted()
    one = MALA().step(F, mu, 1e-5, None, torch.Generator().manual_seed(0))
    two = of.Langevin().step(F, mu, 1e-5, None, torch.Generator().manual_seed(0))
    assert one.info["acceptance"] == 1.0
    torch.testing.assert_close(
        one.measure.points, two.measure.points, rtol=1e-14, atol=0
    )


class Mean(of.Functional):
    """A linear functional of one's own, whose first variation has another constant."""

    def value(self, mu):
        mass = mu.expectation(lambda x: torch.ones_like(x[:, 0]))
        return mu.expectation(lambda x: 0.5 * x.square().sum(-1)) / mass

    def mixture_curvature(self):
        return "linear"


def test_a_linear_functional_of_one_s_own_has_the_same_steps():
    mu = clouds.weighted()
    own, ready = (
        of.flow(F + 0.5 * of.Entropy(), mu, MALA(), dt=0.8, steps=8, generator=0)
        for F in (Mean(), exact.quadratic())
    )
    torch.testing.assert_close(own.final.points, ready.final.points)
    assert own.info[0]["acceptance"] == ready.info[0]["acceptance"]


def test_masses_are_kept():
    mu = clouds.weighted()
    run = of.flow(SMOOTH + of.Entropy(), mu, MALA(), dt=0.5, steps=3, generator=0)
    assert torch.equal(run.final.weights, mu.weights)
