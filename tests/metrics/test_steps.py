"""W2 between two step densities on the line, against closed forms."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import wasserstein2, wasserstein2_squared
from tests.clouds import normal
from tests.differences import derivative


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
