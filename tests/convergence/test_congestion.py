"""Crowds below a bound on the density, against their exact solutions."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

import otflow as of
from tests import exact_densities as exact
from tests.exact import quadratic

SHARE = 0.5  # density of the crowd at first; the bound is 1
RESOLUTIONS = [64, pytest.param(256, marks=pytest.mark.slow)]


def check_crowd(run: of.Trajectory, bound: float = 1.0) -> None:
    """Mass to 1e-10, no density above the bound, energy falls, certificates hold."""
    for mu in run.snapshots:
        assert float(mu.weights.sum()) == pytest.approx(1.0, abs=1e-10)
        assert float(mu.density().max()) <= bound * (1 + 1e-12)
        assert float(mu.weights[~mu.is_free].sum()) == 0
    assert bool((run.records["energy"].diff() <= 0).all())
    for info in run.info:
        assert info["certified"]
        if info["solver"] == "FiniteVolume":
            fall = info["energy_before"] - info["energy_after"]
            assert fall >= info["dissipation"] - 1e-5
        else:
            assert info["dual"] <= info["primal"]
            assert info["decrease"] >= -info["gap"]


# A column under its weight: V = x over a floor ----------------------------------------


@functools.cache
def column(n: int) -> of.Trajectory:
    cells = exact.column_cells(SHARE, 0.0, 2.5, n)
    mu = of.GridDensity(cells, 0.0, 2.5, walls=True, normalize=True)
    F = of.Potential(lambda x: x[..., 0], modulus=0.0) + of.Congestion(1.0)
    return of.flow(F, mu, of.JKO(), dt=0.05, steps=24)


def place_of(density: Tensor, level: float, h: float) -> float:
    """Return how far from 0 the density stays above a level, between centres."""
    above = int((density > level).nonzero().max())
    a, b = float(density[above]), float(density[above + 1])
    return h * (above + 0.5 + (a - level) / (a - b))


@pytest.mark.slow
@pytest.mark.parametrize("n", RESOLUTIONS)
def test_both_fronts_of_a_column_are_right_to_one_cell(n):
    run = column(n)
    check_crowd(run)
    h = 2.5 / n
    for k, mu in enumerate(run.snapshots):
        full, end = exact.column(SHARE, 0.05 * k)
        rho = mu.density()
        top = place_of(rho, 0.5 * SHARE, h)
        assert top == pytest.approx(max(end, full), abs=h)
        if 0.1 < full < end - 0.1:
            front = place_of(rho, 0.5 * (1 + SHARE), h)
            assert front == pytest.approx(full, abs=h)
        truth = exact.column_cells(SHARE, 0.05 * k, 2.5, n)
        assert float((rho - truth).abs().sum()) * h <= h


def test_column_has_the_exact_energy():
    run = column(64)
    for k, energy in enumerate(run.records["energy"].tolist()):
        full, end = exact.column(SHARE, 0.05 * k)
        truth = 0.5 * full**2 + SHARE * 0.5 * (end**2 - full**2)
        assert energy == pytest.approx(truth, abs=2.5 / 64 / 4)


# A disk drawn to its centre: V = |x|^2/2 ----------------------------------------------


@functools.cache
def disk(n: int) -> of.Trajectory:
    cells = exact.crowded_ball(SHARE, 2, 0.0).cells(-1.0, 1.0, (n, n))
    mu = of.GridDensity(cells, -1.0, 1.0, normalize=True)
    return of.flow(quadratic() + of.Congestion(1.0), mu, of.JKO(), dt=0.05, steps=10)


@pytest.mark.parametrize("n", RESOLUTIONS)
def test_a_disk_shrinks_until_it_is_full_and_rests(n):
    """The front along every ray of the grid's axes and diagonals, to one cell."""
    run = disk(n)
    check_crowd(run)
    h, middle = 2.0 / n, n // 2
    for k, mu in enumerate(run.snapshots):
        truth = exact.crowded_ball_jko(SHARE, 2, 0.05, k)
        rho = mu.grid
        level = 0.5 * truth.height
        corner = rho[middle:, middle:]
        for ray, step in (
            (corner[:, 0], h),
            (corner[0], h),
            (corner.diagonal(), h * math.sqrt(2)),
        ):
            assert place_of(ray, level, step) == pytest.approx(truth.scale, abs=h)
        cells = truth.cells(-1.0, 1.0, (n, n))
        assert float((rho - cells).abs().sum()) * h * h <= 2 * h


def test_the_error_falls_with_the_cells():
    """Front cells carry the error: it falls like h, or nearly."""

    def error(n: int) -> float:
        truth = exact.crowded_ball_jko(SHARE, 2, 0.05, 7)
        cells = truth.cells(-1.0, 1.0, (n, n))
        return float((disk(n).snapshots[7].grid - cells).abs().mean())

    assert error(64) / error(32) <= 2**-0.7


# A crowd leaves a room ----------------------------------------------------------------


@functools.cache
def evacuation(n: int, steps: int) -> of.Trajectory:
    """A room on the left, a wall with a door, an exit far to the right."""
    h = 1.0 / n
    x = (torch.arange(n, dtype=torch.float64) + 0.5) * h
    X, Y = torch.meshgrid(x, x, indexing="ij")
    wall = ((X - 0.55).abs() < 0.04) & ((Y - 0.5).abs() > 0.1)
    rho = ((X > 0.1) & (X < 0.4) & ((Y - 0.5).abs() < 0.35)).double()
    mu = of.GridDensity(rho, 0.0, 1.0, obstacles=wall, walls=True, normalize=True)

    def to_exit(z: Tensor) -> Tensor:
        """The way to (0.9, 0.5), through the door at (0.5, 0.5)."""
        door, out = z.new_tensor([0.5, 0.5]), z.new_tensor([0.9, 0.5])
        inside = z[..., 0] < 0.5
        by_door = (z - door).norm(dim=-1) + 0.4
        return torch.where(inside, by_door, (z - out).norm(dim=-1))

    F = of.Potential(to_exit) + of.Congestion(1.2 * float(mu.density().max()))
    return of.flow(
        F,
        mu,
        of.JKO(),
        dt=0.02,
        steps=steps,
        record={"out": lambda nu: nu.weights[nu.points[:, 0] > 0.6].sum()},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "steps"), [(32, 20), pytest.param(96, 30, marks=pytest.mark.slow)]
)
def test_a_crowd_leaves_a_room_through_the_door(n, steps):
    run = evacuation(n, steps)
    first = run.snapshots[0]
    check_crowd(run, 1.2 * float(first.density().max()))
    out = run.records["out"]
    assert bool((out.diff() >= -1e-12).all())
    assert float(out[4]) < 0.01  # the first to arrive, spread by the upwind fluxes
    assert float(out[-1]) >= 0.4
    # It is symmetric about the middle, and so it stays.
    last = run.final.grid
    assert float((last - last.flip(1)).abs().mean()) <= 1e-2 * float(last.mean())
