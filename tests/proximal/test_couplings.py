"""Whether a kept coupling is optimal: decided right at every offset and scale."""

from __future__ import annotations

import pytest
from scipy.optimize import linear_sum_assignment

import otflow as of
from otflow.proximal.particles import ParticleObjective
from otflow.testing.clouds import normal


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e8])
def test_a_coupling_is_called_optimal_where_it_is(offset, scale):
    """Offset over scale to 1e8: squares of coordinates would hide every exchange."""
    F = of.Potential(lambda x: 0.0 * x.sum(-1))
    answers = set()
    for seed in range(16):
        n = 2 + seed % 5
        x = normal(n, 2, seed=seed)
        y = x + 0.3 * normal(n, 2, seed=seed + 100)
        if seed % 2:
            y = y.flip(0)
        x, y = scale * (x + offset), scale * (y + offset)
        mu = of.Particles(x)
        problem = ParticleObjective(F, mu, 1.0, centre=mu)
        coupling = problem.couple(problem.reach(mu.push(y - x, 1.0)))
        moved = mu.push(y - x, 1.0).points
        # Points at one offset: their differences are exact.
        costs = ((x - x[0])[:, None] - (moved - x[0])).square().sum(-1).numpy()
        rows, columns = linear_sum_assignment(costs)
        best, own = costs[rows, columns].mean(), costs.diagonal().mean()
        assert coupling.is_kept == (own <= best * (1 + 1e-9))
        assert coupling.w2 == pytest.approx(best**0.5, rel=1e-9)
        answers.add(coupling.is_kept)
    assert answers == {True, False}
