"""The extreme rays of the cones on which all ReLU neurons are linear."""

from __future__ import annotations

import pytest
import torch

from otflow.meanfield.norms import rays

F64 = torch.float64


def uniform(n, d, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def sums(X, lam, v):
    z = torch.cat([X, torch.ones(len(X), 1, dtype=F64)], dim=1)
    return (v @ z.T).clamp_min(0) @ lam


def test_the_rays_of_two_data_are_known():
    X = torch.tensor([[0.0], [1.0]], dtype=F64)
    half = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, -0.5]], dtype=F64)
    expected = {tuple(row) for row in torch.cat([half, -half]).tolist()}
    assert {tuple(row) for row in rays(X).tolist()} == expected


@pytest.mark.parametrize(("n", "d", "count"), [(100, 2, 10506), (30, 3, 11968)])
def test_generic_data_have_all_rays(n, d, count):
    v = rays(uniform(n, d))
    assert len(v) == count
    # A ray has the norm 1 and lies on d of the hyperplanes.
    torch.testing.assert_close(v.abs().sum(1), torch.ones(count, dtype=F64))
    z = torch.cat([uniform(n, d), torch.ones(n, 1, dtype=F64)], dim=1)
    planes = torch.cat([z, torch.eye(d + 1, dtype=F64)])
    zeros = ((v @ planes.T).abs() < 1e-12).sum(1)
    assert bool((zeros >= d).all())


@pytest.mark.parametrize("d", [1, 2, 3])
def test_no_neuron_is_above_the_best_ray(d):
    X = uniform(12, d, seed=d)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        lam = torch.randn(len(X), generator=generator, dtype=F64)
        best = sums(X, lam, rays(X)).abs().max()
        v = torch.randn(20_000, d + 1, generator=generator, dtype=F64)
        others = sums(X, lam, v / v.abs().sum(1, keepdim=True)).abs().max()
        assert others <= best * (1 + 1e-12)
        # The maximum over random neurons comes close, so the bound is no idle one.
        assert others >= 0.8 * best


def test_repeated_rays_are_given_once():
    grid = torch.linspace(0, 1, 5, dtype=F64)
    X = torch.cartesian_prod(grid, grid)
    v = rays(X)
    assert float(torch.pdist(v).min()) > 1e-6
    torch.testing.assert_close(v.sum(0), torch.zeros(3, dtype=F64))


def test_the_dtype_is_kept():
    X = uniform(10, 2).float()
    assert rays(X).dtype == torch.float32
    torch.testing.assert_close(rays(X), rays(X.double()).float())
