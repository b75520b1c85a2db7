"""Langevin: exact moments, temperature read off the functional."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from tests import exact


class TestLangevin(SchemeContract):
    stochastic = True
    descends = False  # the energy recorded leaves the entropy out
    steps = ()  # its weak order is in tests/convergence

    def make(self):
        return of.Langevin()

    def problem(self, dtype=torch.float64):
        F, mu = super().problem(dtype)
        return F + 0.1 * of.Entropy(), mu

    def test_the_step_vanishes_with_dt(self):
        F, mu = self.problem()
        nu = self.make().step(F, mu, 1e-12, None, torch.Generator()).measure
        torch.testing.assert_close(nu.points, mu.points, rtol=0, atol=1e-5)


class TestWithoutEntropy(SchemeContract):
    """At temperature zero it is explicit Euler."""

    def make(self):
        return of.Langevin()

    def error(self, dt):
        mu, steps = clouds.weighted(), round(1 / dt)
        run = of.flow(exact.quadratic(2.0), mu, self.make(), dt=dt, steps=steps)
        expected = exact.decay(2.0, 1.0) * mu.points
        return float((run.final.points - expected).abs().max())

    def test_it_is_explicit_euler(self):
        F, mu = self.problem()
        euler = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=4)
        assert torch.equal(self.run(4, dt=0.1).final.points, euler.final.points)


def test_mean_and_variance_are_those_of_the_scheme():
    n, lam, temperature, h, k = 40_000, 0.8, 0.5, 0.2, 12
    F = exact.quadratic(lam) + temperature * of.Entropy()
    mu = of.Particles(torch.full((n, 2), 2.0, dtype=torch.float64))
    x = of.flow(F, mu, of.Langevin(), dt=h, steps=k, every=k, generator=0).final.points
    mean, variance = exact.langevin_moments(
        2.0, 0.0, h, k, lam=lam, temperature=temperature
    )
    noise = 5 / n**0.5
    assert x.mean(0).tolist() == pytest.approx([mean] * 2, abs=noise * variance**0.5)
    assert x.var(0).tolist() == pytest.approx([variance] * 2, rel=noise * 2**0.5)
    # The step is not the diffusion: at this h the difference is seen.
    diffusion = exact.ornstein_uhlenbeck(
        2.0, 0.0, h * k, lam=lam, temperature=temperature
    )
    assert abs(diffusion[1] - variance) > 2 * noise * variance


def test_temperature_and_energy_are_those_of_the_parts():
    V = exact.quadratic()
    F = 0.5 * (V + 0.2 * of.Entropy()) + 0.3 * of.Entropy()
    mu = clouds.weighted()
    run = of.flow(F, mu, of.Langevin(), dt=0.1, steps=2, generator=0)
    assert [info["temperature"] for info in run.info] == [0.4, 0.4]
    torch.testing.assert_close(run.records["energy"][0], 0.5 * V.value(mu))


def test_pure_entropy_is_brownian_motion():
    mu = of.Particles(torch.zeros(20_000, 1, dtype=torch.float64))
    run = of.flow(of.Entropy(), mu, of.Langevin(), dt=0.25, steps=4, generator=1)
    assert float(run.final.points.var()) == pytest.approx(
        2.0, rel=5 * (2 / 20_000) ** 0.5
    )
    assert not bool(run.records["energy"].any())


def test_a_negative_temperature_is_refused_with_the_cure():
    F = exact.quadratic() + -0.5 * of.Entropy()
    with pytest.raises(ValueError, match=r"negative factor -0\.5.*backward heat"):
        of.flow(F, clouds.uniform(), of.Langevin(), dt=0.1, steps=1)


def test_the_cure_of_a_diverged_run_is_a_smaller_dt_and_works():
    F = of.Potential(lambda x: x.square().square().sum(-1)) + 0.1 * of.Entropy()
    with pytest.raises(of.errors.Diverged, match=r"take a smaller dt$") as caught:
        of.flow(F, clouds.uniform(), of.Langevin(), dt=1.0, steps=50, generator=0)
    assert "JKO" not in str(caught.value)
    run = of.flow(F, clouds.uniform(), of.Langevin(), dt=0.01, steps=50, generator=0)
    assert run.status == "finished"


class Noise(of.schemes.Scheme):
    """A scheme of one's own, by noise in place of an entropy."""

    def step(self, F, mu, dt, state, generator):
        temperature, rest = F.split_entropy()
        moved = mu.push(rest.velocity(mu), dt)
        return of.schemes.Step(moved.diffuse(2 * temperature * dt, generator))


class Told(Noise):
    def energy(self, F, mu):
        return F.split_entropy()[1].value(mu)


def test_a_scheme_of_one_s_own_for_an_entropy_is_told_to_override_energy():
    F = exact.quadratic() + 0.1 * of.Entropy()
    with pytest.raises(of.errors.Unsupported, match=r"override its energy\(F, mu\)"):
        of.flow(F, clouds.uniform(), Noise(), dt=0.1, steps=2, generator=0)
    told = of.flow(F, clouds.uniform(), Told(), dt=0.1, steps=2, generator=0)
    one = of.flow(F, clouds.uniform(), of.Langevin(), dt=0.1, steps=2, generator=0)
    assert torch.equal(told.final.points, one.final.points)
