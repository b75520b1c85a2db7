"""W2 of step densities on the line against rational arithmetic, which has no error."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

import otflow as of
from otflow.metrics import length, wasserstein2, wasserstein2_squared

DTYPES = [torch.float32, torch.float64]


def rational_square(mu, nu):
    """Return W2^2 of two lists of (left, right, mass) as a Fraction."""
    tables = []
    for cells in (mu, nu):
        total, level, table = sum(m for _, _, m in cells), Fraction(0), []
        for left, right, mass in cells:
            if mass > 0:
                table.append((level, level + mass / total, left, right))
                level += mass / total
        tables.append(table)
    levels = sorted({t[k] for table in tables for t in table for k in (0, 1)})
    square, at = Fraction(0), [0, 0]
    for low, high in pairwise(levels):
        ends = []
        for k, table in enumerate(tables):
            while table[at[k]][1] <= low:
                at[k] += 1
            start, stop, left, right = table[at[k]]
            slope = (right - left) / (stop - start)
            ends.append([left + (s - start) * slope for s in (low, high)])
        a, b = ends[0][0] - ends[1][0], ends[0][1] - ends[1][1]
        square += (high - low) * (a * a + a * b + b * b) / 3
    return square


def cells(mu):
    """Return the cells of a density as rational numbers: those that it holds."""
    if isinstance(mu, of.Quantiles):
        edges = [Fraction(float(e)) for e in mu.edges]
    else:
        start, h = Fraction(mu.box.lower[0]), Fraction(mu.box.spacing[0])
        edges = [start + k * h for k in range(mu.n + 1)]
    masses = [Fraction(float(m)) for m in mu.weights]
    return list(zip(edges[:-1], edges[1:], masses, strict=True))


def random_density(seed, dtype):
    """Return a density with masses from 1 to 1e-300, gaps of vacuum, scale, offset."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.rand(*s, generator=g, dtype=torch.float64)
    n = int(2 + 40 * draw(()))
    exponent = (-2, -12, -40, -300)[seed % 4]
    masses = 10.0 ** (exponent * draw(n))
    masses = masses * (draw(n) < 0.8)
    masses[int(n * draw(()))] = 1.0
    scale, offset = 10.0 ** float(12 * draw(()) - 6), float(draw(()) - 0.5)
    offset *= 100.0
    if seed % 3 == 0:
        edges = scale * (offset + draw(n + 1).add(0.1).cumsum(0))
        edges = edges.to(dtype)
        kept = masses.to(dtype) / masses.sum().to(dtype) > 0
        weights = torch.where(kept, masses, 1e-30).to(dtype)
        return of.Quantiles(edges, weights, normalize=True)
    lower = scale * offset
    upper = lower + scale * float(1 + draw(()))
    return of.GridDensity(
        masses.to(dtype), lower, upper, walls=True, normalize=True
    ).with_free_weights(masses.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(60))
def test_random_densities(seed, dtype):
    mu, nu = random_density(seed, dtype), random_density(seed + 1000, dtype)
    expected = float(rational_square(cells(mu), cells(nu)))
    value = wasserstein2_squared(mu, nu)
    eps = torch.finfo(dtype).eps
    assert float(value) == pytest.approx(expected, rel=8 * eps + 1e-11)
    root = float(wasserstein2(nu, mu))
    assert root == pytest.approx(math.sqrt(expected), rel=8 * eps + 1e-11)


def bell(middle, width=0.25):
    return lambda x: torch.exp(-0.5 * ((x - middle) / width).square().sum(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [2.0, 4.0, 40.0])
@pytest.mark.parametrize("width", [0.02, 0.25])
def test_bells_with_long_tails_are_apart_by_their_shift(half, width, dtype):
    """The masses below saturate at 1; whole levels have no width."""
    cell = 2 * half / 400
    shift, width = 3 * cell, max(width, 1.5 * cell)
    mu, nu = (
        of.GridDensity.from_function(bell(m, width), -half, half, 400, dtype=dtype)
        for m in (0.0, shift)
    )
    rel = 1e-5 if dtype == torch.float32 else 1e-9
    assert float(wasserstein2(mu, nu)) == pytest.approx(shift, rel=rel)
    assert float(length([mu, nu, mu])) == pytest.approx(2 * shift, rel=rel)


def test_mass_far_out_counts_alike_on_both_sides():
    """1e-20 at a distance of 1e10: the level 1 - 1e-20 is 1 in float64."""
    masses = torch.zeros(1001, dtype=torch.float64)
    masses[500] = 1.0
    alone = of.GridDensity(masses, -1e10, 1e10, walls=True, normalize=True)
    for k in (0, 1000):
        weights = alone.weights.clone()
        weights[k] += 1e-20
        there = alone.with_weights(weights)
        expected = float(rational_square(cells(alone), cells(there)))
        assert expected > 0.5
        square = float(wasserstein2_squared(alone, there))
        assert square == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_two_partitions_of_one_density_across_a_vacuum(seed):
    """Levels that should be equal differ by round-off; no mass may cross the gap."""
    g = torch.Generator().manual_seed(seed)
    masses = torch.rand(60, generator=g, dtype=torch.float64)
    masses[20:45] = 0.0
    mu = of.GridDensity(masses, 0.0, 1.0, walls=True, normalize=True)
    fine = masses.repeat_interleave(7) / 7
    nu = of.GridDensity(fine, 0.0, 1.0, walls=True, normalize=True)
    assert float(wasserstein2(mu, nu)) < 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_gradients_in_masses_are_one_sided_derivatives_of_rationals(seed):
    """Also in cells without mass, and where the levels are lost in round-off."""
    g = torch.Generator().manual_seed(seed)
    rates = torch.tensor([0.0, 1.0, 1e-30]).double()

    def density(n, lower, upper):
        kind = torch.randint(0, 6, (n,), generator=g)
        masses = torch.rand(n, generator=g, dtype=torch.float64) + 0.05
        masses = masses * rates[(kind - 3).clamp(0, 2)].where(kind >= 3, rates[1])
        masses[n // 2] = 1.0
        rho = of.GridDensity(masses, lower, upper, walls=True, normalize=True)
        return rho.with_weights(masses / masses.sum())

    mu, nu = density(12, -1.0, 1.0), density(9, -0.8, 1.7)
    leaf = mu.weights.clone().requires_grad_()
    leaf_nu = nu.weights.clone().requires_grad_()
    value = wasserstein2_squared(mu.with_weights(leaf), nu.with_weights(leaf_nu))
    grads = torch.autograd.grad(value, (leaf, leaf_nu))
    pair = [cells(mu), cells(nu)]
    base = rational_square(*pair)
    step = Fraction(1, 10**40)
    for side, grad in enumerate(grads):
        for i, (left, right, mass) in enumerate(pair[side]):
            moved = list(pair)
            moved[side] = list(pair[side])
            moved[side][i] = (left, right, mass + step)
            slope = float((rational_square(*moved) - base) / step)
            assert float(grad[i]) == pytest.approx(slope, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("middle", [0.1, 0.3, 0.6])
def test_gradients_in_masses_where_the_end_of_a_cell_is_rounded_up(middle):
    # The length of the first cell, added to its start, passes its end: a potential is
    # asked for just before one of its nodes.
    assert -1.1 + (middle + 1.1) > middle
    edges = torch.tensor([-1.1, middle, 0.9], dtype=torch.float64)
    nu = of.Quantiles(torch.tensor([0.0, 0.5, 2.0, 2.5, 3.0]).double())
    leaf = torch.tensor([0.6, 0.4], dtype=torch.float64, requires_grad=True)
    mu = of.Quantiles(edges, leaf)
    (grad,) = torch.autograd.grad(wasserstein2_squared(mu, nu), leaf)
    step, own, other = Fraction(1, 10**40), cells(mu.detach()), cells(nu)
    for i, (left, right, mass) in enumerate(own):
        moved = [*own[:i], (left, right, mass + step), *own[i + 1 :]]
        rise = rational_square(moved, other) - rational_square(own, other)
        assert float(grad[i]) == pytest.approx(float(rise / step), rel=1e-12)


def test_numbers_that_cannot_be_compared_are_a_typed_error():
    mu = of.GridDensity(torch.ones(4).double(), 0, 1, walls=True, normalize=True)
    bad = mu.with_free_weights(torch.full((4,), math.nan).double())
    with pytest.raises(of.errors.NonFinite, match="not a finite number"):
        wasserstein2(mu, bad)


def test_a_small_distance_survives_float32():
    """Its square is below the least number of float32."""
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    small = torch.tensor([[1e-25, 0.0]])
    assert float(wasserstein2(x[:1] * 0, small)) == pytest.approx(1e-25, rel=1e-6)
    mu = of.Quantiles(1e-25 * torch.arange(5.0))
    nu = of.Quantiles(2e-25 * torch.arange(5.0))
    expected = 1e-25 * math.sqrt(16 / 3)
    assert float(wasserstein2(mu, nu)) == pytest.approx(expected, rel=1e-6)
