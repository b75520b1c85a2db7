"""Random measures of every scale, offset and degeneracy against rational arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

import otflow as of
from otflow.metrics import (
    assignment,
    quotient_distance,
    transport_plan,
    wasserstein2,
    wasserstein2_squared,
)

DTYPES = [torch.float32, torch.float64]
KINDS = ["free", "moved", "permuted", "outlier", "coincident", "far", "clusters"]
UNITS = 5


def rational_costs(x, y):
    """Return |x_i - y_j|^2 as Fractions of the numbers given."""
    p, q = (
        [[Fraction(float(c)) for c in row] for row in z.detach().double()]
        for z in (x, y)
    )
    return [
        [sum((s - t) ** 2 for s, t in zip(u, v, strict=True)) for v in q] for u in p
    ]


def least_cost(x, y, k=None, m=None):
    """Return W2^2 of atoms with masses k/5 and m/5 by trying every permutation."""
    costs = rational_costs(x, y)
    rows = [i for i in range(len(x)) for _ in range(1 if k is None else k[i])]
    columns = [j for j in range(len(y)) for _ in range(1 if m is None else m[j])]
    return min(
        sum(costs[i][columns[s]] for i, s in zip(rows, p, strict=True))
        for p in itertools.permutations(range(len(columns)))
    ) / len(rows)


def clouds(seed, kind, dtype):
    """Return two clouds of 5 points in 1 to 3 dimensions."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    d = 1 + seed % 3
    x, y = draw(UNITS, d), draw(UNITS, d)
    small = 10.0 ** (-8 * float(torch.rand((), generator=g)))
    order = torch.randperm(UNITS, generator=g)
    if kind == "moved":
        y = x + small * y
    elif kind == "permuted":
        y = x[order] + (small * y if seed % 2 else 0.0)
    elif kind == "outlier":
        x = small * x
        x[0] += 1e6 * draw(d)
        y = x[order] + (0.0 if seed % 2 else 0.01 * small * y)
    elif kind == "coincident":
        x, y = x[[0, 0, 0, 1, 1]], y[[0, 0, 1, 1, 1]] if seed % 2 else x[[0] * 5]
    elif kind == "far":
        y = y + 1e3 * draw(d)
    elif kind == "clusters":
        x, y = small * x, small * y
        x[:2] += 1e3
        y[[0, 3]] += 1e3
    scale = 10.0 ** (12 * float(torch.rand((), generator=g)) - 6)
    offset = draw(d) * 10.0 ** (6 * float(torch.rand((), generator=g)))
    x, y = (scale * (z + offset) for z in (x, y))
    return x.to(dtype), y.to(dtype)


def close(value, expected, dtype, slack=0.0):
    eps = torch.finfo(dtype).eps
    return value == pytest.approx(expected, rel=8 * eps + 2e-10, abs=slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_masses(kind, dtype):
    """Value, assignment, quotient: right relative to the least cost, 0 included."""
    for seed in range(12):
        x, y = clouds(seed, kind, dtype)
        least = least_cost(x, y)
        expected = float(least)
        assert close(float(wasserstein2_squared(x, y)), expected, dtype)
        assert close(float(wasserstein2(y, x)), math.sqrt(expected), dtype)
        sigma = assignment(x, y).tolist()
        assert sorted(sigma) == list(range(UNITS))
        costs = rational_costs(x, y)
        own = sum(costs[i][j] for i, j in enumerate(sigma)) / UNITS
        assert own <= least * (1 + Fraction(1, 10**9))
        # The quotient subtracts in the dtype given, which is exact or its round-off.
        assert close(float(quotient_distance(x, y)), math.sqrt(expected), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_with_zeros(kind, dtype):
    """Masses k/5, some 0: value, feasible potentials, marginals, cells."""
    for seed in range(12):
        x, y = clouds(seed, kind, dtype)
        g = torch.Generator().manual_seed(seed + 500)
        counts = [
            torch.randint(0, UNITS, (UNITS,), generator=g).bincount(minlength=UNITS)
            for _ in range(2)
        ]
        expected = float(least_cost(x, y, *(c.tolist() for c in counts)))
        mu, nu = (
            of.Particles(z, c.to(dtype), normalize=True)
            for z, c in zip((x, y), counts, strict=True)
        )
        C = (x.double()[:, None] - y.double()).square().sum(-1)
        eps = torch.finfo(dtype).eps
        # A last digit of a mass may cross from one end to the other.
        slack = 4 * eps * float(C.max())
        assert close(float(wasserstein2_squared(mu, nu)), expected, dtype, slack)
        plan = transport_plan(mu, nu)
        P = plan.dense()
        assert torch.allclose(P.sum(1), mu.weights, atol=4 * eps)
        assert torch.allclose(P.sum(0), nu.weights, atol=4 * eps)
        f, h = plan.f.double(), plan.g.double()
        # Feasible for all pairs, up to the round-off of the largest cost.
        size = float(C.max() + f.abs().max() + h.abs().max())
        assert float((f[:, None] + h - C).max()) <= 32 * eps * size
        dual = float(mu.weights.double() @ f + nu.weights.double() @ h)
        assert dual == pytest.approx(float(plan.cost), rel=1e-9, abs=32 * eps * size)


def test_an_exchange_beside_an_outlier_is_seen():
    x = torch.tensor([[1e6, 0.0], [0.0, 0.0], [0.0, 0.01]], dtype=torch.float64)
    y = x[[0, 2, 1]]
    assert assignment(x, y).tolist() == [0, 2, 1]
    assert float(wasserstein2(x, y)) == 0.0
    w = torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64)
    mu, nu = of.Particles(x, w), of.Particles(y, w)
    assert float(wasserstein2(mu, nu)) == 0.0


@pytest.mark.parametrize("seed", range(50))
def test_potentials_of_atoms_without_mass_are_feasible(seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, 2, generator=g, dtype=torch.float64)
    w = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    plan = transport_plan(of.Particles(x, w), of.Particles(y, w))
    C = (x[:, None] - y).square().sum(-1)
    assert float((plan.f[:, None] + plan.g - C).max()) < 1e-13


@pytest.mark.parametrize("seed", range(4))
def test_pictures_as_particles(seed):
    """Points on a lattice: many ties, costs far below the largest."""
    g = torch.Generator().manual_seed(seed)
    a, b = (of.GridDensity.from_image(torch.rand(10, 10, generator=g)) for _ in "ab")
    mu, nu = (
        of.Particles(m.points.double(), m.weights.double(), normalize=True)
        for m in (a, b)
    )
    plan = transport_plan(mu, nu)
    C = (mu.points[:, None] - nu.points).square().sum(-1)
    assert float((plan.f[:, None] + plan.g - C).max()) < 1e-15
    dual = float(mu.weights @ plan.f + nu.weights @ plan.g)
    primal = float((plan.dense() * C).sum())
    assert dual == pytest.approx(primal, rel=1e-11)


@pytest.mark.slow
def test_two_pictures_of_64_by_64():
    g = torch.Generator().manual_seed(0)
    a, b = (of.GridDensity.from_image(torch.rand(64, 64, generator=g)) for _ in "ab")
    mu, nu = (of.Particles(m.points, m.weights) for m in (a, b))
    assert float(wasserstein2_squared(mu, nu)) == pytest.approx(2.23417e-4, rel=3e-6)


def test_what_needs_too_much_memory_is_refused_at_once(monkeypatch):
    """Before a pair of points is looked at."""
    import importlib

    module = importlib.import_module("otflow.metrics.monotone")

    def never(*_):
        msg = "the pairs of all points were visited"
        raise AssertionError(msg)

    monkeypatch.setattr(module, "_highest_planes", never)
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60_000, 2, generator=g) for _ in "xy")
    w = torch.rand(60_000, generator=g)
    mu = of.Particles(x, w, normalize=True)
    for pair in ((x, y), (x, y[:50_000]), (mu, y)):
        with pytest.raises(MemoryError, match="take fewer points"):
            transport_plan(*pair, method="simplex")
    ground = lambda *_: never()
    with pytest.raises(MemoryError, match="take fewer points"):
        quotient_distance(x, y, ground=ground)
    # The cure.
    few = [of.Particles(m.sample(100, g)) for m in (mu, of.Particles(y))]
    assert float(wasserstein2(*few)) > 0


@pytest.mark.parametrize("cells", [8, 300])
def test_grids_in_the_plane_name_a_cure_that_works(cells):
    rho = torch.rand(cells, cells, generator=torch.Generator().manual_seed(0))
    mu = of.GridDensity(rho, 0, 1, walls=True, normalize=True)
    with pytest.raises(TypeError, match=r"Particles\(mu.sample\(2000") as caught:
        of.metrics.sinkhorn_divergence(mu, mu, blur=0.1)
    offered = "mu.points, mu.weights" in str(caught.value)
    assert offered == (cells == 8)
    if offered:
        assert float(wasserstein2(*[of.Particles(mu.points, mu.weights)] * 2)) == 0
    generator = torch.Generator().manual_seed(1)
    few = [of.Particles(mu.sample(200, generator)) for _ in "ab"]
    assert 0 < float(wasserstein2(*few)) < 0.2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("d", [1, 2])
def test_an_atom_lost_in_the_round_off_of_the_others_still_knows_where_it_goes(d, seed):
    """The mass 1e-k goes to one atom, of the tight cell, whatever k."""
    g = torch.Generator().manual_seed(seed)
    x, y, a, b = (
        torch.randn(n, k, generator=g, dtype=torch.float64)
        for n, k in ((6, d), (4, d), (6, 1), (4, 1))
    )
    a, b = a[:, 0].exp(), b[:, 0].exp()
    a, b = a / a.sum(), b / b.sum()
    a[0] = 10.0 ** -(12 + seed)
    live = x.clone().requires_grad_()
    nu = of.Particles(y, b)
    square = wasserstein2_squared(of.Particles(live, a, normalize=True), nu)
    (slope,) = torch.autograd.grad(square, live)
    mu = of.Particles(x, a, normalize=True)
    plan = transport_plan(mu, nu)
    torch.testing.assert_close(plan.dense().sum(1), mu.weights, rtol=1e-12, atol=0)
    goal = x[0] - slope[0] / (2 * mu.weights[0])
    apart = (x[0] - y).square().sum(1) - plan.g
    torch.testing.assert_close(goal, y[apart.argmin()], rtol=0, atol=1e-2)
