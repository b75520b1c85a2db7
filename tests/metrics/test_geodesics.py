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
