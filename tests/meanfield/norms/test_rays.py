"""The extreme rays of the cones on which all ReLU neurons are linear."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from otflow.meanfield.norms import extreme_rays
from otflow.meanfield.norms.neurons import Pool

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
    assert {tuple(row) for row in extreme_rays(X).tolist()} == expected


@pytest.mark.parametrize(("n", "d", "count"), [(100, 2, 10506), (30, 3, 11968)])
def test_generic_data_have_all_rays(n, d, count):
    v = extreme_rays(uniform(n, d))
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
        best = sums(X, lam, extreme_rays(X)).abs().max()
        v = torch.randn(20_000, d + 1, generator=generator, dtype=F64)
        others = sums(X, lam, v / v.abs().sum(1, keepdim=True)).abs().max()
        assert others <= best * (1 + 1e-12)
        # The maximum over random neurons comes close, so the bound is no idle one.
        assert others >= 0.8 * best


def test_repeated_rays_are_given_once():
    grid = torch.linspace(0, 1, 5, dtype=F64)
    X = torch.cartesian_prod(grid, grid)
    v = extreme_rays(X)
    assert float(torch.pdist(v).min()) > 1e-6
    torch.testing.assert_close(v.sum(0), torch.zeros(3, dtype=F64))


def test_the_dtype_is_kept():
    X = uniform(10, 2).float()
    assert extreme_rays(X).dtype == torch.float32
    torch.testing.assert_close(extreme_rays(X), extreme_rays(X.double()).float())


@pytest.mark.parametrize(("n", "d"), [(1, 12), (3, 12), (2, 20)])
def test_few_data_in_many_dimensions_have_few_rays(n, d):
    """All choices of hyperplanes are listed, not the n^d tuples of them."""
    X = uniform(n, d)
    v = extreme_rays(X)
    # n + d + 1 hyperplanes, and on generic ones no ray is on d + 1 of them but those of
    # the coordinates, which are no further rays.
    assert 2 * (d + 1) <= len(v) <= 2 * math.comb(n + d + 1, d)
    lam = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=F64)
    others = torch.randn(5000, d + 1, generator=torch.Generator().manual_seed(2))
    others = others.double() / others.double().abs().sum(1, keepdim=True)
    best = sums(X, lam, v).abs().max()
    assert sums(X, lam, others).abs().max() <= best * (1 + 1e-12)


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 7e-7, 1e-7, 1e-9])
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_by_rays_holds_near_clusters(apart, seed):
    """Against all rays in rational numbers, where three data are almost one."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(5, 3, generator=generator, dtype=F64)
    X[2:] = X[2] + apart * torch.randn(3, 3, generator=generator, dtype=F64)
    lam = torch.randn(5, generator=generator, dtype=F64) / apart
    lam[2] = -lam[3:].sum()
    pool = Pool(X, "l1")
    z = [[*map(Fraction, row), Fraction(1)] for row in X.tolist()]
    unit = [[Fraction(int(i == j)) for j in range(4)] for i in range(4)]
    weights = [Fraction(t) for t in lam.tolist()]
    best = Fraction(0)
    for chosen in itertools.combinations(z + unit, 3):
        v = normal(chosen)
        size = sum(map(abs, v))
        heights = [sum(a * b for a, b in zip(v, row, strict=True)) for row in z]
        for sign in (1, -1) if size else ():
            value = sum(
                w * max(0, sign * h) for w, h in zip(weights, heights, strict=True)
            )
            best = max(best, abs(value) / size)
    assert float(best) <= pool.largest(lam)
    # And it is no idle bound where the data are apart.
    if apart >= 1e-3:
        assert pool.largest(lam) <= float(best) * (1 + 1e-6)


def normal(rows):
    """Return a vector that is orthogonal to three rows of four numbers."""

    def minor(j):
        a, b, c = ([row[k] for k in range(4) if k != j] for row in rows)
        return (
            a[0] * (b[1] * c[2] - b[2] * c[1])
            - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0])
        )

    return [(-1) ** j * minor(j) for j in range(4)]
