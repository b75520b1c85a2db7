"""Plans between many atoms, by columns: the optimum of all pairs, and true bounds."""

from __future__ import annotations

import importlib

import ot
import pytest
import torch

import otflow as of
from otflow.metrics import (
    Bracket,
    transport_plan,
    wasserstein2,
    wasserstein2_squared,
)
from otflow.testing.clouds import normal

columns = importlib.import_module("otflow.metrics.columns")

KINDS = ["normal", "lattice", "clusters", "line", "copies", "shifted", "small"]


@pytest.fixture
def few(monkeypatch):
    """Small problems take the way of large ones: several levels, several rounds."""
    monkeypatch.setattr(columns, "FEW", 20)


def points(kind: str, n: int, d: int, g: torch.Generator) -> torch.Tensor:
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    if kind == "lattice":
        return (3 * x).round()
    if kind == "clusters":
        return 0.01 * x + torch.randint(0, 3, (n, 1), generator=g)
    if kind == "line":
        return x[:, :1] * torch.ones(d, dtype=torch.float64)
    if kind == "copies":
        return x[torch.randint(0, max(1, n // 4), (n,), generator=g)]
    if kind == "shifted":
        return x + 1e3
    return 1e-9 * x if kind == "small" else x


def measure(kind: str, n: int, d: int, weighted: bool, seed: int) -> of.Particles:
    g = torch.Generator().manual_seed(seed)
    x = points(kind, n, d, g)
    if not weighted:
        return of.Particles(x)
    w = torch.rand(n, generator=g, dtype=torch.float64).square()
    w[: n // 10] = 0.0
    return of.Particles(x, w, normalize=True)


def costs(mu: of.Particles, nu: of.Particles) -> torch.Tensor:
    return (mu.points[:, None] - nu.points).square().sum(-1)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [2, 3, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimum_of_all_pairs(kind, d, weighted):
    """Its cost is that of the network simplex on all pairs; the potentials prove it."""
    for seed, (n, m) in enumerate(((150, 150), (230, 90))):
        mu = measure(kind, n, d, weighted, seed)
        nu = measure(kind, m, d, weighted, seed + 50)
        plan = transport_plan(mu, nu, method="columns")
        C = costs(mu, nu)
        size = float(C.max())  # the tolerances of POT are absolute
        a, b = mu.weights.numpy(), nu.weights.numpy()
        exact = size * float(ot.emd2(a, b, (C / size).numpy(), numItermax=10**7))
        room = 1e-14 * size
        assert float(plan.cost) == pytest.approx(exact, rel=1e-9, abs=room)
        assert plan.method == "columns"
        assert plan.bracket.lower <= exact * (1 + 1e-12) + room
        assert plan.bracket.relative <= 1e-8 or plan.bracket.width <= room
        P = plan.dense()
        assert torch.allclose(P.sum(1), mu.weights, rtol=1e-9, atol=1e-17)
        assert torch.allclose(P.sum(0), nu.weights, rtol=1e-9, atol=1e-17)
        assert float((P * C).sum()) == pytest.approx(float(plan.cost), rel=1e-12)
        full = nu.weights > 0
        excess = (plan.f[:, None] + plan.g - C)[:, full]
        assert float(excess.max()) <= room


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("tolerance", [0.3, 0.05, 0.001])
@pytest.mark.parametrize("d", [2, 3, 8])
def test_a_tolerance_gives_a_true_bracket(tolerance, d):
    for seed in range(6):
        mu = measure("normal", 200, d, seed % 2 == 0, seed)
        nu = measure("normal", 180, d, seed % 3 == 0, seed + 50)
        plan = transport_plan(mu, nu, tolerance=tolerance, method="columns")
        exact = float(wasserstein2_squared(mu, nu))
        assert plan.bracket.lower <= exact * (1 + 1e-12)
        assert exact <= plan.bracket.upper * (1 + 1e-12)
        assert plan.bracket.relative <= tolerance
        assert plan.bracket.upper == pytest.approx(float(plan.cost), rel=1e-12)
        # The potentials alone prove the lower bound.
        bound = float(mu.weights @ plan.f + nu.weights @ plan.g)
        assert bound == pytest.approx(plan.bracket.lower, rel=1e-9)
        excess = plan.f[:, None] + plan.g - costs(mu, nu)
        assert float(excess[:, nu.weights > 0].max()) <= 1e-12


@pytest.mark.usefixtures("few")
def test_the_tolerance_of_the_distance_is_of_the_distance(monkeypatch):
    monkeypatch.setattr(importlib.import_module("otflow.metrics.plans"), "MANY", 1)
    loose = 0
    for seed in range(8):
        mu, nu = (measure("normal", 200, 2, True, seed + k) for k in (0, 50))
        exact = float(wasserstein2(mu, nu))
        assert exact == pytest.approx(
            float(transport_plan(mu, nu, method="simplex").cost) ** 0.5, rel=1e-9
        )
        for tolerance in (0.2, 0.01):
            value = float(wasserstein2(mu, nu, tolerance=tolerance))
            assert exact * (1 - 1e-12) <= value <= exact / (1 - tolerance)
            loose += value > exact * (1 + 1e-9)
    assert loose > 0  # a tolerance is used


def test_no_array_of_all_pairs(monkeypatch):
    """In two dimensions 6,000 atoms a side are coupled without their 36 10^6 pairs."""
    largest = 0
    squares = columns.squares

    def watched(x, y):
        nonlocal largest
        largest = max(largest, len(x) * len(y))
        return squares(x, y)

    monkeypatch.setattr(columns, "squares", watched)
    monkeypatch.setattr(
        importlib.import_module("otflow.metrics.plans"), "squared_distances", None
    )
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(6000, 2, generator=g, dtype=torch.float64) for _ in "xy")
    plan = transport_plan(x, y)
    assert plan.method == "columns"
    assert plan.bracket.relative <= 1e-9
    assert 0 < largest <= columns.FEW**2


def test_cells_of_the_coarser_level_are_even():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1000, 2, generator=g, dtype=torch.float64)
    cell = columns.gathered(x, 4)
    sizes = cell.bincount()
    assert set(sizes.tolist()) <= {3, 4}
    # Each cell is a box of its own: none of its points lies inside another's box by
    # more than a median line, so the cells are small.
    spread = torch.stack([x[cell == k].std(0).max() for k in range(len(sizes))])
    assert float(spread.max()) < 0.15


def test_least_costs_by_trees_are_those_by_all_pairs():
    g = torch.Generator().manual_seed(1)
    for d in (2, 5):
        x, y = (torch.randn(80, d, generator=g, dtype=torch.float64) for _ in "xy")
        h = torch.randn(80, generator=g, dtype=torch.float64)
        values, index = columns.cheapest(x, y, h, 3)
        every = (x[:, None] - y).square().sum(-1) - h
        assert torch.allclose(values, every.sort(1).values[:, :3], rtol=1e-12)
        assert torch.allclose(every.gather(1, index), values, rtol=1e-12)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan"), "1%"])
def test_bad_tolerances(tolerance):
    x = torch.zeros(1, 2)
    with pytest.raises((ValueError, TypeError), match="tolerance"):
        transport_plan(x, x, tolerance=tolerance)
    with pytest.raises((ValueError, TypeError), match="tolerance"):
        wasserstein2(x, x, tolerance=tolerance)


def test_bad_methods():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, 2, generator=g) for _ in "xy")
    with pytest.raises(ValueError, match="method"):
        transport_plan(x, y, method="fast")
    with pytest.raises(ValueError, match="only points on the line can be sorted"):
        transport_plan(x, y, method="sorted")
    with pytest.raises(ValueError, match="coupling by index is not known"):
        transport_plan(x, y, method="identity")
    assert transport_plan(x, x + 1, method="identity").method == "identity"
    assert transport_plan(x, y).method == "simplex"


def test_a_solver_that_stops_early_is_told_where_warnings_are_errors(monkeypatch):
    """On few pairs as on all: what POT warns of is the same typed error."""
    simplex = importlib.import_module("otflow.metrics.simplex")
    monkeypatch.setattr(simplex, "MAX_PIVOTS", 3)
    n = 40
    rows, every = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    g = torch.Generator().manual_seed(0)
    costs = torch.rand(n * n, generator=g, dtype=torch.float64)
    masses = torch.full((n,), 1 / n, dtype=torch.float64)
    with pytest.raises(of.errors.NotConverged, match="stopped before the optimum"):
        simplex.sparse_simplex(rows, every, costs, masses, masses)


@pytest.mark.parametrize("n", [30, 1500])
def test_the_round_off_of_the_bounds_is_that_of_the_total_mass(n):
    x, y = normal(n, 2), normal(n, 2, seed=1)
    ones = torch.ones(n, dtype=torch.float64)
    one, many = (
        columns.between_many(x, m * ones, y, m * ones, 0.5) for m in (1.0, 1024.0)
    )
    assert many.noise == pytest.approx(1024 * one.noise, rel=1e-9)
    assert many.upper == pytest.approx(1024 * one.upper, rel=1e-9)


def test_a_bracket_of_a_square_in_another_unit():
    bracket = Bracket(1.0, 3.0).times_square(4.0)
    assert (bracket.lower, bracket.upper) == (16.0, 48.0)
    # The square of the unit is 0 in float64, the product is not.
    assert Bracket(1e300, 1e300).times_square(1e-200).upper == pytest.approx(1e-100)


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("sizes", [(1, 5), (30, 30), (40, 25)])
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_a_common_offset_costs_no_digits(few, d, sizes, tolerance):
    """Both clouds are moved by 2^27, and all coordinates remain exact numbers."""
    g = torch.Generator().manual_seed(d)
    x, y = (torch.randn(n, d, generator=g, dtype=torch.float64) for n in sizes)
    x, y = ((2.0**20 * z).round() / 2.0**20 for z in (x, y))
    weights = torch.rand(len(x), generator=g, dtype=torch.float64)
    mu, nu = of.Particles(x, weights, normalize=True), of.Particles(y)
    far = of.Particles(x + 2.0**27, mu.weights), of.Particles(y + 2.0**27)
    C = costs(mu, nu)
    near = transport_plan(mu, nu, method="columns", tolerance=tolerance)
    plan = transport_plan(*far, method="columns", tolerance=tolerance)
    assert float(plan.cost) == pytest.approx(float(near.cost), rel=tolerance + 1e-13)
    room = 1e-12 * float(C.max())
    assert float((plan.f[:, None] + plan.g - C).max()) <= room
    own, other = mu.weights @ plan.f, nu.weights @ plan.g
    assert float((own - other).abs()) <= room
    assert plan.bracket.lower <= float(own + other) + room


@pytest.mark.parametrize("n", [1, 4])
def test_measures_in_one_point_are_at_distance_zero(n):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 7, generator=g, dtype=torch.float64)
        weights = torch.rand(3, generator=g, dtype=torch.float64)
        nu = of.Particles(x.expand(3, 7), weights, normalize=True)
        plan = transport_plan(x.expand(n, 7), nu, method="columns")
        assert (plan.bracket.lower, plan.bracket.upper, float(plan.cost)) == (0, 0, 0)
