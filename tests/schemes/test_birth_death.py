"""Birth-death on the masses."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from otflow.testing.differences import derivative
from tests import exact

WIDE = of.Gaussian(torch.zeros(2).double(), 9 * torch.eye(2).double())


class TestBirthDeath(SchemeContract):
    small = 0.1

    def make(self):
        return of.BirthDeath(rate=2.0)

    def error(self, dt):
        F = of.OfExpectation(lambda m: 0.5 * m.square().sum(), lambda x: x)
        weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
        mu = of.Particles(torch.tensor([[0.0], [1.0]], dtype=torch.float64), weights)
        steps = round(1 / dt)
        run = of.flow(F, mu, self.make(), dt=dt, steps=steps, every=steps)
        return abs(float(run.final.weights[1]) - exact.two_masses(0.8, 2.0))


class Random(SchemeContract):
    stochastic = True
    descends = False
    diverges = False
    small = 0.1
    steps = ()


class TestJumps(Random):
    def make(self):
        return of.BirthDeath(rate=3.0, jumps=True)


class TestBirths(Random):
    diverges = True
    jumps, prior = False, WIDE

    def make(self):
        return of.BirthDeath(rate=3.0, jumps=self.jumps, prior=self.prior)

    def one_step(self, dtype=torch.float64, seed=0):
        self.prior = WIDE.to(dtype)  # which is not cast
        return super().one_step(dtype, seed)


class TestJumpsAndBirths(TestBirths):
    diverges, jumps = False, True


def test_a_potential_is_exact_at_any_step():
    V = lambda x: (x - 0.3).square().sum(-1)
    mu = clouds.degenerate()
    expected = exact.tilted(mu.weights, V(mu.points), 3.0)
    for dt in (0.1, 1.5, 3.0):
        steps = round(3 / dt)
        run = of.flow(of.Potential(V), mu, of.BirthDeath(), dt=dt, steps=steps)
        torch.testing.assert_close(run.final.weights, expected, rtol=1e-12, atol=1e-15)
        assert torch.equal(run.final.points, mu.points)
        assert run.final.points is run.snapshots[1].points  # shared, not with the start


def test_the_rate_is_a_speed():
    F, mu = of.Interaction(of.kernels.Gaussian(1.0)), clouds.weighted()
    fast = of.flow(F, mu, of.BirthDeath(rate=3.0), dt=0.1, steps=5).final
    slow = of.flow(F, mu, of.BirthDeath(), dt=0.3, steps=5).final
    torch.testing.assert_close(fast.weights, slow.weights)


def test_the_energy_falls_at_the_rate_of_the_variance():
    F = of.Interaction(of.kernels.Gaussian(1.0)) + exact.quadratic()
    mu, alpha = clouds.weighted(), 2.5
    variation = F.first_variation(mu)
    mean = mu.weights @ variation
    variance = mu.weights @ (variation - mean).square()

    def after(t):
        return F.value(mu.reweight(-alpha * variation, t))

    torch.testing.assert_close(derivative(after), -alpha * variance)
    step = of.BirthDeath(alpha).step(F, mu, 1e-6, None, torch.Generator())
    drop = (F.value(mu) - F.value(step.measure)) / 1e-6
    torch.testing.assert_close(drop, alpha * variance, rtol=1e-4, atol=0)


def test_it_reports_the_effective_size():
    F, mu = exact.quadratic(), clouds.uniform()
    run = of.flow(F, mu, of.BirthDeath(), dt=1.0, steps=3)
    expected = 1 / float(run.final.weights.square().sum())
    assert run.info[-1]["effective_size"] == pytest.approx(expected)
    assert run.info[-1]["effective_size"] < run.info[0]["effective_size"] < mu.n


def test_a_constant_added_to_the_first_variation_changes_nothing():
    mu = clouds.weighted()
    one = of.flow(exact.quadratic(), mu, of.BirthDeath(), dt=0.2, steps=3).final
    V = lambda x: 0.5 * x.square().sum(-1) + 7.0
    two = of.flow(of.Potential(V), mu, of.BirthDeath(), dt=0.2, steps=3).final
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-13, atol=0)


def test_entropy_on_particles_is_refused_with_the_cure():
    F = exact.quadratic() + 0.1 * of.Entropy()
    for scheme, cure in (
        (of.BirthDeath(), r"Blob\(Entropy\(\), width\)"),
        (of.ExplicitEuler(), r"flow an entropy with Langevin\(\)"),
    ):
        with pytest.raises(of.errors.Unsupported, match=cure):
            of.flow(F, clouds.uniform(), scheme, dt=0.1, steps=1)
    run = of.flow(F, clouds.uniform(), of.Langevin(), dt=0.1, steps=1)
    assert run.status == "finished"


@pytest.mark.parametrize("bad", [0, -1.0, float("inf")])
def test_the_rate_must_be_positive(bad):
    with pytest.raises(ValueError, match=r"^rate must be (positive|finite), got"):
        of.BirthDeath(rate=bad)
