"""Fixed points of the Gibbs map on grids, and gaps with entropy."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

import otflow as of
from otflow.errors import FixedPointWarning, NotConvergedWarning
from tests.marks import slow

F64 = torch.float64
Entropy, GridDensity, Potential = of.Entropy, of.GridDensity, of.Potential
entropic_gap = of.optimality.entropic_gap
entropic_bracket = of.optimality.entropic_bracket
gibbs = of.optimality.gibbs


def square(x):
    return x.square().sum(-1)


def bump(width=1.0, cells=200, side=8.0, dtype=F64, centre=0.0):
    return GridDensity.from_function(
        lambda x: (-square(x - centre) / (2 * width**2)).exp(),
        -side,
        side,
        cells,
        walls=True,
        dtype=dtype,
    )


def network(dtype=F64):
    """Return the risk of f(x) = E tanh(w x) on 16 points."""
    X = torch.linspace(-2, 2, 16, dtype=dtype)[:, None]
    layer = of.meanfield.CustomLayer(lambda x, theta: torch.tanh(x @ theta.T))
    return of.meanfield.Risk(layer, X, torch.sin(1.5 * X[:, 0]))


def free_energy(beta=20.0, decay=0.05, dtype=F64):
    half = Potential(lambda x: 0.5 * square(x))
    return network(dtype) + decay * half + (1 / beta) * Entropy()


def law_of(F, rho):
    """Return the masses in proportion to exp(-G'/T), computed by themselves."""
    temperature, rest = F.split_entropy()
    slopes = rest.first_variation(rho)
    return torch.softmax(-slopes / temperature, 0)


# The fixed point ----------------------------------------------------------------------


def test_the_gibbs_law_of_a_potential_is_exact():
    F = Potential(square) + 0.7 * Entropy()
    found = gibbs(F, bump())
    x = found.measure.points
    exact = torch.softmax(-square(x) / 0.7, 0)
    assert found.converged
    assert float((found.measure.weights - exact).abs().sum()) < 1e-14
    energy = -0.7 * math.log(float((-square(x) / 0.7).exp().sum()) * 0.08)
    assert found.energy == pytest.approx(energy, rel=1e-13)


@pytest.mark.parametrize("cells", [100, 400])
def test_the_fixed_point_of_a_tanh_network(cells):
    # Theorem 3.7: the fixed point is the minimiser.
    F = free_energy()
    found = gibbs(F, bump(cells=cells))
    assert found.converged
    assert found.residual <= 1e-12
    assert found.iterations < 60
    masses = found.measure.weights
    assert float((masses - law_of(F, found.measure)).abs().sum()) < 1e-12
    assert found.energy == pytest.approx(float(F.value(found.measure)), rel=1e-12)
    # Nothing near it is lower, in any direction.
    generator = torch.Generator().manual_seed(0)
    for size in (1e-1, 1e-3):
        for _ in range(20):
            noise = torch.randn(cells, generator=generator, dtype=F64)
            near = masses * (size * noise).exp()
            nu = found.measure.with_weights(near / near.sum())
            assert float(F.value(nu)) > found.energy


def test_the_fixed_point_does_not_depend_on_the_start():
    F = free_energy()
    one = gibbs(F, bump()).measure.weights
    two = gibbs(F, bump(0.1, centre=-6.0)).measure.weights
    assert float((one - two).abs().sum()) < 1e-11


def test_two_dimensions_with_obstacles():
    layer = of.meanfield.CustomLayer(
        lambda x, theta: theta[:, 0] * torch.tanh(x @ theta[:, 1:].T)
    )
    X = torch.linspace(-1, 1, 8, dtype=F64)[:, None]
    F = of.meanfield.Risk(layer, X, X[:, 0].abs()) + 0.05 * Entropy()
    wall = torch.zeros(24, 24, dtype=torch.bool)
    wall[5:9, 5:20] = True
    rho = GridDensity.from_function(
        lambda x: torch.ones(len(x), dtype=F64),
        -2,
        2,
        (24, 24),
        obstacles=wall,
        dtype=F64,
    )
    found = gibbs(F, rho)
    assert found.converged
    assert bool((found.measure.weights[wall.reshape(-1)] == 0).all())
    assert found.energy < float(F.value(rho))
    gap = entropic_gap(F, rho)
    assert float(F.value(rho)) - found.energy <= gap.value
    assert entropic_gap(F, found.measure).value < 1e-13


@pytest.mark.parametrize("temperature", [1e-6, 1e-4, 1e-2, 1.0, 1e3, 1e8])
def test_low_and_high_temperatures(temperature):
    F = network() + 0.05 * Potential(square) + temperature * Entropy()
    rho = bump()
    found = gibbs(F, rho)
    assert found.converged
    # The gap is of the second order in the residual: 1e-9 at the lowest temperature.
    energy = abs(found.energy)
    assert entropic_gap(F, found.measure).value < 1e-14 * max(1.0, energy)
    gap = entropic_gap(F, rho)
    assert math.isfinite(gap.value)
    assert float(F.value(rho)) - found.energy <= gap.value


def test_a_steep_potential_far_away_costs_no_accuracy():
    # The potential is 4e9 at the border, where no mass is.
    F = Potential(lambda x: 1e6 * (x.square().sum(-1)).square()) + 1e-3 * Entropy()
    found = gibbs(F, bump())
    assert found.converged
    assert found.residual <= 1e-12
    assert entropic_gap(F, found.measure).value < 1e-12


def test_cold_densities_tend_to_the_least_risk():
    # Without entropy the minimum over cells is that of a linear program in the limit.
    rest, rho = network() + 0.05 * Potential(square), bump()
    cold = gibbs(rest + 1e-6 * Entropy(), rho).measure
    gap = of.optimality.optimality_gap(rest, cold, of.optimality.OnGrid())
    assert gap.kind == "proved"
    assert gap.value < 1e-5


def cold_and_strong():
    """Return a repulsion that is strong beside the temperature, on 41 cells."""
    V = Potential(lambda x: 2 * torch.cos(3 * x[:, 0]) + 0.3 * square(x))
    F = V + 74.0 * of.Interaction(of.kernels.Gaussian(0.5)) + 0.016 * Entropy()
    return F, GridDensity(torch.full((41,), 0.25, dtype=F64), -2.0, 2.0, walls=True)


def test_a_strong_repulsion_at_a_low_temperature():
    # Newton's step alone overshoots: it needs damping. The energy is that of a dense
    # Newton iteration on the explicit kernel matrix, solved here beside it.
    F, rho = cold_and_strong()
    found = gibbs(F, rho)
    assert found.converged
    assert found.residual <= 1e-12
    x = rho.points
    V = 2 * torch.cos(3 * x[:, 0]) + 0.3 * square(x)
    K = 74.0 * torch.exp(-torch.cdist(x, x).square() / (2 * 0.5**2))
    w = found.measure.weights
    law = torch.softmax(-(V + K @ w) / 0.016, 0)
    assert float((w - law).abs().sum()) < 1e-11
    energy = w @ V + 0.5 * w @ (K @ w) + 0.016 * w @ (w / rho.box.cell_volume).log()
    assert found.energy == pytest.approx(float(energy), rel=1e-12)


@pytest.mark.parametrize("seed", [2, 14, 28, 57, *slow(16, 20, 32, 34, 75, 86, 92, 98)])
def test_random_convex_problems_converge(seed):
    # Strong kernels at low temperatures, of which every fifth draw is hard.
    draw = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=F64)
    a, b, c, s, t, cells = draw.tolist()
    kernel = of.kernels.Gaussian if seed % 3 else of.kernels.InverseMultiquadric
    V = Potential(lambda x: 4 * a * torch.cos((1 + 3 * b) * x[:, 0]) + 0.3 * square(x))
    repulsion = 10 ** (0.5 + 1.5 * c) * of.Interaction(kernel(0.1 + 0.6 * s))
    F = V + repulsion + 10 ** (-4 + 2 * t) * Entropy()
    rho = bump(100.0, cells=int(20 + 60 * cells), side=2.0)
    found = gibbs(F, rho)  # a warning is an error
    assert found.converged
    rho = found.measure
    assert float((rho.weights - law_of(F, rho)).abs().sum()) < 1e-7
    assert entropic_gap(F, rho).value < 1e-9


@pytest.mark.parametrize("limit", [20, 60, 200])
def test_the_tolerance_that_the_warning_names_suffices(limit):
    F, rho = cold_and_strong()
    with pytest.warns(
        NotConvergedWarning, match=f"max_iterations={10 * limit} or"
    ) as w:
        found = gibbs(F, rho, max_iterations=limit)
    assert not found.converged
    told = float(str(w[0].message).rsplit("=", 1)[1])
    assert gibbs(F, rho, max_iterations=limit, tolerance=told).converged
    assert gibbs(F, rho, max_iterations=10 * limit + 4000).converged


def test_a_tolerance_below_round_off_tells_what_is_within_reach():
    F = free_energy()
    with pytest.warns(NotConvergedWarning, match="beyond its round-off") as w:
        found = gibbs(F, bump(), tolerance=1e-19)
    assert found.residual < 1e-12
    told = float(str(w[0].message).rsplit("=", 1)[1])
    assert gibbs(F, bump(), tolerance=told).converged
    single = free_energy(dtype=torch.float32)
    with pytest.warns(NotConvergedWarning, match=r"or a density in float64"):
        gibbs(single, bump(dtype=torch.float32), tolerance=1e-12)
    assert gibbs(free_energy(), bump(), tolerance=1e-12).converged


def test_single_precision_reaches_what_its_digits_allow():
    well = Potential(lambda x: (x[:, 0].square() - 1).square() + x[:, 1].square())
    F = well + of.Interaction(of.kernels.Gaussian(0.5)) + 0.1 * Entropy()
    ones = lambda x: torch.ones(len(x), dtype=x.dtype)
    single, double = (
        gibbs(F, GridDensity.from_function(ones, -2, 2, (20, 20), walls=True, dtype=t))
        for t in (torch.float32, F64)
    )
    assert single.converged
    assert single.residual <= 1e-5
    apart = single.measure.weights.double() - double.measure.weights
    assert float(apart.abs().sum()) < 1e-5


def test_single_precision():
    F, rho = free_energy(dtype=torch.float32), bump(dtype=torch.float32)
    found = gibbs(F, rho)
    exact = gibbs(free_energy(), bump())
    assert found.converged
    assert found.measure.dtype == torch.float32
    difference = found.measure.weights.double() - exact.measure.weights
    assert float(difference.abs().sum()) < 1e-4
    assert found.energy == pytest.approx(exact.energy, abs=1e-5)


def test_no_step_makes_the_energy_larger():
    # A strong attraction, for which the plain iteration overshoots.
    pull = of.Interaction(square)
    F = 30.0 * pull + 0.1 * Entropy()
    energies = []

    class Watched(of.Functional):
        def value(self, mu):
            return (30.0 * pull).value(mu)

        def mixture_curvature(self):
            return None

    result = gibbs(Watched() + 0.1 * Entropy(), bump(), starts=0)
    for limit in range(1, 20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            energies.append(gibbs(F, bump(), max_iterations=limit, starts=0).energy)
    # F is a sum of terms up to 30 * 16^2, each known to a unit in the last place.
    roundoff = 30 * 16**2 * torch.finfo(F64).eps
    assert all(b <= a + roundoff for a, b in itertools.pairwise(energies))
    assert result.energy <= energies[-1] + roundoff


def test_several_fixed_points_warn_and_the_lowest_is_returned():
    # Attraction in a double well: two lumps, and a mixture of both.
    well = Potential(lambda x: (square(x) - 1).square() + 0.05 * x[:, 0])
    F = well + 4.0 * of.Interaction(square) + 0.1 * Entropy()
    start = bump(0.2, side=2.5, centre=1.0)
    with pytest.warns(FixedPointWarning, match="several fixed points"):
        found = gibbs(F, start)
    assert found.converged
    assert float(found.measure.points[:, 0] @ found.measure.weights) < 0
    assert found.others
    assert all(found.energy < other.energy for other in found.others)
    for result in (found, *found.others):
        masses = result.measure.weights
        assert float((masses - law_of(F, result.measure)).abs().sum()) < 1e-11
    # Without further starts the start decides, and the result says so.
    alone = gibbs(F, start, starts=0)
    assert alone.energy > found.energy
    assert (found.uniqueness, alone.uniqueness) == ("searched", "none")
    assert "uniqueness='none'" in repr(alone)
    assert gibbs(free_energy(), bump(), starts=0).uniqueness == "proved"


def test_a_box_too_small_for_the_fixed_point_is_told():
    F = Potential(square) + 100.0 * Entropy()
    rho = GridDensity.from_function(lambda x: (-square(x)).exp(), -5, 5, 50, dtype=F64)
    with pytest.warns(of.errors.BoxWarning, match="it is too small"):
        gibbs(F, rho)


def test_too_few_iterations_say_so():
    with pytest.warns(NotConvergedWarning, match="after 2 iterations"):
        found = gibbs(free_energy(), bump(), max_iterations=2)
    assert not found.converged
    assert found.residual > 1e-12


# The sandwich -------------------------------------------------------------------------


def test_the_sandwich_at_random_densities():
    F = free_energy()
    best = gibbs(F, bump())
    generator = torch.Generator().manual_seed(1)
    for k in range(50):
        noise = torch.randn(200, generator=generator, dtype=F64)
        masses = best.measure.weights.clamp_min(1e-30) * (noise * 10 ** (-k / 10)).exp()
        if k % 3 == 0:
            masses = masses * (torch.arange(200) % 7 > 0)  # empty cells
        rho = best.measure.with_weights(masses / masses.sum())
        excess = float(F.value(rho)) - best.energy
        bracket = entropic_bracket(F, rho, best.measure)
        # F itself is known to its last digits alone.
        assert bracket.lower <= excess + 1e-15
        assert excess - 1e-15 <= bracket.upper
        assert bracket.upper == entropic_gap(F, rho).value


@pytest.mark.parametrize(("beta", "apart"), [(20.0, 0.3), (10.0, 0.1), (5.0, 0.04)])
def test_the_sandwich_along_a_flow(beta, apart):
    # In the end the ratio of both sides is (1 + k/T)^2, with k the curvature of the
    # risk along the slowest mode: the sides are closer at a higher temperature.
    F, rho = free_energy(beta), bump(0.5, cells=80, side=6.0)
    best = gibbs(F, rho)
    run = of.flow(F, rho, of.JKO(), dt=1.0, steps=40, every=4)
    excess = (run.records["energy"] - best.energy).tolist()
    brackets = [entropic_bracket(F, nu, best.measure) for nu in run.snapshots]
    for e, bracket in zip(excess, brackets, strict=True):
        assert bracket.lower <= e <= bracket.upper
    assert excess[-1] < 1e-3 * excess[0]
    first, last = brackets[0], brackets[-1]
    assert first.upper > 2 * first.lower
    assert last.upper < (1 + apart) * last.lower
    # Each side is within 20 % of the excess.
    assert last.upper < 1.2 * excess[-1] < 1.2**2 * last.lower


def test_the_lower_bound_is_true_beside_the_optimum():
    # Any density may stand for the optimum; a poor one gives a poor bound.
    F, rho = free_energy(), bump(2.0)
    best = gibbs(F, rho)
    excess = float(F.value(rho)) - best.energy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        stages = [gibbs(F, bump(), max_iterations=k).measure for k in (1, 3, 6)]
    bounds = [entropic_bracket(F, rho, nu).lower for nu in (*stages, best.measure)]
    assert all(bound <= excess for bound in bounds)
    assert bounds[0] < bounds[-1]


def test_empty_cells_and_tiny_temperatures_stay_finite():
    rho = bump(0.2)  # the outer cells hold 0 in float64
    assert bool((rho.weights == 0).any())
    for temperature in (1e-300, 1e-8, 1e-2, 1e12):
        F = Potential(square) + temperature * Entropy()
        gap = entropic_gap(F, rho)
        assert gap.kind == "proved"
        assert math.isfinite(gap.value)
        assert gap.value >= 0
    # As T falls the gap tends to that of the potential, E V - min V.
    cold = entropic_gap(Potential(square) + 1e-300 * Entropy(), rho)
    x = rho.points[:, 0]
    exact = float(rho.weights @ x.square() - x.square().min())
    assert cold.value == pytest.approx(exact, rel=1e-9)
    assert cold.argmin is not None
    assert float(cold.argmin.abs()) == pytest.approx(0.04)


# The domain of a grid -----------------------------------------------------------------


def test_the_domain_of_a_grid_without_entropy():
    risk = network() + 0.05 * Potential(square)
    rho = bump()
    gap = of.optimality.optimality_gap(risk, rho, of.optimality.OnGrid())
    slopes = risk.first_variation(rho)
    exact = float(rho.weights @ slopes - slopes.min())
    assert gap.kind == "proved"
    assert gap.found == pytest.approx(exact, rel=1e-12)
    assert gap.found <= gap.value <= exact + 1e-12
    assert float(gap.argmin) == float(rho.points[slopes.argmin()])


def test_the_domain_of_a_grid_with_entropy():
    F, rho = free_energy(), bump()
    gap = of.optimality.OnGrid().gap(F, rho, 0)
    assert gap.kind == "proved"
    assert gap.value == entropic_gap(F, rho).value
    assert "discretised" in gap.reason


def test_a_sandwich_takes_two_densities_on_one_grid():
    F, rho = Potential(square) + Entropy(), bump()
    with pytest.raises(ValueError, match="the same grid"):
        entropic_bracket(F, rho, bump(cells=100))
    wall = torch.zeros(200, dtype=torch.bool)
    wall[:10] = True
    blocked = GridDensity.from_function(
        lambda x: (-square(x) / 2).exp(), -8, 8, 200, obstacles=wall, dtype=F64
    )
    with pytest.raises(ValueError, match="the same obstacles"):
        entropic_bracket(F, rho, blocked)


def test_what_has_no_gap_with_entropy():
    attraction = of.Interaction(lambda z: -(-square(z)).exp())
    gap = entropic_gap(attraction + Entropy(), bump())
    assert gap.kind == "none"
    assert math.isinf(gap.value)
    assert "not known to be convex along mixtures" in gap.reason
