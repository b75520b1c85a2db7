"""UnderdampedLangevin: the law at rest, the order, and velocities that are carried."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.schemes import Minibatch, Resample, UnderdampedLangevin
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64


class TestUnderdamped(SchemeContract):
    stochastic = True
    descends = False  # the energy recorded leaves out entropy and kinetic energy
    steps = ()

    def make(self):
        return UnderdampedLangevin(2.0)

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + 0.1 * of.Entropy(), mu


class TestHeavyBall(SchemeContract):
    """At temperature zero it is an oscillator with friction."""

    descends = False
    order = 2.0

    def make(self):
        return UnderdampedLangevin(0.5)

    def error(self, dt):
        # x'' = -lam x - gamma x', from rest at x0.
        lam, gamma, t = 2.0, 0.5, 2.0
        mu = clouds.weighted()
        run = of.flow(exact.quadratic(lam), mu, self.make(), dt=dt, steps=round(t / dt))
        omega = math.sqrt(lam - gamma**2 / 4)
        phase = math.cos(omega * t) + gamma / (2 * omega) * math.sin(omega * t)
        expected = math.exp(-gamma * t / 2) * phase * mu.points
        return float((run.final.points - expected).abs().max())


def second_moments(lam, gamma, temperature, h, steps, start):
    """Return E x^2 after steps of BAOAB from N(0, start) and velocities at rest."""
    keep = math.exp(-gamma * h)
    kick = torch.tensor([[1.0, 0.0], [-lam * h / 2, 1.0]], dtype=F64)
    drift = torch.tensor([[1.0, h / 2], [0.0, 1.0]], dtype=F64)
    friction = torch.diag(torch.tensor([1.0, keep], dtype=F64))
    noise = torch.diag(torch.tensor([0.0, temperature * (1 - keep**2)], dtype=F64))
    covariance = torch.diag(torch.tensor([start, temperature], dtype=F64))
    for _ in range(steps):
        for one in (drift @ kick, friction):
            covariance = one @ covariance @ one.T
        covariance = kick @ drift @ (covariance + noise) @ (kick @ drift).T
    return float(covariance[0, 0])


@pytest.mark.parametrize("steps", [3, 40])
def test_the_variance_is_that_of_the_splitting(steps):
    n, lam, gamma, temperature, h, start = 40_000, 1.5, 1.2, 0.5, 0.9, 0.04
    F = exact.quadratic(lam) + temperature * of.Entropy()
    mu = of.Particles(start**0.5 * normal(n, 1))
    run = of.flow(
        F, mu, UnderdampedLangevin(gamma), dt=h, steps=steps, every=steps, generator=0
    )
    expected = second_moments(lam, gamma, temperature, h, steps, start)
    found = float(run.final.points.square().mean())
    assert found == pytest.approx(expected, rel=5 * (2 / n) ** 0.5)


def test_under_a_spring_the_law_at_rest_has_no_error_at_a_large_dt():
    lam, temperature, h = 1.5, 0.5, 1.2
    after = second_moments(lam, 1.0, temperature, h, 500, 0.04)
    assert after == pytest.approx(temperature / lam, rel=1e-12)
    # Euler's variance at this dt is ten times as large.
    euler = exact.langevin_moments(0, 1, h, 500, lam=lam, temperature=temperature)[1]
    assert euler > 9 * temperature / lam


def test_the_law_at_rest_in_a_double_well():
    F = of.KL(lambda x: 2 * (x.square() - 1).square().sum(-1))
    n, grid = 20_000, torch.linspace(-3, 3, 4001, dtype=F64)
    density = (-2 * (grid.square() - 1).square()).exp()
    expected = float((density * grid.square()).sum() / density.sum())
    mu = of.Particles(torch.linspace(-1.5, 1.5, n, dtype=F64)[:, None])
    run = of.flow(
        F, mu, UnderdampedLangevin(1.0), dt=0.08, steps=200, every=200, generator=0
    )
    x = run.final.points[:, 0]
    spread = float((density * grid**4).sum() / density.sum()) - expected**2
    assert float(x.square().mean()) == pytest.approx(
        expected, abs=5 * (spread / n) ** 0.5
    )
    assert abs(float((x > 0).to(F64).mean()) - 0.5) < 5 * 0.5 / n**0.5


def test_a_chain_that_changes_only_masses_keeps_the_velocities():
    F, mu = exact.quadratic() + 0.1 * of.Entropy(), clouds.weighted()
    reaction = of.BirthDeath()

    class Masses(of.schemes.Scheme):
        effects = frozenset({"reaction"})

        def step(self, F, mu, dt, state, generator):
            return reaction.step(F.split_entropy()[1], mu, dt, state, generator)

    scheme = of.chain(UnderdampedLangevin(), Masses())
    both = of.flow(F, mu, scheme, dt=0.1, steps=5, generator=0)
    alone = of.flow(F, mu, UnderdampedLangevin(), dt=0.1, steps=5, generator=0)
    assert torch.equal(both.final.points, alone.final.points)
    assert [info["parts"][0]["refreshed"] for info in both.info] == [0] * 5


def test_atoms_that_another_scheme_moves_get_fresh_velocities_and_it_is_told():
    class Wall(of.schemes.Scheme):
        effects = frozenset()

        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu.with_free_atoms(mu.points.clamp(min=0)), state)

    F = exact.quadratic() + 1.0 * of.Entropy()
    mu = of.Particles(torch.linspace(0.1, 2, 50, dtype=F64)[:, None])
    scheme = of.chain(UnderdampedLangevin(), Wall())
    run = of.flow(F, mu, scheme, dt=0.3, steps=10, generator=0)
    told = [info["parts"][0]["refreshed"] for info in run.info]
    held = [int((nu.points == 0).sum()) for nu in run.snapshots]
    assert told == held[:-1]
    assert 0 < sum(told) < 500


def test_another_number_of_atoms_gets_fresh_velocities():
    F = exact.quadratic() + 0.1 * of.Entropy()
    scheme, stream = UnderdampedLangevin(), torch.Generator().manual_seed(0)
    step = scheme.step(F, clouds.weighted(), 0.1, None, stream)
    other = of.Particles(normal(5, 2))
    step = scheme.step(F, other, 0.1, step.state, stream)
    assert step.info["refreshed"] == 5
    # Copies of a resampling are other atoms, so that no velocity is copied.
    weights = torch.tensor([0.96, 0.01, 0.01, 0.01, 0.01], dtype=F64)
    spoilt = of.Particles(normal(5, 2), weights)
    both = of.chain(UnderdampedLangevin(), Resample())
    run = of.flow(F, spoilt, both, dt=0.1, steps=2, generator=0)
    assert [info["parts"][0]["refreshed"] for info in run.info] == [0, 4]


def test_minibatches_kick_twice_by_one_draw():
    X = torch.linspace(-1, 1, 64, dtype=F64)[:, None]
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0], batch_size=8)
    F = risk + 0.5 * exact.quadratic() + 1e-3 * of.Entropy()
    mu = of.Particles(normal(30, 3))
    run = of.flow(
        F, mu, Minibatch(UnderdampedLangevin()), dt=0.2, steps=60, every=60, generator=0
    )
    assert run.status == "finished"
    assert "batch_energy" in run.info[0]
    assert float(run.records["energy"][-1]) < 0.5 * float(run.records["energy"][0])


def test_steps_of_several_lengths_are_one_splitting():
    # A kick of (h + k) / 2 lies between steps of h and k.
    F, mu = exact.quadratic(), of.Particles(torch.ones(1, 1, dtype=F64))
    lengths, gamma = [0.1, 0.3, 0.2], 0.7
    run = of.flow(
        F, mu, UnderdampedLangevin(gamma), dt=lambda k: lengths[k], steps=3, generator=0
    )
    x, v = 1.0, 0.0
    for h in lengths:
        v -= h / 2 * x
        x += h / 2 * v
        v *= math.exp(-gamma * h)
        x += h / 2 * v
        v -= h / 2 * x
    assert float(run.final.points) == pytest.approx(x, rel=1e-14)


def test_friction_must_be_positive():
    with pytest.raises(ValueError, match="friction"):
        UnderdampedLangevin(0.0)
