"""The JKO step on Gaussians: closed forms, independent solvers, and its own word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, root

import otflow as of
from otflow.proximal import GaussianProximal
from otflow.proximal.gaussian.maps import OptimalMaps, entropy_gradient, entropy_hessian
from otflow.testing.clouds import assert_untouched, normal, state
from otflow.testing.differences import derivative
from tests import exact

DIMENSIONS = [1, 2, 3, 5, 8, 16, 32]


def gaussian(d: int, seed: int = 0, dtype=torch.float64, **options) -> of.Gaussian:
    """Return a Gaussian that depends on the seed alone."""
    mean, S = normal(d, seed=seed), exact.spd(d, seed=seed)
    return of.Gaussian(mean.to(dtype), S.to(dtype), **options)


def distance(mu: of.Gaussian, nu: of.Gaussian) -> float:
    """Return W2."""
    return float(mu.norm(mu.displacement_to(nu)))


def on_the_rule_of(nu, mu):
    """Return mu on the nodes of nu, which may be those of a finer rule."""
    if nu.n == mu.n:
        return mu
    return mu.refined(nu.n if mu.dim > 3 else round(nu.n ** (1 / mu.dim)))


def step(F, mu, dt, **options):
    """Return the proximal step, its certificate checked for what always holds."""
    result = GaussianProximal(**options).solve(F, mu, dt)
    report, nu = result.certificate, result.measure
    assert report["converged"]
    assert report["nodes"] == nu.n
    before = float(F.value(on_the_rule_of(nu, mu)))
    assert report["energy_before"] == pytest.approx(before, rel=1e-12)
    assert report["energy_after"] == pytest.approx(float(F.value(nu)), rel=1e-12)
    assert report["w2"] == pytest.approx(distance(mu, nu), rel=1e-6, abs=1e-12)
    assert report["decrease"] >= -1e-12
    return result


class ToTarget(of.Functional):
    """Half of the squared W2 distance to a Gaussian."""

    def __init__(self, target):
        self.target = target

    def value(self, mu):
        nu = self.target
        cross = torch.linalg.svdvals(nu.factor.T @ mu.factor).sum()
        squares = mu.factor.square().sum() + nu.factor.square().sum()
        return 0.5 * ((mu.mean - nu.mean).square().sum() + squares - 2 * cross)


# Closed forms -------------------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("commuting", [True, False])
@pytest.mark.parametrize("dt", [0.05, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_quadratic_potential_and_entropy(d, commuting, dt, temperature):
    mu, b = gaussian(d), normal(d, seed=9)
    A = exact.spd(d, seed=3)
    if commuting:
        A = torch.linalg.inv(mu.covariance) + 0.3 * torch.eye(d).double()
        A = 0.5 * (A + A.T)
    elif d > 1:
        S = mu.covariance
        assert float((A @ S - S @ A).abs().max()) > 0.01
    F = exact.quadratic_form(A, b) + temperature * of.Entropy()
    result = step(F, mu, dt)
    mean, S = exact.fokker_planck_jko(
        mu.mean, mu.covariance, dt, A=A, b=b, temperature=temperature
    )
    nu = result.measure
    torch.testing.assert_close(nu.mean, mean, rtol=0, atol=1e-11)
    torch.testing.assert_close(nu.covariance, S, rtol=0, atol=1e-11)
    assert result.certificate["guarantee"] == "exact"
    assert result.certificate["certified"]
    assert result.certificate["bound"] < 1e-11
    assert result.iterations <= 3
    # The optimality condition S = C S' C, which no closed form was used to state.
    eye = torch.eye(d, dtype=torch.float64)
    C = eye + dt * (A - temperature * torch.linalg.inv(nu.covariance))
    torch.testing.assert_close(C @ nu.covariance @ C, mu.covariance, rtol=0, atol=1e-11)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_the_step_is_that_of_an_independent_root_finder(d):
    mu, dt, kappa = gaussian(d), 0.5, 0.7
    A, b = exact.spd(d, seed=3), normal(d, seed=9)
    S0, eye = mu.covariance.numpy(), np.eye(d)
    upper = np.triu_indices(d)

    def equation(entries):
        S = np.zeros((d, d))
        S[upper] = entries
        S = S + S.T - np.diag(S.diagonal())
        C = eye + dt * (A.numpy() - kappa * np.linalg.inv(S))
        return (C @ S @ C - S0)[upper]

    solved = root(equation, S0[upper], tol=1e-14)
    found = step(exact.quadratic_form(A, b) + kappa * of.Entropy(), mu, dt).measure
    np.testing.assert_allclose(found.covariance.numpy()[upper], solved.x, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_the_same_step_by_newton_alone(d, monkeypatch):
    # Without the quadratic model, and with the entropy inside the rest.
    mu, dt, kappa = gaussian(d), 0.5, 0.7
    A, b = exact.spd(d, seed=3), normal(d, seed=9)
    F = exact.quadratic_form(A, b) + kappa * of.Entropy()
    expected = step(F, mu, dt).measure
    monkeypatch.setattr(OptimalMaps, "quadratic_step", lambda *_: None)
    found = step(F, mu, dt, tolerance=1e-11)
    assert distance(expected, found.measure) < 1e-10

    class Opaque(of.Functional):
        value = staticmethod(F.value)

    found = step(Opaque(), mu, dt, tolerance=1e-11)
    assert distance(expected, found.measure) < 1e-10
    assert found.certificate["guarantee"] == "stationary"  # no modulus is known


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
def test_flat_covariances(condition):
    d, dt = 4, 0.1
    axes = torch.linalg.qr(normal(d, d, seed=4))[0]
    spread = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    S = axes * spread @ axes.T
    mu = of.Gaussian(normal(d), 0.5 * (S + S.T))
    A, b = exact.spd(d, seed=3), normal(d, seed=9)
    F = exact.quadratic_form(A, b) + of.Entropy()
    nu = step(F, mu, dt).measure
    mean, S = exact.fokker_planck_jko(mu.mean, mu.covariance, dt, A=A, b=b)
    torch.testing.assert_close(nu.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(nu.covariance, S, rtol=0, atol=1e-9)


@pytest.mark.parametrize("d", [1, 3, 6])
def test_a_quadratic_interaction_with_entropy(d):
    # The mean stays; the spread is that of the potential theta |x - mean|^2 / 2.
    mu, theta, kappa, dt = gaussian(d), 1.3, 0.7, 0.4
    F = theta * of.Interaction(of.kernels.Quadratic()) + kappa * of.Entropy()
    nu = step(F, mu, dt).measure
    A = theta * torch.eye(d, dtype=torch.float64)
    _, S = exact.fokker_planck_jko(
        mu.mean, mu.covariance, dt, A=A, b=mu.mean, temperature=kappa
    )
    torch.testing.assert_close(nu.mean, mu.mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(nu.covariance, S, rtol=0, atol=1e-11)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.1, 1.0, 30.0])
def test_half_the_squared_distance_to_a_target(d, tau):
    # The step is the point of the geodesic at time tau / (1 + tau).
    mu, target = gaussian(d, 1), gaussian(d, 2)
    nu = step(ToTarget(target), mu, tau, tolerance=1e-11).measure
    expected = mu.push(mu.displacement_to(target), tau / (1 + tau))
    assert distance(expected, nu) < 1e-10
    left = distance(mu, target) * exact.decay_jko(1.0, tau, 1)
    assert distance(nu, target) == pytest.approx(left, rel=1e-10)


@pytest.mark.parametrize("m", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("tau", [0.05, 2.0])
def test_a_power_of_the_density_on_the_line(m, tau):
    # F = c s^{1-m}/(m-1) for the standard deviation s, so (s+ - s)/tau = c s+^{-m}.
    mu = of.Gaussian(np.array([0.4]), np.array([[0.25]]))
    c = (2 * math.pi) ** ((1 - m) / 2) * m**-0.5
    expected = brentq(lambda s: (s - 0.5) / tau - c * s**-m, 0.5, 50, xtol=1e-14)
    result = step(of.PowerEntropy(m), mu, tau, tolerance=1e-11)
    found = float(result.measure.covariance.sqrt())
    assert found == pytest.approx(expected, abs=1e-10)
    assert float(result.measure.mean) == pytest.approx(0.4, abs=1e-15)
    assert result.certificate["guarantee"] == "exact"


# Other energies -----------------------------------------------------------------------


def double_well(x):
    return 0.25 * (x.square() - 1).square().sum(-1)


def quartic(x):
    return 0.25 * x.square().sum(-1).square()


CASES = {
    "double well": of.Potential(double_well),
    "double well and entropy": of.Potential(double_well) + 0.5 * of.Entropy(),
    "quartic and entropy": of.Potential(quartic, modulus=0.0) + of.Entropy(),
    "repulsion": of.Potential(quartic, modulus=0.0)
    + of.Interaction(of.kernels.Gaussian(1.0)),
    "porous medium": of.PowerEntropy(2.0) + of.Potential(quartic, modulus=0.0),
    "relative entropy": of.KL(quartic, modulus=0.0),
    "moment": of.OfExpectation(lambda m: m.square().sum(), lambda x: x.sin()),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("dt", [0.1, 5.0])
def test_no_law_nearby_does_better(name, d, dt):
    F, mu = CASES[name], gaussian(d)
    result = step(F, mu, dt)
    nu = result.measure
    mu = on_the_rule_of(nu, mu)
    assert result.certificate["map_optimal"]
    assert result.certificate["guarantee"] in ("exact", "stationary")

    def objective(law):
        return float(F.value(law)) + distance(mu, law) ** 2 / (2 * dt)

    least = objective(nu)
    for seed in range(6):
        for size in (1e-3, 1e-2):
            t = normal(1 + d, d, seed=seed)
            # By an optimal map from mu: the quadrature sees turned nodes.
            t = torch.cat([t[:1], mu.factor.T @ (t[1:] + t[1:].T)])
            other = mu.push(mu.displacement_to(nu) + size * t, 1.0)
            assert objective(other) > least - 1e-12


@pytest.mark.parametrize("name", ["quartic and entropy", "relative entropy"])
def test_the_bound_holds(name):
    F, mu, dt = CASES[name], gaussian(3), 0.7
    best = step(F, mu, dt, tolerance=1e-12).measure
    errors = []
    for tolerance in (0.3, 1e-2, 1e-4):
        result = step(F, mu, dt, tolerance=tolerance)
        errors.append(distance(best, result.measure))
        assert errors[-1] <= result.certificate["bound"] * (1 + 1e-6) + 1e-12
        assert result.certificate["guarantee"] == "exact"
    assert errors[0] > errors[-1] > 0  # it had something to bound


def test_a_step_that_ran_out_of_budget_says_so():
    mu = gaussian(3)
    result = GaussianProximal(max_gradients=2).solve(CASES["double well"], mu, 5.0)
    report = result.certificate
    assert not report["converged"]
    assert report["guarantee"] == "none"
    assert not report["certified"]
    assert report["energy_after"] <= report["energy_before"]
    assert result.residual > 1e-9


def test_huge_steps_and_many_nonconvex_starts_converge():
    F = of.Potential(double_well)
    for seed in range(5):
        for dt in (3.0, 100.0):
            result = step(F, gaussian(2, seed), dt)
            assert result.certificate["guarantee"] == "stationary"


@pytest.mark.parametrize("dt", [1.0, 1e3, 1e9])
def test_at_rest_a_step_stops_at_round_off(dt):
    # Terms that cancel leave a gradient that no step can make smaller.
    F = CASES["repulsion"] + 0.1 * of.Entropy()
    run = of.flow(F, gaussian(2), of.JKO(), dt=dt, steps=5 if dt > 1 else 40)
    assert all(info["converged"] for info in run.info)
    assert max(info["iterations"] for info in run.info) < 60
    assert run.info[-1]["iterations"] <= 20
    assert run.info[-1]["w2"] < 1e-6


def test_float32_is_as_good_as_it_can_be():
    mu, A, b = gaussian(4, dtype=torch.float32), exact.spd(4, seed=3), normal(4, seed=9)
    F = exact.quadratic_form(A, b.float()) + of.Entropy()
    result = GaussianProximal().solve(F, mu, 0.5)
    mean, S = exact.fokker_planck_jko(
        mu.mean.double(), mu.covariance.double(), 0.5, A=A, b=b
    )
    assert result.certificate["converged"]
    assert result.measure.dtype == torch.float32
    torch.testing.assert_close(result.measure.mean.double(), mean, rtol=0, atol=2e-6)
    torch.testing.assert_close(result.measure.covariance.double(), S, rtol=0, atol=5e-6)


UNIT = 2.0**20


def steep(x: torch.Tensor) -> torch.Tensor:
    return 0.25 * UNIT**2 * (x / UNIT + 16).pow(4).sum(-1)


def test_round_off_is_that_of_the_accepted_points():
    # The first trial steps of long steps on a steep potential land far away, where F
    # and its gradient are huge. Their round-off must not pass for that of the step.
    F = of.Potential(steep, modulus=0.0)
    ends = []
    for dtype in (torch.float32, torch.float64):
        mean = UNIT * torch.tensor([-17.75, -16.5], dtype=dtype)
        root = UNIT * torch.tensor([0.0625, 0.0625], dtype=dtype)
        mu = of.Gaussian(mean, torch.diag(root.square()))
        ends.append(of.proximal.GaussianProximal().solve(F, mu, 44.0))
    coarse, fine = (result.certificate for result in ends)
    assert fine.converged
    off = of.metrics.wasserstein2(
        of.Gaussian(ends[0].measure.mean.double(), ends[0].measure.covariance.double()),
        ends[1].measure,
    )
    assert off < 2e-3 * fine["w2"]
    assert coarse["noise"] < 1e-3 * coarse["energy_before"]
    assert coarse.certified
    assert float(off) <= coarse["bound"] < 0.1 * fine["w2"]


def test_a_solve_is_pure_and_warm_is_immaterial():
    F, mu = CASES["quartic and entropy"], gaussian(2)
    before = state(mu)
    solver = GaussianProximal()
    one = solver.solve(F, mu, 0.3)
    two = solver.solve(F, mu, 0.3, warm=one.warm)
    assert torch.equal(one.measure.points, two.measure.points)
    assert_untouched(mu, before)
    assert GaussianProximal.flat


# Coordinates of the maps --------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 6])
def test_coordinates_are_an_isometry_onto_symmetric_maps(d):
    mu = gaussian(d)
    maps = OptimalMaps(mu.push(normal(1 + d, d, seed=2), 0.3).factor)
    assert maps.degrees == d + d * (d + 1) // 2
    c, t = normal(1 + d, d, seed=3), normal(1 + d, d, seed=4)
    c[1:] = 0.5 * (c[1:] + c[1:].T)
    u = maps.tangent(c)
    torch.testing.assert_close((u * u).sum(), (c * c).sum())
    torch.testing.assert_close(maps.project(u), c)
    torch.testing.assert_close((u * t).sum(), (c * maps.project(t)).sum())
    B = torch.linalg.solve(maps.factor.T, u[1:])
    torch.testing.assert_close(B, B.T, rtol=0, atol=1e-11)
    least = float(torch.linalg.eigvalsh(0.5 * (B + B.T))[0])
    assert maps.is_optimal(c * (0.99 / abs(least)))
    if least < 0:
        assert not maps.is_optimal(c * (1.01 / abs(least)))


def test_derivatives_of_the_entropy():
    mu, t, u = gaussian(3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    value = lambda h: of.Entropy().value(mu.push(t, h))
    found = mu.inner(entropy_gradient(mu.factor), t)
    torch.testing.assert_close(found, derivative(value), rtol=1e-9, atol=1e-9)
    slope = lambda h: mu.inner(entropy_gradient(mu.push(t, h).factor), u)
    found = mu.inner(entropy_hessian(mu.factor, t), u)
    torch.testing.assert_close(found, derivative(slope), rtol=1e-8, atol=1e-8)


# Refusals -----------------------------------------------------------------------------


def test_what_it_cannot_do_is_refused_with_the_cure():
    mu, F = gaussian(2), of.Potential(double_well)
    solver = GaussianProximal()
    with pytest.raises(of.errors.Unsupported, match="needs Quantiles or a GridDensity"):
        solver.solve(F + of.Congestion(1.0), mu, 0.1)
    with pytest.raises(ValueError, match="all mass would collapse"):
        solver.solve(F + -1.0 * of.Entropy(), mu, 0.1)
    with pytest.raises(of.errors.Unsupported, match="steps a Gaussian, got Particles"):
        solver.solve(F, of.Particles(mu.points), 0.1)
    with pytest.raises(of.errors.Unsupported, match="infinite at 0"):
        solver.solve(of.Interaction(of.kernels.Log()), mu, 0.1)
    with pytest.raises(TypeError, match="F must be a Functional"):
        solver.solve(double_well, mu, 0.1)
    with pytest.raises(ValueError, match="dt must be positive"):
        solver.solve(F, mu, 0.0)
    for options in ({"tolerance": 0.0}, {"max_gradients": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            GaussianProximal(**options)
    assert type(of.proximal.default_solver(mu)) is GaussianProximal
