"""Brackets hold the distance itself: linear programs solved in exact rationals."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest
import torch
from torch import Tensor

import otflow as of


def exact_square(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Fraction:
    """Return the least cost over the vertices of the plans of a/sum(a), b/sum(b)."""
    xs, ys = ([[Fraction(v) for v in row] for row in z.tolist()] for z in (x, y))
    p, q = ([Fraction(v) for v in w.tolist()] for w in (a, b))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    cost = {
        (i, j): sum((s - t) ** 2 for s, t in zip(xs[i], ys[j], strict=True))
        for i in range(len(p))
        for j in range(len(q))
    }
    best = None
    for cells in combinations(cost, len(p) + len(q) - 1):
        masses = on_a_tree(list(cells), list(p), list(q))
        if masses is not None and min(masses.values()) >= 0:
            value = sum(m * cost[c] for c, m in masses.items())
            best = value if best is None else min(best, value)
    assert best is not None
    return Fraction(best)


def on_a_tree(
    cells: list[tuple[int, int]], p: list[Fraction], q: list[Fraction]
) -> dict[tuple[int, int], Fraction] | None:
    """Return the masses of the plan on a spanning tree, leaf by leaf, or None."""
    masses = {}
    while cells:
        rows, columns = [i for i, _ in cells], [j for _, j in cells]
        leaves = [c for c in cells if rows.count(c[0]) == 1 or columns.count(c[1]) == 1]
        if not leaves:
            return None
        i, j = leaf = leaves[0]
        masses[leaf] = p[i] if rows.count(i) == 1 else q[j]
        p[i] -= masses[leaf]
        q[j] -= masses[leaf]
        cells.remove(leaf)
    return masses if not any(p) and not any(q) else None


def trial(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points and weights: repeated atoms, ties, an offset, or tiny lengths."""
    r = torch.Generator().manual_seed(seed)
    n, m, d = (int(torch.randint(1, k, (), generator=r)) for k in (4, 4, 8))
    x, y = (torch.randn(k, d, generator=r, dtype=torch.float64) for k in (n, m))
    if seed % 3 == 0:
        y = x[torch.randint(n, (m,), generator=r)]
    if seed % 4 == 1:
        x, y = 1e8 + x, 1e8 + y
    if seed % 5 == 2:
        x, y = 1e-160 * x, 1e-160 * y
    if seed % 2:
        a, b = torch.ones(n).double(), torch.ones(m).double()
    else:
        a, b = (torch.rand(k, generator=r, dtype=torch.float64) for k in (n, m))
    return x, a, y, b


@pytest.mark.parametrize("method", [None, "columns"])
def test_the_bracket_holds_the_exact_square(method: str | None) -> None:
    for seed in range(300):
        x, a, y, b = trial(seed)
        mu, nu = (of.Particles(z, w, normalize=True) for z, w in ((x, a), (y, b)))
        square = exact_square(x, a, y, b)
        bracket = of.metrics.transport_plan(mu, nu, method=method).bracket
        assert Fraction(bracket.lower) <= square <= Fraction(bracket.upper), seed
        both = torch.cat([x, y])
        extent = float((both.amax(0) - both.amin(0)).square().sum())
        # Tiny squares, in denormal numbers, have fewer digits.
        assert bracket.width <= 1e-13 * extent + 1e-322, seed


def test_a_common_offset_costs_no_digits() -> None:
    torch.manual_seed(0)
    x = 1e8 + torch.randn(50, 2, dtype=torch.float64)
    y = 1e8 + torch.randn(60, 2, dtype=torch.float64)
    moved, plain = (of.metrics.transport_plan(x - c, y - c) for c in (0.0, 1e8))
    assert torch.equal(moved.cost, plain.cost)
    assert moved.bracket == plain.bracket
    one = of.metrics.transport_plan(x[:1], y[:1])
    assert one.bracket.relative < 1e-13
    assert torch.equal(
        of.metrics.assignment(x, y[:50]), of.metrics.assignment(x - 1e8, y[:50] - 1e8)
    )
