"""A new representation drops in: the inherited laws, entropy, and the schemes."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import MeasureContract
from otflow.testing.clouds import normal
from tests import exact
from tests.measures.intervals import Intervals, gaussian, uniform


class TestIntervals(MeasureContract):
    capabilities = frozenset({"density"})

    def make(self, dtype=torch.float64):
        gaps = 0.5 + normal(9, seed=1, dtype=dtype).sigmoid()
        return Intervals(gaps.cumsum(0) - 4.0)

    def tangent(self, mu, seed=0):
        return normal(mu.n + 1, 1, seed=seed + 77, dtype=mu.dtype)

    def coordinates(self, mu):
        return mu.edges


@pytest.mark.parametrize("length", [0.1, 1.0, 7.0])
def test_entropy_of_a_uniform_density(length):
    value = of.Entropy().value(uniform(-1.0, length - 1.0))
    assert float(value) == pytest.approx(exact.uniform_entropy(length), abs=1e-14)


def test_entropy_of_steps():
    # Mass 1/2 on [0, 1] and 1/2 on [1, 4]: densities 1/2 and 1/6.
    value = of.Entropy().value(Intervals(torch.tensor([0.0, 1.0, 4.0])))
    expected = 0.5 * torch.log(torch.tensor(0.5)) + 0.5 * torch.log(torch.tensor(1 / 6))
    torch.testing.assert_close(value, expected)


def test_internal_energies_other_than_entropy():
    class Quadratic(of.Functional):
        """Porous medium, e(rho) = rho: int rho^2."""

        def value(self, mu):
            return mu.internal(lambda rho: rho)

    mu = uniform(0.0, 4.0)
    assert float(Quadratic().value(mu)) == pytest.approx(0.25, abs=1e-15)
    # The pressure acts on the ends alone: F = 1/L falls by 1/L^2 as an end moves out.
    tangent = Quadratic().velocity(mu)[:, 0] * mu.lumped
    expected = torch.zeros(13, dtype=torch.float64)
    expected[0], expected[-1] = -1 / 16, 1 / 16
    torch.testing.assert_close(tangent, expected, rtol=0, atol=1e-14)


def test_entropy_of_a_gaussian_in_the_limit():
    errors = []
    for n in (200, 800):
        value = float(of.Entropy().value(gaussian(0.7, n)))
        errors.append(abs(value - exact.gaussian_entropy(0.7)))
    assert errors[0] < 0.02
    assert errors[1] < 0.4 * errors[0]


def test_the_schemes_and_the_loop_take_it_as_it_is():
    # A Gaussian breathes under V = x^2/2 and entropy; ends are the crudest part.
    mu = gaussian(2.0, 64)
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.5 * of.Entropy()
    run = of.flow(F, mu, of.ExplicitEuler(), dt=2e-3, steps=500, every=100)
    assert isinstance(run.final, Intervals)
    assert bool((run.records["energy"].diff() < 0).all())
    spread = float(run.final.points.square().mean().sqrt())
    start = float(mu.points.square().mean().sqrt())
    assert spread == pytest.approx(exact.breathing(start, 1.0, kappa=0.5), rel=0.02)


def test_the_schemes_that_need_more_are_refused_with_the_cure():
    F = of.Potential(lambda x: x.square().sum(-1))
    mu = uniform(0.0, 1.0)
    with pytest.raises(of.errors.Unsupported, match="masses are fixed; move mass"):
        of.flow(F, mu, of.BirthDeath(), dt=0.1, steps=1)
    with pytest.raises(of.errors.Unsupported, match=r"minimise Entropy\(\) instead"):
        of.flow(F, mu, of.Langevin(), dt=0.1, steps=1)


def test_crossing_is_a_divergence_that_keeps_the_run():
    F = of.Potential(lambda x: -x.square().sum(-1).square())
    with pytest.raises(of.errors.Diverged, match="quantiles crossed") as caught:
        of.flow(-1.0 * F, uniform(-3.0, 3.0), of.ExplicitEuler(), dt=0.1, steps=50)
    assert isinstance(caught.value.trajectory.final, Intervals)
