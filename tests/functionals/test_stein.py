"""Kernelised Stein discrepancies, against their definition by autodiff."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import normal

F64 = torch.float64
KERNELS = [
    of.kernels.Gaussian(0.8),
    of.kernels.InverseMultiquadric(0.9),
    of.kernels.InverseMultiquadric(1.2, power=0.3) + 2 * of.kernels.Gaussian(1.5),
]


def score(x):
    """Return the score of a law that is no Gaussian."""
    return -x - x.sin()


class TestGaussian(FunctionalContract):
    def make(self, dtype=F64):
        return of.KSD(score, of.kernels.Gaussian(0.8))


class TestInverseMultiquadric(FunctionalContract):
    dim = 3

    def make(self, dtype=F64):
        return of.KSD(lambda x: -x, of.kernels.InverseMultiquadric(1.0))


def stein_kernel(k, x, y):
    """Return the Stein kernel of two points by its definition."""

    jacobian = torch.autograd.functional.jacobian

    def slope_in_y(u):
        return jacobian(lambda v: k(u - v), y, create_graph=True)

    gx, gy = jacobian(lambda u: k(u - y), x), slope_in_y(x)
    cross = jacobian(slope_in_y, x)
    s, t = score(x), score(y)
    return s @ t * k(x - y) + s @ gy + t @ gx + cross.trace()


@pytest.mark.parametrize("k", KERNELS, ids=repr)
def test_its_value_is_half_the_double_sum_of_the_definition(k):
    mu = clouds.weighted(5, 2)
    x, w = mu.points, mu.weights
    u = torch.stack([torch.stack([stein_kernel(k, a, b) for b in x]) for a in x])
    F = of.KSD(score, k)
    torch.testing.assert_close(F.value(mu), 0.5 * w @ u @ w, rtol=1e-11, atol=0)
    torch.testing.assert_close(F.first_variation(mu), u @ w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("k", KERNELS, ids=repr)
def test_curvatures_are_the_second_derivatives_of_profiles(k):
    s = torch.logspace(-6, 2, 40, dtype=F64)
    for _, W in k.terms():
        expected = of.kernels.RadialKernel.curvature(W, s)
        torch.testing.assert_close(W.curvature(s), expected, rtol=1e-12, atol=0)


def test_it_vanishes_at_the_target_and_nowhere_else():
    F = of.KSD(lambda x: -x, of.kernels.Gaussian(1.0))

    def quantiles(n, shift=0.0):
        levels = (torch.arange(n, dtype=F64) + 0.5) / n
        return of.Particles(torch.special.ndtri(levels)[:, None] + shift)

    values = [float(F.value(quantiles(n))) for n in (50, 100, 200)]
    assert values[0] > 2.5 * values[1] > 6 * values[2] > 0
    assert float(F.value(quantiles(200, 0.5))) > 100 * values[2]
    law = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    assert abs(float(F.value(law))) < 1e-6


def test_its_flow_reaches_the_moments_of_the_law():
    F = of.KSD(lambda x: 2.0 - x, of.kernels.InverseMultiquadric(1.0))
    mu = of.Particles(normal(30, 1))
    run = of.flow(F, mu, of.ExplicitEuler(backtracking=True), dt=0.5, steps=150)
    x = run.final.points
    assert float(x.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(x.std()) == pytest.approx(1.0, abs=0.1)
    assert run.records["energy"][-1] < 1e-2 * run.records["energy"][0]


def test_the_score_is_asked_once_for_each_point():
    seen = []

    def count(x):
        seen.append(len(x))
        return -x

    of.KSD(count, of.kernels.Gaussian(1.0)).value(of.Particles(normal(600, 2)))
    assert max(seen) == 600
    assert sum(seen) < 1300


def test_parameters_of_the_score_are_differentiated():
    a = torch.tensor(1.5, dtype=F64, requires_grad=True)
    mu, k = clouds.weighted(), of.kernels.Gaussian(0.7)
    F = of.KSD(lambda x: -a * x, k)
    (found,) = torch.autograd.grad(F.value(mu), a)
    up, down = (
        float(of.KSD(lambda x, c=c: -c * x, k).value(mu)) for c in (1.5001, 1.4999)
    )
    assert float(found) == pytest.approx((up - down) / 2e-4, rel=1e-6)


def test_its_repr_names_score_and_kernel():
    assert repr(of.KSD(score, of.kernels.Gaussian(1.0))) == (
        "KSD(score, Gaussian(sigma=1.0))"
    )
