"""Anneal: temperatures and lengths along a run, and their schedules."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.schemes import Anneal, Logarithmic, Minibatch
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal
from tests import exact

F64 = torch.float64


class TestAnneal(SchemeContract):
    stochastic = True
    descends = False
    steps = ()

    def make(self):
        return Anneal(of.Langevin(), lambda k: 0.7**k)

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + 0.1 * of.Entropy(), mu


class TestLengths(SchemeContract):
    steps = ()

    def make(self):
        return Anneal(of.ExplicitEuler(), 0.9, lengths=True)

    def test_a_huge_dt_is_caught_and_what_was_good_is_kept(self):
        """A length that shrinks may end below the one that diverges."""
        F, mu = self.problem()
        growing = of.Potential(lambda x: -x.square().sum(-1)) + F
        with pytest.raises(of.errors.Diverged):
            of.flow(growing, mu, self.make(), dt=1e100, steps=20, generator=0)


def annealed_variance(lam, temperature, h, factors):
    """Return the exact variance of annealed Euler-Maruyama steps from 0."""
    variance = 0.0
    for f in factors:
        variance = (1 - lam * h) ** 2 * variance + 2 * f * temperature * h
    return variance


@pytest.mark.parametrize("factor", [0.9, Logarithmic(0.2), lambda k: float(k < 10)])
def test_the_variance_is_that_of_the_schedule(factor):
    n, lam, temperature, h, steps = 40_000, 0.8, 0.5, 0.2, 25
    value = factor if callable(factor) else lambda k: factor**k
    expected = annealed_variance(lam, temperature, h, map(value, range(steps)))
    F = exact.quadratic(lam) + temperature * of.Entropy()
    run = of.flow(
        F, of.Particles(torch.zeros(n, 1, dtype=F64)), Anneal(of.Langevin(), factor),
        dt=h, steps=steps, every=steps, generator=0,
    )  # fmt: skip
    found = float(run.final.points.square().mean())
    assert found == pytest.approx(expected, rel=5 * (2 / n) ** 0.5)
    told = [info["temperature"] for info in run.info]
    assert told == pytest.approx([temperature * value(k) for k in range(steps)])


def test_the_factor_one_changes_nothing():
    F, mu = exact.quadratic() + 0.3 * of.Entropy(), clouds.weighted()
    plain = of.flow(F, mu, of.Langevin(), dt=0.1, steps=5, generator=0)
    one = of.flow(F, mu, Anneal(of.Langevin(), 1.0), dt=0.1, steps=5, generator=0)
    assert torch.equal(one.final.points, plain.final.points)
    assert torch.equal(one.records["energy"], plain.records["energy"])


def test_lengths_shorten_the_time_of_the_flow():
    F, mu = exact.quadratic(1.0), clouds.weighted()
    scheme = Anneal(of.ExplicitEuler(), 0.5, lengths=True)
    run = of.flow(F, mu, scheme, dt=0.4, steps=3)
    assert run.times.tolist() == pytest.approx([0.0, 0.4, 0.6, 0.7])
    expected = 0.6 * 0.8 * 0.9 * mu.points
    torch.testing.assert_close(run.final.points, expected)
    assert [info["length_factor"] for info in run.info] == [1.0, 0.5, 0.25]


def test_shortened_steps_reach_the_end_that_is_asked():
    F, mu = exact.quadratic(1.0), clouds.weighted()
    scheme = Anneal(of.ExplicitEuler(), 0.7, lengths=True)
    run = of.flow(F, mu, scheme, dt=0.4, steps=9, until=0.75)
    assert run.status == "finished"
    assert run.times.tolist() == pytest.approx([0.0, 0.4, 0.68, 0.75])
    # A factor above 1 takes no more time than is given.
    scheme = Anneal(of.ExplicitEuler(), lambda k: 1.0 + k, lengths=True)
    run = of.flow(F, mu, scheme, dt=0.2, steps=3)
    assert run.times.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6])


def test_both_at_once_and_resumed_to_the_bit():
    F, mu = exact.quadratic() + 0.3 * of.Entropy(), clouds.weighted()
    make = lambda: Anneal(
        Anneal(of.Langevin(), 0.8), lambda k: 1 / (1 + k), lengths=True
    )
    whole = of.flow(F, mu, make(), dt=0.1, steps=6, generator=0)
    part = of.flow(F, mu, make(), dt=0.1, steps=2, generator=0)
    rest = of.flow(F, part.final, make(), dt=0.1, steps=4, resume=part)
    assert torch.equal(rest.final.points, whole.final.points)
    assert torch.equal(rest.times, whole.times)


def test_on_a_grid_jko_follows_the_temperature():
    # Gaussians under a spring: the variance at rest is the last temperature.
    F = exact.quadratic(1.0) + 0.5 * of.Entropy()
    rho = of.GridDensity.from_function(
        lambda x: (-x.square().sum(-1)).exp(), -4, 4, 160, dtype=F64, walls=True
    )
    scheme = Anneal(of.JKO(), lambda k: 1.0 if k < 2 else 0.4)
    run = of.flow(F, rho, scheme, dt=0.5, steps=14, every=14)
    variance = float(run.final.expectation(lambda x: x.square().sum(-1)))
    assert run.converged
    assert variance == pytest.approx(0.2, rel=0.02)


def test_minibatches_and_annealing_in_both_orders():
    X = torch.linspace(-1, 1, 64, dtype=F64)[:, None]
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0], batch_size=8)
    F = of.meanfield.free_energy(risk, temperature=1e-3, ridge=1e-3)
    mu = of.Particles(normal(30, 3))
    ends = [
        of.flow(F, mu, scheme, dt=0.2, steps=20, generator=0)
        for scheme in (
            Minibatch(Anneal(of.Langevin(), 0.9)),
            Anneal(Minibatch(of.Langevin()), 0.9),
        )
    ]
    assert torch.equal(ends[0].final.points, ends[1].final.points)
    assert "batch_energy" in ends[1].info[-1]


def test_the_logarithmic_schedule():
    schedule = Logarithmic(0.5)
    assert schedule(0) == 1.0
    assert schedule(10**6) == pytest.approx(1 / math.log(math.e + 5e5))
    assert repr(Anneal(of.Langevin(), schedule)) == (
        "Anneal(Langevin(), Logarithmic(dt=0.5))"
    )
    with pytest.raises(ValueError, match="dt"):
        Logarithmic(0.0)


@pytest.mark.slow
def test_cooling_reaches_the_lower_well_and_a_cold_run_stays_in_the_upper():
    # V has wells at +-1, that at 1 lower by 0.4; all particles start in the upper one.
    F = (
        of.Potential(lambda x: (x.square() - 1).square().sum(-1) - 0.2 * x.sum(-1))
        + 0.5 * of.Entropy()
    )
    mu = of.Particles(torch.full((500, 1), -1.0, dtype=F64))
    options = {"dt": 0.05, "steps": 2500, "every": 2500, "generator": 0}
    share = lambda run: float((run.final.points > 0).to(F64).mean())
    slow = of.flow(F, mu, Anneal(of.Langevin(), 0.9985), **options)
    cold = of.flow(F, mu, Anneal(of.Langevin(), 0.9), **options)
    assert share(cold) < 0.1
    assert share(slow) > 0.65


@pytest.mark.parametrize("factor", [lambda k: -1.0 - k, lambda k: math.nan * k])
def test_a_factor_that_is_negative_raises(factor):
    F = exact.quadratic() + of.Entropy()
    with pytest.raises(ValueError, match="factor"):
        of.flow(F, clouds.weighted(), Anneal(of.Langevin(), factor), dt=0.1, steps=1)


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("part_by_part", [False, True])
def test_entropies_of_parts_cool_alike(factor, part_by_part):
    spring = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    mu = of.Particles(torch.zeros(4, 1, dtype=torch.float64))
    both = of.measures.Parts({"a": mu, "b": mu})

    def at(heat):
        parts = (spring + heat * of.Entropy(), spring + 0.25 * heat * of.Entropy())
        each = zip("ab", parts, strict=True)
        return sum(
            (of.functionals.OfPart(k, F) for k, F in each), of.functionals.Sum(())
        )

    inner: of.schemes.Scheme = of.Langevin()
    if part_by_part:
        inner = of.schemes.PartByPart(inner)
    scheme = of.schemes.Anneal(inner, lambda _: factor)
    runs = [
        of.flow(F, both, s, dt=0.1, steps=3, generator=0)
        for F, s in ((at(1.0), scheme), (at(factor), inner))
    ]
    torch.testing.assert_close(runs[0].final.coordinates, runs[1].final.coordinates)
    assert runs[0].info[1]["annealed"] == factor
