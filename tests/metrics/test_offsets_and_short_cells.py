"""Bounds far from the origin, and potentials over cells of very different lengths."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch

import otflow as of
from otflow.metrics import semidiscrete_plan, transport_plan, wasserstein2_squared
from otflow.testing.differences import derivative

F64 = torch.float64


def rationals(z):
    return [Fraction(float(x)) for x in z]


def shares(weights):
    masses = rationals(weights)
    return [m / sum(masses) for m in masses]


def cells_of(box, axis):
    """Return the exact ends of the cells along an axis."""
    lower, h = Fraction(box.lower[axis]), Fraction(box.spacing[axis])
    return [(lower + k * h, lower + (k + 1) * h) for k in range(box.shape[axis])]


def on_the_line(cells, masses, points, weights):
    """Return W2^2 from a step density to atoms, exactly."""
    total, atoms = Fraction(0), sorted(zip(points, weights, strict=True))
    place, left = atoms.pop(0)
    for (low, high), mass in zip(cells, masses, strict=True):
        done = Fraction(0)
        while done < mass:
            if left == 0:
                place, left = atoms.pop(0)
            part = min(left, mass - done)
            a, b = (low + (high - low) * s / mass - place for s in (done, done + part))
            total += part * (a * a + a * b + b * b) / 3
            done, left = done + part, left - part
    return total


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=F64)


@pytest.mark.parametrize("kind", ["quantiles", "line", "plane", "space"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_far_from_the_origin(kind, offset, seed):
    d = {"plane": 2, "space": 3}.get(kind, 1)
    weights = draw(4, seed=seed + 1) + 0.1
    weights = weights / weights.sum()
    # The atoms share all coordinates but the first: the map is that of the line.
    y = offset + draw(4, d, seed=seed + 2)
    y[:, 1:] = y[0, 1:]
    rho = draw(*[3] * d, seed=seed + 3) + 0.05
    density: of.Quantiles | of.GridDensity
    if kind == "quantiles":
        edges = offset + draw(4, seed=seed + 4).sort().values
        density = of.Quantiles(edges, rho, normalize=True)
        ends = rationals(edges)
        cells = list(itertools.pairwise(ends))
        masses = shares(density.weights)
    else:
        lower = (offset + draw(d, seed=seed + 4)).tolist()
        upper = (torch.tensor(lower, dtype=F64) + 1.0).tolist()
        density = of.GridDensity(rho, lower, upper, walls=True, normalize=True)
        cells = cells_of(density.box, 0)
        table = density.weights.reshape(3, -1)
        own = [rationals(row) for row in table]
        total = sum(map(sum, own))
        masses = [sum(row) / total for row in own]
    value = on_the_line(cells, masses, rationals(y[:, 0]), shares(weights))
    for axis in range(1, d):
        assert isinstance(density, of.GridDensity)
        place = Fraction(float(y[0, axis]))
        marginal = density.weights.reshape(density.box.shape).movedim(axis, 0)
        parts = [sum(rationals(part)) for part in marginal.reshape(3, -1)]
        for (low, high), mass in zip(cells_of(density.box, axis), parts, strict=True):
            a, b = low - place, high - place
            value += mass / sum(parts) * (a * a + a * b + b * b) / 3
    plan = semidiscrete_plan(density, of.Particles(y, weights))
    assert plan.converged
    assert plan.bracket.lower <= value <= plan.bracket.upper
    # On the line the ends of cells carry the round-off of their places.
    assert plan.bracket.relative < 1e-8 + (1e-12 * offset if d == 1 else 0.0)


@pytest.mark.parametrize("width", [1e-3, 1e-9, 1e-12])
def test_a_short_cell_has_the_mean_of_its_potential(width):
    edges = torch.tensor([0.0, 1.0, 1.0 + width, 3.0], dtype=F64)
    masses = torch.tensor([0.25, 0.5, 0.25], dtype=F64)
    half = torch.tensor([0.5, 0.5], dtype=F64)
    nu = of.Quantiles(torch.tensor([3.0, 4.2, 5.0], dtype=F64), half)

    def value(m):
        return wasserstein2_squared(of.Quantiles(edges, m, normalize=True), nu)

    leaf = masses.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    way = torch.tensor([1.0, -2.0, 1.0], dtype=F64)
    expected = derivative(lambda t: value(masses + t * way), 1e-3)
    assert float(slope @ way) == pytest.approx(float(expected), rel=1e-7)

    plan = transport_plan(of.Quantiles(edges, masses), nu)
    x = torch.linspace(0.05, 2.95, 9, dtype=F64)[:, None]
    y = plan(x)
    assert torch.allclose(
        plan.f(x) + plan.g(y), (x - y).square().sum(1), rtol=0, atol=1e-13
    )
