"""W2 between two Gaussians: the textbook's formula, digits, derivatives."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import wasserstein2, wasserstein2_squared
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from tests import exact


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("d", [2, 16, 128])
def test_random_laws_against_square_roots_in_float64(d, apart, dtype):
    """The formula from the eigenvalues of S^1/2 S' S^1/2, for the numbers given."""
    generator = torch.Generator().manual_seed(d)
    draw = lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
    for _ in range(3):
        A, B = draw(d, d) / d**0.5, draw(d, d) / d**0.5
        S = torch.eye(d).double() + A @ A.T
        T = S + apart * (B + B.T + apart * B @ B.T)
        T = T + max(0.0, 0.1 - float(torch.linalg.eigvalsh(T)[0])) * torch.eye(d)
        mu, nu = (of.Gaussian(torch.zeros(d, dtype=dtype), M.to(dtype)) for M in (S, T))
        S, T = (m.factor.double() @ m.factor.double().T for m in (mu, nu))
        # |S^1/2 - U|, U the root of T turned: as a sum of squares, not a difference.
        e, V = torch.linalg.eigh(S)
        root = V @ e.sqrt().diag() @ V.T
        e, V = torch.linalg.eigh(root @ T @ root)
        inverse = torch.linalg.inv(root)
        map_ = inverse @ (V @ e.clamp_min(0).sqrt().diag() @ V.T) @ inverse
        expected = float(torch.linalg.matrix_norm((map_ - torch.eye(d)) @ root))
        eps = torch.finfo(dtype).eps
        slack = 64 * torch.finfo(torch.float64).eps * d
        found = float(wasserstein2(mu, nu))
        assert found == pytest.approx(expected, rel=2 * eps, abs=slack)
        moved = mu.displacement_to(nu)
        size = float(torch.linalg.matrix_norm(nu.factor.double()))
        # Where node by node is as good, up to the round-off of the factors, it is kept.
        assert float(mu.norm(moved)) == pytest.approx(
            expected, rel=8 * eps, abs=4 * eps * size
        )
        end = (mu.state + moved).double()[1:].T
        error = torch.linalg.matrix_norm(end @ end.T - T)
        assert float(error) <= 32 * eps * d**0.5 * size * size


def test_float32_in_128_dimensions():
    """The factors of a sample covariance and of its limit: node by node costs twice."""
    generator = torch.Generator().manual_seed(0)
    C = torch.cov(torch.randn(20_000, 128, generator=generator).T)
    values = []
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros(128, dtype=dtype)
        mu, nu = (of.Gaussian(zero, S.to(dtype)) for S in (C, torch.eye(128)))
        values.append(float(wasserstein2_squared(mu, nu)))
        moved = mu.displacement_to(nu)
        assert float(mu.inner(moved, moved)) == pytest.approx(values[-1], rel=1e-5)
    roots = torch.linalg.eigvalsh(C.double()).sqrt()
    expected = float((roots - 1).square().sum())
    assert values == pytest.approx([expected] * 2, rel=1e-6)


def test_what_has_no_distance_is_refused():
    with pytest.raises(
        ValueError, match="mu lies in dimension 2 but nu in dimension 3"
    ):
        wasserstein2(gaussian(2, 1), gaussian(3, 1))
    with pytest.raises(TypeError, match="nothing is cast silently"):
        wasserstein2(gaussian(2, 1), gaussian(2, 1, torch.float32))
    with pytest.raises(TypeError, match="nu must be Particles or points"):
        wasserstein2(normal(4, 2), gaussian(2, 1))
