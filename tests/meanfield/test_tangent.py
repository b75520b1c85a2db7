"""Kernels of wide networks, against samples and quadrature."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from scipy import integrate

import otflow as of
from otflow.meanfield.units import UNITS
from otflow.testing import clouds
from otflow.testing.clouds import normal

TwoLayer = of.meanfield.TwoLayer
nngp, ntk = of.meanfield.nngp_kernel, of.meanfield.ntk_kernel
empirical = of.meanfield.empirical_ntk


def sphere(n, d, seed=0):
    x = normal(n, d, seed=seed)
    return x / x.norm(dim=1, keepdim=True)


def slope(x, y):
    """Return the least-squares slope of log y against log x."""
    x, y = (torch.as_tensor(v, dtype=torch.float64).log() for v in (x, y))
    return float(
        ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    )


# The closed forms ---------------------------------------------------------------------


def bent(z):
    """Return the slope of erf."""
    return 2 / math.sqrt(math.pi) * math.exp(-z * z)


@pytest.mark.parametrize("name", ["relu", "erf"])
def test_the_kernels_are_the_gaussian_means(name):
    # x and z lie in a plane: both means are integrals over the plane, in polar
    # coordinates about the corner of relu.
    phi = {"relu": lambda u: max(u, 0.0), "erf": math.erf}[name]
    dphi = {"relu": lambda u: float(u > 0), "erf": bent}[name]
    x, z = (1.2, 0.0), (0.5 * math.cos(1.0), 0.5 * math.sin(1.0))

    def mean(f):
        def integrand(angle, r):
            w = (r * math.cos(angle), r * math.sin(angle))
            u, v = w[0] * x[0] + w[1] * x[1], w[0] * z[0] + w[1] * z[1]
            return f(u) * f(v) * r * math.exp(-r * r / 2) / (2 * math.pi)

        corners = sorted(
            {
                a % (2 * math.pi)
                for t in (0, 1)
                for a in (t + math.pi / 2, t - math.pi / 2)
            }
        )
        edges = [0.0, *corners, 2 * math.pi]
        return sum(
            integrate.dblquad(integrand, 0, 12, lo, hi, epsabs=1e-11)[0]
            for lo, hi in itertools.pairwise(edges)
        )

    X, Z = (torch.tensor([p], dtype=torch.float64) for p in (x, z))
    dot = float(X @ Z.T)
    assert float(nngp(name, X, Z)) == pytest.approx(mean(phi), rel=1e-8)
    expected = mean(phi) + dot * mean(dphi)
    assert float(ntk(name, X, Z)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("kernel", [nngp, ntk])
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_kernels_are_symmetric_and_positive(kernel, name):
    X = torch.cat([normal(12, 3), normal(1, 3), normal(12, 3)[:2], torch.zeros(1, 3)])
    K = kernel(name, X)
    torch.testing.assert_close(K, K.T)
    assert float(torch.linalg.eigvalsh(K).min()) > -1e-7
    torch.testing.assert_close(kernel(name, X, X[:4]), K[:, :4], rtol=0, atol=1e-7)
    with_bias = kernel(name, torch.cat([X, torch.ones(len(X), 1)], 1))
    torch.testing.assert_close(kernel(name, X, bias=True), with_bias)


def test_the_diagonal_is_exact_and_finite():
    X = normal(50, 3)
    square = X.square().sum(1)
    torch.testing.assert_close(
        nngp("relu", X).diagonal(), square / 2, rtol=1e-14, atol=0
    )
    torch.testing.assert_close(ntk("relu", X).diagonal(), square, rtol=1e-14, atol=0)
    for name in ("relu", "erf"):
        for size in (1e-8, 1.0, 1e6):
            rows = torch.cat([size * X, -size * X])
            assert torch.isfinite(ntk(name, rows, rows.clone())).all()
    assert float(nngp("relu", torch.zeros(1, 2))) == 0


# Round-off ----------------------------------------------------------------------------


def exact_kernels(name, x, z, bias):
    """Return both kernels of two rows, the Gram determinant without round-off."""
    x, z = ([Fraction(float(v)) for v in row] + [Fraction(1)] * bias for row in (x, z))
    xx, zz, dot = (
        sum((a * b for a, b in zip(u, v, strict=True)), Fraction(0))
        for u, v in ((x, x), (z, z), (x, z))
    )
    if name == "erf":
        root = math.sqrt((1 + 2 * xx) * (1 + 2 * zz) - 4 * dot * dot)
        value = 2 / math.pi * math.atan2(2 * dot, root)
        return value, value + float(dot) * 4 / math.pi / root
    # sin r - r cos r as the integral of r sin r, where nothing cancels.
    rest = math.atan2(math.sqrt(xx * zz - dot * dot), -dot)
    arc = integrate.quad(lambda r: r * math.sin(r), 0, rest, epsabs=0, epsrel=1e-13)[0]
    value = math.sqrt(xx * zz) / (2 * math.pi) * arc
    return value, value + float(dot) * rest / (2 * math.pi)


def pairs_of_inputs(seed, dtype):
    """Return rows that are anyhow, nearly equal, nearly opposite, parallel, or zero."""
    g = torch.Generator().manual_seed(seed)
    size, other, near = (
        10.0 ** float(lo + (hi - lo) * torch.rand((), generator=g))
        for lo, hi in ((-8, 8), (-8, 8), (-16, 0))
    )
    d = 1 + seed % 4
    u, v = torch.randn(2, 1, d, generator=g, dtype=torch.float64)
    x = (size * u).to(dtype)
    bent = x.double() * (1 + near * v)
    rows = other * v, bent, -bent, 3 * x, torch.zeros_like(x)
    return x, torch.cat([row.to(dtype) for row in rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_kernels_have_their_own_digits_at_any_length_and_angle(name, dtype):
    # Inputs of lengths 1e-8 to 1e8. Lengths and products are rounded to eps; so are
    # directions, to which erf answers by the length of the shorter input. Of float32
    # only the result is rounded.
    eps, wide = torch.finfo(dtype).eps, torch.finfo(torch.float64).eps
    for seed, bias in itertools.product(range(40), (False, True)):
        x, Z = pairs_of_inputs(seed, dtype)
        found = torch.cat([kernel(name, x, Z, bias=bias) for kernel in (nngp, ntk)])
        for z, row in zip(Z, found.T, strict=True):
            p, q = (math.hypot(float(y.double().norm()), bias) for y in (x, z))
            for got, right in zip(row, exact_kernels(name, x[0], z, bias), strict=True):
                error = wide * p * q
                if name == "erf":
                    error = wide * (1 + min(p, q)) * (abs(right) + min(1.0, p * q))
                assert abs(float(got) - right) <= eps * abs(right) + 4 * error


def test_images_of_ordinary_size_have_a_finite_kernel_in_float32():
    X = 200 * torch.rand(3, 784, generator=torch.Generator().manual_seed(0))
    K = ntk("erf", X)
    expected = torch.tensor([2065.6, 2047.8, 2058.9])
    torch.testing.assert_close(K.diagonal(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(K, ntk("erf", X.double()).float())


def test_the_longest_inputs_that_are_accepted_have_a_kernel():
    # At x = z, sqrt(1 + 4 |x|^2) is 2 |x| and the arcsine is pi / 2.
    for dtype, size in ((torch.float32, 9e14), (torch.float64, 9e149)):
        X = torch.full((2, 1), size, dtype=dtype)
        ones = torch.ones(2, 2, dtype=dtype)
        torch.testing.assert_close(nngp("erf", X), ones)
        torch.testing.assert_close(ntk("erf", X), 2 / math.pi * size * ones)
        torch.testing.assert_close(ntk("relu", X) / size, size * ones)


def test_an_empirical_kernel_beyond_the_dtype_is_refused_and_smaller_data_cure_it():
    network = TwoLayer("relu", bias=False)
    mu = of.Particles(torch.full((2, 2), 9e14))
    with pytest.raises(of.errors.NonFinite, match="empirical tangent kernel is inf"):
        empirical(network, mu, torch.full((1, 1), 9e14))
    x = torch.ones(1, 1)
    torch.testing.assert_close(empirical(network, mu, x), 2 * 8.1e29 * x)


# The output of a random network -------------------------------------------------------


def outputs(N, draws, X, seed):
    """Return sums over N random relu neurons at X, one row per draw: (draws, k)."""
    network = TwoLayer("relu", bias=False)
    parts = []
    for part in range(10):
        theta = normal(N * draws // 10, X.shape[1] + 1, seed=seed + part)
        parts.append(network.features(theta, X).T.reshape(-1, N, len(X)).sum(1))
    return torch.cat(parts)


def test_a_wide_network_is_a_gaussian_process():
    X, draws = sphere(3, 3, seed=2), 20_000
    for N in (4, 16, 64):
        f = outputs(N, draws, X, seed=100 * N) / N**0.5
        covariance = f.T @ f / draws
        torch.testing.assert_close(covariance, nngp("relu", X), rtol=0, atol=0.015)
        # 3 E[relu^4] / E[relu^2]^2 - 3 = 15 for one neuron, and 15/N for N.
        centred = f - f.mean(0)
        kurtosis = centred.pow(4).mean(0) / centred.square().mean(0).square() - 3
        error = 4 * (24 / draws) ** 0.5 + 0.1 * 15 / N
        assert float(kurtosis.mean()) == pytest.approx(15 / N, abs=error)
        # In the mean field the variance times N is that of one neuron.
        variance = (f / N**0.5).var(0) * N
        assert float(variance.mean()) == pytest.approx(0.5, rel=0.03)


# The tangent kernel -------------------------------------------------------------------


def test_the_empirical_kernel_tends_to_the_limit_like_one_over_root_n():
    X = sphere(10, 3, seed=4)
    network, limit, sizes = (
        TwoLayer("relu", bias=False),
        ntk("relu", X),
        [64, 512, 4096, 32768],
    )
    errors = []
    for N in sizes:
        squares = [
            (empirical(network, clouds.uniform(N, 4, seed=N + r), X) - limit)
            .square()
            .mean()
            for r in range(8)
        ]
        errors.append(float(torch.stack(squares).mean().sqrt()))
    assert slope(sizes, errors) == pytest.approx(-0.5, abs=0.12)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("activation", [*UNITS, torch.nn.functional.silu])
@pytest.mark.parametrize("bias", [True, False])
def test_the_empirical_kernel_is_the_product_of_gradients(activation, bias):
    network = TwoLayer(activation, bias=bias)
    X, Z = normal(4, 2), normal(3, 2, seed=5)
    for mu in (clouds.uniform(6, 3 + bias), clouds.degenerate(3 + bias)):

        def gradients(X, mu=mu):
            theta = mu.points.clone().requires_grad_()
            rows = [
                torch.autograd.grad(row.sum(), theta, retain_graph=True)[0]
                for row in network.features(theta, X)
            ]
            return torch.stack(rows)

        expected = torch.einsum("kip,lip,i->kl", gradients(X), gradients(Z), mu.weights)
        torch.testing.assert_close(
            empirical(network, mu, X, Z), expected, rtol=1e-12, atol=1e-13
        )
        torch.testing.assert_close(
            empirical(network, mu, X), empirical(network, mu, X, X)
        )


@pytest.mark.parametrize("scaling", ["mean-field", "ntk", "sum"])
def test_outputs_move_by_the_tangent_kernel(scaling):
    # df/dt = -(s_N^2 / n) K (f - y) along the flow of the square risk.
    N, X, y = 30, normal(8, 2), normal(8, seed=1)
    network = TwoLayer("tanh", scaling=scaling)
    mu, F = clouds.uniform(N, 4), of.meanfield.Risk(network, X, y)
    square = {"mean-field": 1, "ntk": N, "sum": N * N}[scaling]
    expected = -square / 8 * empirical(network, mu, X) @ (network(mu, X) - y)
    velocity, h = F.velocity(mu), 1e-4 / square
    found = (network(mu.push(velocity, h), X) - network(mu.push(velocity, -h), X)) / (
        2 * h
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_kernel_of_the_mean_field_moves_and_that_of_wide_ntk_hardly():
    # The relative change of the kernel while the same risk is halved
    # :cite:p:`chizat2019lazy`.
    X = sphere(20, 3, seed=1)
    y, N = X[:, 0] * X[:, 1] + 0.5 * X[:, 2], 1024
    mu, change = clouds.uniform(N, 4, seed=2), {}
    for scaling, dt in (("mean-field", 0.2), ("ntk", 0.2 / N)):
        network = TwoLayer("relu", bias=False, scaling=scaling)
        F = of.meanfield.Risk(network, X, y)
        nu = of.flow(F, mu, of.ExplicitEuler(), dt=dt, steps=300, every=300).final
        assert float(F(nu)) < 0.5 * float(F(mu))
        before, after = (empirical(network, m, X) for m in (mu, nu))
        change[scaling] = float((after - before).norm() / before.norm())
    assert change["mean-field"] > 0.1
    assert change["ntk"] < 0.05


# Refusals -----------------------------------------------------------------------------


def test_what_is_refused():
    X, mu = normal(4, 2), clouds.uniform(5, 4)
    for kernel in (nngp, ntk):
        with pytest.raises(
            ValueError, match=r"^activation must be one of \['erf', 'relu'\]"
        ):
            kernel("tanh", X)
        with pytest.raises(ValueError, match=r"^Z must have shape \(k, 2\) as X has"):
            kernel("relu", X, normal(4, 3))
        with pytest.raises(TypeError, match=r"^Z has dtype torch.float32 but X has"):
            kernel("relu", X, X.float())
        with pytest.raises(ValueError, match=r"^X must be finite"):
            kernel("relu", X / 0.0)
    with pytest.raises(
        of.errors.Unsupported, match=r"one output, .*; take outputs=None"
    ):
        empirical(TwoLayer("tanh", outputs=2), mu, X)
    with pytest.raises(ValueError, match=r"p = m \+ d \+ 1 = 4"):
        empirical(TwoLayer("tanh"), clouds.uniform(5, 5), X)
    with pytest.raises(TypeError, match=r"^X has dtype torch.float32 but the measure"):
        empirical(TwoLayer("tanh"), mu, X.float())


def test_nothing_carries_a_graph():
    X = normal(4, 2).requires_grad_()
    for K in (
        nngp("relu", X),
        ntk("erf", X),
        empirical(TwoLayer("tanh"), clouds.uniform(5, 4), X),
    ):
        clouds.assert_plain(K)
