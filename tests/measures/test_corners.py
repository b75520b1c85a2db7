"""Corners of densities and laws that flows pass seldom: walls, tails, long times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.errors import Diverged
from otflow.measures import Box
from otflow.measures.grid.heat import heat

F64 = torch.float64


def test_beyond_the_outermost_centres_interpolation_is_constant():
    box = Box.of(0.0, 1.0, (4,))
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=F64)
    x = torch.tensor([[0.0], [0.05], [0.95], [1.0]], dtype=F64)
    expected = torch.tensor([1.0, 1.0, 8.0, 8.0], dtype=F64)
    assert torch.equal(box.interpolate(values, x), expected)


@pytest.mark.parametrize("shape", [(1,), (1, 6), (6, 1), (1, 6, 1), (1, 1, 6)])
def test_a_box_one_cell_wide_interpolates_as_the_line(shape):
    n, d = math.prod(shape), len(shape)
    box = Box.of((0.0,) * d, (1.0,) * d, shape)
    values = torch.arange(n, dtype=torch.float64).square()
    t = torch.linspace(0, 1, 13, dtype=torch.float64)
    x = t[:, None].expand(-1, d).contiguous()
    line = np.interp(t.numpy(), (np.arange(n) + 0.5) / n, values.numpy())
    torch.testing.assert_close(box.interpolate(values, x), torch.from_numpy(line))


def test_closed_faces_have_no_kinetic_energy():
    blocked = torch.tensor([False, False, True, True])
    rho = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=F64)
    mu = of.GridDensity(rho, 0, 4, obstacles=blocked, walls=True, normalize=True)
    u = torch.tensor([2.0, 5.0, 7.0], dtype=F64)
    assert float(mu.inner(u, u)) == pytest.approx(0.5 * 4)


@pytest.mark.parametrize("share", [0.05, 0.9, 1.1])
def test_heat_for_a_long_time_is_the_exponential_of_the_laplacian(share):
    n = 6
    box, time = Box.of(0.0, float(n), (n,)), share * n * n
    weights = torch.arange(1.0, n + 1, dtype=F64) / 21
    L = torch.zeros(n, n, dtype=F64)
    for i in range(n - 1):
        for a, b in ((i, i + 1), (i + 1, i)):
            L[a, b] += 1
            L[a, a] -= 1
    free = torch.ones(n, dtype=torch.bool)
    expected = torch.linalg.matrix_exp(time * L) @ weights
    found = heat(box, weights, time, free)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_draws_are_uniform_within_their_cells():
    rho = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    mu = of.GridDensity(rho, 0, 3, walls=True)
    x = mu.sample(4000, torch.Generator().manual_seed(0))[:, 0]
    assert 1 <= float(x.min()) < 1.01
    assert 1.99 < float(x.max()) <= 2
    assert float(x.var()) == pytest.approx(1 / 12, rel=0.05)


def test_infinite_tails_end_at_a_quarter_of_the_outer_mass():
    mu = of.Quantiles.from_quantile(torch.special.ndtri, 10, dtype=F64)
    end = float(torch.special.ndtri(torch.tensor(0.025, dtype=F64)))
    assert float(mu.edges[0]) == pytest.approx(end, rel=1e-12)
    assert float(mu.edges[-1]) == pytest.approx(-end, rel=1e-12)


def test_quantiles_that_meet_have_crossed():
    mu = of.Quantiles(torch.tensor([0.0, 1.0, 2.0], dtype=F64))
    with pytest.raises(Diverged, match="quantiles 0 and 1 crossed"):
        mu.push(torch.tensor([[1.0], [0.0], [0.0]], dtype=F64), 1.0)


def test_quantiles_of_a_function_begin_where_it_does():
    def f(x):
        x = x[..., 0]
        return ((x > 0.3003) & (x < 0.6)).to(x.dtype)

    mu = of.Quantiles.from_function(f, 0.0, 1.0, 8, dtype=F64)
    assert float(mu.edges[0]) == pytest.approx(0.3003, abs=1e-12)
    assert float(mu.edges[-1]) == pytest.approx(0.6, abs=1e-12)


def test_a_reflected_factor_is_the_same_law():
    mu = of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    back = torch.cat([mu.mean[None], -2 * mu.factor.T])
    nu = mu.push(back, 1.0)  # x -> -x
    torch.testing.assert_close(nu.covariance, mu.covariance)
    assert float(mu.norm(mu.displacement_to(nu))) < 1e-12
    assert float(of.metrics.wasserstein2(mu, nu)) < 1e-7


def test_a_covariance_singular_by_round_off_is_refused():
    v = torch.tensor([0.3, 0.7, 0.1], dtype=F64)
    with pytest.raises(ValueError, match="must be positive definite"):
        of.Gaussian(torch.zeros(3, dtype=F64), torch.outer(v, v) + 1e-17 * torch.eye(3))


def test_a_box_full_up_to_the_tolerance_of_a_bound_is_admitted():
    mu = of.GridDensity(torch.ones(4, dtype=F64), 0, 1, walls=True)
    assert float(of.Congestion(0.9995).value(mu)) == 0
    with pytest.raises(ValueError, match="mass 1 does not fit"):
        of.Congestion(0.99).value(mu)
