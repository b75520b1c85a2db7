"""Gelbrich's lower bound of W2: a bound for all measures, W2 for Gaussians."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.metrics import gelbrich, wasserstein2
from otflow.testing.clouds import normal, uniform, weighted
from otflow.testing.differences import derivative

F64 = torch.float64


def gaussian(d=2, seed=0, dtype=F64):
    factor = normal(d, d, seed=seed) + 0.5 * torch.eye(d, dtype=F64)
    return of.Gaussian(
        normal(d, seed=seed + 9).to(dtype), (factor @ factor.T).to(dtype)
    )


def close(one, other, share=1e-12):
    return float(one) == pytest.approx(float(other), rel=share)


def on_a_line(d=3, seed=0):
    return of.Particles(normal(5, 1, seed=seed) * normal(1, d, seed=seed + 1))


@pytest.mark.parametrize("seed", range(40))
def test_it_is_below_the_distance(seed):
    d = 1 + seed % 4
    for mu, nu in (
        (weighted(7, d, seed=seed), weighted(5, d, seed=seed + 1)),
        (uniform(2, d, seed=seed), uniform(6, d, seed=seed + 1)),
        (on_a_line(d, seed), weighted(5, d, seed=seed + 1)),
    ):
        bound, distance = float(gelbrich(mu, nu)), float(wasserstein2(mu, nu))
        assert 0 < bound <= distance * (1 + 1e-12)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_gaussians_have_equality(d):
    mu, nu = gaussian(d), gaussian(d, seed=1)
    assert close(gelbrich(mu, nu), wasserstein2(mu, nu), 1e-12)
    # Only the moments count: a cloud with those of nu.
    x = normal(9, d, seed=3)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 9)).T @ nu.factor.T
    cloud = of.Particles(x + nu.mean)
    assert close(gelbrich(mu, cloud), gelbrich(mu, nu), 1e-9)
    assert float(gelbrich(cloud, nu)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("d", [1, 3])
def test_affine_images_have_equality(d):
    mu = weighted(8, d)
    stretch = gaussian(d, seed=5).covariance
    nu = of.Particles(mu.points @ stretch + 2.0, mu.weights)
    assert close(gelbrich(mu, nu), wasserstein2(mu, nu), 1e-10)
    assert float(gelbrich(mu, mu)) == 0.0


def test_densities_on_the_line_count_their_cells():
    q = of.Quantiles(torch.tensor([-1.0, 0.0, 0.5, 3.0], dtype=F64))
    masses = torch.tensor([1.0, 3.0, 2.0], dtype=F64)
    line = of.GridDensity(masses, 0, 1, walls=True, normalize=True)
    for mu, nu in ((q, line), (line, q)):
        assert 0 < float(gelbrich(mu, nu)) <= float(wasserstein2(mu, nu))
    wide = of.Quantiles(2 * q.edges + 1)
    assert close(gelbrich(q, wide), wasserstein2(q, wide))
    one = of.GridDensity(torch.ones(8, 4, dtype=F64), 0, 1, walls=True)
    law = of.Gaussian(torch.full((2,), 0.5, dtype=F64), torch.eye(2, dtype=F64) / 12)
    assert float(gelbrich(one, law)) == pytest.approx(0, abs=1e-7)


def test_singular_covariances():
    # Between laws on two lines at the angle 60 degrees, of deviations s and t:
    # s^2 + t^2 - 2 s t cos(60).
    way = torch.tensor([[0.5, 0.75**0.5]], dtype=F64)
    ends = torch.tensor([[-1.0], [1.0]], dtype=F64)
    x = 3.0 * ends * torch.tensor([[1.0, 0.0]], dtype=F64)
    assert float(gelbrich(x, 2.0 * ends * way)) ** 2 == pytest.approx(9 + 4 - 6)
    dirac = torch.zeros(4, 2, dtype=F64)
    assert float(gelbrich(dirac, x)) == pytest.approx(3.0)
    assert float(gelbrich(dirac, dirac + 2.0)) == pytest.approx(8**0.5)
    assert float(gelbrich(dirac, dirac)) == 0.0


PAIRS = {
    "clouds": (lambda: weighted(6), lambda: weighted(5, seed=1)),
    "laws": (gaussian, lambda: gaussian(seed=1)),
    "mixed": (lambda: weighted(6), gaussian),
    "line": (lambda: on_a_line(2), lambda: weighted(5, seed=1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_derivatives(name):
    mu, nu = (make() for make in PAIRS[name])

    def value(x, w, y, v):
        return gelbrich(rebuilt(mu, x, w), rebuilt(nu, y, v))

    def rebuilt(measure, x, w):
        if isinstance(measure, of.Gaussian):
            return of.Gaussian(x, w @ w.T)
        return of.Particles(x, w, normalize=True)

    parts = []
    for m in (mu, nu):
        gauss = isinstance(m, of.Gaussian)
        parts += [m.mean, m.factor] if gauss else [m.points, m.weights]
    ways = [normal(*t.shape, seed=k) for k, t in enumerate(parts)]
    if name == "line":  # off the line there is a kink
        ways[0] = parts[0] * normal(5, 1)
    ways = [0.1 * w for w in ways]
    state = [t.clone().requires_grad_() for t in parts]
    grads = torch.autograd.grad(value(*state), state)
    slope = sum(float((g * w).sum()) for g, w in zip(grads, ways, strict=True))

    def along(t):
        return value(*(p + t * w for p, w in zip(parts, ways, strict=True)))

    assert slope == pytest.approx(float(derivative(along)), rel=1e-7, abs=1e-9)
    if name == "line":
        with pytest.raises(of.errors.Unsupported, match="singular"):
            torch.autograd.grad(value(*state), state[0], create_graph=True)
        return
    free = torch.zeros((), dtype=F64, requires_grad=True)
    first = torch.autograd.grad(along(free), free, create_graph=True)[0]
    (second,) = torch.autograd.grad(first, free)

    def inner(t):
        at = torch.tensor(t, dtype=F64, requires_grad=True)
        return torch.autograd.grad(along(at), at)[0]

    assert float(second) == pytest.approx(float(derivative(inner)), rel=1e-6, abs=1e-8)


def test_at_distance_zero_the_gradient_is_zero():
    x = normal(5, 2).requires_grad_()
    gelbrich(x, x.detach()).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("scale", [1e-180, 1e-3, 1e149])
def test_scales(scale):
    x, y = normal(6, 2), normal(5, 2, seed=1)
    one = float(gelbrich(x, y))
    assert float(gelbrich(scale * x, scale * y)) == pytest.approx(
        scale * one, rel=1e-12
    )
    assert float(gelbrich(x + 1e6, y + 1e6)) == pytest.approx(one, rel=1e-8)


def test_float32():
    mu, nu = weighted(6), weighted(5, seed=1)
    value = gelbrich(mu.to(torch.float32), nu.to(torch.float32))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(gelbrich(mu, nu)), rel=1e-6)


def test_what_is_wrong_is_named():
    x = normal(4, 2)
    with pytest.raises(ValueError, match="one space for both"):
        gelbrich(x, normal(4, 3))
    with pytest.raises(TypeError, match="convert one"):
        gelbrich(x, x.float())
    grid = of.GridDensity(torch.ones(4, dtype=F64), 0, 1, walls=True)
    bad = grid.with_free_weights(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=F64))
    with pytest.raises(of.errors.NonFinite, match="look for the step"):
        gelbrich(bad, grid)
