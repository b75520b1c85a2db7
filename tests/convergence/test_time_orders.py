"""Observed orders in dt of JKO(order=1, 2, 3) on each representation."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.analysis import observed_order
from tests import exact

T = 0.5
MEAN, VARIANCE = 1.0, 0.16


def fokker_planck():
    """Return |x|^2/2 + T entropy: an Ornstein-Uhlenbeck process."""
    return exact.quadratic(1.0) + T * of.Entropy()


def end(F, mu, scheme, dt, time=1.0):
    """Return the measure at a time; every inner solve has converged."""
    steps = round(time / dt)
    run = of.flow(F, mu, scheme, dt=dt, steps=steps, every=steps)
    assert all(info["converged"] for info in run.info)
    return run.final


# Where W2 is flat ---------------------------------------------------------------------


@pytest.mark.slow
def test_quantiles_under_fokker_planck():
    # n is fixed and the reference is the same system of ODEs, solved finely: what is
    # observed is the error in time alone.
    mu = of.Quantiles.from_quantile(
        lambda u: MEAN + math.sqrt(VARIANCE) * torch.special.ndtri(u),
        200,
        dtype=torch.float64,
    )
    F, steps = fokker_planck(), (0.05, 0.025, 0.0125)
    fine = end(F, mu, of.JKO(order=3), 1 / 200)
    for order in (1, 2, 3):
        errors = []
        for dt in steps:
            nu = end(F, mu, of.JKO(order=order), dt)
            errors.append(float(fine.norm(fine.displacement_to(nu))))
        assert observed_order(steps, errors) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gaussians_that_do_not_commute(order):
    A = torch.tensor([[2.0, -0.7], [-0.7, 1.0]], dtype=torch.float64)
    S = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    m = torch.tensor([1.0, -2.0], dtype=torch.float64)
    F = of.Potential(lambda x: 0.5 * ((x @ A) * x).sum(-1)) + T * of.Entropy()
    rest, E = T * torch.linalg.inv(A), torch.matrix_exp(-A)
    expected = of.Gaussian(E @ m, rest + E @ (S - rest) @ E)
    steps = (0.1, 0.05, 0.025)
    errors = []
    for dt in steps:
        nu = end(F, of.Gaussian(m, S), of.JKO(order=order), dt)
        errors.append(float(nu.norm(nu.displacement_to(expected))))
    assert observed_order(steps, errors) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("order", [2, 3])
def test_the_dyson_gas(order):
    n, c, steps = 10, 0.9, (0.1, 0.05, 0.025)
    solver = of.proximal.ParticleProximal(tolerance=1e-10)
    expected = exact.breathing(c, 1.0, kappa=1 / n) * exact.hermite_zeros(n)
    errors = []
    for dt in steps:
        scheme = of.JKO(solver, order=order)
        nu = end(exact.dyson(), exact.hermite(n, c), scheme, dt)
        errors.append(float((nu.points[:, 0] - expected).abs().max()))
    assert observed_order(steps, errors) == pytest.approx(order, abs=0.1)


# On fixed cells -----------------------------------------------------------------------


def grid_errors(F, mu, expected, steps, order, time):
    """Return L1 errors of densities on one grid, with an inner solve that is exact."""
    h = mu.box.spacing[0]
    solver = of.proximal.GridSinkhorn(eps=0.6 * h * h, tolerance=1e-9)
    scheme = of.JKO(solver, order=order)
    return [
        float((end(F, mu, scheme, dt, time).weights - expected).abs().sum())
        for dt in steps
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("order", "n"), [(1, 200), (2, 300)])
def test_a_grid_under_fokker_planck(order, n):
    def density(x, m, v):
        return torch.exp(-(x[:, 0] - m).square() / (2 * v))

    mu = of.GridDensity.from_function(
        lambda x: density(x, MEAN, VARIANCE), -4.0, 5.0, (n,), dtype=torch.float64
    )
    m, v = exact.ornstein_uhlenbeck(MEAN, VARIANCE, 1.0, lam=1.0, temperature=T)
    expected = density(mu.points, m, v)
    expected = expected / expected.sum()
    steps = (0.2, 0.1, 0.05)
    errors = grid_errors(fokker_planck(), mu, expected, steps, order, 1.0)
    assert observed_order(steps, errors) == pytest.approx(order, abs=0.1)
    if order == 2:
        assert errors[-1] < 3e-4


@pytest.mark.slow
def test_a_grid_under_the_porous_medium_equation():
    # Barenblatt's profile, m = 2: a parabola on [-r, r], with r^2 r' = 3. It has a
    # free boundary, and the trapezoidal rule keeps its order.
    def profile(x, r):
        return (1 - (x[:, 0] / r).square()).clamp_min(0) * 0.75 / r

    start, time = 0.5, 0.05
    mu = of.GridDensity.from_function(
        lambda x: profile(x, start), -1.5, 1.5, (300,), dtype=torch.float64
    )
    r = (start**3 + 9 * time) ** (1 / 3)
    expected = profile(mu.points, r) * mu.box.cell_volume
    steps = (0.0125, 0.00625, 0.003125)
    errors = grid_errors(of.PowerEntropy(2), mu, expected, steps, 2, time)
    assert observed_order(steps, errors) == pytest.approx(2, abs=0.1)
    assert errors[-1] < 4e-4


@pytest.mark.slow
def test_a_grid_in_the_plane():
    def density(x, m, v):
        return torch.exp(-((x - m).square() / (2 * v)).sum(-1))

    one = x_y(MEAN, -0.5), x_y(VARIANCE, 0.4)
    mu = of.GridDensity.from_function(
        lambda x: density(x, *one), -3.5, 3.5, (96, 96), dtype=torch.float64
    )
    moments = [
        exact.ornstein_uhlenbeck(m, v, 1.0, lam=1.0, temperature=T)
        for m, v in [(MEAN, VARIANCE), (-0.5, 0.4)]
    ]
    m, v = (x_y(*pair) for pair in zip(*moments, strict=True))
    expected = density(mu.points, m, v)
    expected = expected / expected.sum()
    steps = (0.25, 0.125, 0.0625)
    errors = grid_errors(fokker_planck(), mu, expected, steps, 2, 1.0)
    assert observed_order(steps, errors) == pytest.approx(2, abs=0.1)


def x_y(x, y):
    return torch.tensor([x, y], dtype=torch.float64)


# Entropy at the same cost: what the orders are worth ----------------------------------


def test_at_equal_cost_the_higher_order_wins():
    # Six proximal solves a unit of time, in two, three or six steps of it.
    F = fokker_planck()
    mu = of.Gaussian(x_y(1.0, 0.0), torch.diag(x_y(0.16, 2.0)))
    E = math.exp(-1.0)
    expected = of.Gaussian(
        E * mu.mean, torch.diag(T + E**2 * (mu.covariance.diagonal() - T))
    )
    errors = []
    for order in (1, 2, 3):
        nu = end(F, mu, of.JKO(order=order), order / 6)
        errors.append(float(nu.norm(nu.displacement_to(expected))))
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < errors[1]
