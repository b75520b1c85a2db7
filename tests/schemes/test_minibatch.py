"""Steps on random draws of the functional."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import SchemeContract, clouds
from tests import exact


class Draws(of.Functional):
    """The mean of |x - c_j|^2/2 over centres c_j; a draw has one of them."""

    def __init__(self, centers):
        self.centers = centers

    def value(self, mu):
        C = self.centers.to(mu.dtype)
        return mu.expectation(
            lambda x: 0.5 * (x[:, None] - C).square().sum(-1).mean(-1)
        )

    def resample(self, generator):
        index = torch.randint(len(self.centers), (1,), generator=generator)
        return Draws(self.centers[index])


CENTERS = clouds.normal(6, 2, seed=9)


class TestMinibatch(SchemeContract):
    stochastic = True
    descends = False
    steps = ()

    def make(self):
        return of.schemes.Minibatch(of.ExplicitEuler())

    def problem(self, dtype=torch.float64):
        return Draws(CENTERS), clouds.weighted(7, 2, dtype=dtype)


class TestWithoutDraws(SchemeContract):
    """A functional that is not stochastic is left as it is."""

    def make(self):
        return of.schemes.Minibatch(of.ExplicitEuler())

    def error(self, dt):
        mu, steps = clouds.weighted(), round(1 / dt)
        run = of.flow(exact.quadratic(2.0), mu, self.make(), dt=dt, steps=steps)
        expected = exact.decay(2.0, 1.0) * mu.points
        return float((run.final.points - expected).abs().max())


def test_the_energy_recorded_is_the_full_one():
    F, mu = Draws(CENTERS), clouds.weighted()
    scheme = of.schemes.Minibatch(of.ExplicitEuler())
    run = of.flow(F, mu, scheme, dt=0.1, steps=5, generator=0)
    for energy, nu in zip(run.records["energy"], run.snapshots, strict=True):
        torch.testing.assert_close(energy, F.value(nu))
    for k, info in enumerate(run.info):
        assert "energy" not in set(info)
        assert float(info["batch_energy"]) != float(run.records["energy"][k])


def test_small_steps_on_draws_average_to_the_full_flow():
    F, mu = Draws(CENTERS), clouds.weighted()
    full = of.flow(F, mu, of.ExplicitEuler(), dt=0.01, steps=100, every=100).final
    ends = [
        of.flow(
            F,
            mu,
            of.schemes.Minibatch(of.ExplicitEuler()),
            dt=0.01,
            steps=100,
            every=100,
            generator=seed,
        ).final.points
        for seed in range(40)
    ]
    spread = torch.stack(ends).std(0) / len(ends) ** 0.5
    gap = (torch.stack(ends).mean(0) - full.points).abs()
    assert bool((gap < 5 * spread).all())


def test_it_wraps_schemes_alone_and_takes_over_their_order():
    class Second(of.schemes.Scheme):
        order = 2

        def step(self, F, mu, dt, state, generator):
            return of.schemes.Step(mu)

    assert of.schemes.Minibatch(Second()).order == 2
    assert of.schemes.Minibatch(of.ExplicitEuler()).order == 1
    with pytest.raises(TypeError, match=r"^scheme must be a Scheme, got"):
        of.schemes.Minibatch(3)
