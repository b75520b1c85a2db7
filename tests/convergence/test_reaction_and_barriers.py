"""Fisher-Rao flows, their sum with transport, and the slow rate across a barrier."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import eigh_tridiagonal

import otflow as of
from otflow.analysis import observed_order

KL = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)


def bell(mean, sigma, n=240, reach=7.0):
    """Return a Gaussian on a grid of the line."""
    return of.GridDensity.from_function(
        lambda x: (-0.5 * ((x[:, 0] - mean) / sigma).square()).exp(),
        -reach,
        reach,
        n,
        dtype=torch.float64,
    )


def moments(mu):
    """Return mean and variance."""
    mean = mu.expectation(lambda x: x[:, 0])
    return float(mean), float(mu.expectation(lambda x: (x[:, 0] - mean).square()))


# Fisher-Rao ---------------------------------------------------------------------------


def geometric(mu, share):
    """Return masses in proportion to mu^share pi^(1 - share), pi the target of KL."""
    x = mu.points[:, 0]
    log = share * mu.weights.log() - (1 - share) * 0.5 * x.square()
    return torch.softmax(log, 0)


def test_birth_death_under_relative_entropy_follows_the_geometric_path():
    # log(rho/pi) decays exponentially; the scheme multiplies it by 1 - dt, exactly.
    mu, dt, steps = bell(1.0, 0.7, reach=5.0), 0.1, 12
    run = of.flow(KL, mu, of.BirthDeath(), dt=dt, steps=steps)
    expected = geometric(mu, (1 - dt) ** steps)
    torch.testing.assert_close(run.final.weights, expected, rtol=1e-10, atol=0)


def test_it_is_of_first_order_in_time():
    mu, errors = bell(1.0, 0.7, reach=5.0), []
    steps = (10, 20, 40)
    for k in steps:
        run = of.flow(KL, mu, of.BirthDeath(), dt=1 / k, steps=k)
        gap = run.final.weights - geometric(mu, math.exp(-1))
        errors.append(float(gap.abs().sum()))
    assert observed_order([1 / k for k in steps], errors) == pytest.approx(1, abs=0.1)


def test_transport_and_reaction_together():
    # Gaussians stay Gaussian: m' = -m (1 + s), s' = 2 (1 - s) + s (1 - s), s the
    # variance; the second terms come from the geometric path, 1/s -> 1.
    mean, sigma, end = 1.0, 0.6, 0.5
    exact = solve_ivp(
        lambda _, y: [-y[0] * (1 + y[1]), (1 - y[1]) * (2 + y[1])],
        (0, end),
        [mean, sigma**2],
        rtol=1e-11,
        atol=1e-13,
    ).y[:, -1]
    scheme, steps, errors = of.chain(of.JKO(), of.BirthDeath()), (8, 16, 32), []
    for k in steps:
        run = of.flow(KL, bell(mean, sigma), scheme, dt=end / k, steps=k)
        found = moments(run.final)
        errors.append(math.dist(found, exact))
    order = observed_order([end / k for k in steps], errors)
    assert order == pytest.approx(1, abs=0.1)


# Barriers -----------------------------------------------------------------------------

WELLS = of.Potential(lambda x: (x[..., 0].square() - 1).square())
"""Wells at -1 and 1 and a barrier of height 1; curvatures 8 and -4."""


def slowest_rate(temperature, n=4000, reach=2.5):
    """Return the first eigenvalue of the generator, by finite differences.

    In the coordinate sqrt(pi) it is a symmetric tridiagonal matrix.
    """
    h = 2 * reach / n
    x = -reach + h * (np.arange(n) + 0.5)
    half_log = -((x**2 - 1) ** 2) / (2 * temperature)
    up = np.exp(np.diff(half_log))  # sqrt(pi_{i+1} / pi_i)
    rate = temperature / h**2
    diagonal = np.zeros(n)
    diagonal[:-1] += rate * up
    diagonal[1:] += rate / up
    values = eigh_tridiagonal(
        diagonal, np.full(n - 1, -rate), select="i", select_range=(0, 1)
    )[0]
    assert abs(values[0]) < 1e-6
    return values[1]


def kramers(temperature):
    """Return the rate of Kramers' formula."""
    return math.sqrt(4 * 8) / math.pi * math.exp(-1 / temperature)


def test_the_formula_of_kramers_holds_for_high_barriers():
    ratios = [slowest_rate(T) / kramers(T) for T in (0.3, 0.15, 0.08)]
    assert ratios == sorted(ratios) or ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(1, abs=0.05)


def tilted(temperature):
    """Return the equilibrium times 1 + x/10, up to a factor."""
    return lambda x: (1 + 0.1 * x[:, 0]) * torch.exp(-WELLS.V(x) / temperature)


STARTS = {
    "quantiles": lambda f: of.Quantiles.from_function(
        f, -2.2, 2.2, n=400, grading=2, dtype=torch.float64
    ),
    "grid": lambda f: of.GridDensity.from_function(
        f, -2.2, 2.2, 240, dtype=torch.float64
    ),
}


@pytest.mark.parametrize("kind", STARTS)
def test_mass_crosses_a_barrier_at_the_slowest_rate(kind):
    temperature, dt = 0.3, 0.5
    F = WELLS + temperature * of.Entropy()
    run = of.flow(
        F,
        STARTS[kind](tilted(temperature)),
        of.JKO(),
        dt=dt,
        steps=10,
        record={"mean": lambda mu: mu.expectation(lambda x: x[:, 0])},
    )
    assert all(step["converged"] for step in run.info)
    mean = run.records["mean"]
    # Near the equilibrium a JKO step divides the slow mode by 1 + dt lambda.
    found = (float(mean[-2] / mean[-1]) - 1) / dt
    assert found == pytest.approx(slowest_rate(temperature), rel=0.02)
