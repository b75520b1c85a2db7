"""The Sinkhorn divergence: limit, signs, gradients, and the traps it steps round."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.metrics import sinkhorn_divergence, wasserstein2_squared
from tests.clouds import normal, weighted


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
