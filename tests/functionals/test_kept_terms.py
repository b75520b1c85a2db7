"""The term of a target with itself: solved once for each state of the target."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import otflow as of
from otflow.metrics.semidual import Entropy
from otflow.testing.clouds import normal, weighted

F64 = torch.float64


@pytest.fixture
def solved(monkeypatch):
    """Return the numbers of atoms of the terms that are solved, as they come."""
    sizes = []
    solve = Entropy.symmetric

    def counted(self, cost, a):
        sizes.append(len(a))
        return solve(self, cost, a)

    monkeypatch.setattr(Entropy, "symmetric", counted)
    return sizes


def test_the_term_of_the_target_is_solved_once(solved):
    nu, clouds = weighted(9, 2, seed=1), [weighted(7, 2, seed=s) for s in (2, 3, 4)]
    F = of.SinkhornDivergenceTo(nu, 0.3)
    found = [F.value_and_velocity(mu) for mu in clouds]
    assert solved == [7, 9, 7, 7]
    # Nothing depends on what was kept: the same to the bit for another object.
    for mu, pair in zip(clouds, found, strict=True):
        again = of.SinkhornDivergenceTo(nu.detach(), 0.3)
        fresh = of.SinkhornDivergenceTo(of.Particles(nu.points, nu.weights), 0.3)
        for G in (again, fresh):
            for one, other in zip(pair, G.value_and_velocity(mu), strict=True):
                assert torch.equal(one, other)


def test_another_blur_or_reach_solves_the_term_again(solved):
    nu, mu = weighted(9, 2, seed=1), weighted(7, 2)
    for options in ({"blur": 0.3}, {"blur": 0.4}, {"blur": 0.4, "reach": 2.0}):
        F = of.SinkhornDivergenceTo(nu, **options)
        fresh = of.SinkhornDivergenceTo(of.Particles(nu.points, nu.weights), **options)
        assert float(F.value(mu)) == float(fresh.value(mu))
    assert solved == [7, 9] * 6


def test_a_target_that_was_written_into_is_seen():
    y, mu = normal(9, 2, seed=1), weighted(7, 2)
    F = of.SinkhornDivergenceTo(y, 0.3)
    F.value(mu)
    F.target.points[0] += 1.0
    with pytest.raises(of.errors.ModifiedInPlace):
        F.value(mu)
    # In inference mode writes are not counted; the atoms are compared by value.
    with torch.inference_mode():
        G = of.SinkhornDivergenceTo(y.clone(), 0.3)
        before = G.value(mu)
        G.target.points.add_(torch.tensor([1.0, 0.0], dtype=F64))
        G.target.points[0] *= 2.0
        after = G.value(mu)
        fresh = of.SinkhornDivergenceTo(G.target.points.clone(), 0.3).value(mu)
    assert float(after) == float(fresh) != float(before)


def test_the_term_kept_in_inference_mode_serves_a_gradient():
    y, mu = normal(9, 2, seed=1), weighted(7, 2)
    F = of.SinkhornDivergenceTo(y, 0.3)
    with torch.inference_mode():
        F.value(mu)
    live = of.Particles(mu.points.clone().requires_grad_(), mu.weights)
    (slope,) = torch.autograd.grad(F.value(live), live.points, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), live.points)
    expected = -F.velocity(mu) * mu.weights[:, None]
    torch.testing.assert_close(slope.detach(), expected)
    assert bool(second.isfinite().all())


def test_what_is_kept_goes_with_the_target():
    nu = weighted(9, 2, seed=1)
    of.SinkhornDivergenceTo(nu, 0.3).value(weighted(7, 2))
    held = weakref.ref(nu)
    del nu
    gc.collect()
    assert held() is None
