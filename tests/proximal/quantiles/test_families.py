"""Steps on quantiles over random problems: graded masses, walls, bounds, every dt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize

import otflow as of
from otflow.proximal import QuantileProximal
from tests import exact

# The cells are few, or wide in the tails: what is tried here does not need them narrow.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.CellWarning")

WALLS = ("none", "far", "near", "one")


def quadratic(lam, a):
    return of.Potential(lambda x: 0.5 * lam * (x[..., 0] - a) ** 2, modulus=lam)


def double_well():
    return of.Potential(lambda x: 0.25 * (x[..., 0] ** 2 - 1) ** 2, modulus=-1.0)


FAMILIES = {
    "heat": lambda p: p["v"] + p["k"] * of.Entropy(),
    "double well": lambda p: double_well() + p["k"] * of.Entropy(),
    "power": lambda p: p["k"] * of.PowerEntropy(p["m"]),
    "power in a bowl": lambda p: p["k"] * of.PowerEntropy(p["m"]) + p["v"],
    "sum": lambda p: p["k"] * of.PowerEntropy(p["m"]) + 0.3 * of.Entropy() + p["v"],
    "crowd": lambda p: p["v"] + of.Congestion(p["most"]),
    "warm crowd": lambda p: p["v"] + of.Congestion(p["most"]) + 0.1 * of.Entropy(),
    "attraction": lambda p: (
        p["k"] * of.PowerEntropy(2.0) + -1.0 * of.Interaction(of.kernels.Gaussian(1.0))
    ),
}


def problem(name, seed, sizes):
    """Return F, mu, dt and the walls of a random problem."""
    rng = np.random.default_rng([seed, list(FAMILIES).index(name)])
    grading, n = float(rng.choice([1, 2, 4])), int(rng.choice(sizes))
    dt = float(10 ** rng.uniform(-3, 2))
    s, c = float(10 ** rng.uniform(-1.5, 0.3)), float(rng.normal())
    mu = of.Quantiles.from_function(
        lambda x: torch.exp(-((x[..., 0] - c) ** 2) / (2 * s * s)),
        c - 4 * s - 0.1,
        c + 4 * s + 0.1,
        n=n,
        grading=grading,
        dtype=torch.float64,
    )
    low, high = float(mu.edges[0]), float(mu.edges[-1])
    width = high - low
    walls = {
        "none": {},
        "far": {"lower": low - 3 * width, "upper": high + 3 * width},
        "near": {"lower": low - 0.05 * width, "upper": high + 0.1 * width},
        "one": {"lower": low - 0.02 * width},
    }[str(rng.choice(WALLS))]
    v = quadratic(float(10 ** rng.uniform(-1, 1)), float(1.5 * rng.normal()))
    k, m = float(10 ** rng.uniform(-2, 0.5)), float(rng.choice([0.5, 0.7, 2, 3, 5]))
    most = float(mu.density().max()) * float(rng.choice([1.0, 1.2, 3.0]))
    return FAMILIES[name]({"v": v, "k": k, "m": m, "most": most}), mu, dt, walls


def objective(F, mu, dt, nu):
    """Return the objective from public numbers alone; a bound is left to the caller."""
    local = [c * f for c, f in F.terms() if not isinstance(f, of.Congestion)]
    value = sum(float(f.value(nu)) for f in local)
    return value + float(mu.norm(mu.displacement_to(nu))) ** 2 / (2 * dt)


def best_of_a_general_minimiser(F, mu, dt, walls, most, start):
    """Return the least objective by BFGS over logarithms of free lengths."""
    least = mu.weights / most
    lower, upper = walls.get("lower", -math.inf), walls.get("upper", math.inf)
    local = of.functionals.Sum(
        tuple(c * f for c, f in F.terms() if not isinstance(f, of.Congestion))
    )

    def edges(u):
        if math.isinf(upper):
            first = u[0] if math.isinf(lower) else lower + u[0].exp()
            gaps = least + u[1:].exp()
        else:  # both walls: shares of the free room, before, in and beyond the cells
            room = upper - lower - least.sum()
            shares = torch.softmax(torch.cat([u, u.new_zeros(1)]), 0) * room
            first, gaps = lower + shares[0], least + shares[1:-1]
        return first + torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])

    def function(numbers):
        u = torch.from_numpy(numbers).requires_grad_()
        q = edges(u)
        value = mu.evaluate(local.value, q)
        value = dt * value + 0.5 * (mu.lumped * (q - mu.edges).square()).sum()
        (slope,) = torch.autograd.grad(value, u)
        return float(value.detach()) / dt, slope.numpy() / dt

    q = start.edges
    slack = (q.diff() - least).clamp_min(1e-12)
    if math.isinf(upper):
        first = q[:1] if math.isinf(lower) else (q[:1] - lower).clamp_min(1e-12).log()
        u = torch.cat([first, slack.log()])
    else:
        parts = torch.cat([q[:1] - lower, slack, upper - q[-1:]]).clamp_min(1e-12)
        u = (parts / parts[-1]).log()[:-1]
    found = optimize.minimize(
        function, u.numpy().copy(), jac=True, method="BFGS", options={"maxiter": 3000}
    )
    return found.fun


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", FAMILIES)
def test_no_general_minimiser_does_better(name, seed):
    F, mu, dt, walls = problem(name, seed, sizes=(4, 7))
    result = QuantileProximal(**walls).solve(F, mu, dt)
    found, nu = result.certificate, result.measure
    assert found["converged"]
    assert found["certified"]
    ours = objective(F, mu, dt, nu)
    most = min(
        [f.max_density for _, f in F.terms() if isinstance(f, of.Congestion)],
        default=math.inf,
    )
    assert float(nu.density().max()) <= most * (1 + 1e-6)
    assert float(nu.edges[0]) >= walls.get("lower", -math.inf)
    assert float(nu.edges[-1]) <= walls.get("upper", math.inf)
    scale = abs(float(found["energy_before"])) + abs(ours)
    for start in (nu, mu):
        if start is mu and found["guarantee"] != "exact":
            continue  # another minimum may be the lower one
        best = best_of_a_general_minimiser(F, mu, dt, walls, most, start)
        assert ours <= best + 1e-9 * scale + 1e-12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_converges_and_says_what_it_did(name, seed):
    sizes = (5, 20, 60) if name == "attraction" else (5, 20, 80, 400)
    F, mu, dt, walls = problem(name, 100 + seed, sizes)
    result = QuantileProximal(**walls).solve(F, mu, dt)
    found, nu = result.certificate, result.measure
    assert found["converged"]
    assert found["certified"]
    assert result.iterations <= 100
    assert found["energy_after"] == pytest.approx(
        float(F.value(nu)), rel=1e-9, abs=1e-9
    )
    assert objective(F, mu, dt, nu) <= objective(F, mu, dt, mu) + 1e-10
    if found["guarantee"] == "exact":
        assert found["bound"] < 1e-4 * found["w2"] + 1e-9
        # A looser solve stays within its own bound of it.
        loose = QuantileProximal(tolerance=0.03, **walls).solve(F, mu, dt)
        apart = float(mu.norm(nu.displacement_to(loose.measure)))
        assert loose.certificate["guarantee"] == "exact"
        assert apart <= loose.certificate["bound"] + found["bound"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_at_length(name):
    converged, trials = 0, 40
    for seed in range(trials):
        sizes = (20, 80) if name == "attraction" else (80, 400, 1600)
        F, mu, dt, walls = problem(name, 1000 + seed, sizes)
        found = QuantileProximal(**walls).solve(F, mu, dt).certificate
        converged += found["converged"]
        assert found["certified"] <= found["converged"]
    assert converged >= 0.95 * trials


@pytest.mark.parametrize(("name", "seed"), [("power in a bowl", 1004), ("sum", 1032)])
def test_a_short_cell_is_no_atom_however_far_the_other_end_goes(name, seed):
    # Its length is known to the last place of its own ends.
    F, mu, dt, walls = problem(name, seed, sizes=(80, 400, 1600))
    found = QuantileProximal(**walls).solve(F, mu, dt).certificate
    assert found["guarantee"] == "exact"
    assert found["bound"] < 1e-4 * found["w2"]


@pytest.mark.parametrize("seed", [1010, 1011])
def test_masses_that_change_wells_need_no_luck(seed):
    # Newton's model of a long step of -x^2 is wrong beyond a cell or two.
    F, mu, dt, walls = problem("double well", seed, sizes=(80, 400, 1600))
    first = QuantileProximal(**walls).solve(F, mu, dt)
    assert first.certificate["guarantee"] == "stationary"
    assert objective(F, mu, dt, first.measure) < objective(F, mu, dt, mu)
    again = of.Quantiles(mu.edges * (1 + 1e-13), mu.weights)
    second = QuantileProximal(**walls).solve(F, again, dt).certificate
    assert second["converged"]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_rests_on_the_last_bit(name):
    F, mu, dt, walls = problem(name, 7, sizes=(20, 40))
    first = QuantileProximal(**walls).solve(F, mu, dt)
    again = of.Quantiles(mu.edges * (1 + 1e-13), mu.weights)
    walls = {side: x + 1e-12 * (x - float(mu.edges[0])) for side, x in walls.items()}
    second = QuantileProximal(**walls).solve(F, again, dt)
    for key in ("converged", "guarantee", "certified"):
        assert first.certificate[key] == second.certificate[key]
    apart = float(mu.norm((first.measure.edges - second.measure.edges)[:, None]))
    assert apart < 1e-5 * first.certificate["w2"] + 1e-9


# The scripts of the faults ------------------------------------------------------------


def test_a_narrow_bell_of_graded_cells_between_walls_spreads():
    mu = of.Quantiles.from_function(
        lambda x: torch.exp(-(x[..., 0] ** 2) / (2 * 0.05**2)),
        -1,
        1,
        n=1600,
        grading=4,
        dtype=torch.float64,
    )
    solver = QuantileProximal(lower=-1.5, upper=1.5)
    found = solver.solve(of.PowerEntropy(3), mu, 10.0).certificate
    assert found["guarantee"] == "exact"
    assert found["energy_after"] == pytest.approx(0.0571, abs=5e-5)
    assert found["bound"] < 1e-6


def test_walls_that_are_not_met_change_nothing():
    mu = of.Quantiles(torch.linspace(0, 1, 11, dtype=torch.float64))
    F = of.Potential(lambda x: 0.5 * (x[..., 0] + 0.5) ** 2, modulus=1.0)
    result = QuantileProximal(lower=-1.0, upper=2.0).solve(F, mu, 1.0)
    assert result.certificate["guarantee"] == "exact"
    torch.testing.assert_close(result.measure.edges, (mu.edges - 0.5) / 2)


@pytest.mark.parametrize("walls", [(-0.05, 1.05), (-1.0, 2.0), (0.0, 1.0)])
def test_a_warm_crowd_needs_few_iterations_for_every_dt(walls):
    mu = of.Quantiles(torch.linspace(0, 1, 21, dtype=torch.float64))
    solver = QuantileProximal(lower=walls[0], upper=walls[1])
    for dt in (0.01, 1.0, 100.0, 1e4):
        result = solver.solve(of.Congestion(3.0) + 0.1 * of.Entropy(), mu, dt)
        assert result.certificate["guarantee"] == "exact"
        assert result.iterations <= 60
    if walls != (-1.0, 2.0):  # as far apart as they can be: evenly between the walls
        even = torch.linspace(walls[0], walls[1], 21, dtype=torch.float64)
        torch.testing.assert_close(result.measure.edges, even, rtol=0, atol=1e-4)


@pytest.mark.parametrize("grading", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("dt", [1e-2, 1.0, 1e2])
def test_a_full_crowd_moves_as_one_till_a_wall_stops_it(grading, dt):
    # Its density is at the bound, so that a bowl can only shift it.
    mu = of.Quantiles.from_function(
        lambda x: torch.ones_like(x[..., 0]),
        0.0,
        1.0,
        n=60,
        grading=grading,
        dtype=torch.float64,
    )
    lam, a = 2.0, 3.0
    F = exact.quadratic(lam, a) + of.Congestion(1.0)
    centre = float(mu.expectation(lambda x: x[..., 0]))
    shift = (a - centre) * lam * dt / (1 + lam * dt)
    result = QuantileProximal().solve(F, mu, dt)
    assert result.certificate["guarantee"] == "exact"
    torch.testing.assert_close(
        result.measure.edges, mu.edges + shift, rtol=0, atol=1e-5 * (1 + shift)
    )
    stopped = QuantileProximal(upper=1.0 + 0.5 * shift).solve(F, mu, dt)
    assert stopped.certificate["guarantee"] == "exact"
    torch.testing.assert_close(
        stopped.measure.edges, mu.edges + 0.5 * shift, rtol=0, atol=1e-5 * (1 + shift)
    )


# A functional of the distance ---------------------------------------------------------


class ExactDistance(of.Functional):
    """Half the squared exact distance to other quantiles."""

    def __init__(self, target):
        self.target = target

    def value(self, mu):
        return 0.5 * of.metrics.wasserstein2_squared(mu, self.target)


class LumpedDistance(ExactDistance):
    """The same, as steps measure it."""

    def value(self, mu):
        v = mu.displacement_to(self.target)
        return 0.5 * mu.inner(v, v)


def test_a_functional_of_the_distance_is_refused_with_a_cure_that_works():
    n = 100
    mu = of.Quantiles.from_function(
        lambda x: torch.exp(-(x[..., 0] ** 2) / 0.02), -1, 1, n, dtype=torch.float64
    )
    target = of.Quantiles(torch.linspace(-1, 1, n + 1, dtype=torch.float64))
    for scheme, dt in ((of.JKO(), 0.1), (of.ExplicitEuler(), 0.01)):
        with pytest.raises(of.errors.Diverged, match="displacement_to and inner"):
            of.flow(ExactDistance(target), mu, scheme, dt=dt, steps=60)
        run = of.flow(LumpedDistance(target), mu, scheme, dt=dt, steps=10)
        # Along the geodesic: the distance shrinks by 1 + dt, or 1 - dt, a step.
        factor = 1 / (1 + dt) if isinstance(scheme, of.JKO) else 1 - dt
        first, last = (float(run.records["energy"][i]) for i in (0, -1))
        assert last == pytest.approx(first * factor**20, rel=1e-8)
        assert all(info.get("converged", True) for info in run.info)


@pytest.mark.parametrize("seed", range(10))
def test_a_bound_and_walls_that_do_not_bind_change_the_step_by_no_more_than_its_bound(
    seed,
):
    """The step without them is the reference; with them the barrier leaves a gap."""
    rng = np.random.default_rng(seed)
    n, grading = int(rng.integers(5, 100)), float(rng.choice([1, 2, 4]))
    k, m = float(10 ** rng.uniform(-1, 1)), float(rng.normal())
    dt, spread = float(10 ** rng.uniform(-3, 1.5)), float(rng.uniform(0.1, 2))
    mu = of.Quantiles.from_quantile(
        lambda u: spread * torch.erfinv(2 * u - 1),
        n,
        grading=grading,
        dtype=torch.float64,
    )
    F = of.Potential(lambda x: 0.25 * k * (x[..., 0] - m) ** 4, modulus=0.0)
    free = QuantileProximal().solve(F, mu, dt)
    most = 1.5 * float(max(x.density().max() for x in (mu, free.measure)))
    low, high = float(mu.edges[0]), float(mu.edges[-1])
    far = 3 * (high - low) + 3
    solver = QuantileProximal(lower=low - abs(m) - far, upper=high + abs(m) + far)
    crowd = solver.solve(F + of.Congestion(most), mu, dt)
    for result in (free, crowd):
        assert result.certificate["converged"]
        assert result.certificate["guarantee"] == "exact"
    off = crowd.measure.edges - free.measure.edges
    length = math.sqrt(float(mu.lumped @ off.square()))
    assert length <= crowd.certificate["bound"] + free.certificate["bound"]
    assert crowd.certificate["bound"] <= 1e-5 * crowd.certificate["w2"]
