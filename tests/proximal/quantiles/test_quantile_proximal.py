"""The JKO step on quantiles: optimality, certificates, bounds, failures that say so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize

import otflow as of
from otflow.measures.quantiles.levels import graded_masses
from otflow.numerics.tridiagonal import Springs
from otflow.proximal import QuantileProximal, default_solver
from otflow.proximal.quantiles import objective as quantile_objective
from otflow.proximal.quantiles.objective import Objective
from otflow.testing.clouds import assert_untouched, normal, state
from otflow.testing.differences import derivative
from tests import exact
from tests.marks import slow


def make(n=12, seed=0, dtype=torch.float64):
    gaps = 0.1 + normal(n, seed=seed, dtype=dtype).exp()
    masses = normal(n, seed=seed + 30, dtype=dtype).exp()
    edges = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
    return of.Quantiles((edges - edges.mean()) / n, masses, normalize=True)


def line(lower, upper, n=20, dtype=torch.float64):
    return of.Quantiles(torch.linspace(lower, upper, n + 1, dtype=dtype))


def double_well():
    return of.Potential(
        lambda x: 0.25 * (x.square() - 1).square().sum(-1), modulus=-1.0
    )


class Spread(of.Functional):
    """A functional that is none of the known kinds, convex in the quantiles."""

    def value(self, mu):
        return mu.expectation(lambda x: x.square().sum(-1)).square()


FUNCTIONALS = {
    "entropy": of.Entropy(),
    "potential": exact.quadratic(2.0, 0.3),
    "Fokker-Planck": exact.quadratic(2.0, 0.3) + 0.5 * of.Entropy(),
    "porous medium": of.PowerEntropy(2.0),
    "fast diffusion": of.PowerEntropy(0.5),
    "sums": 0.3 * of.PowerEntropy(3.0) + of.Entropy() + exact.quadratic(),
    "user's energy": of.Internal(lambda r: r + 0.1 * r.log()) + exact.quadratic(),
    "double well": double_well() + 0.1 * of.Entropy(),
    "log gas": exact.dyson(),
    "smooth kernel": of.Interaction(of.kernels.Gaussian(0.4)) + 0.2 * of.Entropy(),
    "user's kernel": of.Interaction(lambda z: z.square().sum(-1).cosh()) + of.Entropy(),
    "Keller-Segel": of.Entropy() + (-1.0) * of.Interaction(of.kernels.Log()),
    "another": Spread() + of.Entropy(),
    "another and a kernel": Spread()
    + of.Interaction(of.kernels.Gaussian(0.4))
    + of.Entropy(),
}
CONVEX = [
    name
    for name in FUNCTIONALS
    if name
    not in (
        "double well",
        "smooth kernel",
        "user's kernel",
        "Keller-Segel",
        "another",
        "another and a kernel",
        "user's energy",
    )
]


# Optimality ---------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.02, 1.0])
@pytest.mark.parametrize("name", FUNCTIONALS)
def test_the_step_solves_the_implicit_equation(name, dt):
    # (nu - mu)/dt is the velocity at nu, which autodiff finds from the value alone.
    F, mu = FUNCTIONALS[name], make()
    before = state(mu)
    result = QuantileProximal(tolerance=1e-12).solve(F, mu, dt)
    nu, certificate = result.measure, result.certificate
    displacement = mu.displacement_to(nu)
    gap = displacement - dt * F.velocity(nu)
    assert float(mu.norm(gap)) < 1e-9 * float(mu.norm(displacement))
    assert certificate["converged"]
    assert certificate["certified"]
    assert result.iterations == certificate["iterations"] <= 40
    assert result.residual == certificate["residual"] < 1e-9
    assert_untouched(mu, before)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_the_certificate_tells_the_truth(name):
    F, mu, dt = FUNCTIONALS[name], make(seed=3), 0.1
    result = QuantileProximal().solve(F, mu, dt)
    nu, found = result.measure, result.certificate
    w2 = float(mu.norm(mu.displacement_to(nu)))
    before, after = float(F.value(mu)), float(F.value(nu))
    assert found["energy_before"] == pytest.approx(before, rel=1e-12)
    assert found["energy_after"] == pytest.approx(after, rel=1e-12)
    assert found["w2"] == pytest.approx(w2, rel=1e-12)
    expected = before - after - w2**2 / (2 * dt)
    assert found["decrease"] == pytest.approx(expected, abs=1e-12)
    assert found["decrease"] > 0
    assert found["excess"] == 0.0
    if name in CONVEX:
        assert found["guarantee"] == "exact"
        assert found["bound"] < 1e-9 * w2
    elif name == "double well":  # 1 - dt is positive
        assert found["guarantee"] == "exact"


@pytest.mark.parametrize("name", ["Fokker-Planck", "sums", "log gas"])
def test_the_bound_holds_for_a_step_that_stopped_early(name):
    F, mu, dt = FUNCTIONALS[name], make(seed=5), 0.3
    best = QuantileProximal().solve(F, mu, dt).measure
    errors = []
    for tolerance in (1.0, 0.3, 0.1, 1e-2, 1e-4):
        result = QuantileProximal(tolerance=tolerance).solve(F, mu, dt)
        nu, found = result.measure, result.certificate
        errors.append(float(mu.norm(nu.displacement_to(best))))
        assert found["converged"]
        assert found["guarantee"] == "exact"
        assert errors[-1] <= found["bound"] * (1 + 1e-9) + 1e-14
    assert errors[0] > errors[-1]
    assert errors[0] > 1e-6  # it had something to bound
    for budget in (1, 2):
        result = QuantileProximal(max_iterations=budget).solve(F, mu, dt)
        found = result.certificate
        assert not found["converged"]
        assert (found["guarantee"], found["certified"]) == ("none", False)
        assert found["bound"] is None
        assert found["decrease"] >= -1e-14


@pytest.mark.parametrize("name", ["porous medium", "double well", "sums"])
def test_it_agrees_with_a_general_minimiser(name):
    F, mu, dt = FUNCTIONALS[name], make(5, seed=7), 0.2

    def objective(q):
        nu = mu.moved(torch.from_numpy(np.sort(q)))
        cost = mu.displacement_to(nu)
        return float(F.value(nu) + mu.inner(cost, cost) / (2 * dt))

    found = optimize.minimize(
        objective,
        mu.edges.numpy(),
        method="Nelder-Mead",
        options={"maxiter": 40_000, "maxfev": 40_000, "xatol": 1e-9, "fatol": 1e-15},
    )
    ours = QuantileProximal().solve(F, mu, dt).measure
    assert objective(ours.edges.numpy()) <= found.fun + 1e-12
    assert ours.edges.numpy() == pytest.approx(found.x, abs=1e-4)


def test_a_convex_potential_alone_keeps_the_order_of_uneven_cells():
    # As particles: each quantile by itself, with the whole modulus of V.
    mu, lam, dt = make(), 2.0, 50.0
    result = QuantileProximal().solve(exact.quadratic(lam, 0.3), mu, dt)
    expected = 0.3 + (mu.edges - 0.3) / (1 + lam * dt)
    torch.testing.assert_close(result.measure.edges, expected, rtol=0, atol=1e-13)
    assert result.certificate["guarantee"] == "exact"
    assert result.certificate["bound"] < 1e-12
    short = QuantileProximal(max_iterations=1).solve(exact.quadratic(lam), mu, dt)
    assert not short.certificate["converged"]
    assert short.certificate["bound"] is None


def test_a_user_energy_is_convex_only_if_declared():
    mu, e = make(), lambda r: r + 0.1 * r.log()
    for modulus, guarantee in ((None, "stationary"), (0.0, "exact")):
        F = of.Internal(e, modulus=modulus) + exact.quadratic()
        assert (
            QuantileProximal().solve(F, mu, 0.1).certificate["guarantee"] == guarantee
        )


def test_a_concave_potential_is_met_with_a_shift():
    # dt times the least curvature is -3: the objective is not convex.
    F, mu = 3.0 * double_well() + 1e-3 * of.Entropy(), line(-0.4, 0.5)
    result = QuantileProximal().solve(F, mu, 1.0)
    found = result.certificate
    assert (found["guarantee"], found["bound"]) == ("stationary", None)
    assert found["decrease"] > 0.1
    gap = mu.displacement_to(result.measure) - F.velocity(result.measure)
    assert float(mu.norm(gap)) < 1e-9


def test_few_iterations_whatever_the_number_of_cells():
    F = FUNCTIONALS["Fokker-Planck"]
    for n in (50, 400, 3200):
        mu = of.Quantiles.from_quantile(
            torch.special.ndtri, n, grading=2.0, dtype=torch.float64
        )
        result = QuantileProximal().solve(F, mu, 0.05)
        assert result.iterations <= 6
        assert result.certificate["guarantee"] == "exact"


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", FUNCTIONALS)
def test_derivatives_of_the_objective(name, dense, monkeypatch):
    monkeypatch.setattr(quantile_objective, "DENSE", 1000 if dense else 0)
    mu = make(6, seed=2)
    problem = Objective(FUNCTIONALS[name], mu, 0.3)
    q = mu.push(normal(7, 1, seed=1), 0.01).edges
    at = problem.expand(q)
    for seed in range(3):
        v = normal(7, seed=seed)
        slope = derivative(
            lambda t, v=v: torch.tensor(
                problem.expand(q + t * v).objective, dtype=v.dtype
            ),
            1e-4,
        )
        assert float(at.gradient @ v) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)
        bend = derivative(lambda t, v=v: problem.expand(q + t * v).gradient, 1e-4)
        found = at.band.times(v)
        if at.product is not None:
            found = found + at.product(v)
        torch.testing.assert_close(found, bend, rtol=1e-6, atol=1e-7)


# Bounds -------------------------------------------------------------------------------


def slsqp(F, mu, dt, most=math.inf, lower=None):
    """Return the constrained minimiser by SciPy's general solver."""

    def objective(q):
        nu = mu.with_free_edges(torch.from_numpy(q))
        cost = mu.displacement_to(nu)
        if bool((nu.edges.diff() <= 0).any()):
            return 1e3  # crossed: no density
        value = F.value(nu) if math.isinf(most) else F.parts[0].value(nu)
        return float(value + mu.inner(cost, cost) / (2 * dt))

    rows = [lambda q: np.diff(q) - mu.weights.numpy() / most]
    if lower is not None:
        rows.append(lambda q: q[:1] - lower)
    found = optimize.minimize(
        objective,
        mu.edges.numpy().copy(),
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": row} for row in rows],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return torch.from_numpy(found.x)


@pytest.mark.parametrize("dt", [0.1, 0.5, 5.0])
def test_congestion_agrees_with_a_general_solver(dt):
    F, mu = exact.quadratic(1.0, 0.2) + of.Congestion(1.0), line(-1.0, 1.0, 8)
    result = QuantileProximal().solve(F, mu, dt)
    expected = slsqp(F, mu, dt, most=1.0)
    assert float((result.measure.edges - expected).abs().max()) < 1e-5
    found = result.certificate
    assert found["guarantee"] == "exact"
    assert found["excess"] < 1e-9
    assert found["bound"] < 1e-5
    apart = float(mu.norm((result.measure.edges - expected)[:, None]))
    assert apart < found["bound"] + 1e-5


def test_a_wall_agrees_with_a_general_solver():
    F, mu = 0.1 * of.Entropy() + exact.quadratic(1.0, -1.0), line(0.0, 1.0, 6)
    result = QuantileProximal(lower=0.0).solve(F, mu, 0.4)
    expected = slsqp(F, mu, 0.4, lower=0.0)
    assert float((result.measure.edges - expected).abs().max()) < 1e-5
    assert float(result.measure.edges[0]) == pytest.approx(0.0, abs=1e-8)


def test_a_bound_that_binds_nowhere_changes_nothing():
    F, mu = FUNCTIONALS["sums"], make()
    free = QuantileProximal().solve(F, mu, 0.1)
    most = 2 * float(mu.density().max())
    bound = QuantileProximal(lower=-50.0).solve(F + of.Congestion(most), mu, 0.1)
    apart = float(mu.norm(free.measure.displacement_to(bound.measure)))
    assert apart < 1e-6 * free.certificate["w2"]
    assert apart <= bound.certificate["bound"] + free.certificate["bound"]


def test_congestion_with_an_interaction():
    F = of.Interaction(of.kernels.Quadratic()) + of.Congestion(1.0)
    nu = of.flow(F, line(-1.0, 1.0, 16), of.JKO(), dt=1.0, steps=6).final
    torch.testing.assert_close(
        nu.density(), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-5
    )
    assert float(nu.expectation(lambda x: x)[0]) == pytest.approx(0, abs=1e-9)


def test_stiff_energies_beside_a_wall():
    F = exact.quadratic(8.0, -0.3) + 2.0 * of.Entropy() + of.PowerEntropy(4.0)
    edges = torch.tensor([-4.5, 2.9, 14.5], dtype=torch.float64)
    result = QuantileProximal(lower=-4.5).solve(F, of.Quantiles(edges), 80.0)
    free = QuantileProximal().solve(F, of.Quantiles(edges), 80.0)
    assert result.certificate["guarantee"] == "exact"
    apart = float(free.measure.norm(result.measure.displacement_to(free.measure)))
    assert apart <= result.certificate["bound"] + free.certificate["bound"]


@pytest.mark.slow
@given(
    st.integers(1, 20),
    st.integers(0, 99),
    st.floats(1e-3, 1e3),
    st.sampled_from([1.0, 1.2, 5.0]),
    st.sampled_from([torch.float64, torch.float32]),
)
@example(n=1, seed=1, dt=1.001, room=5.0, dtype=torch.float32)
def test_a_crowd_makes_its_step_for_any_cells_and_any_dt(n, seed, dt, room, dtype):
    mu = make(n, seed, dtype)
    F = exact.quadratic(1.0, 0.5) + of.Congestion(room * float(mu.density().max()))
    result = QuantileProximal(lower=float(mu.edges[0])).solve(F, mu, dt)
    assert result.certificate["guarantee"] == "exact"
    assert result.certificate["certified"]
    # Of the quantiles that are returned, which are known to their last place.
    nu = result.measure
    place = 0.5 * torch.finfo(dtype).eps * float(nu.edges.abs().max())
    places = 2 * place / float(nu.edges.diff().min())
    assert result.certificate["excess"] < 1e-6 + 2 * places
    assert nu.dtype == dtype


def test_a_crowd_that_is_full_rests():
    F = exact.quadratic() + of.Congestion(1.0)
    mu = line(-0.5, 0.5, 32)
    run = of.flow(F, mu, of.JKO(), dt=0.5, steps=4)
    assert float((run.final.edges - mu.edges).abs().max()) < 1e-6
    assert all(info["converged"] for info in run.info)


# Kinds, flows -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Fokker-Planck", "porous medium", "log gas"])
def test_float32_comes_back_in_kind(name):
    F = FUNCTIONALS[name]
    single, double = make(dtype=torch.float32), make()
    double = of.Quantiles(
        single.edges.double(), single.weights.double(), normalize=True
    )
    result = QuantileProximal().solve(F, single, 0.1)
    nu = result.measure
    assert nu.dtype == nu.weights.dtype == torch.float32
    assert result.certificate["converged"]
    exactly = QuantileProximal().solve(F, double, 0.1).measure
    torch.testing.assert_close(nu.edges.double(), exactly.edges, rtol=1e-4, atol=1e-5)


def test_jko_picks_it_and_the_energy_falls():
    F, mu = FUNCTIONALS["sums"], make()
    assert isinstance(default_solver(mu), QuantileProximal)
    assert QuantileProximal.flat
    run = of.flow(F, mu, of.JKO(), dt=0.1, steps=20)
    assert bool((run.records["energy"].diff() < 0).all())
    assert all(info["certified"] for info in run.info)


def test_at_rest_it_stays():
    F, mu = FUNCTIONALS["Fokker-Planck"], make()
    rest = of.flow(F, mu, of.JKO(), dt=100.0, steps=12).final
    result = QuantileProximal().solve(F, rest, 1.0)
    assert result.certificate["converged"]
    assert result.certificate["certified"]
    assert result.certificate["w2"] < 1e-10


@pytest.mark.slow
@given(st.integers(1, 20), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_a_step_exists_for_any_cells_and_any_dt(n, seed, dt):
    F = exact.quadratic() + 0.3 * of.Entropy() + 0.1 * of.PowerEntropy(2.0)
    mu = make(n, seed)
    result = QuantileProximal().solve(F, mu, dt)
    assert result.certificate["guarantee"] == "exact"
    assert result.certificate["certified"]
    assert bool((result.measure.edges.diff() > 0).all())


# Linear algebra -----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("stiff", [1.0, 1e12])
def test_springs(n, stiff):
    rows, springs = normal(n + 1, seed=n).exp(), stiff * normal(n, seed=n + 1).exp()
    matrix, x = Springs(rows, springs), normal(n + 1, seed=n + 2)
    rhs = matrix.times(x)
    full = torch.diag(matrix.diagonal)
    full = full - torch.diag(springs, 1) - torch.diag(springs, -1)
    torch.testing.assert_close(full @ x, rhs, rtol=1e-9, atol=1e-9 * stiff)
    # A common force moves all as one, by it over the anchors, however stiff.
    moved = matrix.solve(torch.ones_like(rows))
    assert moved is not None
    assert float(rows @ moved) == pytest.approx(n + 1, rel=1e-13)
    if stiff == 1.0:
        torch.testing.assert_close(matrix.solve(rhs), x, rtol=0, atol=1e-12)
    else:
        assert float(moved.max() - moved.min()) < 1e-10
    assert Springs(-rows, springs).solve(rhs) is None


# Refusals -----------------------------------------------------------------------------


def test_mass_that_would_become_an_atom_is_refused():
    F = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0)
    with pytest.raises(of.errors.Diverged, match=r"add Entropy\(\) or another") as e:
        QuantileProximal().solve(F, line(-1.0, 1.0), 1.0)
    assert isinstance(e.value.measure, of.Quantiles)


@pytest.mark.parametrize("dt", [0.01, 1.0, 100.0])
def test_a_kink_is_told_before_the_budget_is_spent(dt):
    F = of.Potential(lambda x: x.abs().sum(-1), modulus=0.0) + 0.1 * of.Entropy()
    with pytest.warns(of.errors.NotConvergedWarning, match="kink of F.*smooth"):
        info = of.flow(F, line(-1.0, 1.0), of.JKO(), dt=dt, steps=1).info[0]
    assert info["stalled"]
    assert not info["converged"]
    assert info["guarantee"] == "none"
    assert info["iterations"] < 190
    assert info["energy_after"] < info["energy_before"]


class ByValue(of.Functional):
    """A functional of the variance or the mean, by value alone."""

    def __init__(self, of_moments):
        self.of_moments = of_moments

    def value(self, mu):
        mean = mu.expectation(lambda x: x[..., 0])
        variance = mu.expectation(lambda x: (x[..., 0] - mean).square())
        return self.of_moments(mean, variance)


AT_REST = {
    "a square": lambda _, v: (v - 1) ** 2,
    "a square whose terms cancel": lambda _, v: v * v - 2 * v + 1,
    "a square of a part": lambda _, v: torch.relu(v - 1) ** 2,
    "a fourth power": lambda m, v: (m - 0.3) ** 4 + (v - 1) ** 2,
    "a sine": lambda m, v: (3 * m).sin() ** 2 + (v.log() ** 2),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dt", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", AT_REST)
def test_a_smooth_functional_comes_to_rest(name, dt, dtype):
    # A warning, as of a kink, is an error in this suite.
    F, mu = ByValue(AT_REST[name]), line(-2.0, 4.0, n=5, dtype=dtype)
    run = of.flow(F, mu, of.JKO(), dt=dt, steps=30)
    assert run.converged
    assert all(info.certified and info["iterations"] < 30 for info in run.info)
    assert run.info[-1]["w2"] < 1e-6 or dt == 0.1 or name == "a fourth power"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dt", [1.0, 10.0])
def test_a_kink_is_told_in_either_dtype(dt, dtype):
    F, mu = ByValue(lambda _, v: (v - 1).abs()), line(-2.0, 4.0, n=5, dtype=dtype)
    with pytest.warns(of.errors.NotConvergedWarning, match="kink of F.*smooth"):
        of.flow(F, mu, of.JKO(), dt=dt, steps=5)


def test_what_it_cannot_step_is_refused_with_the_cure():
    F, mu = exact.quadratic(), line(0.0, 1.0)
    solver = QuantileProximal()
    with pytest.raises(of.errors.Unsupported, match="steps Quantiles, got Particles"):
        solver.solve(F, of.Particles(mu.points), 0.1)
    with pytest.raises(ValueError, match=r"Entropy\(\) is concave"):
        solver.solve(F + (-1.0) * of.Entropy(), mu, 0.1)
    with pytest.raises(ValueError, match="dt must be positive"):
        solver.solve(F, mu, 0.0)
    with pytest.raises(of.errors.NonFinite, match="start from a measure below"):
        solver.solve(F + of.Congestion(0.5), mu, 0.1)
    with pytest.raises(ValueError, match="start inside of the walls"):
        QuantileProximal(lower=0.5).solve(F, mu, 0.1)
    with pytest.raises(ValueError, match="start inside of the walls"):
        QuantileProximal(upper=0.5).solve(F, mu, 0.1)
    with pytest.raises(ValueError, match="mass 1 does not fit"):
        QuantileProximal(lower=0.0, upper=1.0).solve(F + of.Congestion(1.0), mu, 0.1)
    with pytest.raises(of.errors.InvalidFunctional, match="reduce over the last axis"):
        solver.solve(of.Potential(lambda x: x), mu, 0.1)
    with pytest.raises(of.errors.NonFinite, match="a ground function is nan"):
        solver.solve(of.Potential(lambda x: (-1 - x[:, 0]).log()), mu, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
        ({"lower": 1.0, "upper": 0.0}, "lower must be below upper"),
        ({"lower": math.nan}, "lower must be finite"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuantileProximal(**options)


# Attraction of finite range -----------------------------------------------------------


def attracted_droplet(strength, half=1.8, n=720):
    """Return energy and width at rest of int rho^2 - strength/2 iint exp(-|z|^2/2).

    At rest 2 rho = strength G * rho - lambda where that is positive: the centred cells
    of a grid, iterated to a fixed point.
    """
    h = 2 * half / n
    x = (np.arange(n) + 0.5) * h - half
    G = np.exp(-0.5 * (x[:, None] - x) ** 2)
    rho = np.exp(-(x**2)) / (np.exp(-(x**2)).sum() * h)
    for _ in range(3000):
        pull = 0.5 * strength * G @ rho * h
        ordered = np.sort(pull)[::-1]
        level = (ordered.cumsum() * h - 1) / (np.arange(1, n + 1) * h)
        new = np.maximum(pull - level[ordered > level][-1], 0.0)
        if np.abs(new - rho).max() < 1e-11:
            break
        rho = new
    energy = (rho**2).sum() * h - 0.5 * strength * rho @ G @ rho * h * h
    return energy, (rho > 0).sum() * h


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_derivatives_of_an_attraction_of_any_range(sigma, dense, monkeypatch):
    monkeypatch.setattr(quantile_objective, "DENSE", 1000 if dense else 0)
    q = torch.tensor([-4.0, -0.5, -0.48, -0.3, -0.29, 0.0, 0.2, 3.0]).double()
    F = of.PowerEntropy(2) + -3.0 * of.Interaction(of.kernels.Gaussian(sigma))
    problem = Objective(F, of.Quantiles(q), 0.3)
    at = problem.expand(q)
    for seed in range(3):
        v = 0.1 * normal(8, seed=seed)
        bend = derivative(
            lambda t, v=v: problem.expand(q + t * v).gradient, 1e-3 * sigma
        )
        assert at.product is not None
        found = at.band.times(v) + at.product(v)
        torch.testing.assert_close(found, bend, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.floats(-1.5, 1.5))
def test_the_modulus_of_a_kernel_holds_for_cells_of_any_width(seed, log_sigma):
    # Of the density, in the exact product, so in the lumped one, which is more.
    mu, sigma = make(9, seed=seed), 10.0**log_sigma
    W = of.kernels.Gaussian(sigma)
    masses = torch.diag(mu.lumped)
    times = Objective(of.Interaction(W), mu, 1.0).start.product
    assert times is not None
    hessian = torch.stack([times(e) for e in torch.eye(10, dtype=torch.float64)])
    least = torch.linalg.eigvalsh(hessian - W.modulus * masses).min()
    assert float(least) >= -1e-9 * (1 + sigma**-2)


@pytest.mark.parametrize("ends", [1.3, 4.0, 8.0])
def test_a_wide_end_cell_flows_back_under_an_attraction_of_finite_range(ends):
    # The far quantile feels no force there, but the mass of its cell does.
    F = of.PowerEntropy(2) + -3.0 * of.Interaction(of.kernels.Gaussian(1.0))
    masses, levels = graded_masses(16, 2.0)
    edges = 2.4 * (levels - 0.5)
    edges[0], edges[-1] = -ends, ends
    mu = of.Quantiles(edges, masses, normalize=True)
    for _ in range(40):
        result = QuantileProximal().solve(F, mu, dt=30.0)
        assert result.certificate["converged"]
        mu = result.measure
        if float(mu.norm(F.velocity(mu))) < 1e-8:
            break
    assert float(mu.norm(F.velocity(mu))) < 1e-8
    energy, width = attracted_droplet(3.0)
    assert energy == pytest.approx(-0.6868, abs=1e-4)
    assert float(F.value(mu)) == pytest.approx(energy, abs=4e-3)
    assert float(mu.edges[-1] - mu.edges[0]) == pytest.approx(width, abs=0.1)


@pytest.mark.parametrize("n", [5, *slow(2100)])
@pytest.mark.parametrize(
    "kernel",
    [
        of.kernels.Log(),
        of.kernels.Riesz(0.5),
        of.kernels.Riesz(0.9),
        of.kernels.PowerLaw(2, 0.5),
    ],
    ids=repr,
)
def test_second_derivatives_of_singular_kernels_hold_in_float32(kernel, n):
    found = []
    for dtype in (torch.float32, torch.float64):
        mu = line(-1.0, 1.0, n=n, dtype=dtype)
        problem = Objective(of.Interaction(kernel), mu, 0.1)
        v = (3 * problem.centre).sin()
        found.append(torch.stack([problem.start.gradient, problem.start.product(v)]))
    scale = float(found[1].abs().max())
    torch.testing.assert_close(*found, rtol=0, atol=2e-2 * scale)
