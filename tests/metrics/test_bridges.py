"""The entropic interpolation of large grids, beside sums over all pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import otflow as of
from otflow.measures import Box
from otflow.metrics import geodesic, wasserstein2
from otflow.metrics.bridges import Bridge
from otflow.metrics.inputs import cloud
from otflow.metrics.shares import hats, shared
from otflow.testing.clouds import normal
from tests.metrics.test_geodesics import cells, reach

F64 = torch.float64


def lattices(*grids) -> list[Any]:
    return [cloud(m, "mu", grids=True).lattice for m in grids]


def bridge_of(mu, nu, tolerance):
    own, other = lattices(mu, nu)
    found = Bridge.between(own, other, tolerance)
    assert found is not None
    return found


def on_all_pairs(bridge, time, box):
    """Return the law at the centres of a box, from the plan as a matrix."""
    p, unit = bridge.point, bridge.unit
    axes = [
        torch.stack(torch.meshgrid(*m.axes, indexing="ij"), -1) for m in (p.mu, p.nu)
    ]
    x, y = (a.reshape(-1, 2) for a in axes)
    plan = (p.f.reshape(-1, 1) + p.g.reshape(-1) - torch.cdist(x, y).square()) / p.eps
    plan = plan.exp() * p.mu.masses.reshape(-1, 1) * p.nu.masses.reshape(-1)
    middle = torch.lerp(x[:, None], y, time).reshape(-1, 2)
    start, end = bridge.means
    z = box.centres(torch.empty(0, dtype=F64)) / unit - torch.lerp(start, end, time)
    heat = (-torch.cdist(z, middle).square() / (time * (1 - time) * p.eps)).exp()
    law = heat @ plan.reshape(-1)
    return law / law.sum()


def soft(n, seed, lower=0.0, upper=1.0):
    """Return random masses that vanish at the border."""
    x = torch.linspace(0, 1, n, dtype=F64)
    hill = (x * (1 - x)).square()
    rho = hill[:, None] * hill * (0.2 + normal(n, n, seed=seed).abs())
    return of.GridDensity(rho, lower, upper, walls=True, normalize=True)


@pytest.mark.parametrize("time", [0.35, 0.5])
def test_the_bridge_is_that_of_all_pairs(time):
    mu, nu = soft(16, 1), soft(14, 2, [1.0, 0.0], [2.0, 1.2])
    bridge = bridge_of(mu, nu, 0.1)
    lower = tuple(time * b for b in nu.box.lower)
    upper = tuple(1 + time * (b - 1) for b in nu.box.upper)
    box = Box.of(lower, upper, (16, 16))
    exact = on_all_pairs(bridge, time, box)
    found = bridge.at(time, box)
    assert float(found.sum()) == pytest.approx(1.0)
    assert float((found - exact).abs().sum()) < 2e-3


def two(n):
    """Return a hill at the left and two at the right, on n x n cells."""
    x = torch.linspace(-1, 1, n, dtype=F64)
    rho = [
        sum(
            torch.exp(-20 * ((x[:, None] - a).square() + (x - b).square()))
            for a, b in places
        )
        for places in ([(-0.4, 0.0)], [(0.3, 0.5), (0.3, -0.4)])
    ]
    return [of.GridDensity(r, 0.0, 1.0, walls=True, normalize=True) for r in rho]


@pytest.mark.slow
@pytest.mark.parametrize("time", [0.003, 0.03, 0.2, 0.5, 0.8, 0.99])
def test_at_all_times_the_answer_is_near_the_exact_geodesic(time):
    """Near the ends the law is found otherwise; all are within a cell."""
    mu, nu = two(40)
    assert bridge_of(mu, nu, 0.05) is not None
    found = geodesic(mu, nu, time, tolerance=0.05)
    exact = geodesic(mu, nu, time)
    assert found.weights.min() >= 0
    mean = (exact.weights - found.weights) @ mu.points
    assert float(mean.abs().max()) < 0.02 / 40
    # The remap, the noise, and the blur of the plan.
    assert float(wasserstein2(found, exact, tolerance=1e-3)) < 2 * reach(mu)


def test_a_bridge_is_no_longer_than_the_tolerance():
    mu, nu = two(40)
    bridge = bridge_of(mu, nu, 0.05)
    p = bridge.point
    x, y = (torch.cartesian_prod(*m.axes) for m in (p.mu, p.nu))
    square = torch.cdist(x, y).square()
    plan = ((p.f.reshape(-1, 1) + p.g.reshape(-1) - square) / p.eps).exp()
    plan = plan * p.mu.masses.reshape(-1, 1) * p.nu.masses.reshape(-1)
    least = float(of.metrics.wasserstein2_squared(mu, nu))
    cost = float((plan * square).sum()) * bridge.unit**2
    shift = float((mu.weights @ mu.points - nu.weights @ nu.points).square().sum())
    assert least <= cost + shift <= least / 0.95
    # An iteration leaves out terms of the size exp(-24) of the largest.
    assert float((plan.sum(1) - p.mu.masses.reshape(-1)).abs().sum()) < 1e-9
    assert float((plan.sum(0) - p.nu.masses.reshape(-1)).abs().sum()) < 1e-3


def test_a_tolerance_out_of_reach_of_the_blur_takes_a_plan():
    mu, nu = cells((36, 36), 1), cells((36, 36), 2)
    own, other = lattices(mu, nu)
    assert Bridge.between(own, other, 1e-7) is None
    exact, found = geodesic(mu, nu, 0.5), geodesic(mu, nu, 0.5, tolerance=1e-7)
    assert float(wasserstein2(exact, found, tolerance=1e-3)) < 1e-2 * reach(mu)


def test_shares_keep_mass_and_mean():
    places, masses = 8 * torch.rand(2, 50, dtype=F64), torch.rand(50, dtype=F64)
    on = shared(list(places), masses, (9, 9)).reshape(9, 9)
    assert float(on.sum()) == pytest.approx(float(masses.sum()))
    index = torch.arange(9, dtype=F64)
    for axis in (0, 1):
        assert float(on.sum(1 - axis) @ index) == pytest.approx(
            float(masses @ places[axis])
        )
    torch.testing.assert_close(hats(places[0], 9) @ masses, on.sum(1))


@pytest.mark.slow
def test_two_photographs_of_512_cells_a_side():
    from tests.metrics.test_grids import picture

    data = pytest.importorskip("sklearn.datasets")
    mu, nu = (picture(p) for p in data.load_sample_images().images)
    (half,) = geodesic(mu, nu, [0.5], tolerance=1e-2)
    # Half a path away, eps = h^2 / 2 leaves bounds of the square 1.5e-3 apart.
    whole = float(wasserstein2(mu, nu, tolerance=3e-3))
    parts = [float(wasserstein2(m, half, tolerance=3e-3)) for m in (mu, nu)]
    for part in parts:
        assert part == pytest.approx(0.5 * whole, abs=reach(mu))
