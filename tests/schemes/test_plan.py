"""JKO picks its solver once for a flow, and again for another functional."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.proximal import default_solver
from otflow.schemes import Adaptive, Minibatch, jko
from otflow.testing import clouds
from tests import exact


@pytest.fixture
def picks(monkeypatch):
    """Return the solvers that were picked by default."""
    found = []

    def pick(mu, F=None):
        found.append(default_solver(mu, F))
        return found[-1]

    monkeypatch.setattr(jko, "default_solver", pick)
    return found


def cells():
    return of.GridDensity.from_function(
        lambda x: (-2 * x.square().sum(-1)).exp(), -3, 3, (40,), dtype=torch.float64
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_solver_is_picked_once(picks, order):
    run = of.flow(
        exact.quadratic(), clouds.uniform(), of.JKO(order=order), dt=0.1, steps=4
    )
    assert run.converged
    assert len(picks) == 1


def test_it_is_picked_once_within_other_schemes(picks):
    scheme = of.chain(Adaptive(of.JKO(), tolerance=1.0), of.BirthDeath())
    run = of.flow(exact.quadratic(), clouds.uniform(), scheme, dt=0.1, steps=3)
    assert run.converged
    assert len(picks) == 1


def test_a_step_without_a_state_is_that_of_a_flow(picks):
    F, mu, scheme = exact.quadratic(), clouds.uniform(), of.JKO()
    alone = scheme.step(F, mu, 0.1, None, torch.Generator())
    run = of.flow(F, mu, scheme, dt=0.1, steps=1)
    assert alone.info.converged
    assert torch.equal(alone.measure.points, run.final.points)
    assert len(picks) == 2
    assert vars(scheme) == vars(of.JKO())  # nothing is kept in the scheme


class Bounded(of.Functional):
    """A potential whose draws bound the density, every other time."""

    def __init__(self):
        self.draws = 0

    def terms(self):
        return exact.quadratic().terms()

    def value(self, mu):
        return exact.quadratic().value(mu)

    def resample(self, generator):
        self.draws += 1
        bound = of.Congestion(1.5) if self.draws % 2 else of.Entropy()
        return exact.quadratic() + bound


def test_each_draw_of_a_functional_gets_the_solver_that_fits_it():
    run = of.flow(Bounded(), cells(), Minibatch(of.JKO()), dt=0.05, steps=4)
    assert run.converged
    assert [info.solver for info in run.info] == 2 * ["BackAndForth", "GridSinkhorn"]


def test_the_convexity_is_that_of_the_functional_stepped():
    scheme, mu = of.JKO(), clouds.uniform()
    steep, flat = exact.quadratic(), of.Potential(lambda x: x.sum(-1), modulus=0.0)
    first = scheme.step(steep, mu, 0.1, None, torch.Generator())
    second = scheme.step(flat, first.measure, 0.1, first.state, torch.Generator())
    assert first.info.converged
    assert second.info.converged
    assert first.info.modulus == steep.modulus(mu.dim)
    assert second.info.modulus == 0.0


def test_an_order_is_refused_before_the_first_step():
    F = exact.quadratic() + of.Congestion(2.0)
    with pytest.raises(of.errors.Unsupported, match="bound on the density"):
        of.JKO(order=2).init(F, cells())
