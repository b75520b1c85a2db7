"""Gaussians: the laws of a measure, closed forms of integrals, the Bures geometry."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import sqrtm

import otflow as of
from otflow.measures.gaussian.quadrature import gaussian_nodes
from otflow.testing import MeasureContract
from otflow.testing.clouds import global_state, normal
from otflow.testing.differences import derivative
from tests import exact


def spd(d: int, seed: int = 0, low: float = 0.5):
    """Return a random covariance with eigenvalues above `low`."""
    a = normal(d, d, seed=seed + 500)
    return a @ a.T / d + low * torch.eye(d, dtype=torch.float64)


def gaussian(d: int = 2, seed: int = 0, dtype=torch.float64, **options) -> of.Gaussian:
    """Return a Gaussian that depends on the seed alone."""
    mean = normal(d, seed=seed)
    return of.Gaussian(mean.to(dtype), spd(d, seed).to(dtype), **options)


class TestGaussian(MeasureContract):
    capabilities = frozenset({"density", "diffuse", "sample"})
    d = 2

    def make(self, dtype=torch.float64):
        return gaussian(self.d, dtype=dtype)

    def tangent(self, mu, seed=0):
        return normal(1 + mu.dim, mu.dim, seed=seed + 77, dtype=mu.dtype)

    def coordinates(self, mu):
        return mu.state

    def test_displacement_is_the_inverse_of_push(self):
        mu = self.make()
        t = self.tangent(mu)
        # A symmetric map goes node by node, as it came.
        t[1:] = mu.factor.T @ (t[1:] + t[1:].T)
        nu = mu.push(t, 0.05)
        back = mu.push(mu.displacement_to(nu), 1.0)
        torch.testing.assert_close(back.points, nu.points, rtol=0, atol=1e-14)
        assert torch.equal(back.weights, nu.weights)
        torch.testing.assert_close(mu.displacement_to(nu), 0.05 * t)
        assert float(mu.norm(mu.displacement_to(mu))) == 0
        # Another arrives at the same law, by a shorter way.
        t = self.tangent(mu)
        nu = mu.push(t, 0.5)
        u = mu.displacement_to(nu)
        back = mu.push(u, 1.0)
        torch.testing.assert_close(back.mean, nu.mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(back.covariance, nu.covariance, rtol=0, atol=1e-13)
        assert float(mu.norm(u)) < 0.5 * float(mu.norm(t))

    def test_diffuse(self):
        for dtype in (torch.float32, torch.float64):
            mu = self.make(dtype)
            first, other = (
                mu.diffuse(0.3, torch.Generator().manual_seed(seed)) for seed in (1, 2)
            )
            assert type(first) is type(mu)
            assert first.dtype == dtype
            assert torch.equal(first.points, other.points)  # there is no noise
            expected = mu.covariance + 0.3 * torch.eye(mu.dim, dtype=dtype)
            torch.testing.assert_close(first.covariance, expected)
            assert torch.equal(first.mean, mu.mean)
            u = mu.displacement_to(first)
            torch.testing.assert_close(mu.push(u, 1.0).points, first.points)
            still = mu.diffuse(0.0, torch.Generator())
            assert torch.equal(still.points, mu.points)


class TestGaussianOnTheLine(TestGaussian):
    d = 1


class TestGaussianInFiveDimensions(TestGaussian):
    d = 5


# Integrals ----------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 4, 9, 32])
def test_polynomials_of_degree_three_are_exact(d):
    mu = gaussian(d)
    S, m = mu.covariance, mu.mean
    close = lambda x, y: torch.testing.assert_close(x, y, rtol=0, atol=1e-12 * d)
    one = torch.ones((), dtype=torch.float64)
    close(mu.weights.sum(), one)
    close(mu.expectation(lambda x: x), m)
    close(
        mu.expectation(lambda x: x[:, :, None] * x[:, None, :]), S + torch.outer(m, m)
    )
    a, b, c = (normal(d, seed=k) / d**0.5 for k in (1, 2, 3))
    (p, q, r), cov = (m @ a, m @ b, m @ c), lambda u, v: u @ S @ v
    third = p * q * r + p * cov(b, c) + q * cov(a, c) + r * cov(a, b)
    close(mu.expectation(lambda x: (x @ a) * (x @ b) * (x @ c)), third)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_gauss_hermite_is_exact_far_beyond(d):
    mu = gaussian(d)
    a = normal(d, seed=1) / d**0.5
    m, s2 = float(mu.mean @ a), float(a @ mu.covariance @ a)
    # E exp(i t) and the eighth moment of a Gaussian variable.
    found = mu.expectation(lambda x: torch.stack([(x @ a).cos(), (x @ a).sin()], -1))
    scale = math.exp(-s2 / 2)
    assert float(found[0]) == pytest.approx(scale * math.cos(m), abs=1e-11)
    assert float(found[1]) == pytest.approx(scale * math.sin(m), abs=1e-11)
    eighth = sum(
        math.comb(8, 2 * k) * m ** (8 - 2 * k) * s2**k * math.prod(range(1, 2 * k, 2))
        for k in range(5)
    )
    assert float(mu.expectation(lambda x: (x @ a) ** 8)) == pytest.approx(
        eighth, rel=1e-12
    )


def test_an_integral_on_the_line_is_that_of_scipy():
    mu = of.Gaussian(np.array([0.3]), np.array([[0.49]]))
    f = lambda x: 1 / (1 + x**2 / 4)
    weight = lambda x: (
        math.exp(-0.5 * ((x - 0.3) / 0.7) ** 2) / math.sqrt(2 * math.pi * 0.49)
    )
    expected = quad(lambda x: f(x) * weight(x), -9, 9, epsabs=0, epsrel=1e-13)[0]
    # f has poles at 2i and -2i, so that the rule converges like exp(-c sqrt(nodes)).
    for nodes, tolerance in ((8, 1e-4), (32, 1e-11)):
        mu = of.Gaussian(mu.mean, mu.covariance, nodes=nodes)
        found = float(mu.expectation(lambda x: f(x[:, 0])))
        assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("d", "tolerance"), [(4, 0.02), (8, 0.02), (16, 0.03), (32, 0.05)]
)
def test_low_discrepancy_nodes_in_many_dimensions(d, tolerance):
    mu = of.Gaussian(torch.zeros(d).double(), torch.eye(d).double())
    # E (|x|^2 - d)^2 = 2 d and E exp(-|x|^2 / 2d) = (1 + 1/d)^(-d/2).
    spread = mu.expectation(lambda x: (x.square().sum(-1) - d).square())
    assert float(spread) == pytest.approx(2 * d, rel=5 * tolerance)
    bump = mu.expectation(lambda x: (-x.square().sum(-1) / (2 * d)).exp())
    assert float(bump) == pytest.approx((1 + 1 / d) ** (-d / 2), rel=1e-3)
    fourth = mu.expectation(lambda x: x.pow(4).mean(-1))
    assert float(fourth) == pytest.approx(3, rel=tolerance)


def test_the_nodes_are_the_same_at_each_call_and_touch_no_global_state():
    before = global_state()
    gaussian_nodes.__globals__["_antithetic"].cache_clear()
    first = gaussian(6)
    gaussian_nodes.__globals__["_antithetic"].cache_clear()
    assert torch.equal(gaussian(6).points, first.points)
    assert global_state() == before
    first.nodes.zero_()  # a caller's vandalism stays with the caller
    assert float(gaussian(6).nodes.abs().min()) > 0


def test_the_measure_says_which_rule_it_has():
    assert gaussian(1).quadrature.startswith("Gauss-Hermite, 32 nodes per axis: exact")
    assert "degree 63" in gaussian(1).quadrature
    assert "degree 9" in gaussian(2, nodes=5).quadrature
    assert gaussian(2, nodes=5).n == 25
    assert gaussian(4).quadrature.startswith("antithetic Sobol, 2048 nodes, whitened")
    assert gaussian(4, nodes=128).n == 128


@pytest.mark.parametrize("d", [1, 2, 3, 5, 32])
def test_the_density_and_the_entropy_are_exact(d):
    mu = gaussian(d)
    nu = torch.distributions.MultivariateNormal(mu.mean, mu.covariance)
    torch.testing.assert_close(mu.log_density(), nu.log_prob(mu.points))
    torch.testing.assert_close(mu.density(), nu.log_prob(mu.points).exp())
    x = normal(7, d, seed=3)
    torch.testing.assert_close(mu.log_density(x), nu.log_prob(x))
    torch.testing.assert_close(mu.log_density(x.numpy()), nu.log_prob(x))
    expected = -float(nu.entropy())
    assert float(of.Entropy().value(mu)) == pytest.approx(expected, abs=1e-12)
    # And by the road of any internal energy.
    assert float(mu.internal(lambda r: r.log())) == pytest.approx(expected, abs=1e-12)


def test_entropy_of_a_narrow_law_in_many_dimensions_does_not_overflow():
    d, sigma = 32, 1e-3
    mu = of.Gaussian(torch.zeros(d), sigma**2 * torch.eye(d))  # densities above 1e83
    value, velocity = of.Entropy().value_and_velocity(mu)
    assert float(value) == pytest.approx(exact.gaussian_entropy(sigma, d), rel=1e-5)
    torch.testing.assert_close(velocity[1:], torch.eye(d) / sigma)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_powers_of_the_density(d):
    # int rho^m = (2 pi)^{d(1-m)/2} m^{-d/2} det S^{(1-m)/2}.
    mu, m = gaussian(d), 2.0
    expected = (2 * math.pi) ** (d * (1 - m) / 2) * m ** (-d / 2)
    expected *= float(torch.linalg.det(mu.covariance)) ** ((1 - m) / 2)
    value = of.PowerEntropy(m).value(mu) * (m - 1)
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3, 7])
def test_a_quadratic_interaction_is_the_variance(d):
    # 1/2 E |x - y|^2 / 2 = tr S / 2.
    mu = gaussian(d)
    value = of.Interaction(of.kernels.Quadratic()).value(mu)
    assert float(value) == pytest.approx(float(mu.covariance.trace()) / 2, rel=1e-13)
    A = spd(d, seed=9)
    value = mu.interaction(lambda z: (z @ A * z).sum(-1))
    assert float(value) == pytest.approx(float((A * mu.covariance).sum()), rel=1e-13)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_gaussian_interaction(d):
    # E exp(-|x-y|^2 / 2 s^2) = det(I + 2 S / s^2)^{-1/2}.
    mu, s = gaussian(d), 1.3
    value = of.Interaction(of.kernels.Gaussian(s)).value(mu)
    eye = torch.eye(d, dtype=torch.float64)
    expected = 0.5 * float(torch.linalg.det(eye + 2 * mu.covariance / s**2)) ** -0.5
    assert float(value) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "W", [of.kernels.Log(), lambda z: -z.square().sum(-1).log()], ids=["named", "own"]
)
def test_kernels_infinite_at_zero_are_refused(W):
    with pytest.raises(of.errors.Unsupported, match="use Quantiles, GridDensity"):
        of.Interaction(W).value(gaussian())


def test_an_interaction_that_is_infinite_at_a_node_is_named():
    far = lambda z: torch.where(z.square().sum(-1) > 1.0, torch.inf, 0.0).to(z)
    with pytest.raises(of.errors.NonFinite, match="use a smooth kernel"):
        gaussian().interaction(far)


def test_draws_have_the_law():
    mu = gaussian(3)
    x = mu.sample(200_000, torch.Generator().manual_seed(1))
    nu = of.Gaussian.from_samples(x)
    assert float(mu.norm(mu.displacement_to(nu))) < 0.02


# Geometry -----------------------------------------------------------------------------


def bures(mu: of.Gaussian, nu: of.Gaussian) -> float:
    """Return W2 by the textbook's formula, in NumPy."""
    S, T = mu.covariance.numpy(), nu.covariance.numpy()
    root = np.real(sqrtm(S))
    cross = np.real(sqrtm(root @ T @ root))
    moved = float((mu.mean - nu.mean).square().sum())
    return math.sqrt(moved + np.trace(S) + np.trace(T) - 2 * np.trace(cross))


@pytest.mark.parametrize("d", [1, 2, 3, 8, 32])
def test_the_displacement_is_optimal(d):
    mu, nu = gaussian(d, 1), gaussian(d, 2)
    t = mu.displacement_to(nu)
    assert float(mu.norm(t)) == pytest.approx(bures(mu, nu), rel=1e-9)
    end = mu.push(t, 1.0)
    torch.testing.assert_close(end.covariance, nu.covariance, rtol=0, atol=1e-12)
    # Half way along the geodesic both ends are half as far.
    middle = mu.push(t, 0.5)
    half = 0.5 * bures(mu, nu)
    assert float(mu.norm(mu.displacement_to(middle))) == pytest.approx(half, rel=1e-9)
    assert float(nu.norm(nu.displacement_to(middle))) == pytest.approx(half, rel=1e-9)
    # The map is that of the formula S^{-1/2} (S^{1/2} S' S^{1/2})^{1/2} S^{-1/2}.
    S, T = mu.covariance.numpy(), nu.covariance.numpy()
    root = np.real(sqrtm(S))
    inverse = np.linalg.inv(root)
    expected = inverse @ np.real(sqrtm(root @ T @ root)) @ inverse
    found = end.factor @ torch.linalg.inv(mu.factor)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_the_distance_between_nearby_laws_keeps_its_digits():
    mu = gaussian(6)
    for size in (1e-4, 1e-8):
        B = spd(6, 3) * size + torch.eye(6, dtype=torch.float64)
        S = B @ mu.covariance @ B
        nu = of.Gaussian(mu.mean, 0.5 * (S + S.T))
        moved = (B - torch.eye(6, dtype=torch.float64)) @ mu.factor
        expected = float(torch.linalg.matrix_norm(moved))
        found = float(mu.norm(mu.displacement_to(nu)))
        assert found == pytest.approx(expected, rel=1e-15 / size + 1e-9)


def test_the_velocity_is_affine_with_a_symmetric_matrix():
    mu = gaussian(3)
    V = lambda x: (x.square().sum(-1) + x[..., 0]).sin() + x.pow(4).sum(-1)
    g = mu.position_gradient(lambda nu: nu.expectation(V))
    A = torch.linalg.solve(mu.factor.T, g[1:]).T
    # It is E grad V and E Hess V (Stein), to the accuracy of the rule.
    mean = derivative(lambda h: torch.stack([_shifted(mu, V, i, h) for i in range(3)]))
    torch.testing.assert_close(g[0], mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(A, A.T, rtol=0, atol=0.02 * float(A.abs().max()))


def _shifted(mu, V, i, h):
    e = h * torch.eye(mu.dim, dtype=mu.dtype)[i]
    return mu.expectation(lambda x: V(x + e))


def test_from_samples_is_mean_and_covariance():
    x = normal(50, 3, seed=2)
    mu = of.Gaussian.from_samples(x.numpy(), nodes=4)
    torch.testing.assert_close(mu.mean, x.mean(0))
    torch.testing.assert_close(mu.covariance, torch.cov(x.T, correction=0))
    assert mu.n == 64


# Bad input ----------------------------------------------------------------------------

I2 = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "covariance", "error", "message"),
    [
        (
            ZERO,
            torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double(),
            ValueError,
            "smallest eigenvalue is -1",
        ),
        (
            ZERO,
            torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double(),
            ValueError,
            "add a multiple of the identity",
        ),
        (ZERO, 0 * I2, ValueError, "must be positive definite"),
        (
            ZERO,
            torch.tensor([[1.0, 0.1], [0.0, 1.0]]).double(),
            ValueError,
            "must be symmetric",
        ),
        (ZERO, I2[0], ValueError, r"use torch.diag\(covariance\)"),
        (
            ZERO,
            torch.eye(3).double(),
            ValueError,
            r"covariance must have shape \(2, 2\)",
        ),
        (ZERO, I2 * math.nan, ValueError, "must be finite"),
        (ZERO * math.inf, I2, ValueError, "must be finite"),
        (ZERO[0], I2, ValueError, r"use mean\[None\]"),
        (ZERO[None], I2, ValueError, r"mean must have shape \(d,\)"),
        (ZERO[:0], I2[:0, :0], ValueError, r"mean must have shape \(d,\)"),
        (ZERO, I2.float(), TypeError, "nothing is cast silently"),
        (ZERO.half(), I2.half(), ValueError, "too coarse"),
        ([0.0, 0.0], I2, TypeError, "torch.Tensor or numpy.ndarray"),
    ],
)
def test_bad_arguments_are_refused(mean, covariance, error, message):
    with pytest.raises(error, match=message):
        of.Gaussian(mean, covariance)


@pytest.mark.parametrize(
    ("d", "nodes", "message"),
    [
        (2, 1, "at least 2"),
        (1, 400, "at most 100 per axis"),
        (4, 10**2 + 1, "in pairs"),
        (4, 8, "at least 10"),
    ],
)
def test_bad_numbers_of_nodes_are_refused(d, nodes, message):
    with pytest.raises(ValueError, match=message):
        gaussian(d, nodes=nodes)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="give more than 3 points"):
        of.Gaussian.from_samples(normal(3, 3))
    with pytest.raises(ValueError, match="must be positive definite"):
        of.Gaussian.from_samples(normal(9, 2) * torch.tensor([1.0, 0.0]).double())


def test_a_push_that_flattens_the_law_is_a_divergence():
    mu = gaussian()
    flat = torch.zeros(3, 2, dtype=torch.float64)
    flat[1:] = -mu.factor.T
    flat[1:, 1] = 0
    with pytest.raises(of.errors.Diverged, match="became singular") as caught:
        mu.push(flat, 1.0)
    assert caught.value.measure is mu
    assert mu.push(flat, 2.0).dim == 2  # turned inside out, it is a law again
    with pytest.raises(of.errors.Diverged, match="left the finite numbers"):
        mu.push(flat, 1e200)
    with pytest.raises(ValueError, match=re.escape("must have shape (3, 2), a row")):
        mu.push(flat[1:], 1.0)


def test_a_gaussian_goes_nowhere_but_to_a_gaussian_of_its_kind():
    mu = gaussian()
    with pytest.raises(TypeError, match="other must be a Gaussian"):
        mu.displacement_to(of.Particles(mu.points))
    with pytest.raises(ValueError, match="dimension 3 but self has 2"):
        mu.displacement_to(gaussian(3))
    with pytest.raises(TypeError, match="nothing is cast silently"):
        mu.displacement_to(gaussian(dtype=torch.float32))


def test_birth_and_death_is_refused_with_the_cure():
    with pytest.raises(of.errors.Unsupported, match="use a GridDensity"):
        gaussian().reweight(normal(4), 0.1)
    F = of.Potential(lambda x: x.square().sum(-1))
    with pytest.raises(of.errors.Unsupported, match="no direction among Gaussians"):
        of.flow(F, gaussian(), of.BirthDeath(), dt=0.1, steps=1)


# Finer rules --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "nodes"), [(1, 8), (1, 500), (2, 40), (3, 20), (5, 4096)]
)
def test_a_finer_rule_is_white_and_keeps_the_law(d, nodes):
    mu = gaussian(d)
    fine = mu.refined(nodes)
    assert fine.n == (nodes**d if d <= 3 else nodes)
    assert torch.equal(fine.state, mu.state)
    assert fine.degree == 3
    assert "degree 3" in fine.quadrature
    assert float(fine.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert float((fine.weights @ fine.nodes).abs().max()) < 1e-12
    second = fine.nodes.T @ (fine.weights[:, None] * fine.nodes)
    torch.testing.assert_close(
        second, torch.eye(d, dtype=second.dtype), rtol=0, atol=1e-12
    )
    moved = fine.push(torch.ones_like(fine.state), 0.1)
    assert (moved.n, moved.degree) == (fine.n, 3)


def test_finer_rules_converge_to_integrals_where_gauss_hermite_does_not():
    one = np.ones((1, 1))
    mu = of.Gaussian(np.zeros(1), one)

    def error(nu, power):
        expected = math.sqrt(2 / math.pi) * {1: 1, 3: 2}[power]
        return abs(float(nu.expectation(lambda x: x[..., 0].abs() ** power)) - expected)

    kinks = [error(mu.refined(k), 1) for k in (64, 256, 1024)]
    assert kinks[0] > 10 * kinks[1] > 100 * kinks[2]
    assert kinks[2] < 0.1 * error(
        of.Gaussian(np.zeros(1), np.ones((1, 1)), nodes=100), 1
    )
    # Analytic functions are integrated to round-off by both.
    for nu in (mu, mu.refined(58)):
        found = float(nu.expectation(lambda x: x[..., 0].cos()))
        assert found == pytest.approx(math.exp(-0.5), abs=1e-14)
    assert error(mu.refined(1024), 3) < 1e-7


@pytest.mark.parametrize(("d", "nodes"), [(1, 6), (2, 9), (3, 0), (5, 8), (5, 33)])
def test_finer_rules_of_bad_size_are_refused(d, nodes):
    with pytest.raises(ValueError, match="nodes must be"):
        gaussian(d).refined(nodes)
