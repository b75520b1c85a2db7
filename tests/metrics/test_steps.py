"""W2 between two step densities on the line, against closed forms."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import wasserstein2, wasserstein2_squared
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative


def make(seed, n=8):
    gaps, masses = normal(n + 1, seed=seed).exp(), normal(n, seed=seed + 50).exp()
    return of.Quantiles(gaps.cumsum(0) - 5.0, masses, normalize=True)


def test_a_translation_and_a_dilation():
    mu = make(0)
    moved = of.Quantiles(mu.edges + 1.5, mu.weights)
    assert float(wasserstein2(mu, moved)) == pytest.approx(1.5, rel=1e-14)
    one = of.Quantiles(torch.tensor([0.0, 1.0], dtype=torch.float64))
    two = of.Quantiles(torch.tensor([0.0, 3.0], dtype=torch.float64))
    # Of the uniform laws on [0, 1] and [0, 3]: int (2 s)^2 ds = 4/3.
    assert float(wasserstein2_squared(one, two)) == pytest.approx(4 / 3, rel=1e-14)


def test_masses_may_differ():
    # The same density in two cells and in one.
    one = of.Quantiles(torch.tensor([0.0, 2.0], dtype=torch.float64))
    masses = torch.tensor([0.25, 0.75], dtype=torch.float64)
    two = of.Quantiles(torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), masses)
    assert float(wasserstein2(one, two)) == pytest.approx(0, abs=1e-15)
    mu, nu = make(1, 5), make(2, 9)
    s = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000

    def quantile(mu):
        levels = torch.cat([torch.zeros(1, dtype=torch.float64), mu.weights.cumsum(0)])
        k = (torch.searchsorted(levels, s) - 1).clamp(0, mu.n - 1)
        return mu.edges[k] + (s - levels[k]) / mu.density()[k]

    expected = (quantile(mu) - quantile(nu)).square().mean()
    found = wasserstein2_squared(mu, nu)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(wasserstein2_squared(nu, mu), found)


def test_it_is_a_functional_with_a_gradient():
    mu, nu = make(3), make(4, 6)
    v = normal(mu.n + 1, 1, seed=5)
    value = lambda m: wasserstein2_squared(m, nu)
    expected = derivative(lambda t: value(mu.push(v, t)), h=1e-4)
    found = mu.inner(mu.position_gradient(value), v)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_two_kinds_or_two_dtypes_are_refused():
    mu = make(0)
    with pytest.raises(TypeError, match="must be Particles or points"):
        wasserstein2(mu, of.Particles(mu.points))
    single = of.Quantiles(mu.edges.float())
    with pytest.raises(TypeError, match="nothing is cast silently"):
        wasserstein2(mu, single)


# Grids on the line --------------------------------------------------------------------


def grid(density, lower=-1.0, upper=1.0, **options):
    rho = torch.tensor(density, dtype=torch.float64)
    return of.GridDensity(rho, lower, upper, walls=True, normalize=True, **options)


def test_a_grid_on_the_line_is_a_step_density_too():
    mu = grid([1.0, 2.0, 3.0, 2.0])
    same = of.Quantiles(
        torch.linspace(-1, 1, 5, dtype=torch.float64), mu.weights, normalize=True
    )
    nu = make(6, 5)
    expected = wasserstein2_squared(same, nu)
    torch.testing.assert_close(wasserstein2_squared(mu, nu), expected)
    torch.testing.assert_close(wasserstein2_squared(nu, mu), expected)
    assert float(wasserstein2(mu, same)) < 1e-14


def test_mass_crosses_a_vacuum():
    # Half of the mass on [-1, -0.5] goes to [0.5, 1]: every bit of it by 1.5.
    left, both = grid([1.0, 0.0, 0.0, 0.0]), grid([1.0, 0.0, 0.0, 1.0])
    s = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    at = torch.where(s < 0.5, s - 1, s)  # the quantile function of both
    expected = (at - (0.5 * s - 1)).square().mean()
    found = wasserstein2_squared(left, both)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    shifted = grid([0.0, 0.0, 0.0, 1.0])
    assert float(wasserstein2(left, shifted)) == pytest.approx(1.5, rel=1e-14)


def test_the_distance_of_grids_has_a_gradient_in_the_masses():
    mu, nu = grid([1.0, 2.0, 3.0, 2.0]), grid([2.0, 1.0, 1.0, 1.0, 3.0])
    rate = normal(mu.n, seed=1)
    value = lambda m: wasserstein2_squared(m, nu)
    expected = derivative(lambda t: value(mu.reweight(rate, t)))
    change = mu.weights * (rate - mu.weights @ rate)
    found = mu.mass_gradient(value) @ change
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


def test_a_divergence_of_grids_is_refused_with_the_cure():
    mu = of.GridDensity.from_function(
        lambda x: torch.ones_like(x[:, 0]), 0, 1, (3, 3), walls=True
    )
    with pytest.raises(TypeError, match=r"Particles\(mu\.points, mu\.weights\)"):
        of.metrics.sinkhorn_divergence(mu, mu, blur=0.1)
