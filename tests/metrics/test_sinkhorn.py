"""The Sinkhorn divergence: limit, signs, gradients, and the traps it steps round."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

import otflow as of
from otflow.metrics import sinkhorn_divergence, wasserstein2_squared
from tests.clouds import degenerate, normal, weighted


def test_it_tends_to_half_w2_squared():
    x, y = normal(30, 2), normal(30, 2, seed=1) + 2
    half = 0.5 * float(wasserstein2_squared(x, y))
    errors = [
        abs(float(sinkhorn_divergence(x, y, blur=b, scaling=0.95)) - half)
        for b in (1.0, 0.1, 0.02)
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 2e-3 * half


def test_translation_is_exact_for_any_blur():
    """Debiasing: S(mu, mu + t) = |t|^2/2 whatever the blur."""
    x = normal(20, 2)
    t = torch.tensor([3.0, -4.0], dtype=torch.float64)
    for blur in (0.1, 1.0):
        value = sinkhorn_divergence(x, x + t, blur=blur, scaling=0.95)
        assert float(value) == pytest.approx(12.5, rel=2e-3)


def test_zero_at_itself_and_symmetric():
    mu, nu = weighted(10), weighted(12, seed=1)
    assert abs(float(sinkhorn_divergence(mu, mu, blur=0.1))) < 1e-12
    there = float(sinkhorn_divergence(mu, nu, blur=0.1))
    assert float(sinkhorn_divergence(nu, mu, blur=0.1)) == pytest.approx(there)
    assert there > 0


def test_gradient_in_points_against_finite_differences():
    """GeomLoss's gradient is exact in the limit of slow annealing, and not doubled."""
    x, y, u = normal(8, 2), normal(10, 2, seed=1) + 1, normal(8, 2, seed=5)
    errors = []
    for scaling in (0.9, 0.99, 0.999):

        def value(x, scaling=scaling):
            return sinkhorn_divergence(x, y, blur=1.0, scaling=scaling)

        z = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(value(z), z)
        h = 1e-4
        expected = float((value(x + h * u) - value(x - h * u)) / (2 * h))
        errors.append(abs(float((grad * u).sum()) / expected - 1))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 5e-3


def test_gradient_in_weights_against_finite_differences():
    mu, nu = weighted(8), weighted(9, seed=1)

    class Divergence(of.Functional):
        def value(self, mu):
            return sinkhorn_divergence(mu, nu, blur=1.0, scaling=0.999)

    direction = normal(8, seed=3)
    direction -= direction.mean()
    slope = float(Divergence().first_variation(mu) @ direction)
    h = 1e-4
    up, down = (
        Divergence()(of.Particles(mu.points, mu.weights + s * h * direction))
        for s in (1, -1)
    )
    assert slope == pytest.approx(float((up - down) / (2 * h)), rel=5e-3)


def test_two_diracs_of_many_atoms():
    """Both clouds collapsed: GeomLoss alone would fail at diameter 0."""
    x = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    y = torch.full((4, 2), 3.0, dtype=torch.float64)
    value = sinkhorn_divergence(x, y, blur=0.1)
    assert float(value.detach()) == 9.0
    (grad,) = torch.autograd.grad(value, x)
    assert torch.allclose(grad.sum(0), torch.full((2,), -3.0, dtype=torch.float64))
    same = sinkhorn_divergence(y, y, blur=0.1)
    assert float(same) == 0.0


def test_one_dirac_against_itself_and_near_itself():
    """Diameter 0, and far below the blur; finite gradients in points and weights."""
    for apart in (0.0, 1e-9, 1e-200):
        x = torch.zeros(5, 2, dtype=torch.float64)
        mu = of.Particles(x)._with(
            x.clone().requires_grad_(),
            torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True),
        )
        value = sinkhorn_divergence(mu, x[:3] + apart, blur=0.1)
        assert float(value.detach()) == pytest.approx(apart**2, abs=1e-15)
        grads = torch.autograd.grad(value, (mu.points, mu.weights))
        expected = torch.full_like(x, -apart / 5)
        assert torch.allclose(grads[0], expected, rtol=1e-5, atol=1e-16)
        assert float(grads[1].abs().max()) < 1e-15


def test_float32_away_from_the_origin():
    """Squared distances expanded about 0 would cancel."""
    x, y = normal(20, 2), normal(20, 2, seed=1) + 1
    near = float(sinkhorn_divergence(x, y, blur=0.1))
    far = sinkhorn_divergence(x.float() + 1000, y.float() + 1000, blur=0.1)
    assert float(far) == pytest.approx(near, rel=1e-3)


def test_atoms_without_mass_do_not_count_and_have_a_first_variation():
    mu, nu = degenerate(), weighted(6, seed=2)
    kept = mu.weights > 0
    less = of.Particles(mu.points[kept], mu.weights[kept])
    value = float(sinkhorn_divergence(mu, nu, blur=0.5, scaling=0.99))
    other = float(sinkhorn_divergence(less, nu, blur=0.5, scaling=0.99))
    assert value == pytest.approx(other, rel=1e-10)

    class Divergence(of.Functional):
        def value(self, mu):
            return sinkhorn_divergence(mu, nu, blur=1.0, scaling=0.999)

    slope = Divergence().first_variation(mu)
    direction = -mu.weights.clone()
    direction[4] += 1.0
    moved = of.Particles(mu.points, mu.weights + 1e-5 * direction)
    expected = float(Divergence()(moved) - Divergence()(mu)) / 1e-5
    assert float(slope @ direction) == pytest.approx(expected, rel=1e-2)


def test_weights_count_by_their_ratios():
    mu, nu = weighted(5), weighted(6, seed=1)
    once = float(sinkhorn_divergence(mu, nu, blur=0.3))
    twice = sinkhorn_divergence(mu._with(weights=2 * mu.weights), nu, blur=0.3)
    assert float(twice) == pytest.approx(once, rel=1e-12)


def test_reach_bounds_the_cost_of_far_mass():
    """Two Diracs far apart: destroying and creating costs reach^2 each, no more."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    far = [
        float(sinkhorn_divergence(x, x + t, blur=0.1, reach=1.0)) for t in (20.0, 40.0)
    ]
    assert far[0] == pytest.approx(far[1], rel=1e-6)
    assert far[0] == pytest.approx(2.0, rel=0.02)
    near = float(sinkhorn_divergence(x, x + 0.1, blur=0.1, reach=1e4))
    assert near == pytest.approx(0.005, rel=1e-3)


def test_gradient_mode_is_left_alone():
    """GeomLoss switches gradients on; a caller who switched them off keeps that."""
    x = normal(4, 2).requires_grad_()
    with torch.no_grad():
        assert not sinkhorn_divergence(x, x.detach() + 1, blur=0.1).requires_grad
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_memory_budget(monkeypatch):
    module = importlib.import_module("otflow.metrics.inputs")
    monkeypatch.setattr(module, "_total_memory", lambda _: 100_000)
    with pytest.raises(MemoryError, match=r"needs 72000 bytes .*take fewer points"):
        sinkhorn_divergence(normal(30, 2), normal(5, 2), blur=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blur_below_round_off(dtype):
    """Its square would be 0, and the result NaN."""
    x = normal(5, 2, dtype=dtype)
    with pytest.raises(ValueError, match=r"lost in the round-off .* take at least"):
        sinkhorn_divergence(x, 3 * x, blur=1e-160)
    small = 2.0 * float(x.abs().max()) * 10 * float(torch.finfo(dtype).eps)
    half = 0.5 * float(wasserstein2_squared(x, 3 * x))
    value = float(sinkhorn_divergence(x, 3 * x, blur=small))
    assert value == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize(
    ("nu", "error", "message"),
    [
        (normal(3, 3), ValueError, "mu lies in dimension 2 but nu in dimension 3"),
        (normal(3, 2).float(), TypeError, "nothing is cast silently"),
        (normal(3, 2) * math.nan, ValueError, "nu must be finite, got nan"),
        (normal(3), ValueError, r"nu must have shape \(n, d\)"),
        (normal(0, 2), ValueError, "nu is empty"),
        (normal(3, 2).half(), ValueError, "too coarse for transport"),
    ],
)
def test_bad_clouds(nu, error, message):
    with pytest.raises(error, match=message):
        sinkhorn_divergence(normal(3, 2), nu, blur=0.1)


def test_float32_is_kept():
    x = normal(6, 2).float()
    assert sinkhorn_divergence(x, x + 1, blur=0.1).dtype == torch.float32


@pytest.mark.parametrize("blur", [0, -1.0, math.nan, True, "0.1"])
def test_bad_blur(blur):
    x = normal(3, 2)
    with pytest.raises((TypeError, ValueError), match="blur must be"):
        sinkhorn_divergence(x, x, blur=blur)


def test_blur_is_mandatory():
    with pytest.raises(TypeError, match="blur"):
        sinkhorn_divergence(normal(3, 2), normal(3, 2))


@pytest.mark.parametrize("scaling", [0.0, 1.0, 2.0])
def test_bad_scaling(scaling):
    with pytest.raises(ValueError, match="scaling must"):
        sinkhorn_divergence(normal(3, 2), normal(3, 2), blur=0.1, scaling=scaling)


def test_bad_reach():
    with pytest.raises(ValueError, match="reach must be positive"):
        sinkhorn_divergence(normal(3, 2), normal(3, 2), blur=0.1, reach=-1)


def test_too_many_points_are_refused_before_any_work():
    x = torch.zeros(5001, 1)
    with pytest.raises(MemoryError, match="treats densely; take fewer points"):
        sinkhorn_divergence(x, x + 1, blur=0.1)
