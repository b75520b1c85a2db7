"""MALA under potentials that are infinite outside of a set: exact laws with walls."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

import otflow as of
from otflow.functionals import box
from otflow.schemes import MALA

F64 = torch.float64
SQUARE = of.Potential(lambda x: 0.5 * x.square().sum(-1))
HALF_LINE = of.Potential(lambda x: torch.where(x[..., 0] > 0, x[..., 0], torch.inf))


def ends(V, start, dt):
    mu = of.Particles(torch.full((4000, 1), start, dtype=F64))
    run = of.flow(V + of.Entropy(), mu, MALA(), dt=dt, steps=200, every=50, generator=0)
    return run.final.points[:, 0], run.info


@pytest.mark.parametrize(
    ("V", "start", "dt", "law"),
    [
        (box(-1.0, 1.0), 0.0, 0.1, stats.uniform(-1.0, 2.0)),
        (box(-1.0, 1.0) + SQUARE, 0.5, 0.1, stats.truncnorm(-1.0, 1.0)),
        (HALF_LINE, 1.0, 0.5, stats.expon()),
    ],
    ids=["uniform", "truncated normal", "exponential"],
)
def test_the_law_at_rest_is_exact_beside_walls(V, start, dt, law):
    x, info = ends(V, start, dt)
    # At the level 1e-3 a right law fails once in a thousand seeds; the seed is fixed.
    assert stats.kstest(x.numpy(), law.cdf).pvalue > 1e-3
    assert 0.3 < info[-1]["acceptance"] < 0.95


def test_a_proposal_beyond_the_wall_is_rejected():
    """At dt = 100 nearly all proposals are beyond: atoms stay, and none leaves."""
    x, info = ends(box(-1.0, 1.0), 0.25, 100.0)
    assert float(x.abs().max()) <= 1.0
    assert all(step["acceptance"] < 0.15 for step in info)


def test_a_potential_of_minus_infinity_still_raises():
    V = of.Potential(lambda x: torch.where(x[..., 0] > 0, x[..., 0], -torch.inf))
    with pytest.raises(of.errors.Diverged, match="not finite at a proposal"):
        ends(V, 0.1, 0.5)
