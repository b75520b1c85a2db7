"""Distances between grids in the plane and in space: atoms at the centres of cells."""

from __future__ import annotations

import importlib

import ot
import pytest
import torch

import otflow as of
from otflow.metrics import (
    transport_plan,
    wasserstein2,
    wasserstein2_bounds,
    wasserstein2_squared,
)
from otflow.metrics.lattices import Lattice, halved
from otflow.metrics.rounding import rounded_cost
from otflow.numerics import envelopes, gauss_sums

F64 = torch.float64
# Shapes and boxes of two grids, alike or not.
PAIRS = {
    "plane": (((9, 7), 0.0, 1.0), ((9, 7), 0.0, 1.0)),
    "unequal": (((9, 7), (0.0, 1.0), (3.0, 2.0)), ((5, 12), (-1.0, 0.5), (0.5, 4.0))),
    "space": (((4, 5, 3), 0.0, 1.0), ((3, 4, 4), (0.0, 0.0, 1.0), (2.0, 1.0, 2.0))),
    "row": (((1, 20), 0.0, 1.0), ((12, 1), 0.0, 1.0)),
}


def grid(spec, seed, *, dtype=F64, holes=0.0, smooth=False):
    shape, lower, upper = spec
    g = torch.Generator().manual_seed(seed)
    rho = torch.rand(shape, generator=g, dtype=F64) ** 2 + 1e-3
    if smooth:
        axes = [torch.linspace(0, 1, n, dtype=F64) for n in shape]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        middle = 0.3 + 0.4 * torch.rand(len(shape), generator=g, dtype=F64)
        rho = torch.exp(-9 * (place - middle).square().sum(-1)) + 0.1 * rho
    obstacles = None
    if holes:
        obstacles = torch.zeros(shape, dtype=torch.bool)
        obstacles[1 : 1 + max(1, shape[0] // 3), 1:-2] = True
        rho = rho * (torch.rand(shape, generator=g) > holes) * ~obstacles
        rho[0], rho[:, -1] = 0.2, 0.2  # the mass is in one piece
    rho = rho.to(dtype)
    return of.GridDensity(
        rho, lower, upper, obstacles=obstacles, walls=True, normalize=True
    )


def centres(mu):
    axes = mu.box.axes(torch.empty(0, dtype=F64))
    return torch.cartesian_prod(*axes)


def dense(mu, nu):
    """Return the cost matrix, and the exact squared distance by POT."""
    C = (centres(mu)[:, None] - centres(nu)).square().sum(-1)
    a, b = (m.weights.double() / m.weights.double().sum() for m in (mu, nu))
    return C, float(ot.emd2(a.numpy(), b.numpy(), C.numpy(), numItermax=10**7))


def blurred(mu, nu, tolerance):
    """Return bounds by the method of large grids, whether narrow enough or not."""
    try:
        return wasserstein2_bounds(mu, nu, tolerance=tolerance, method="sinkhorn")
    except of.errors.NotConverged as error:
        return error.result


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_small_grids_have_the_exact_distance(pair, holes, dtype):
    if holes and pair == "row":
        holes = 0.0
    mu, nu = (
        grid(spec, k, dtype=dtype, holes=holes) for k, spec in enumerate(PAIRS[pair])
    )
    C, exact = dense(mu, nu)
    precision = 1e-9 if dtype == F64 else 1e-5
    assert float(wasserstein2_squared(mu, nu)) == pytest.approx(exact, rel=precision)
    assert float(wasserstein2(mu, nu)) == pytest.approx(exact**0.5, rel=precision)
    plan = transport_plan(mu, nu)
    assert plan.cost.dtype == dtype
    assert float((plan.dense().double() * C).sum()) == pytest.approx(exact, rel=1e-5)
    bracket = wasserstein2_bounds(mu, nu, tolerance=0.0).bracket
    assert bracket.lower == pytest.approx(exact, rel=1e-12)
    assert bracket.upper == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("tolerance", [0.5, 0.1])
def test_the_bracket_of_large_grids_contains_the_exact_value(pair, holes, tolerance):
    if holes and pair == "row":
        holes = 0.0
    for seed in range(4):
        mu, nu = (
            grid(spec, 2 * seed + k, holes=holes) for k, spec in enumerate(PAIRS[pair])
        )
        C, exact = dense(mu, nu)
        found = blurred(mu, nu, tolerance)
        assert found.method == "sinkhorn"
        assert found.bracket.lower <= exact <= found.bracket.upper
        assert found.bracket.lower > 0.5 * exact
        assert float((found.f[:, None] + found.g - C).max()) < 1e-12
        bound = float(mu.weights @ found.f + nu.weights @ found.g)
        assert bound == pytest.approx(found.bracket.lower, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "tolerance"),
    [((40, 33), 0.1), ((40, 33), 0.04), ((9, 11, 10), 0.4), ((9, 11, 10), 0.2)],
)
def test_a_tolerance_in_reach_is_kept(shape, tolerance):
    for seed in range(2):
        mu, nu = (grid((shape, 0.0, 1.0), 2 * seed + k, smooth=True) for k in (0, 1))
        found = wasserstein2_bounds(mu, nu, tolerance=tolerance, method="sinkhorn")
        assert found.bracket.relative <= tolerance
        exact = wasserstein2_bounds(mu, nu, tolerance=1e-6, method="columns").bracket
        assert found.bracket.lower <= exact.upper
        assert exact.lower <= found.bracket.upper


@pytest.mark.slow
def test_the_default_chooses_by_size_and_reach(monkeypatch):
    bounds = importlib.import_module("otflow.metrics.bounds")
    mu, nu = (grid(((40, 33), 0.0, 1.0), k, smooth=True) for k in (0, 1))
    assert wasserstein2_bounds(mu, nu, tolerance=0.1).method == "sinkhorn"
    assert wasserstein2_bounds(mu, nu, tolerance=1e-6).method == "columns"
    exact = float(wasserstein2_squared(mu, nu))
    for tolerance in (0.1, 0.02):
        value = float(wasserstein2_squared(mu, nu, tolerance=tolerance))
        assert exact < value <= exact / (1 - tolerance)
        root = float(wasserstein2(mu, nu, tolerance=tolerance))
        assert exact**0.5 < root <= exact**0.5 / (1 - tolerance)
    monkeypatch.setattr(bounds, "MANY", 10**7)
    assert wasserstein2_bounds(mu, nu, tolerance=0.1).method == "columns"


@pytest.mark.parametrize("method", [None, "sinkhorn", "simplex"])
def test_a_shifted_picture_is_as_far_as_the_shift(method):
    g = torch.Generator().manual_seed(0)
    for size in (24, 60):
        if method == "simplex" and size > 24:
            continue
        wide = size - 16  # 44 x 44 occupied cells are many
        rho = torch.zeros(size, size, dtype=F64)
        rho[3 : 3 + wide, 2 : 2 + wide] = torch.rand(wide, wide, generator=g, dtype=F64)
        mu, nu = (
            of.GridDensity(r, 0.0, (2.0, 3.0), walls=True, normalize=True)
            for r in (rho, rho.roll((7, 5), (0, 1)))
        )
        square = (7 * 2 / size) ** 2 + (5 * 3 / size) ** 2
        found = wasserstein2_bounds(mu, nu, tolerance=1e-9, method=method)
        assert found.bracket.relative < 1e-9
        assert found.bracket.upper == pytest.approx(square, rel=1e-12)
        if method is None:
            assert float(wasserstein2(mu, nu)) == pytest.approx(square**0.5, rel=1e-12)
            assert (found.method == "sinkhorn") == (size == 60)


def test_equal_measures_have_distance_zero():
    for shape in ((8, 9), (200, 180), (30, 30, 30)):
        mu, nu = (grid((shape, 0.0, 1.0), 5) for _ in "ab")
        assert float(wasserstein2(mu, nu)) == 0.0
        assert float(wasserstein2_squared(mu, nu)) == 0.0
        bracket = wasserstein2_bounds(mu, nu).bracket
        assert (bracket.lower, bracket.upper) == (0.0, 0.0)


@pytest.mark.parametrize("pair", ["plane", "unequal", "space"])
def test_particles_against_a_grid(pair):
    g = torch.Generator().manual_seed(3)
    nu = grid(PAIRS[pair][1], 1, holes=0.3)
    x = torch.randn(17, nu.dim, generator=g, dtype=F64)
    C = (x[:, None] - centres(nu)).square().sum(-1)
    a = torch.full((17,), 1 / 17, dtype=F64)
    exact = float(ot.emd2(a.numpy(), nu.weights.numpy(), C.numpy(), numItermax=10**7))
    live = x.clone().requires_grad_()
    square = wasserstein2_squared(of.Particles(live), nu)
    assert float(square.detach()) == pytest.approx(exact, rel=1e-9)
    plan = transport_plan(of.Particles(x), nu)
    (slope,) = torch.autograd.grad(square, live)
    wanted = 2 * (x / 17 - plan.dense() @ centres(nu))
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="takes two GridDensity"):
        wasserstein2_bounds(of.Particles(x), nu, method="sinkhorn")


def with_masses(mu, masses):
    return of.GridDensity(
        masses.reshape(mu.box.shape),
        mu.box.lower,
        mu.box.upper,
        walls=True,
        normalize=True,
    )


@pytest.mark.parametrize("pair", ["plane", "unequal", "space"])
def test_the_gradient_in_the_masses_is_the_potential(pair):
    """By differences of the exact value; both arguments."""
    mu, nu = (grid(spec, k) for k, spec in enumerate(PAIRS[pair]))
    plan = transport_plan(mu, nu)
    for k, (m, f) in enumerate(((mu, plan.f), (nu, plan.g))):
        weights = m.weights.clone().requires_grad_()

        def value(w, k=k, m=m):
            other = with_masses(m, w)
            return wasserstein2_squared(*((other, nu) if k == 0 else (mu, other)))

        (slope,) = torch.autograd.grad(value(weights), weights)
        torch.testing.assert_close(slope, f - m.weights @ f, rtol=1e-8, atol=1e-11)
        g = torch.Generator().manual_seed(k)
        u = m.weights * torch.randn(len(f), generator=g, dtype=F64)
        t = 1e-7
        wanted = (value(m.weights + t * u) - value(m.weights - t * u)) / (2 * t)
        torch.testing.assert_close(slope @ u, wanted, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_large_grids():
    """Along smooth changes of mass, against differences of the exact value."""
    mu, nu = (grid(((40, 33), 0.0, 1.0), k, smooth=True) for k in (0, 1))
    weights = mu.weights.clone().requires_grad_()
    square = wasserstein2_squared(with_masses(mu, weights), nu, tolerance=0.02)
    (slope,) = torch.autograd.grad(square, weights)
    found = wasserstein2_bounds(mu, nu, tolerance=0.02)
    torch.testing.assert_close(slope, found.f - mu.weights @ found.f)
    x = mu.points
    for u in (x[:, 0].sin(), (3 * x[:, 1]).cos(), x[:, 0] * x[:, 1]):
        change = mu.weights * (u - mu.weights @ u)
        t = 1e-3
        low, high = (
            float(wasserstein2_squared(with_masses(mu, mu.weights + s * change), nu))
            for s in (-t, t)
        )
        wanted = (high - low) / (2 * t)
        assert float(slope @ change) == pytest.approx(wanted, rel=0.02, abs=2e-5)


def test_first_variation_on_a_grid():
    mu, nu = (grid(spec, k) for k, spec in enumerate(PAIRS["plane"]))

    class Distance(of.Functional):
        def value(self, m):
            return wasserstein2_squared(m, nu)

    phi, plan = Distance().first_variation(mu), transport_plan(mu, nu)
    torch.testing.assert_close(phi - mu.weights @ phi, plan.f - mu.weights @ plan.f)


def test_without_numba_the_bounds_are_the_same(monkeypatch):
    mu, nu = (grid(((30, 21), 0.0, 1.0), k, smooth=True) for k in (0, 1))
    first = wasserstein2_bounds(mu, nu, tolerance=0.1, method="sinkhorn")
    for module in (envelopes, gauss_sums):
        monkeypatch.setattr(module, "has_compiler", lambda: False)
    second = wasserstein2_bounds(mu, nu, tolerance=0.1, method="sinkhorn")
    assert first.bracket.lower == pytest.approx(second.bracket.lower, rel=1e-6)
    assert first.bracket.upper == pytest.approx(second.bracket.upper, rel=1e-6)


@pytest.mark.parametrize("size", [1e-100, 1e150])
def test_lengths_far_from_one(size):
    """Their squares have a value, or at least the distance has one."""
    mu, nu = (grid(((40, 33), 0.0, 1.0), k, smooth=True) for k in (0, 1))
    plain = float(wasserstein2(mu, nu, tolerance=0.1))
    far = [
        of.GridDensity(m.weights.reshape(40, 33), 0.0, size, walls=True, normalize=True)
        for m in (mu, nu)
    ]
    value = float(wasserstein2(*far, tolerance=0.1))
    assert value == pytest.approx(size * plain, rel=1e-9)


def test_float32_grids_are_measured_in_float64():
    specs = ((40, 33), 0.0, 1.0)
    mu, nu = (grid(specs, k, smooth=True, dtype=torch.float32) for k in (0, 1))
    exact = wasserstein2_bounds(mu.to(F64), nu.to(F64), tolerance=1e-6).bracket
    found = wasserstein2_bounds(mu, nu, tolerance=0.1)
    assert found.f.dtype == torch.float32
    assert found.bracket.lower <= exact.upper
    assert exact.lower <= found.bracket.upper
    assert wasserstein2(mu, nu, tolerance=0.1).dtype == torch.float32


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 2)])
def test_the_cost_of_a_rounded_plan_is_that_of_its_matrix(shape):
    g = torch.Generator().manual_seed(0)
    axes = tuple(torch.arange(n, dtype=F64) * (1 + k) for k, n in enumerate(shape))
    y = torch.cartesian_prod(*axes)
    n = len(y)
    P = torch.rand(7, n, generator=g, dtype=F64)
    P = P / P.sum()
    x = torch.randn(7, len(shape), generator=g, dtype=F64)
    reached = P.sum(0)
    b = torch.rand(n, generator=g, dtype=F64)
    b = b / b.sum()
    C = (x[:, None] - y).square().sum(-1)
    # The kernel from y to z, cell by cell of growing size.
    Q = torch.diag(torch.minimum(reached, b))
    excess, deficit = (reached - b).clamp_min(0), (b - reached).clamp_min(0)
    places = torch.cartesian_prod(*[torch.arange(k) for k in shape])
    for level in range(1, 4):
        name = (places >> level) @ torch.tensor([1, 100, 10000])[: len(shape)]
        for one in name.unique():
            here = name == one
            e, t = excess * here, deficit * here
            met = min(float(e.sum()), float(t.sum()))
            if met > 0:
                Q += met * torch.outer(e / e.sum(), t / t.sum())
                excess, deficit = (
                    excess - met * e / e.sum(),
                    deficit - met * t / t.sum(),
                )
    torch.testing.assert_close(Q.sum(0), b)
    final = (P / reached) @ Q
    lattice = Lattice(axes, b.reshape(shape))
    means = (P.T @ x / reached[:, None]).reshape(*shape, -1)
    squares = ((P * C).sum(0) / reached).reshape(shape)
    cost, moved = rounded_cost(lattice, reached.reshape(shape), means, squares)
    assert cost == pytest.approx(float((final * C).sum()), rel=1e-12)
    assert moved == pytest.approx(0.5 * float((reached - b).abs().sum()))


def test_sums_of_pairs_keep_the_last_entry():
    pairs = halved(torch.tensor([[1.0, 2.0, 3.0]]), 1)
    torch.testing.assert_close(pairs, torch.tensor([[3.0, 3.0]]))


def test_a_broken_grid_has_no_distance():
    mu = grid(PAIRS["plane"][0], 0)
    mu.weights[3] = torch.nan
    with pytest.raises((of.errors.NonFinite, of.errors.ModifiedInPlace)):
        wasserstein2(mu, grid(PAIRS["plane"][1], 1))


@pytest.mark.slow
def test_two_photographs():
    """512 x 512 cells a side to 1e-3."""
    data = pytest.importorskip("sklearn.datasets")
    mu, nu = (picture(p) for p in data.load_sample_images().images)
    found = wasserstein2_bounds(mu, nu, tolerance=1e-3)
    assert found.method == "sinkhorn"
    assert found.bracket.relative <= 1e-3


def picture(pixels):
    rho = torch.tensor(pixels).to(F64).mean(-1)[None, None]
    rho = torch.nn.functional.interpolate(
        rho, size=(512, 512), mode="bilinear", antialias=True
    )[0, 0]
    return of.GridDensity(rho, 0.0, 1.0, walls=True, normalize=True)
