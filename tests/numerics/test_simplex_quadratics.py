"""Quadratic programs on the simplex, against all faces tried one by one."""

from __future__ import annotations

import itertools

import pytest
import torch

from otflow.numerics.simplex_quadratics import least_on_simplex
from otflow.testing.clouds import normal

F64 = torch.float64


def value(g, A, z):
    return float(g @ z + 0.5 * z @ A @ z)


def by_faces(g, A):
    """Return the least value over the minimisers of all faces that lie in them."""
    n, best = len(g), float("inf")
    for size in range(1, n + 1):
        for face in itertools.combinations(range(n), size):
            at = list(face)
            system = torch.ones(size + 1, size + 1, dtype=F64)
            system[:size, :size], system[size, size] = A[at][:, at], 0.0
            sides = torch.cat([-g[at], torch.ones(1, dtype=F64)])
            z = torch.zeros(n, dtype=F64)
            z[at] = torch.linalg.solve(system, sides)[:size]
            if bool((z >= 0).all()):
                best = min(best, value(g, A, z))
    return best


def problem(n, seed, rank=None):
    root = normal(rank or n, n, seed=seed)
    return normal(n, seed=seed + 99), root.T @ root + 1e-9 * torch.eye(n, dtype=F64)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(8))
def test_the_value_is_the_least_of_all_faces(n, seed):
    g, A = problem(n, seed)
    for start in (torch.full((n,), 1 / n, dtype=F64), torch.eye(n, dtype=F64)[-1]):
        z = least_on_simplex(g, A, start)
        assert bool((z >= 0).all())
        assert float(z.sum()) == pytest.approx(1, abs=1e-14)
        assert value(g, A, z) == pytest.approx(by_faces(g, A), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_valley_has_the_least_value_too(seed):
    g, A = problem(6, seed, rank=2)
    z = least_on_simplex(g, A, torch.full((6,), 1 / 6, dtype=F64))
    assert value(g, A, z) == pytest.approx(by_faces(g, A), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_entries_meet_the_conditions_of_a_minimum(dtype):
    g, A = (x.to(dtype) for x in problem(120, 3))
    z = least_on_simplex(g, A, torch.full((120,), 1 / 120, dtype=dtype))
    assert z.dtype == dtype
    rise = g + A @ z
    gap = float(z @ rise - rise.min())
    assert 0 <= gap <= 1e3 * torch.finfo(dtype).eps * float(rise.abs().max())
    assert 1 < int((z > 0).sum()) < 120
