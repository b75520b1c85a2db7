"""Geodesics of every kind: constant speed, ends, times, graphs; generalised ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow.metrics import (
    generalized_geodesic,
    geodesic,
    wasserstein2,
    wasserstein2_squared,
)
from otflow.testing.clouds import normal, weighted

F64 = torch.float64
TIMES = [0.0, 0.2, 0.7, 1.0]


def quantiles(n, seed, dtype=F64):
    edges = (normal(n + 1, seed=seed).abs() + 0.01).cumsum(0)
    w = normal(n, seed=seed + 50).abs() + 0.05
    return of.Quantiles(edges.to(dtype), w.to(dtype), normalize=True)


def steps(n, seed, lower, dtype=F64):
    rho = (normal(n, seed=seed).abs() + 0.05).to(dtype)
    return of.GridDensity(rho, lower, lower + 3, walls=True, normalize=True)


def gaussian(d, seed, dtype=F64):
    a = normal(d, d, seed=seed)
    return of.Gaussian(normal(d, seed=seed + 9).to(dtype), (a @ a.T).to(dtype))


def flattened(mu):
    """Return a Gaussian of the same mean whose covariance has the rank 1."""
    state = mu.state.clone()
    state[1:] = state[1:2] * normal(mu.dim, 1, seed=7)
    return mu.with_free_state(state)


ENDS: dict[str, Callable[[], Any]] = {
    "equal weights": lambda: (
        of.Particles(normal(12, 2)),
        of.Particles(normal(12, 2, seed=1)),
    ),
    "weights": lambda: (weighted(7), weighted(9, seed=1)),
    "quantiles": lambda: (quantiles(7, 1), quantiles(11, 2)),
    "grids": lambda: (steps(8, 1, 0.0), steps(13, 2, 5.0)),
    "a grid and quantiles": lambda: (steps(8, 1, 0.0), quantiles(5, 3)),
    "Gaussians": lambda: (gaussian(3, 1), gaussian(3, 2)),
    "to a line": lambda: (gaussian(3, 1), flattened(gaussian(3, 2))),
    "from a line": lambda: (flattened(gaussian(3, 2)), gaussian(3, 1)),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_geodesic_has_constant_speed(name):
    mu, nu = ENDS[name]()
    whole = float(wasserstein2(mu, nu))
    path = geodesic(mu, nu, TIMES)
    for (s, a), (t, b) in itertools.combinations(zip(TIMES, path, strict=True), 2):
        assert float(wasserstein2(a, b)) == pytest.approx((t - s) * whole, rel=1e-10)
    for end, found in ((mu, path[0]), (nu, path[-1])):
        assert float(wasserstein2(end, found)) < 1e-7 * whole
    assert float(of.metrics.action(path, TIMES)) == pytest.approx(whole**2, rel=1e-10)


@pytest.mark.parametrize("name", ENDS)
def test_times_are_a_number_or_many(name):
    mu, nu = ENDS[name]()
    one = geodesic(mu, nu, 0.7).points
    for times in ([0.7], (0.7,), torch.tensor([0.7], dtype=F64), np.array([0.7])):
        (found,) = geodesic(mu, nu, times)
        assert type(found) is type(geodesic(mu, nu, 0.7))
        assert torch.equal(found.points, one)
    time: Any = torch.tensor(0.7, dtype=F64)
    assert torch.equal(geodesic(mu, nu, time).points, one)
    assert geodesic(mu, nu, []) == ()


def test_between_gaussians_on_the_line_deviations_are_averaged():
    """In dimension 1 the means and the standard deviations are straight in t."""
    mu = of.Gaussian(torch.zeros(1, dtype=F64), torch.full((1, 1), 1.0, dtype=F64))
    nu = of.Gaussian(
        torch.full((1,), 4.0, dtype=F64), torch.full((1, 1), 9.0, dtype=F64)
    )
    found = geodesic(mu, nu, 0.25)
    assert float(found.mean) == pytest.approx(1.0)
    assert float(found.covariance) == pytest.approx(1.5**2)


def on_the_line(generator, dtype):
    """Return a random density: equal, uneven or very uneven masses, or a grid."""

    def random(n):
        return torch.rand(n, generator=generator, dtype=F64)

    n, kind = int(30 * random(1)) + 1, int(4 * random(1))
    if kind == 3:
        rho = random(n) + 1e-3
        if n > 4:
            rho[0] = rho[-1] = 0.0
        return of.GridDensity(rho.to(dtype), -1.0, 2.0, walls=True, normalize=True)
    lengths, masses = (
        10 ** (-k * random(n)) for k in ((0, 3, 5)[kind], (0, 3, 12)[kind])
    )
    edges = torch.cat([random(1), lengths]).cumsum(0)
    weights = (masses / masses.sum()).to(dtype)
    return of.Quantiles(edges.to(dtype), weights, normalize=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_random_densities_on_the_line(dtype):
    """Geodesics keep their speed and barycentres meet their bound, also in float32."""
    generator = torch.Generator().manual_seed(0)
    share = 1e-9 if dtype == F64 else 2e-4
    for _ in range(30):
        mu, nu, other = (on_the_line(generator, dtype) for _ in range(3))
        whole = max(float(wasserstein2(mu.to(F64), nu.to(F64))), 1e-3)
        path = [found.to(F64) for found in geodesic(mu, nu, TIMES)]
        for (s, a), (t, b) in itertools.combinations(zip(TIMES, path, strict=True), 2):
            speed = float(wasserstein2(a, b)) / whole
            assert speed == pytest.approx(t - s, abs=share)
        assert float(wasserstein2(path[0], mu.to(F64))) < share * whole
        assert float(wasserstein2(path[-1], nu.to(F64))) < share * whole
        mean = of.metrics.barycenter([mu, nu, other], [0.5, 0.2, 0.3])
        assert mean.bracket().relative < 10 * share


def test_levels_that_nearly_coincide_leave_no_slivers():
    """Equal masses, summed in two orders, have the same levels up to round-off."""
    w = normal(50).abs() + 0.1
    w = w / w.sum()
    other = torch.cat([w[:25] * (1 + 1e-16), w[25:]])
    mu = of.Quantiles(torch.arange(51, dtype=F64), w, normalize=True)
    nu = of.Quantiles(torch.arange(51, dtype=F64) ** 2, other, normalize=True)
    assert geodesic(mu, nu, 0.5).n == 50


@pytest.mark.parametrize("name", ["quantiles", "grids", "Gaussians", "particles"])
def test_single_precision_stays_and_is_close(name):
    make = {
        "quantiles": lambda dtype: (quantiles(40, 1, dtype), quantiles(31, 2, dtype)),
        "grids": lambda dtype: (steps(40, 1, 0.0, dtype), steps(31, 2, 1.0, dtype)),
        "Gaussians": lambda dtype: (gaussian(2, 1, dtype), gaussian(2, 2, dtype)),
        "particles": lambda dtype: (
            of.Particles(normal(9, 2).to(dtype)),
            of.Particles(normal(9, 2, seed=1).to(dtype)),
        ),
    }[name]
    found, exact = geodesic(*make(torch.float32), 0.3), geodesic(*make(F64), 0.3)
    assert found.dtype == torch.float32
    assert float(wasserstein2(found.to(F64), exact)) < 1e-5


def test_cells_too_short_for_the_dtype_are_joined():
    """Levels 1e-9 apart give cells shorter than the last place of float32."""
    n = 200
    mu = of.Quantiles(torch.linspace(1000, 1001, n + 1))
    w = torch.full((n,), 1.0 / n) * (1 + 1e-6 * normal(n).float())
    nu = of.Quantiles(torch.linspace(1000, 1002, n + 1), w, normalize=True)
    half = geodesic(mu, nu, 0.5)
    assert bool((half.edges.diff() > 0).all())
    whole = float(wasserstein2(mu, nu))
    assert float(wasserstein2(mu, half)) == pytest.approx(0.5 * whole, rel=1e-3)


@pytest.mark.parametrize("name", ["quantiles", "Gaussians"])
def test_the_answer_is_differentiable_in_both_ends(name):
    if name == "quantiles":
        mu, nu = quantiles(6, 1), quantiles(9, 2)
        state, make = mu.edges, mu.with_free_edges
    else:
        mu, nu = gaussian(2, 1), gaussian(2, 2)
        state, make = mu.state, mu.with_free_state

    def value(z, flip):
        ends = (nu, make(z)) if flip else (make(z), nu)
        return geodesic(*ends, 0.3).expectation(lambda x: x.sin().sum(-1))

    for flip in (False, True):
        z = state.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z, f=flip: value(z, f), z, atol=1e-6)


def test_outside_of_the_ends_lines_are_extended():
    mu, nu = gaussian(2, 1), gaussian(2, 2)
    a, b = (of.Gaussian(torch.zeros(1), torch.full((1, 1), s)) for s in (1.0, 4.0))
    with pytest.raises(of.errors.Diverged, match="became singular"):
        geodesic(a, b, -1.0)
    with pytest.raises(ValueError, match="quantiles cross at the time 3"):
        geodesic(quantiles(7, 1), quantiles(11, 2), 3.0)
    far = geodesic(mu, nu, 1.1)
    assert float(wasserstein2(geodesic(mu, nu, 1.0), far)) > 0


# Generalised geodesics ----------------------------------------------------------------

BASES: dict[str, Callable[[], Any]] = {
    "weights": lambda: [weighted(n, seed=n) for n in (7, 9, 8)],
    "equal weights": lambda: [of.Particles(normal(20, 2, seed=k)) for k in (1, 2, 5)],
    "Gaussians": lambda: [gaussian(3, k) for k in (3, 1, 2)],
}


@pytest.mark.parametrize("name", BASES)
def test_the_squared_distance_to_the_base_is_convex(name):
    base, mu, nu = BASES[name]()
    a, b, c = (
        float(wasserstein2_squared(*pair))
        for pair in ((base, mu), (base, nu), (mu, nu))
    )
    gaps = []
    for t in TIMES:
        found = float(wasserstein2_squared(base, generalized_geodesic(base, mu, nu, t)))
        gaps.append((1 - t) * a + t * b - t * (1 - t) * c - found)
        assert gaps[-1] > -1e-12
    assert abs(gaps[0]) + abs(gaps[-1]) < 1e-10
    # The geodesic has the opposite inequality, so the two paths differ.
    straight = float(wasserstein2_squared(base, geodesic(mu, nu, 0.5)))
    assert straight > 0.5 * a + 0.5 * b - 0.25 * c + 1e-3


@pytest.mark.parametrize("name", BASES)
def test_from_an_end_the_path_is_the_geodesic(name):
    _, mu, nu = BASES[name]()
    for t in TIMES:
        found = generalized_geodesic(mu, mu, nu, t)
        assert float(wasserstein2(found, geodesic(mu, nu, t))) < 1e-7


def test_a_generalised_geodesic_joins_its_ends():
    base, mu, nu = BASES["weights"]()
    path = generalized_geodesic(base, mu, nu, [0.0, 1.0])
    assert float(wasserstein2(path[0], mu)) < 1e-7
    assert float(wasserstein2(path[1], nu)) < 1e-7


def test_on_the_line_every_generalised_geodesic_is_the_geodesic():
    mu, nu, base = quantiles(7, 1), steps(9, 2, 1.0), quantiles(5, 3)
    found, exact = generalized_geodesic(base, mu, nu, 0.3), geodesic(mu, nu, 0.3)
    assert torch.equal(found.edges, exact.edges)


def test_points_of_a_generalised_geodesic_follow_the_ends():
    base, nu = weighted(7), weighted(8, seed=1)
    y = normal(9, 2, seed=2).requires_grad_()
    w = torch.full((9,), 1 / 9, dtype=F64)
    found = generalized_geodesic(base, of.Particles(y, w), nu, 0.25)
    (slope,) = torch.autograd.grad((found.weights @ found.points).sum(), y)
    torch.testing.assert_close(slope, torch.full_like(y, 0.75 / 9))


# Grids in the plane and in space ------------------------------------------------------


def cells(shape, seed, lower=0.0, upper=1.0, dtype=F64):
    """Return random masses, a quarter of them 0."""
    rho = normal(*shape, seed=seed).abs()
    rho = torch.where(rho < 0.3, 0.0, rho)
    return of.GridDensity(rho.to(dtype), lower, upper, walls=True, normalize=True)


def bell(law, n, dtype=F64):
    """Return a Gaussian on n x n cells of [-4, 4]^2."""
    return of.GridDensity.from_function(
        lambda x: law.log_density(x.double()).exp().to(dtype),
        -4,
        4,
        (n, n),
        dtype=dtype,
        walls=True,
    )


def reach(*grids):
    """Return how far in W2 the remap to the largest cells may move a measure."""
    spacings = torch.tensor([mu.box.spacing for mu in grids], dtype=F64)
    return 0.5 * float(spacings.amax(0).norm())


ON_GRIDS: dict[str, Callable[[], Any]] = {
    "the plane": lambda: (cells((9, 12), 1), cells((9, 12), 2)),
    "space": lambda: (cells((5, 4, 6), 1), cells((5, 4, 6), 2)),
    "two boxes": lambda: (cells((9, 9), 1), cells((9, 9), 2, [2.0, -1.0], [3.0, 4.0])),
    "two shapes": lambda: (cells((9, 5), 1), cells((4, 11), 2, 5.0, 7.0)),
    "an axis of one cell": lambda: (cells((12, 1), 1), cells((12, 1), 2)),
    "one cell": lambda: (cells((8, 8), 1), cells((1, 1), 0, 2.0, 3.0)),
}


@pytest.mark.parametrize("name", ON_GRIDS)
def test_on_a_grid_the_speed_is_constant_up_to_the_remap(name):
    """The documented bounds hold, and mass and mean are kept to round-off."""
    mu, nu = ON_GRIDS[name]()
    whole = float(wasserstein2(mu, nu))
    path = geodesic(mu, nu, TIMES)
    assert path[0] is mu
    assert path[-1] is nu
    ends = [m.weights @ m.points for m in (mu, nu)]
    a, b = (of.Particles(m.points, m.weights) for m in (mu, nu))
    atoms = geodesic(a, b, TIMES)
    for t, found, exact in zip(TIMES, path, atoms, strict=True):
        assert isinstance(found, of.GridDensity)
        assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-14)
        mean = found.weights @ found.points
        torch.testing.assert_close(mean, (1 - t) * ends[0] + t * ends[1])
        spread = [m.weights @ (m.points - mean).square() for m in (found, exact)]
        added = spread[0] - spread[1]
        limit = 0.25 * torch.tensor(found.box.spacing, dtype=F64).square()
        assert bool((added > -1e-12).all())
        assert bool((added < limit + 1e-12).all())
        if 0 < t < 1:
            assert float(wasserstein2(found, exact)) <= reach(found) + 1e-9
    for (s, p), (t, q) in itertools.combinations(zip(TIMES, path, strict=True), 2):
        error = abs(float(wasserstein2(p, q)) - (t - s) * whole)
        assert error <= 2 * reach(p, q) + 1e-9


@pytest.mark.parametrize("n", [16, 64])
def test_on_a_grid_a_block_moves_by_cells(n):
    """Half way of an even number of cells is the block itself, moved."""
    rho = torch.zeros(n, n, dtype=F64)
    rho[1 : n // 4, 2 : n // 2] = normal(n // 4 - 1, n // 2 - 2).abs()
    mu, nu = (
        of.GridDensity(r, 0, n, walls=True, normalize=True)
        for r in (rho, rho.roll((n // 2, n // 4), (0, 1)))
    )
    half = geodesic(mu, nu, 0.5)
    moved = mu.grid.roll((n // 4, n // 8), (0, 1))
    torch.testing.assert_close(half.grid, moved, rtol=1e-14, atol=0)
    # A part of a cell beyond it is shared between two cells.
    step = 2 / n
    beyond = geodesic(mu, nu, 0.5 + 0.5 * step).grid
    part = moved + 0.5 * (moved.roll(1, 0) - moved)
    part = part + 0.25 * (part.roll(1, 1) - part)
    torch.testing.assert_close(beyond, part, rtol=1e-12, atol=1e-14)


def test_on_a_grid_translates_and_dilations_of_the_box_are_exact():
    mu = cells((40, 50), 1)
    for lower, upper in (([3.0, -2.0], [4.0, -1.0]), ([1e6, 0.0], [1e6 + 2, 8.0])):
        nu = of.GridDensity(mu.grid, lower, upper, walls=True, normalize=True)
        third = geodesic(mu, nu, 1 / 3)
        torch.testing.assert_close(third.weights, mu.weights, rtol=1e-12, atol=1e-18)
        corners = (
            torch.lerp(torch.zeros(2), torch.tensor(lower), 1 / 3),
            torch.lerp(torch.ones(2), torch.tensor(upper), 1 / 3),
        )
        for found, exact in zip(
            (third.box.lower, third.box.upper), corners, strict=True
        ):
            assert found == pytest.approx(exact.tolist())


@pytest.mark.slow
def test_on_a_grid_gaussians_follow_the_bures_geodesic():
    """The distance to the exact law falls with the cells; masses reach 1e-60."""
    t = torch.tensor
    a = of.Gaussian(t([-1.0, -0.8]).double(), t([[0.3, 0.1], [0.1, 0.2]]).double())
    b = of.Gaussian(t([1.0, 0.5]).double(), t([[0.2, -0.15], [-0.15, 0.5]]).double())
    exact = geodesic(a, b, 0.4)
    errors, spreads = [], []
    for n in (16, 32, 64):
        found = geodesic(bell(a, n), bell(b, n), 0.4)
        error = float(wasserstein2(found, bell(exact, n), tolerance=1e-6))
        errors.append(error * n / 8)
        mean = found.weights @ found.points
        moments = torch.einsum(
            "k,ki,kj->ij", found.weights, found.points - mean, found.points - mean
        )
        spreads.append(float((moments - exact.covariance).norm()))
    assert max(errors) < 0.5  # cells
    # The variance that the remap adds is at most a quarter of a squared cell.
    assert spreads[0] < 0.25 * 0.5**2 * 2**0.5
    assert spreads[2] < spreads[0] / 8


def test_on_a_grid_time_runs_backwards():
    """Plans between lattices need not be unique, but each way has the same speed."""
    mu, nu = cells((9, 12), 1), cells((9, 12), 2)
    whole = float(wasserstein2(mu, nu))
    there, back = geodesic(mu, nu, 0.3), geodesic(nu, mu, 0.7)
    for found in (there, back):
        assert float(wasserstein2(mu, found)) == pytest.approx(
            0.3 * whole, abs=reach(mu)
        )
        assert float(wasserstein2(found, nu)) == pytest.approx(
            0.7 * whole, abs=reach(mu)
        )


def test_on_a_grid_single_precision_stays_and_is_close():
    mu, nu = ON_GRIDS["two shapes"]()
    exact = geodesic(mu, nu, 0.3)
    found = geodesic(mu.to(torch.float32), nu.to(torch.float32), 0.3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.weights.double(), exact.weights, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_on_a_grid_a_tolerance_bounds_the_excess():
    mu, nu = cells((48, 48), 1), cells((48, 48), 2)
    whole = float(wasserstein2(mu, nu))
    for share in (0.3, 0.01):
        half = geodesic(mu, nu, 0.5, tolerance=share)
        parts = [float(wasserstein2(m, half)) for m in (mu, nu)]
        longest = 0.5 * whole / (1 - share) ** 0.5 + reach(mu)
        assert max(parts) <= longest
        path = (mu, half, nu)
        assert float(of.metrics.length(path, tolerance=0.1)) >= whole
        assert float(of.metrics.action(path, tolerance=0.1)) >= whole**2


def test_on_a_grid_a_generalised_geodesic_is_convex_from_its_base():
    base, mu, nu = (cells((8, 9), k) for k in (1, 2, 3))
    a, b, c = (
        float(wasserstein2_squared(*pair))
        for pair in ((base, mu), (base, nu), (mu, nu))
    )
    for t in TIMES:
        found = generalized_geodesic(base, mu, nu, t)
        bound = (1 - t) * a + t * b - t * (1 - t) * c
        assert float(wasserstein2(base, found)) <= bound**0.5 + reach(mu)
        from_end = generalized_geodesic(mu, mu, nu, t)
        torch.testing.assert_close(from_end.weights, geodesic(mu, nu, t).weights)


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "kind", "words"),
    [
        ((gaussian(2, 1), gaussian(3, 1)), ValueError, "dimension"),
        ((quantiles(3, 1), quantiles(3, 1, torch.float32)), TypeError, "float32"),
        ((quantiles(3, 1), weighted(3)), TypeError, "must be Particles, got Quantiles"),
        ((weighted(3), gaussian(2, 1)), TypeError, "got Gaussian"),
        ((weighted(3), normal(3, 2)), TypeError, "got Tensor"),
    ],
)
def test_ends_of_two_kinds_raise(ends, kind, words):
    mu: Any
    nu: Any
    mu, nu = ends
    with pytest.raises(kind, match=words):
        geodesic(mu, nu, 0.5)
