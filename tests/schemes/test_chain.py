"""Composition of schemes."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import Nudge, SchemeContract, clouds
from tests import exact
from tests.schemes.test_minibatch import CENTERS, Draws


class TestWassersteinFisherRao(SchemeContract):
    def make(self):
        return of.chain(of.ExplicitEuler(), of.BirthDeath(rate=0.7))

    def error(self, dt):
        # Under V = lam |x|^2/2 positions decay, and masses see V along the way:
        # w(t) ~ w(0) exp(-alpha V(x(0)) int_0^t e^(-2 lam s) ds).
        lam, alpha, mu = 1.5, 0.7, clouds.weighted()
        steps = round(1 / dt)
        run = of.flow(
            exact.quadratic(lam), mu, self.make(), dt=dt, steps=steps, every=steps
        )
        dose = (1 - exact.decay(2 * lam, 1.0)) / (2 * lam)
        V = 0.5 * lam * mu.points.square().sum(-1)
        masses = exact.tilted(mu.weights, V, alpha * dose)
        points = exact.decay(lam, 1.0) * mu.points
        return float(
            (run.final.weights - masses).abs().max()
            + (run.final.points - points).abs().max()
        )


class TestNoisyChain(SchemeContract):
    stochastic = True
    descends = False
    steps = ()

    def make(self):
        return of.chain(of.schemes.Minibatch(of.ExplicitEuler()), of.BirthDeath())

    def problem(self, dtype=torch.float64):
        return Draws(CENTERS), clouds.weighted(7, 2, dtype=dtype)

    def test_a_chain_of_chains_is_the_chain_of_all(self):
        F, mu = self.problem()
        nested = of.chain(self.make(), of.chain(Nudge(), of.schemes.Resample()))
        flat = of.chain(*self.make().schemes, Nudge(), of.schemes.Resample())
        one, two = (
            of.flow(F, mu, s, dt=0.1, steps=3, generator=0) for s in (nested, flat)
        )
        assert torch.equal(one.final.points, two.final.points)
        assert torch.equal(one.final.weights, two.final.weights)


def test_later_schemes_follow_a_step_that_was_shortened():
    F, mu = exact.quadratic(30.0), clouds.weighted()
    scheme = of.chain(of.ExplicitEuler(backtracking=True), of.BirthDeath())
    run = of.flow(F, mu, scheme, dt=1.0, steps=1)
    (info,) = run.info
    taken = info["parts"][0]["dt"]
    assert taken < 1
    assert info["dt"] == taken
    assert run.times.tolist() == [0.0, taken]
    V = 15.0 * run.final.points.square().sum(-1)
    expected = exact.tilted(mu.weights, V, taken)
    torch.testing.assert_close(run.final.weights, expected)


def test_it_reports_its_parts_and_the_energy_of_the_first():
    F, mu = exact.quadratic(), clouds.weighted()
    run = of.flow(F, mu, of.chain(of.ExplicitEuler(), of.BirthDeath()), dt=0.1, steps=2)
    info = run.info[0]
    assert len(info["parts"]) == 2
    assert info["energy_before"] == pytest.approx(float(F.value(mu)), rel=1e-6)
    assert "effective_size" in info["parts"][1]


def test_each_part_has_its_own_state():
    class Counting(of.schemes.Scheme):
        effects = frozenset()

        def __init__(self, start):
            self.start = start

        def init(self, F, mu):
            return self.start

        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu, state + 1, {"count": state})

    run = of.flow(
        exact.quadratic(),
        clouds.uniform(),
        of.chain(Counting(0), Counting(10)),
        dt=0.1,
        steps=3,
    )
    counts = [tuple(part["count"] for part in info["parts"]) for info in run.info]
    assert counts == [(0, 10), (1, 11), (2, 12)]


def test_what_is_no_scheme_is_refused():
    with pytest.raises(ValueError, match=r"^chain needs at least one scheme"):
        of.chain()
    with pytest.raises(TypeError, match=r"write ExplicitEuler\(\)$"):
        of.chain(of.ExplicitEuler)
    with pytest.raises(TypeError, match=r"argument of chain must be a Scheme, got 3"):
        of.chain(of.ExplicitEuler(), 3)


# No part of the flow twice ------------------------------------------------------------


class Undeclared(of.schemes.Scheme):
    """A scheme of somebody's that says nothing of its effects."""

    def step(self, F, mu, dt, state, generator):
        return of.schemes.Step(mu.push(F.velocity(mu), dt), state)


TRANSPORTS = [
    of.ExplicitEuler(),
    of.JKO(),
    of.Langevin(),
    of.schemes.Minibatch(of.ExplicitEuler()),
    of.schemes.Adaptive(of.ExplicitEuler(), tolerance=1e-3),
    of.chain(of.JKO(), of.BirthDeath()),
    Undeclared(),
]


@pytest.mark.parametrize("one", TRANSPORTS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("two", TRANSPORTS, ids=lambda s: type(s).__name__)
def test_two_transports_are_refused(one, two):
    with pytest.raises(ValueError, match=r"advance the \w+ of the flow by dt"):
        of.chain(one, two)


def test_two_reactions_are_refused():
    with pytest.raises(ValueError, match="advance the reaction of the flow"):
        of.chain(of.BirthDeath(), of.ExplicitEuler(), of.BirthDeath())


def test_a_chain_runs_the_flow_as_far_as_its_time_says():
    # V = |x|^2 / 2 from 1 to exp(-t), where two transports gave exp(-2 t).
    class Watch(Undeclared):
        effects = frozenset()  # the cure that the refusal names

        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu, state)

    mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    F = exact.quadratic()
    for scheme in (of.chain(of.JKO(), of.BirthDeath(), Watch()), of.JKO()):
        run = of.flow(F, mu, scheme, dt=0.01, steps=100)
        assert run.converged
        assert float(run.times[-1]) == pytest.approx(1.0)
        assert float(run.final.points) == pytest.approx(exact.decay(1.0, 1.0), rel=0.01)
