"""W2 between two Gaussians: the textbook's formula, digits, derivatives."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import wasserstein2, wasserstein2_squared
from tests import exact
from tests.clouds import normal
from tests.differences import derivative


def gaussian(d: int, seed: int, dtype=torch.float64) -> of.Gaussian:
    mean, S = normal(d, seed=seed), exact.spd(d, seed=seed)
    return of.Gaussian(mean.to(dtype), S.to(dtype))


@pytest.mark.parametrize("d", [1, 2, 5, 32])
def test_it_is_the_formula_with_square_roots(d):
    mu, nu = gaussian(d, 1), gaussian(d, 2)
    expected = exact.gaussian_w2(mu.mean, mu.covariance, nu.mean, nu.covariance)
    assert float(wasserstein2(mu, nu)) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(wasserstein2(nu, mu), wasserstein2(mu, nu))
    torch.testing.assert_close(wasserstein2(mu, nu), mu.norm(mu.displacement_to(nu)))
    assert float(wasserstein2(mu, mu)) == 0


def test_close_laws_keep_their_digits():
    mu = gaussian(3, 1)
    t = mu.factor.T @ (exact.spd(3, seed=5) - 1.0 * torch.eye(3).double())
    t = torch.cat([torch.zeros(1, 3).double(), t])
    for size in (1e-3, 1e-7):
        expected = size * float(mu.norm(t))
        assert float(wasserstein2(mu, mu.push(t, size))) == pytest.approx(
            expected, rel=1e-15 / size + 1e-12
        )


@pytest.mark.parametrize("d", [1, 3])
def test_its_gradient_points_along_the_geodesic(d):
    mu, nu = gaussian(d, 1), gaussian(d, 2)
    half = lambda law: 0.5 * wasserstein2_squared(law, nu)
    _, gradient = mu.value_and_position_gradient(half)
    torch.testing.assert_close(-gradient, mu.displacement_to(nu))
    for seed in range(3):
        t = normal(1 + d, d, seed=seed)
        expected = derivative(lambda h, t=t: half(mu.push(t, h)))
        torch.testing.assert_close(mu.inner(gradient, t), expected)
    # And in the second argument; at coincidence it is 0, not NaN.
    _, gradient = nu.value_and_position_gradient(lambda law: wasserstein2(mu, law))
    expected = nu.displacement_to(mu) / float(wasserstein2(mu, nu))
    torch.testing.assert_close(-gradient, expected)
    _, gradient = mu.value_and_position_gradient(lambda law: wasserstein2(law, mu))
    assert not bool(gradient.any())


def test_what_has_no_distance_is_refused():
    with pytest.raises(
        ValueError, match="mu lies in dimension 2 but nu in dimension 3"
    ):
        wasserstein2(gaussian(2, 1), gaussian(3, 1))
    with pytest.raises(TypeError, match="nothing is cast silently"):
        wasserstein2(gaussian(2, 1), gaussian(2, 1, torch.float32))
    with pytest.raises(TypeError, match="nu must be Particles or points"):
        wasserstein2(normal(4, 2), gaussian(2, 1))
