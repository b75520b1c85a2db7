"""Gaussian flows against exact solutions and exact JKO sequences: orders and rates."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq

import otflow as of
from otflow.analysis import exponential_rate, observed_order
from otflow.testing.clouds import normal
from tests import exact
from tests.marks import slow

STEPS = (0.1, 0.05, 0.025, 0.0125)
DIMENSIONS = [1, 2, 5]


def gaussian(d: int, seed: int = 0) -> of.Gaussian:
    """Return a Gaussian that depends on the seed alone."""
    return of.Gaussian(normal(d, seed=seed), exact.spd(d, seed=seed))


def law(mean, covariance) -> of.Gaussian:
    """Return N(mean, covariance)."""
    return of.Gaussian(mean, 0.5 * (covariance + covariance.T))


def distance(mu: of.Gaussian, nu: of.Gaussian) -> float:
    """Return W2."""
    return float(mu.norm(mu.displacement_to(nu)))


def end(F, mu, scheme, dt, time=1.0):
    """Return the measure at a time."""
    steps = round(time / dt)
    return of.flow(F, mu, scheme, dt=dt, steps=steps, every=steps).final


def order(F, mu, scheme, expected, steps=STEPS):
    """Return the observed order of the W2 error at time 1."""
    errors = [distance(end(F, mu, scheme, dt), expected) for dt in steps]
    return observed_order(steps, errors)


class ToTarget(of.Functional):
    """Half of the squared W2 distance to a Gaussian."""

    def __init__(self, target):
        self.target = target

    def value(self, mu):
        return 0.5 * of.metrics.wasserstein2_squared(mu, self.target)


class Fisher(of.Functional):
    """Fisher information, the integral of |grad log rho|^2: the trace of S^{-1}."""

    def value(self, mu):
        return torch.linalg.inv(mu.factor).square().sum()


# 1: the heat equation -----------------------------------------------------------------


@pytest.mark.parametrize("d", DIMENSIONS)
def test_heat(d):
    mu, F, eye = gaussian(d), of.Entropy(), torch.eye(d, dtype=torch.float64)
    expected = law(mu.mean, mu.covariance + 2 * eye)
    assert order(F, mu, of.JKO(), expected) == pytest.approx(1, abs=0.1)
    # Langevin has no error at all: it knows the heat flow.
    assert distance(end(F, mu, of.Langevin(), 0.25), expected) < 1e-12


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_heat_by_its_exact_jko_sequence(tau):
    # s+ = (s + sqrt(s^2 + 4 tau)) / 2 for each standard deviation.
    mu = of.Gaussian(
        torch.zeros(3).double(), torch.diag(torch.tensor([0.1, 1, 4])).double()
    )
    run = of.flow(of.Entropy(), mu, of.JKO(), dt=tau, steps=6)
    s = mu.covariance.diagonal().sqrt()
    for nu in run.snapshots:
        torch.testing.assert_close(nu.covariance, torch.diag(s**2), rtol=0, atol=1e-12)
        s = 0.5 * (s + (s**2 + 4 * tau).sqrt())


# 2: Fokker-Planck, Ornstein-Uhlenbeck -------------------------------------------------


def ornstein_uhlenbeck(d):
    """Return F, A and b, V = (x - b)' A (x - b) / 2 at temperature 0.7."""
    A, b = exact.spd(d, seed=3), normal(d, seed=9)
    return exact.quadratic_form(A, b) + 0.7 * of.Entropy(), A, b


@pytest.mark.parametrize("d", [1, *slow(*DIMENSIONS[1:])])
@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.Langevin(), of.JKO()])
def test_orders_on_fokker_planck(d, scheme):
    mu = gaussian(d)
    F, A, b = ornstein_uhlenbeck(d)
    expected = exact.fokker_planck(
        mu.mean, mu.covariance, 1.0, A=A, b=b, temperature=0.7
    )
    steps = tuple(dt / 2 for dt in STEPS)
    assert order(F, mu, scheme, law(*expected), steps) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("stated", [2, 3])
def test_higher_orders_where_covariance_and_hessian_do_not_commute(d, stated):
    mu = gaussian(d)
    F, A, b = ornstein_uhlenbeck(d)
    if d > 1:
        S = mu.covariance
        assert float((A @ S - S @ A).abs().max()) > 0.02
    expected = law(
        *exact.fokker_planck(mu.mean, mu.covariance, 1.0, A=A, b=b, temperature=0.7)
    )
    scheme = of.JKO(order=stated)
    assert scheme.order == stated
    assert order(F, mu, scheme, expected) == pytest.approx(stated, abs=0.1)


@pytest.mark.parametrize("d", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("tau", [0.05, 3.0])
def test_fokker_planck_by_its_exact_jko_sequence(d, tau):
    mu = gaussian(d)
    F, A, b = ornstein_uhlenbeck(d)
    run = of.flow(F, mu, of.JKO(), dt=tau, steps=5)
    for k, nu in enumerate(run.snapshots):
        mean, S = exact.fokker_planck_jko(
            mu.mean, mu.covariance, tau, k, A=A, b=b, temperature=0.7
        )
        torch.testing.assert_close(nu.mean, mean, rtol=0, atol=1e-11)
        torch.testing.assert_close(nu.covariance, S, rtol=0, atol=1e-11)
        energy = exact.fokker_planck_energy(mean, S, A=A, b=b, temperature=0.7)
        assert float(run.records["energy"][k]) == pytest.approx(energy, abs=1e-11)
    assert all(info["guarantee"] == "exact" for info in run.info)


def test_the_relative_entropy_and_the_distance_decay_at_the_rate_of_the_modulus():
    # Of the exact solution: KL <= e^{-2 lam t} KL_0 and W2 <= e^{-lam t} W2_0.
    d = 3
    mu = gaussian(d)
    F, A, b = ornstein_uhlenbeck(d)
    lam = float(torch.linalg.eigvalsh(A)[0])
    rest = law(*exact.fokker_planck_rest(A, b, 0.7))
    KL0, W0 = float(F.value(mu) - F.value(rest)), distance(mu, rest)
    times, distances = torch.arange(0.0, 6.0, 0.25, dtype=torch.float64), []
    for t in times.tolist():
        moments = exact.fokker_planck(
            mu.mean, mu.covariance, t, A=A, b=b, temperature=0.7
        )
        nu = law(*moments)
        distances.append(distance(nu, rest))
        assert (
            0
            < float(F.value(nu) - F.value(rest))
            <= KL0 * math.exp(-2 * lam * t) + 1e-12
        )
        assert distances[-1] <= W0 * math.exp(-lam * t) + 1e-12
    rate = exponential_rate(times[-6:], torch.tensor(distances[-6:]))
    assert rate == pytest.approx(lam, rel=0.05)


@pytest.mark.parametrize("d", [1, 3])
def test_the_a_posteriori_bound_on_the_error_in_time_holds(d):
    mu = gaussian(d)
    F, A, b = ornstein_uhlenbeck(d)
    run = of.flow(F, mu, of.JKO(), dt=0.05, steps=20)
    bound = run.time_error()
    for t, limit, nu in zip(
        run.times.tolist(), bound.tolist(), run.snapshots, strict=True
    ):
        moments = exact.fokker_planck(
            mu.mean, mu.covariance, t, A=A, b=b, temperature=0.7
        )
        error = distance(nu, law(*moments))
        assert error <= limit + 1e-12
    assert limit < 3 * error  # and it is not idle


# 3: rates of the JKO scheme -----------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_rates_of_the_scheme(tau):
    d, k = 3, 12
    mu = gaussian(d)
    F, A, b = ornstein_uhlenbeck(d)
    lam = float(torch.linalg.eigvalsh(A)[0])
    rest = law(*exact.fokker_planck_rest(A, b, 0.7))
    run = of.flow(
        F, mu, of.JKO(), dt=tau, steps=k, record={"W2": lambda m: distance(m, rest)}
    )
    W2, gap = run.records["W2"], run.records["energy"] - F.value(rest)
    for j in range(k + 1):
        factor = exact.decay_jko(lam, tau, j)
        assert float(W2[j]) <= factor * float(W2[0]) + 1e-12
        assert float(gap[j]) <= factor**2 * float(gap[0]) + 1e-12


def test_the_rates_are_sharp_along_the_flattest_axis():
    d, k, tau = 3, 6, 0.5
    F, A, b = ornstein_uhlenbeck(d)
    values, axes = torch.linalg.eigh(A)
    lam = float(values[0])
    rest = law(*exact.fokker_planck_rest(A, b, 0.7))
    mu = law(b + 2 * axes[:, 0], rest.covariance)
    run = of.flow(F, mu, of.JKO(), dt=tau, steps=k)
    for j, nu in enumerate(run.snapshots):
        factor = exact.decay_jko(lam, tau, j)
        assert distance(nu, rest) == pytest.approx(2 * factor, rel=1e-10)
        gap = float(run.records["energy"][j] - F.value(rest))
        assert gap == pytest.approx(0.5 * lam * 4 * factor**2, rel=1e-9)


# 11: an interaction and entropy -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("scheme", [of.ExplicitEuler(), of.Langevin(), of.JKO()])
def test_the_variance_of_an_attraction_with_noise(d, scheme):
    # theta |x|^2 / 2 and kappa H: S' = 2 kappa - 2 theta S, and the mean is conserved.
    mu, theta, kappa = gaussian(d), 1.3, 0.4
    F = theta * of.Interaction(of.kernels.Quadratic()) + kappa * of.Entropy()
    eye = torch.eye(d, dtype=torch.float64)
    rest = kappa / theta * eye
    S = rest + math.exp(-2 * theta) * (mu.covariance - rest)
    steps = tuple(dt / 2 for dt in STEPS)
    assert order(F, mu, scheme, law(mu.mean, S), steps) == pytest.approx(1, abs=0.1)
    dt = 0.05
    late = end(F, mu, scheme, dt, time=10.0)
    torch.testing.assert_close(late.mean, mu.mean, rtol=0, atol=1e-12)
    # Langevin's law at rest is kappa/theta / (1 - theta dt / 2).
    bias = 1 - theta * dt / 2 if isinstance(scheme, of.Langevin) else 1.0
    torch.testing.assert_close(late.covariance, rest / bias, rtol=0, atol=1e-8)


# 15: the flow of a distance is a geodesic ---------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, *slow(*DIMENSIONS[1:])])
def test_the_flow_to_a_target_is_the_geodesic(d):
    mu, target = gaussian(d, 1), gaussian(d, 2)
    F, W0 = ToTarget(target), distance(mu, target)
    u = mu.displacement_to(target)
    expected = mu.push(u, 1 - exact.decay(1.0, 1.0))
    assert distance(expected, target) == pytest.approx(W0 * math.exp(-1), rel=1e-12)
    steps = (0.05, 0.025, 0.0125)
    for scheme in (of.ExplicitEuler(), of.JKO()):
        assert order(F, mu, scheme, expected, steps) == pytest.approx(1, abs=0.1)
    # The scheme's own sequence stays on the geodesic.
    tau, solver = 0.4, of.proximal.GaussianProximal(tolerance=1e-11)
    run = of.flow(F, mu, of.JKO(solver), dt=tau, steps=6)
    for k, nu in enumerate(run.snapshots):
        factor = exact.decay_jko(1.0, tau, k)
        assert distance(nu, target) == pytest.approx(W0 * factor, rel=1e-9)
        assert distance(nu, mu.push(u, 1 - factor)) < 1e-9


# 18: Fisher information ---------------------------------------------------------------


@pytest.mark.slow
def test_fisher_information_on_the_line():
    # s^4 = s0^4 + 8 t; the JKO step is (s+ - s)/tau = 2 / s+^3.
    one = torch.ones(1, 1, dtype=torch.float64)
    mu, expected = law(0 * one[0], 0.49 * one), math.sqrt(0.49**2 + 8) * one
    steps = (0.02, 0.01, 0.005)
    found = order(Fisher(), mu, of.JKO(), law(mu.mean, expected), steps)
    assert found == pytest.approx(1, abs=0.1)
    s, tau = 0.7, 0.3
    run = of.flow(Fisher(), mu, of.JKO(), dt=tau, steps=4)
    for nu in run.snapshots:
        assert float(nu.covariance) == pytest.approx(s**2, rel=1e-9)
        s = brentq(lambda r, s=s: (r - s) / tau - 2 / r**3, s, 99, xtol=1e-14)
