"""The noisy flow of a network: free energy, Gibbs law, bias of N and of dt."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.meanfield import free_energy
from otflow.schemes import MALA, Minibatch, UnderdampedLangevin
from otflow.testing.clouds import normal
from tests.optimality.test_gibbs import bump, network

F64 = torch.float64


def linear_quadratic(k=3.0, m=2.0, lam=0.5, beta=2.0):
    """Return k/2 (E theta - m)^2 + lam/2 E theta^2 + Entropy/beta as a network's."""
    layer = of.meanfield.CustomLayer(lambda x, theta: theta[:, 0].expand(len(x), -1))
    one = torch.ones(1, 1, dtype=F64)
    risk = k * of.meanfield.Risk(layer, one, m * one[:, 0])
    return free_energy(risk, 1 / beta, lam)


# The sum ------------------------------------------------------------------------------


def test_the_free_energy_is_the_sum_of_its_parts():
    risk, rho = network(), bump()
    F = free_energy(risk, temperature=0.05, ridge=0.3)
    theta = rho.expectation(lambda x: x.square().sum(-1))
    expected = risk.value(rho) + 0.15 * theta + 0.05 * of.Entropy().value(rho)
    torch.testing.assert_close(F.value(rho), expected, rtol=1e-13, atol=0)
    assert F.split_entropy()[0] == 0.05
    assert F.mixture_convex
    assert free_energy(risk, 0.0) is risk


@pytest.mark.parametrize("name", ["temperature", "ridge"])
@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_a_negative_temperature_or_ridge_raises(name, value):
    numbers = {"temperature": 0.1, "ridge": 0.1, name: value}
    with pytest.raises(ValueError, match=name):
        free_energy(network(), **numbers)


# The Gibbs law ------------------------------------------------------------------------


@pytest.mark.slow
def test_particles_under_noise_come_to_the_gibbs_law_of_the_network():
    # Theorem 3.7 by particles: their distance is that of so many draws.
    F, n = free_energy(network(), 0.05, 0.05), 1000
    best = of.optimality.gibbs(F, bump(cells=400)).measure
    second = float(best.expectation(lambda x: x.square().sum(-1)))
    mu = of.Particles(normal(n, 1))
    run = of.flow(
        F, mu, of.Langevin(), dt=0.02, steps=2500, every=5, generator=0,
        snapshots="last", record={"second": lambda nu: nu.points.square().mean()},
    )  # fmt: skip
    late = run.times > 20
    assert float(run.records["second"][late].mean()) == pytest.approx(second, rel=0.03)
    quantiles = (torch.arange(n, dtype=F64) + 0.5) / n
    edges = best.weights.cumsum(0)
    places = best.points[torch.searchsorted(edges, quantiles).clamp(max=399), 0]
    found = run.final.points[:, 0].sort().values
    assert float((found - places).abs().mean()) < 0.12


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", [of.Langevin(), UnderdampedLangevin(1.0)], ids=["overdamped", "kinetic"]
)
def test_minibatches_come_to_the_same_law_up_to_their_noise(scheme):
    X = torch.linspace(-2, 2, 64, dtype=F64)[:, None]
    layer = of.meanfield.CustomLayer(lambda x, theta: torch.tanh(x @ theta.T))
    y = torch.sin(1.5 * X[:, 0])
    F, G = (
        free_energy(of.meanfield.Risk(layer, X, y, batch_size=size), 0.05, 0.05)
        for size in (None, 16)
    )
    best = of.optimality.gibbs(F, bump(cells=300)).measure
    second = float(best.expectation(lambda x: x.square().sum(-1)))
    run = of.flow(
        G, of.Particles(normal(500, 1)), Minibatch(scheme), dt=0.05, steps=2000,
        every=5, snapshots="none", generator=0,
        record={"second": lambda nu: nu.points.square().mean()},
    )  # fmt: skip
    late = run.times > 30
    assert float(run.records["second"][late].mean()) == pytest.approx(second, rel=0.05)


def test_the_free_energy_falls_along_the_grid_flow_and_keeps_the_mass():
    F, rho = free_energy(network(), 0.05, 0.05), bump(0.5, cells=80, side=6.0)
    run = of.flow(F, rho, of.JKO(), dt=1.0, steps=20)
    assert bool((run.records["energy"].diff() < 0).all())
    assert float(run.final.weights.sum()) == pytest.approx(1.0, abs=1e-12)


# N particles --------------------------------------------------------------------------


def squared_error(N, *, h, steps, replicas, scheme):
    """Return N times the mean squared error of the mean at rest, by equal blocks.

    One flow holds independent systems of N particles, as coordinates.
    """
    k, m, lam, beta = 3.0, 2.0, 0.5, 2.0

    class Systems(of.Functional):
        def value(self, mu):
            mean = mu.expectation(lambda x: x)
            ridge = mu.expectation(lambda x: x.square().sum(-1))
            return 0.5 * k * (mean - m).square().sum() + 0.5 * lam * ridge

    rest = k * m / (k + lam)
    mu = of.Particles(rest + normal(N, replicas))
    run = of.flow(
        Systems() + (1 / beta) * of.Entropy(), mu, scheme, dt=h, steps=steps, every=10,
        snapshots="none", generator=N,
        record={"error": lambda nu: (nu.points.mean(0) - rest).square().mean()},
    )  # fmt: skip
    late = run.times > 3.0
    return N * float(run.records["error"][late].mean())


@pytest.mark.slow
@pytest.mark.parametrize("N", [10, 40, 160])
def test_the_error_of_the_mean_is_one_over_n_at_all_times(N):
    # N E (mean - m*)^2 = T / (k + lam), and Euler's step divides by 1 - h (k + lam)/2.
    h, slope, temperature = 0.02, 3.5, 0.5
    found = squared_error(N, h=h, steps=1500, replicas=200, scheme=of.Langevin())
    expected = temperature / slope / (1 - h * slope / 2)
    assert expected == pytest.approx(0.148, abs=5e-4)
    assert found == pytest.approx(expected, rel=0.03)


def test_with_velocities_the_error_of_the_mean_has_no_bias_of_dt():
    scheme = UnderdampedLangevin(1.5)
    found = squared_error(40, h=0.6, steps=1500, replicas=200, scheme=scheme)
    assert found == pytest.approx(1 / 7, rel=0.03)
    # Euler's would be off by this factor.
    assert 1 / (1 - 0.3 * 3.5) < 0


# A barrier ----------------------------------------------------------------------------


def crossing_time(beta, n=400):
    """Return the mean time after which particles first reach the other well."""
    V = lambda x: (x.square() - 1).square().sum(-1)
    F = of.Potential(V) + (1 / beta) * of.Entropy()
    start = of.Particles(torch.full((n, 1), -1.0, dtype=F64))
    first = torch.full((n,), math.inf, dtype=F64)

    def watch(event):
        new = (event.step.measure.points[:, 0] > 0.8) & torch.isinf(first)
        first[new] = event.time
        return bool(torch.isfinite(first).all())

    of.flow(
        F, start, of.Langevin(), dt=0.02, steps=60_000, every=60_000, generator=0,
        on_step=watch,
    )  # fmt: skip
    return float(first.mean())


def exact_crossing_time(beta):
    """Return beta int_{-1}^{0.8} e^(beta V(y)) int_{-inf}^y e^(-beta V(z)) dz dy."""
    x = torch.linspace(-3, 0.8, 20_001, dtype=F64)
    V = (x.square() - 1).square()
    inner = torch.cumulative_trapezoid((-beta * V).exp(), x)
    outer = (beta * V[1:]).exp() * inner
    inside = x[1:] >= -1
    return beta * float(torch.trapezoid(outer[inside], x[1:][inside]))


@pytest.mark.slow
def test_the_time_over_a_barrier_is_exponential_in_beta():
    # The barrier is 1 high. At this dt the discrete process misses some crossings of
    # 0.8, and so is a little late.
    betas = (2.0, 3.0, 4.0)
    found = [crossing_time(beta) for beta in betas]
    for time, beta in zip(found, betas, strict=True):
        assert time == pytest.approx(exact_crossing_time(beta), rel=0.2)
    slope = -of.analysis.exponential_rate(betas, found)
    assert 0.7 < slope < 1.1


def test_mala_needs_a_fixed_density_so_that_a_network_raises():
    with pytest.raises(of.errors.Unsupported, match="linear"):
        of.flow(linear_quadratic(), bump_of_particles(), MALA(), dt=0.1, steps=1)


def bump_of_particles():
    return of.Particles(normal(20, 1))
