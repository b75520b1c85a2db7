"""Fictitious play and dual averaging: their laws, rates and particles."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.optimality import gibbs
from otflow.schemes import DualAveraging, EntropicFictitiousPlay
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests.optimality.test_gibbs import bump, free_energy, network

F64 = torch.float64


class TestFictitiousPlay(SchemeContract):
    stochastic = True
    descends = False
    diverges = False
    steps = ()

    def make(self):
        return EntropicFictitiousPlay(30.0, inner_dt=0.05, inner_steps=5)

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + 0.1 * of.Entropy(), mu


class TestDualAveraging(TestFictitiousPlay):
    def make(self):
        return DualAveraging(inner_dt=0.05, inner_steps=5)

    def test_the_step_vanishes_with_dt(self):
        """The inner steps are made whatever dt; dt is the share of the average."""
        F, mu = self.problem()
        ends = [
            self.make()
            .step(F, mu, dt, (0, (), ()), torch.Generator().manual_seed(0))
            .measure.points
            for dt in (1e-6, 1.0)
        ]
        assert torch.equal(*ends)


@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_fictitious_play_falls_at_least_at_its_rate(rate):
    F, rho = free_energy(), bump(0.5, cells=120, side=6.0)
    best = gibbs(F, rho)
    scheme = EntropicFictitiousPlay(rate)
    run = of.flow(F, rho, scheme, dt=0.01 / rate, steps=600, every=100)
    excess = run.records["energy"] - best.energy
    for t, e in zip(run.times.tolist(), excess.tolist(), strict=True):
        # A step of length h takes the linear rate as (1 - alpha h), up to its square.
        assert e <= float(excess[0]) * math.exp(-0.98 * rate * t)
    assert float(excess[-1]) > 0


def test_a_step_of_fictitious_play_is_the_mixture_with_the_law():
    F, rho = free_energy(), bump(cells=60)
    temperature, rest = F.split_entropy()
    law = torch.softmax(-rest.first_variation(rho) / temperature, 0)
    step = EntropicFictitiousPlay(2.0).step(F, rho, 0.3, None, torch.Generator())
    share = 1 - math.exp(-0.6)
    expected = (1 - share) * rho.weights + share * law
    torch.testing.assert_close(step.measure.weights, expected, rtol=1e-12, atol=1e-16)
    assert step.info["replaced"] == pytest.approx(share)


def test_dual_averaging_is_the_weighted_average_of_first_variations():
    F, rho = free_energy(1.0), bump(cells=60)
    temperature, rest = F.split_entropy()
    run = of.flow(F, rho, DualAveraging(), dt=1.0, steps=5)
    slopes = [rest.first_variation(nu) for nu in run.snapshots[:-1]]
    total = sum((k + 1) * g for k, g in enumerate(slopes)) / 15
    law = torch.softmax(-total / temperature, 0)
    torch.testing.assert_close(run.final.weights, law, rtol=1e-10, atol=1e-15)
    assert run.times.tolist() == pytest.approx([0, 1, 5 / 3, 13 / 6, 77 / 30, 2.9])


def test_dual_averaging_falls_like_one_over_k():
    F, rho = free_energy(), bump(0.5, cells=120, side=6.0)
    best = gibbs(F, rho)
    run = of.flow(F, rho, DualAveraging(), dt=1.0, steps=200, every=50)
    excess = (run.records["energy"] - best.energy).tolist()
    bounds = [excess[1] * 50 / k for k in (100, 150, 200)]
    assert all(e <= bound for e, bound in zip(excess[2:], bounds, strict=True))
    assert 0 <= excess[-1] < 1e-3 * excess[0]


def test_a_short_dt_is_the_fisher_rao_flow():
    # d log mu / dt = -(F' - mean F') / T: of second order in the difference of steps.
    F, rho = free_energy(1.0), bump(cells=60)
    one = DualAveraging().step(F, rho, 1e-4, (0, (), ()), torch.Generator()).measure
    two = of.BirthDeath(rate=1.0).step(F, rho, 1e-4, None, torch.Generator()).measure
    moved = (two.weights - rho.weights).abs().max()
    assert float((one.weights - two.weights).abs().max()) < 1e-3 * float(moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "dt", "steps"),
    [
        (EntropicFictitiousPlay(1.0, inner_dt=0.05, inner_steps=60), 0.3, 20),
        (DualAveraging(inner_dt=0.05, inner_steps=50), 1.0, 8),
    ],
    ids=["fictitious play", "dual averaging"],
)
def test_particles_come_to_the_gibbs_law_of_a_network(scheme, dt, steps):
    F = of.meanfield.free_energy(network(), 0.2, 0.2)
    best = gibbs(F, bump(cells=300)).measure
    second = float(best.expectation(lambda x: x.square().sum(-1)))
    mu = of.Particles(2.0 + 0.1 * normal(800, 1))
    run = of.flow(F, mu, scheme, dt=dt, steps=steps, every=steps, generator=0)
    found = float(run.final.points.square().mean())
    assert abs(float(mu.points.square().mean()) - second) > 0.5 * second
    assert found == pytest.approx(second, rel=0.12)


def test_masses_stay_with_the_places_that_are_replaced():
    F, mu = free_energy(1.0), clouds.weighted(7, 1)
    scheme = EntropicFictitiousPlay(1.0, inner_dt=0.05, inner_steps=3)
    step = scheme.step(F, mu, 0.7, None, torch.Generator().manual_seed(0))
    moved = (step.measure.points != mu.points).any(-1)
    assert 0 < int(moved.sum()) < 7
    assert torch.equal(step.measure.weights, mu.weights)
    assert step.info["replaced"] == pytest.approx(float(mu.weights[moved].sum()))
