"""NoisyEuler: velocities at perturbed points."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.schemes import NoisyEuler
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64


class TestNoisyEuler(SchemeContract):
    stochastic = True
    descends = False
    steps = ()  # at a level that stays, the flow is another one

    def make(self):
        return NoisyEuler(lambda k: 0.3 * 0.9**k)


class TestWithoutNoise(SchemeContract):
    """At the level 0 it is explicit Euler."""

    def make(self):
        return NoisyEuler(0.0)

    def test_it_is_explicit_euler(self):
        F, mu = self.problem()
        euler = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=4)
        found = self.run(4, dt=0.1).final.points
        torch.testing.assert_close(found, euler.final.points, rtol=1e-12, atol=1e-13)


def test_a_step_moves_by_the_velocity_at_the_perturbed_points():
    mu, F = clouds.weighted(), of.Interaction(of.kernels.Gaussian(0.7))
    generator = torch.Generator().manual_seed(3)
    noise = torch.empty_like(mu.points).normal_(generator=generator)
    expected = mu.points + 0.1 * F.velocity(mu, mu.points + 0.5 * noise)
    generator.manual_seed(3)
    step = NoisyEuler(0.5).step(F, mu, 0.1, 0, generator)
    torch.testing.assert_close(step.measure.points, expected)
    assert step.info["level"] == 0.5


def test_under_a_spring_the_mean_decays_and_the_variance_is_exact():
    # x <- (1 - a) x - a level u with a = lam dt.
    n, lam, h, k, level = 40_000, 0.8, 0.2, 12, 0.5
    F = exact.quadratic(lam)
    mu = of.Particles(torch.full((n, 1), 2.0, dtype=F64))
    x = of.flow(F, mu, NoisyEuler(level), dt=h, steps=k, every=k, generator=0).final
    a = lam * h
    variance = (a * level) ** 2 * sum((1 - a) ** (2 * j) for j in range(k))
    noise = 5 / n**0.5
    mean = float(x.points.mean())
    assert mean == pytest.approx(2 * (1 - a) ** k, abs=noise * variance**0.5)
    assert float(x.points.var()) == pytest.approx(variance, rel=noise * 2**0.5)


def mmd(nu, kernel):
    """Return half the squared discrepancy from nu, up to a constant."""
    pull = of.Potential(lambda x: nu.convolve(kernel, x))
    return of.Interaction(kernel) - pull


def test_noise_separates_atoms_that_coincide_under_a_discrepancy():
    # Equal atoms have equal velocities: a flow without noise never separates them.
    k = of.kernels.Gaussian(1.0)
    nu = of.Particles(normal(40, 1, seed=2))
    mu = of.Particles(torch.full((40, 1), 2.0, dtype=F64))
    F = mmd(nu, k)
    floor = F.value(nu)
    options = {"dt": 2.0, "steps": 200, "every": 200, "generator": 0}
    plain = of.flow(F, mu, of.ExplicitEuler(), **options).final
    noisy = of.flow(F, mu, NoisyEuler(lambda j: 0.98**j), **options).final
    stuck, free = (float(F.value(end) - floor) for end in (plain, noisy))
    assert float(plain.points.std()) < 1e-9
    assert 0 <= free < 0.02 * stuck


def test_the_level_goes_on_after_a_resumption():
    scheme = NoisyEuler(lambda k: 0.5 / (1 + k))
    F, mu = of.Interaction(of.kernels.Gaussian(0.7)), clouds.weighted()
    whole = of.flow(F, mu, scheme, dt=0.1, steps=6, generator=0)
    part = of.flow(F, mu, scheme, dt=0.1, steps=3, generator=0)
    rest = of.flow(F, part.final, scheme, dt=0.1, steps=3, resume=part)
    assert torch.equal(rest.final.points, whole.final.points)
    levels = [info["level"] for info in whole.info]
    assert levels == [0.5 / (1 + k) for k in range(6)]


def test_a_negative_level_is_refused():
    with pytest.raises(ValueError, match="level"):
        NoisyEuler(-1.0)
    with pytest.raises(ValueError, match="level"):
        NoisyEuler(lambda k: -1.0 - k).step(
            exact.quadratic(), clouds.weighted(), 0.1, 0, torch.Generator()
        )
