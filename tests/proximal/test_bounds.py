"""What certificates claim, against exact JKO steps: bounds, lower bounds, distances."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.proximal import (
    BackAndForth,
    GaussianProximal,
    GridSinkhorn,
    QuantileProximal,
)
from otflow.proximal.grid.duality import cell_means, distance_bound, dual_value
from otflow.proximal.grid.pressure import PressureProblem
from otflow.proximal.grid.push_forward import transport_cost
from otflow.proximal.quantiles.newton import minimise
from otflow.proximal.quantiles.objective import Objective
from otflow.proximal.quantiles.step import Room
from otflow.proximal.terms import sort_terms
from tests import exact
from tests.proximal.grid.test_grid_sinkhorn import bell, exact_distance

F64 = torch.float64
SOLVERS = {"scalings": GridSinkhorn, "dual": BackAndForth}
TWO = ("scalings", "dual")


def porous(m=2.0, dt=0.02, n=60):
    """Return functional, measure, the exact step and the least objective."""
    start = exact.barenblatt(m, 1, 0.5)
    end = start.at(exact.barenblatt_scale_jko(m, 1, 0.5, dt, 1))
    mu = of.GridDensity(start.cells(-1.5, 1.5, (n,)), -1.5, 1.5, normalize=True)
    least = exact.barenblatt_energy(m, 1, end.scale) + start.w2(end.scale) ** 2 / 2 / dt
    return of.PowerEntropy(m), mu, end.quantile, least


def normal(lam=4.0, kappa=1.0, dt=0.05, n=80, half=6.0, mean=0.5, variance=0.3):
    """Return the same for lam x^2/2 + kappa H and a Gaussian."""
    law = torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64)
    A, b = torch.tensor([[lam]], dtype=F64), torch.zeros(1, dtype=F64)
    problem = {"A": A, "b": b, "temperature": kappa}
    m, S = exact.fokker_planck_jko(*law, dt, **problem)
    cells = exact.gaussian_cells(law[0], law[1].diagonal(), -half, half, (n,))
    mu = of.GridDensity(cells, -half, half, normalize=True)
    cost = exact.gaussian_w2(*law, m, S) ** 2 / (2 * dt)
    least = exact.fokker_planck_energy(m, S, **problem) + cost
    F = exact.quadratic(lam) + kappa * of.Entropy()
    return F, mu, lambda q: m[0] + S[0, 0].sqrt() * torch.special.ndtri(q), least


# A bound is one, converged or not -----------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 5, 200])
@pytest.mark.parametrize("name", TWO)
def test_the_bound_holds_for_a_step_that_stopped_early(name, budget):
    for (F, mu, quantile, _), dt in ((porous(), 0.02), (normal(1.0, dt=0.5), 0.5)):
        result = SOLVERS[name](max_iterations=budget).solve(F, mu, dt)
        report = result.certificate
        error = exact_distance(result.measure, quantile)
        # There is a bound only where the guarantee is "exact".
        assert (report["bound"] is None) == (report["guarantee"] != "exact")
        assert report["bound"] is None or error <= report["bound"]
        assert report["converged"] == (report["guarantee"] == "exact")
        assert report["converged"] == report["certified"]
        assert budget > 1 or not report["converged"]


@pytest.mark.parametrize("kappa", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", TWO)
def test_the_bound_holds_where_the_step_is_thinner_than_a_cell(name, kappa):
    F, mu, quantile, _ = normal(100.0, kappa, dt=1.0, half=4.0, n=40, variance=0.25)
    if kappa == 0:
        F = exact.quadratic(100.0)
    result = SOLVERS[name]().solve(F, mu, 1.0)
    error = exact_distance(result.measure, quantile)
    h = mu.box.spacing[0]
    assert 0.1 * h < error <= result.certificate["bound"] < h


def test_the_bound_adds_a_sixth_of_the_bend_of_the_potential():
    masses = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0], dtype=F64)
    V = torch.tensor([4.0, 1.0, 0.0, 1.0, 4.0], dtype=F64)  # second differences 2
    assert distance_bound(3.0, masses, V, 1.0, 0.5) == pytest.approx(
        math.sqrt(2 * (3 + 2 / 6) / (2 + 1))
    )
    assert distance_bound(-1.0, masses, -V, 0.0, 0.5) == 0.0
    blocked = torch.tensor([math.nan, 1.0, 0.0, 1.0, math.inf], dtype=F64)
    wanted = math.sqrt(2 * (0.5 * 2 / 6) * 0.5)
    assert distance_bound(0.0, masses, blocked, 0.0, 0.5) == pytest.approx(wanted)
    square = torch.outer(masses, masses), V[:, None] + 3 * V
    assert distance_bound(0.0, *square, 0.0, 0.5) == pytest.approx(math.sqrt(8 / 6))
    assert distance_bound(0.0, masses, V, None, 0.5) is None
    assert distance_bound(0.0, masses, V, -2.0, 0.5) is None


# The dual value is a lower bound, and close -------------------------------------------


def dual_of(F, mu, dt, phi):
    """Return the dual value at minus the first variation phi."""
    V = sort_terms(F).V(mu.points)
    problem = PressureProblem.of(sort_terms(F), mu, V, dt)
    value, unseen = dual_value(problem, -phi - V)
    assert value is not None
    return value - unseen


@pytest.mark.parametrize("n", [60, 240])
@pytest.mark.parametrize("problem", [porous, normal])
def test_the_dual_value_is_below_the_least_objective_by_a_cell(problem, n):
    # The exact step is the source pushed by (id + dt grad F'), so phi = F'(end) + c.
    dt = 0.1
    if problem is porous:
        F, mu, _, least = porous(dt=dt, n=n)
        end = exact.barenblatt(2.0, 1, exact.barenblatt_scale_jko(2.0, 1, 0.5, dt, 1))
        density = end.density(mu.points)
        # Where the density vanishes: the slope of the profile, continued below 0.
        inside = 1 - (mu.points[:, 0] / end.scale).square()
        phi = -2 * torch.where(density > 0, density, end.height * inside)
    else:
        F, mu, _, least = normal(1.0, dt=dt, n=n)
        mean, S = torch.tensor([0.5], dtype=F64), torch.tensor([[0.3]], dtype=F64)
        A, b = torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)
        m, S = exact.fokker_planck_jko(mean, S, dt, A=A, b=b)
        x = mu.points[:, 0]
        phi = -0.5 * x.square() + 0.5 * (x - m[0]).square() / S[0, 0]
    cell = mu.box.spacing[0] ** 2 / dt
    gap = least - dual_of(F, mu, dt, phi)
    assert 0 < gap < 0.25 * cell
    # A wrong potential lies lower.
    wrong = phi + 0.3 * mu.points[:, 0].sin()
    assert least - dual_of(F, mu, dt, wrong) > gap + 1e-3


def test_the_dual_value_of_a_potential_alone():
    # Of a linear potential g x a Dirac would be moved by -dt g: least = g m - dt g^2/2.
    F, mu, dt, g = of.Potential(lambda x: 2 * x[..., 0]), bell(80), 0.1, 2.0
    value = dual_of(F, mu, dt, -g * mu.points[:, 0])
    least = g * float(mu.weights @ mu.points[:, 0]) - dt * g * g / 2
    assert least - 0.4 * mu.box.spacing[0] ** 2 / dt < value <= least + 1e-12


def test_the_dual_value_of_a_bowl_is_the_cost_of_going_to_its_bottom():
    # Masses are spread over their cells: their distance to a point is known.
    mu, dt, lam = bell(12, 2, width=0.3), 0.3, 2.0
    goal = mu.points[5 * 12 + 7]
    F = of.Potential(lambda x: 0.5 * lam * (x - goal).square().sum(-1))
    squares = sum(h * h for h in mu.box.spacing)
    away = mu.weights @ (mu.points - goal).square().sum(-1) + squares / 12
    least = float(0.5 * lam / (1 + lam * dt) * away)
    value = dual_of(F, mu, dt, -F.V(mu.points))
    # Of what is not known between centres an eighth for each function, at most.
    assert least - 0.5 * squares * (1 / dt + lam) < value <= least + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_the_dual_value_is_below_a_fine_rule_for_steep_potentials(seed):
    # So U* is not taken at the centres of cells where it is far from linear.
    a, b, c = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    mu, dt = bell(16, half=2.0, center=0.4 * b), 0.05 + 0.2 * c
    F = of.Potential(lambda x: 20 * a * (x[..., 0] - b).square())
    F = F + [0.1 * of.Entropy(), of.PowerEntropy(2.0)][seed % 2]
    solver = GridSinkhorn(certify=False)
    result = solver.solve(F, mu, dt)
    assert result.certificate["converged"]
    # The dual problem at any potential is below the primal at any density.
    value = dual_of(F, mu, dt, -F.first_variation(result.measure))
    fine = of.GridDensity(
        mu.grid.repeat_interleave(20), -2.0, 2.0, walls=True, normalize=True
    )
    best = GridSinkhorn().solve(F, fine, dt).certificate
    assert best["converged"]
    assert value <= best["energy_after"] + best["w2"] ** 2 / (2 * dt) + 1e-6


def test_a_dip_of_the_potential_costs_the_dual_value_a_cell():
    # The c-transform of the c-transform fills it, and may even be the better one.
    F, mu, dt = of.Potential(lambda x: 2 * x[..., 0]), bell(80), 0.1
    phi = -2 * mu.points[:, 0]
    dip = phi.clone()
    dip[40] -= 3.0
    lost = dual_of(F, mu, dt, phi) - dual_of(F, mu, dt, dip)
    assert abs(lost) < mu.box.spacing[0] ** 2 / dt


# Distances and decreases --------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.02, 0.05])
def test_the_debiased_distance_of_a_translation(eps):
    # The step is x - dt. The bias taken off is as large as the square of it.
    mu, dt = bell(160, half=4.0), 0.05
    F = of.Potential(lambda x: x[..., 0])
    report = GridSinkhorn(eps=eps).solve(F, mu, dt).certificate
    assert report["bias"] == pytest.approx(eps**2 / (8 * dt) / 0.25, rel=1e-2)
    assert report["w2"] == pytest.approx(dt, rel=2e-3)
    assert report["decrease"] == pytest.approx(dt / 2, rel=4e-3)  # twice that of w2


def test_a_blur_too_large_for_the_step_is_not_certified():
    # It is the minimiser of another objective: F rises.
    with pytest.warns(of.errors.BlurWarning):
        result = GridSinkhorn(eps=0.1).solve(exact.quadratic(), bell(60), 1e-3)
    report = result.certificate
    assert report["converged"]
    assert report["energy_after"] > report["energy_before"]
    assert not report["certified"]


def test_at_rest_nothing_is_said_of_the_blur():
    # The energy still changes by round-off, either way; a warning would be an error.
    F = exact.quadratic() + 0.3 * of.Entropy()
    run = of.flow(F, bell(16, 2, center=0.2), of.JKO(GridSinkhorn()), dt=1.0, steps=25)
    drops = [abs(i["energy_after"] - i["energy_before"]) for i in run.info[-5:]]
    assert max(drops) < 1e-9


def test_no_bound_where_the_step_is_too_long_for_the_modulus():
    F = of.Potential(lambda x: x.cos().sum(-1), modulus=-1.0) + of.Entropy()
    for name in TWO:
        assert SOLVERS[name]().solve(F, bell(), 0.5).certificate["bound"] > 0
        assert SOLVERS[name]().solve(F, bell(), 1.5).certificate["bound"] is None


def test_beside_obstacles_the_bound_is_a_cell_too():
    blocked = torch.arange(60) >= 40
    mu = of.GridDensity.from_function(
        lambda x: (-2 * (x[..., 0] + 0.3).square()).exp(),
        -1.5, 1.5, (60,), obstacles=blocked, walls=True, dtype=F64,
    )  # fmt: skip
    F = exact.quadratic(1.0, 1.0) + of.Entropy()
    for name in TWO:
        report = SOLVERS[name]().solve(F, mu, 0.05).certificate
        assert report["guarantee"] == "exact"
        assert 0.4 < report["bound"] / mu.box.spacing[0] < 1.0


# Quantiles ----------------------------------------------------------------------------


def uneven(n=12, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    gaps, masses = (0.1 + torch.rand(2, n, generator=generator, dtype=F64)).to(dtype)
    edges = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
    return of.Quantiles((edges - edges.mean()) / n, masses, normalize=True)


@pytest.mark.parametrize("dt", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("wall", [True, False])
def test_below_a_bound_on_the_density_each_iterate_knows_its_distance(dt, wall):
    mu, closest = uneven(), 0.0
    most = 1.2 * float(mu.density().max())
    F = exact.quadratic(1.0, 0.5) + of.Congestion(most)
    options = {"lower": float(mu.edges[0])} if wall else {}
    best = QuantileProximal(**options).solve(F, mu, dt)
    assert best.certificate["guarantee"] == "exact"
    problem = Objective(F, mu, dt)
    room = Room(mu.weights / most, options.get("lower", -math.inf), math.inf)
    for budget in range(1, 12):
        found = minimise(problem, room, 1e-10, budget)
        assert found.bound is not None
        nu = mu.moved(found.point.edges)
        apart = float(mu.norm(nu.displacement_to(best.measure)))
        assert apart <= found.bound + best.certificate["bound"]
        closest = max(closest, apart / found.bound)
        result = QuantileProximal(max_iterations=budget, **options).solve(F, mu, dt)
        report = result.certificate
        assert torch.equal(result.measure.edges, nu.edges)
        assert report["converged"] == (report["guarantee"] == "exact")
        assert report["excess"] == 0.0  # inside at every iterate
        assert float(nu.density().max()) <= most * (1 + 1e-12)
        if budget == 1:
            assert not report["converged"]
            assert (report["guarantee"], report["certified"]) == ("none", False)
            assert report["bound"] is None
    assert closest > 0.1  # the bound is not far from what it bounds


def test_a_density_above_its_bound_comes_below_it():
    # Congestion tolerates a little in a start; a step has none of it.
    mu = of.Quantiles(torch.linspace(-1.0, 1.0, 9, dtype=F64))
    F = exact.quadratic() + of.Congestion(0.4998)
    for budget in (1, 200):
        report = QuantileProximal(max_iterations=budget).solve(F, mu, 0.1).certificate
        assert report["excess"] == 0.0
        assert report["converged"] == (budget == 200)


@pytest.mark.parametrize("dt", [0.01, 0.3, 10.0])
def test_the_bound_counts_the_cast_to_single_precision(dt):
    mu = uneven(dtype=torch.float32)
    result = QuantileProximal().solve(exact.quadratic(2.0, 0.25), mu, dt)
    expected = (mu.edges.double() + 0.5 * dt) / (1 + 2 * dt)
    off = (result.measure.edges.double() - expected).square()
    error = math.sqrt(float(mu.lumped.double() @ off))
    assert 1e-10 < error <= result.certificate["bound"] < 1e-6


def test_the_residual_is_the_newton_decrement_over_the_displacement():
    mu, dt = uneven(), 0.2
    F = exact.quadratic(2.0, 3.0) + 0.5 * of.Entropy()
    result = QuantileProximal(max_iterations=2).solve(F, mu, dt)

    def objective(q):
        far = (mu.lumped * (q - mu.edges).square()).sum()
        return dt * mu.evaluate(F.value, q) + 0.5 * far

    q = result.measure.edges
    slope = torch.func.grad(objective)(q)
    hessian = torch.autograd.functional.hessian(objective, q)
    decrement = (slope @ torch.linalg.solve(hessian, slope)).sqrt()
    rest = decrement / mu.norm(mu.displacement_to(result.measure))
    assert not result.certificate["converged"]
    assert result.residual == pytest.approx(float(rest), rel=1e-9)


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_a_wall_inside_the_measure_is_refused(side):
    mu = of.Quantiles(torch.linspace(-1.0, 1.0, 9, dtype=F64))
    wall = {side: -0.99 if side == "lower" else 0.99}
    with pytest.raises(ValueError, match="start inside of the walls"):
        QuantileProximal(**wall).solve(exact.quadratic(), mu, 0.1)


# Gaussians ----------------------------------------------------------------------------


def law():
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64)
    return of.Gaussian(torch.tensor([1.0, -2.0], dtype=F64), covariance)


def test_a_gaussian_step_that_did_not_converge_has_no_bound():
    solver = GaussianProximal(max_gradients=1)
    report = solver.solve(exact.quadratic(), law(), 0.7).certificate
    assert not report["converged"]
    assert not report["certified"]
    assert (report["guarantee"], report["bound"]) == ("none", None)
    assert report["w2"] == report["decrease"] == 0


@pytest.mark.parametrize("tolerance", [0.1, 1e-2, 1e-4])
def test_the_report_of_a_gaussian_step_is_true(tolerance):
    F = of.Potential(lambda x: x.square().square().sum(-1), modulus=0.0) + of.Entropy()
    mu, dt = law(), 0.5
    result = GaussianProximal(tolerance=tolerance).solve(F, mu, dt)
    report, nu = result.certificate, result.measure
    w2 = float(of.metrics.wasserstein2(mu, nu))
    assert report["converged"]
    assert result.residual <= tolerance
    assert report["w2"] == pytest.approx(w2, rel=1e-10)
    lost = float(F.value(mu)) - float(F.value(nu))
    assert report["decrease"] == pytest.approx(lost - w2**2 / (2 * dt), rel=1e-9)


def test_a_map_that_is_not_optimal_is_told(monkeypatch):
    from otflow.proximal.gaussian.maps import OptimalMaps

    monkeypatch.setattr(OptimalMaps, "is_optimal", lambda *_: False)
    report = GaussianProximal().solve(exact.quadratic(), law(), 0.5).certificate
    assert report["converged"]
    assert report["guarantee"] == "upper-bound"
    assert report["bound"] is None
    assert not report["map_optimal"]
    assert not report["certified"]


# Converged or not ---------------------------------------------------------------------


def test_scalings_converged_if_the_residual_says_so():
    seen = set()
    for budget in (1, 2, 4, 8, 10, 12, 14, 16, 20, 30, 40, 60):
        solver = GridSinkhorn(max_iterations=budget)
        result = solver.solve(of.Entropy(), bell(), 0.5)
        converged = result.certificate["converged"]
        assert converged == (result.residual <= 2e-5)
        seen.add((converged, result.residual <= 2e-3))
    assert seen == {(True, True), (False, True), (False, False)}


def test_the_residual_of_scalings_is_the_error_of_the_first_marginal():
    mu = bell()
    for budget in (6, 16):
        solver = GridSinkhorn(max_iterations=budget)
        result = solver.solve(of.Entropy(), mu, 0.5)
        assert result.certificate["converged"] == (result.residual <= solver.tolerance)
        warm = result.warm
        problem, x = warm.problem, warm.iterate.image + 0.1 * mu.points[:, 0].sin()
        found = problem.evaluate(x, None)
        image = problem.kernel.log_apply(found.log_a, safely=True)[0]
        marginal = (problem.log_source - x + image).exp() * mu.box.cell_volume
        wanted = float((marginal - mu.weights).abs().sum())
        assert found.residual == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_newton_on_quantiles_converged_if_the_gradient_says_so(tolerance):
    F = exact.quadratic(2.0, 3.0) + of.PowerEntropy(3.0)
    mu, seen = uneven(), set()
    for dt in (0.2, 50.0):
        for budget in (1, 2, 3, 5, 8, 12, 16, 24, 40):
            solver = QuantileProximal(tolerance=tolerance, max_iterations=budget)
            result = solver.solve(F, mu, dt)
            converged = result.certificate["converged"]
            assert converged == (result.residual <= tolerance)
            seen.add(converged)
    assert seen == {True, False}


def test_the_warm_start_of_other_obstacles_is_not_used():
    mask = torch.arange(40) >= 34
    free = bell()
    mu = of.GridDensity(
        free.grid.masked_fill(mask, 0), -2.5, 2.5, obstacles=mask, walls=True,
        normalize=True,
    )  # fmt: skip
    F, solver = of.Entropy(), GridSinkhorn()
    cold = solver.solve(F, mu, 0.5)
    warm = solver.solve(F, mu, 0.5, warm=solver.solve(F, free, 0.5).warm)
    assert float(warm.measure.weights[mask].sum()) == 0
    assert warm.iterations == cold.iterations
    assert torch.equal(warm.measure.weights, cold.measure.weights)


def test_a_kernel_with_a_smooth_repulsion_is_not_convex_on_the_half_line():
    F = of.Interaction(of.kernels.PowerLaw(4, 2))
    report = QuantileProximal().solve(F, uneven(), 0.1).certificate
    assert report["bound"] is None
    assert report["guarantee"] == "stationary"


def test_anderson_forgets():
    from otflow.numerics.anderson import Anderson

    mixing, x = Anderson(4, torch.ones(3, dtype=F64)), torch.zeros(3, dtype=F64)
    for k in range(3):
        x = mixing.advance(x, (-(k + 1.0)) * x + torch.arange(3.0, dtype=F64))
    g = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    assert not torch.equal(mixing.advance(x, g), x + g)
    mixing.forget()
    assert torch.equal(mixing.advance(x, g), x + g)


# Parts of the dual step ---------------------------------------------------------------


def test_means_over_cells_are_those_of_the_linear_interpolation():
    # Of x^2 it is that at the centre plus h^2 / 4, an axis.
    x = torch.arange(7, dtype=F64)
    found = cell_means(x[:, None].square() + 3 * x.square())
    inner = x[1:-1].square()
    torch.testing.assert_close(found, inner[:, None] + 3 * inner + 0.25 + 0.75)


def test_relocated_mass_counts_as_carried_across_the_box():
    box = of.measures.Box.of(0.0, [3.0, 4.0], (6, 6))
    assert transport_cost([], box, 0.5) == pytest.approx(0.5 * 25)
