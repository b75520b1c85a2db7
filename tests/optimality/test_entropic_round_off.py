"""Gaps with entropy against exact ones of many digits: round-off is never left out."""

import math
import random
import warnings
from decimal import Decimal, localcontext

import pytest
import torch

import otflow as of
from otflow.optimality import entropic_bracket, entropic_gap, gibbs, optimality_gap

KINDS = (torch.float32, torch.float64)


def excesses(rho, table, temperature):
    """Return F(rho) - inf F of F = V + T * entropy, as it is and with masses to 1."""
    w = [Decimal(x) for x in rho.weights.double().tolist()]
    V = [Decimal(x) for x in table.double().tolist()]
    T, least, total = Decimal(temperature), min(V), sum(w)
    volume = Decimal(rho.box.cell_volume).ln()
    sums = sum(((-(v - least) / T).exp() for v in V), Decimal(0))
    infimum = least - T * (sums.ln() + volume)

    def energy(masses):
        heat = sum(x * (x.ln() - volume) for x in masses if x)
        return sum(x * v for x, v in zip(masses, V, strict=True)) + T * heat

    scaled = [x / total for x in w]
    return energy(w) - infimum, energy(scaled) - infimum


def density(masses, kind):
    masses, n = masses.double(), len(masses)
    return of.GridDensity((masses / masses.sum() * n).to(kind), 0.0, 1.0, walls=True)


def potential(table):
    n = len(table)
    return of.Potential(lambda x: table[(x[..., 0] * n).long().clamp(0, n - 1)])


def random_problem(seed, kind):
    """Return a density, a table of a potential and a temperature, of many sizes."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    n = draw.choice([2, 3, 10, 40])
    masses = torch.rand(n, generator=generator, dtype=torch.float64)
    masses = masses ** draw.choice([1, 5, 60])
    if draw.random() < 0.4:
        masses[masses < 0.5] = 0
    if draw.random() < 0.3 or not bool(masses.any()):
        masses = torch.zeros(n, dtype=torch.float64)
        masses[draw.randrange(n)] = 1
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    table = 10 ** draw.uniform(-6, 6) * noise + draw.choice([0, 1e3, -1e8])
    return density(masses, kind), table.to(kind), 10 ** draw.uniform(-8, 6)


def judged(rho, table, temperature, optimum=None):
    F = potential(table) + temperature * of.Entropy()
    gap = entropic_gap(F, rho)
    optimum = gibbs(F, rho).measure if optimum is None else optimum
    bracket = entropic_bracket(F, rho, optimum)
    with localcontext() as context:
        context.prec = 60
        exact = excesses(rho, table, temperature)
        assert Decimal(gap.value) >= max(exact)
        assert Decimal(bracket.upper) >= max(exact)
        assert Decimal(bracket.lower) <= max(0, min(exact))
    return gap, float(max(exact))


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_of_random_densities_hold_to_the_last_digit(kind):
    for seed in range(60):
        rho, table, temperature = random_problem(seed, kind)
        gap, exact = judged(rho, table, temperature)
        size = float(table.abs().max()) + temperature * 100
        assert gap.value <= exact + 1e3 * torch.finfo(kind).eps * size


@pytest.mark.parametrize("kind", KINDS)
def test_the_logarithm_of_a_cell_that_holds_all_mass(kind):
    # V = 0 and all mass in one cell: the excess is T log n, and log w is 0.
    for n in range(2, 60):
        masses = torch.zeros(n)
        masses[n // 2] = 1.0
        uniform = density(torch.ones(n), kind)
        for temperature in (1e-3, 1000.0, 1e30):
            table = torch.zeros(n, dtype=kind)
            judged(density(masses, kind), table, temperature, uniform)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1e-300, 1e-50, 1e-10, 1e40, 1e300])
def test_temperatures_far_from_the_range_of_float32(kind, temperature):
    for seed in range(10):
        rho, table, _ = random_problem(seed, kind)
        gap, _ = judged(rho, table, temperature, rho)
        assert math.isfinite(gap.value)


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_on_a_grid_without_entropy(kind):
    for seed in range(60):
        rho, table, _ = random_problem(seed, kind)
        gap = optimality_gap(potential(table), rho, of.optimality.OnGrid())
        w = [Decimal(x) for x in rho.weights.double().tolist()]
        V = [Decimal(x) for x in table.double().tolist()]
        with localcontext() as context:
            context.prec = 60
            mean = sum((x * v for x, v in zip(w, V, strict=True)), Decimal(0))
            assert Decimal(gap.value) >= mean - min(V)
            assert Decimal(gap.value) >= mean / sum(w, Decimal(0)) - min(V)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_over_many_cells(kind):
    # Small slopes beside large ones: a sum in the dtype of the density loses them.
    n = 200_000
    table = torch.full((n,), 0.4 * torch.finfo(kind).eps, dtype=kind)
    table[:: n // 64] = 1.0
    rho = density(torch.ones(n), kind)
    gap = optimality_gap(potential(table), rho, of.optimality.OnGrid())
    w = rho.weights[0].item()
    exact = math.fsum(w * v for v in table.tolist()) - table.min().item()
    assert gap.value >= exact
    assert gap.value <= exact + 1e3 * torch.finfo(kind).eps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e40, 1e300])
def test_fixed_points_far_from_the_range_of_float32(kind, temperature):
    rho = density(torch.arange(1.0, 21.0), kind)
    F = of.Potential(lambda x: x.square().sum(-1)) + temperature * of.Entropy()
    found = gibbs(F, rho)
    assert found.converged
    assert math.isfinite(found.residual)
    exact = torch.softmax(-rho.points[:, 0].double().square() / temperature, 0)
    assert float((found.measure.weights.double() - exact).abs().sum()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_is_proved_where_the_energy_overflows(kind):
    rho = density(torch.arange(1.0, 21.0), kind)
    F = of.Potential(lambda x: x.square().sum(-1)) + 1e308 * of.Entropy()
    grid = of.optimality.OnGrid()
    for f in (
        lambda: entropic_gap(F, rho),
        lambda: entropic_bracket(F, rho, rho),
        lambda: optimality_gap(F, rho, grid),
        lambda: gibbs(F, rho),
    ):
        with pytest.raises(of.errors.NonFinite, match="temperature 1e"):
            f()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40, 90])
def test_no_more_evaluations_than_the_limit(limit):
    rho = density(torch.arange(1.0, 21.0), torch.float64)
    pull = of.Potential(lambda x: x.square().sum(-1))
    for temperature in (1e-300, 1e-3, 1.0):
        F = pull + of.Interaction(of.kernels.Gaussian(0.5)) + temperature * of.Entropy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", of.errors.NotConvergedWarning)
            assert gibbs(F, rho, max_iterations=limit).iterations <= limit
