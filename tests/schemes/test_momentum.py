"""Momentum and Adam: exact oscillators, Nesterov's bounds, the steps of torch."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield import Risk, TwoLayer
from otflow.schemes import Adam, Minibatch, Mobility, Momentum
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64


class OfAnOscillator(SchemeContract):
    """x'' = -lam x - gamma x', from rest at x0."""

    descends = False
    friction, lam = 0.5, 2.0

    def error(self, dt):
        gamma, lam, t = self.friction, self.lam, 2.0
        mu = clouds.weighted()
        run = of.flow(exact.quadratic(lam), mu, self.make(), dt=dt, steps=round(t / dt))
        omega = math.sqrt(lam - gamma**2 / 4)
        phase = math.cos(omega * t) + gamma / (2 * omega) * math.sin(omega * t)
        expected = math.exp(-gamma * t / 2) * phase * mu.points
        return float((run.final.points - expected).abs().max())


class TestNesterov(OfAnOscillator):
    def make(self):
        return Momentum(self.friction)

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        # The friction itself refuses such a dt.
        with pytest.raises(ValueError, match="take dt < 4"):
            self.run(3, dt=5.0)


class TestHeavyBall(TestNesterov):
    def make(self):
        return Momentum(self.friction, nesterov=False)


class TestFallingFriction(OfAnOscillator):
    def make(self):
        return Momentum()

    def error(self, dt):
        # x'' + 3 x'/t + lam x = 0 from rest: x = 2 x0 J(s)/s at s = t sqrt(lam), with
        # the Bessel function J of order one.
        t, mu = 2.0, clouds.weighted()
        run = of.flow(exact.quadratic(2.0), mu, Momentum(), dt=dt, steps=round(t / dt))
        s = torch.tensor(t * math.sqrt(2.0), dtype=F64)
        expected = 2 * torch.special.bessel_j1(s) / s * mu.points
        return float((run.final.points - expected).abs().max())


class TestAdam(SchemeContract):
    descends = False
    diverges = False
    steps = ()

    def make(self):
        return Adam()

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        # A step moves by dt, whatever F is: points leave the numbers far later.
        assert self.run(3, dt=1e9).status == "finished"


def ill_conditioned(n=12):
    """Return an L-smooth convex potential, L = 1, and particles."""
    rates = torch.logspace(-4, 0, 5, dtype=F64)
    F = of.Potential(lambda x: 0.5 * (rates * x.square()).sum(-1), modulus=1e-4)
    return F, of.Particles(normal(n, 5)), 1e-4


def test_nesterovs_bound_at_every_step():
    F, mu, _ = ill_conditioned()
    size = float(mu.inner(mu.points, mu.points))
    run = of.flow(F, mu, Momentum(), dt=1.0, steps=300)
    k = torch.arange(301, dtype=F64)
    bound = 2 * size / (k + 1) ** 2
    assert bool((run.records["energy"] <= bound).all())
    # The gradient flow misses the bound.
    plain = of.flow(F, mu, of.ExplicitEuler(), dt=1.0, steps=300).records["energy"]
    assert float(plain[-1]) > 2 * float(bound[-1])
    assert float(plain[-1]) > 10 * float(run.records["energy"][-1])


def test_nesterovs_linear_bound_at_every_step():
    F, mu, lam = ill_conditioned()
    size = float(mu.inner(mu.points, mu.points))
    scheme = Momentum(2 * math.sqrt(lam))
    run = of.flow(F, mu, scheme, dt=1.0, steps=600, every=20)
    start = float(run.records["energy"][0]) + lam / 2 * size
    bound = start * (1 - math.sqrt(lam)) ** run.steps.to(F64)
    assert bool((run.records["energy"] <= bound).all())


@pytest.mark.slow
def test_the_sum_of_both_energies_falls_without_the_friction_of_a_step():
    F, mu = super(OfAnOscillator, TestHeavyBall()).problem()
    run = of.flow(F, mu, Momentum(0.5, nesterov=False), dt=1e-3, steps=3000)
    kinetic = torch.tensor([0.0] + [info["kinetic"] for info in run.info], dtype=F64)
    energy = run.records["energy"]
    assert bool((energy + kinetic).diff().max() <= 1e-6)
    assert bool((energy.diff() > 0).any())  # and that of F alone does not


def test_a_report_says_that_the_energy_may_rise():
    F, mu = exact.quadratic(), of.Particles(normal(5, 2))
    run = of.flow(F, mu, Momentum(0.1), dt=0.3, steps=40)
    assert bool((run.records["energy"].diff() > 0).any())
    assert run.rises > 0
    # A smaller dt is no cure of what the flow itself does.
    assert "which the scheme does not exclude" in run.summary()
    assert "smaller dt" not in run.summary()
    report = of.analysis.certify(run, F)
    found = {finding.name: finding for finding in report.findings}
    assert "need not lower it" in found["energy"].text
    assert "gradient flows" in found["dissipation"].text


def test_no_cure_is_named_for_rises_that_a_plain_frank_wolfe_step_makes():
    box = of.optimality.BoxDomain(-2.0, 2.0)
    F = of.functionals.MMDTo(of.Particles(normal(9, 1)), of.kernels.Gaussian(0.5))
    mu = of.Particles(torch.zeros(1, 1, dtype=F64))
    run = of.flow(F, mu, of.schemes.FrankWolfe(box, 16), dt=1.0, steps=30)
    assert run.rises > 0
    assert "smaller dt" not in run.summary()


def test_heavy_ball_is_the_underdamped_flow_without_noise():
    F, mu = super(OfAnOscillator, TestHeavyBall()).problem()
    ends = [
        of.flow(F, mu, scheme, dt=2e-3, steps=500, every=500, generator=0).final.points
        for scheme in (Momentum(0.7), of.schemes.UnderdampedLangevin(0.7))
    ]
    assert float((ends[0] - ends[1]).abs().max()) < 2e-3


def test_adam_is_that_of_torch_on_the_gradients_of_neurons():
    X = normal(30, 3, seed=1)
    risk = Risk(TwoLayer("tanh"), X, X[:, 0].sin())
    mu = of.Particles(normal(8, 5, seed=2))
    theta = mu.points.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05, betas=(0.8, 0.95), eps=1e-6)
    for _ in range(40):
        optimizer.zero_grad()
        (len(theta) * risk.value(of.Particles(theta))).backward()
        optimizer.step()
    run = of.flow(risk, mu, Adam((0.8, 0.95), eps=1e-6), dt=0.05, steps=40)
    torch.testing.assert_close(run.final.points, theta.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("power", [-0.8, 0.0, 0.8])
def test_adam_makes_the_same_steps_at_every_size_of_the_velocity(dtype, power):
    # Squares of these velocities overflow, or vanish.
    size = torch.finfo(dtype).max ** power
    F = of.Potential(lambda x: (size * (x - 3)).abs().sum(-1))
    mu = of.Particles(torch.zeros(2, 1, dtype=dtype))
    eps = torch.finfo(dtype).tiny
    run = of.flow(F, mu, Adam(eps=eps), dt=0.1, steps=5)
    assert float((run.final.points - 0.5).abs().max()) < 1e-6


@pytest.mark.parametrize("scheme", [Momentum(0.5), Adam()], ids=repr)
def test_twice_the_particles_move_alike(scheme):
    X = normal(30, 3, seed=1)
    risk = Risk(TwoLayer("tanh"), X, X[:, 0].sin())
    x = normal(8, 5, seed=2)
    once = of.flow(risk, of.Particles(x), scheme, dt=0.05, steps=20).final
    both = of.flow(risk, of.Particles(torch.cat([x, x])), scheme, dt=0.05, steps=20)
    torch.testing.assert_close(both.final.points[:8], once.points)


@pytest.mark.parametrize("scheme", [Momentum(0.5), Adam()], ids=repr)
def test_atoms_that_another_scheme_moves_are_at_rest_again(scheme):
    class Wall(of.schemes.Scheme):
        effects = frozenset()

        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu.with_free_atoms(mu.points.clamp(min=0.5)), state)

    F, mu = (
        exact.quadratic(),
        of.Particles(torch.linspace(0.6, 3, 20, dtype=F64)[:, None]),
    )
    run = of.flow(F, mu, of.chain(scheme, Wall()), dt=0.3, steps=10)
    told = [info["parts"][0]["refreshed"] for info in run.info]
    held = [int((nu.points == 0.5).sum()) for nu in run.snapshots]
    assert told == held[:-1]
    assert sum(told) > 0
    stream = torch.Generator()
    step = scheme.step(F, mu, 0.1, None, stream)
    step = scheme.step(F, of.Particles(normal(5, 1)), 0.1, step.state, stream)
    assert step.info["refreshed"] == 5


def test_momentum_in_the_metric_of_a_mobility():
    # The time of a coordinate runs sqrt(m) times as fast, and its friction with it.
    mu = of.Particles(normal(6, 2))
    scheme = Mobility(Momentum(0.6), (4.0, 1.0))
    run = of.flow(exact.quadratic(), mu, scheme, dt=0.1, steps=20)
    assert [info["refreshed"] for info in run.info] == [0] * 20
    fast = of.flow(exact.quadratic(), mu, Momentum(0.3), dt=0.2, steps=20).final
    slow = of.flow(exact.quadratic(), mu, Momentum(0.6), dt=0.1, steps=20).final
    torch.testing.assert_close(run.final.points[:, 0], fast.points[:, 0])
    torch.testing.assert_close(run.final.points[:, 1], slow.points[:, 1])


def test_minibatches():
    X = torch.linspace(-1, 1, 64, dtype=F64)[:, None]
    risk = Risk(TwoLayer("tanh"), X, X[:, 0], batch_size=8)
    for scheme in (Momentum(1.0), Adam()):
        run = of.flow(
            risk, of.Particles(normal(30, 3)), Minibatch(scheme), dt=0.05, steps=200,
            every=200, generator=0,
        )  # fmt: skip
        assert float(run.records["energy"][-1]) < 0.1 * float(run.records["energy"][0])


def test_bad_arguments():
    for make in (
        lambda: Momentum(-1.0), lambda: Adam((0.9, 1.0)), lambda: Adam((-0.1, 0.9)),
        lambda: Adam(eps=0.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"friction|betas|eps"):
            make()
    for betas in (0.9, (0.9,), "ab", ("a", "b")):
        with pytest.raises(TypeError, match=r"betas"):
            Adam(betas)
    line = of.Quantiles(torch.linspace(-1, 1, 9, dtype=F64))
    for scheme in (Momentum(), Adam()):
        with pytest.raises(of.errors.Unsupported, match=r"ExplicitEuler\(\)"):
            of.flow(exact.quadratic(), line, scheme, dt=0.1, steps=1)
