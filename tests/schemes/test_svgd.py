"""SVGD: one atom, closed forms of a linear kernel, the moments of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of
from otflow.schemes import SVGD
from otflow.testing import SchemeContract, clouds
from otflow.testing.clouds import normal

F64 = torch.float64
BELL = of.kernels.Gaussian(0.8)


class TestSVGD(SchemeContract):
    descends = False  # the energy recorded leaves the entropy out
    diverges = False  # far from all others an atom is at rest: the kernel vanishes

    def make(self):
        return SVGD(BELL)

    def problem(self, dtype=F64):
        F, mu = super().problem(dtype)
        return F + 0.1 * of.Entropy(), mu

    def error(self, dt):
        """Return the error of one atom, which ascends the logarithm of the density."""
        mu = of.Particles(normal(1, 2))
        F = of.KL(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        run = of.flow(F, mu, self.make(), dt=dt, steps=round(1 / dt))
        return float((run.final.points - mu.points / math.e).norm())


def direct(k, x, w, velocity, temperature):
    """Return the velocity by its definition, pair by pair."""
    total = torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(len(x)):
            y = x[j].clone().requires_grad_()
            value = 0.5 * (k(x[i], y) + k(y, x[i]))
            (slope,) = torch.autograd.grad(value, y)
            total[i] += w[j] * (value.detach() * velocity[j] + temperature * slope)
    return total


KERNELS = {
    "gaussian": (BELL, lambda x, y: BELL(x - y)),
    "function": (
        lambda z: z.square().sum(-1).cos() + z[..., 0].sin(),
        lambda x, y: (x - y).square().sum(-1).cos() + (x - y)[..., 0].sin(),
    ),
    "two points": (
        of.kernels.TwoPoint(lambda x, y: (1 + (x * y).sum(-1)) ** 2 + x[..., 0]),
        lambda x, y: (1 + (x * y).sum(-1)) ** 2 + x[..., 0],
    ),
    "features": (
        of.kernels.TwoPoint(lambda x, y: (x * y).sum(-1).exp(), features=torch.sin),
        lambda x, y: (x.sin() * y.sin()).sum(-1).exp(),
    ),
}


@pytest.mark.parametrize(("kernel", "k"), KERNELS.values(), ids=KERNELS)
def test_a_step_is_the_sum_of_its_definition(kernel, k):
    mu, G = clouds.weighted(7, 2), of.Potential(lambda x: x.square().sum(-1).cosh())
    step = SVGD(kernel).step(G + 0.3 * of.Entropy(), mu, 0.1, None, torch.Generator())
    v = direct(k, mu.points, mu.weights, G.velocity(mu), 0.3)
    expected = mu.points + 0.1 * v
    torch.testing.assert_close(step.measure.points, expected, rtol=1e-11, atol=1e-12)


def test_a_linear_kernel_moves_a_gaussian_target_s_cloud_by_an_affine_map():
    # k = 1 + x.y and the score -A(x - m): the velocity is affine in x, with moments
    # alone as its coefficients.
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    m = torch.tensor([1.0, -2.0], dtype=F64)
    F = of.KL(lambda x: 0.5 * (((x - m) @ A) * (x - m)).sum(-1))
    mu, k = clouds.weighted(9, 2), of.kernels.TwoPoint(lambda x, y: 1 + (x * y).sum(-1))
    x, w = mu.points, mu.weights
    score = -(x - m) @ A
    shift = w @ score  # sum_j w_j s_j
    matrix = (w[:, None] * score).T @ x + torch.eye(2, dtype=F64)
    expected = x + 0.05 * (shift + x @ matrix.T)
    step = SVGD(k).step(F, mu, 0.05, None, torch.Generator())
    torch.testing.assert_close(step.measure.points, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_linear_kernel_reaches_the_moments_exactly():
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    m = torch.tensor([1.0, -2.0], dtype=F64)
    F = of.KL(lambda x: 0.5 * (((x - m) @ A) * (x - m)).sum(-1))
    k = of.kernels.TwoPoint(lambda x, y: 1 + (x * y).sum(-1))
    mu = of.Particles(normal(12, 2))
    x = of.flow(F, mu, SVGD(k), dt=0.05, steps=1500, every=1500).final.points
    torch.testing.assert_close(x.mean(0), m, rtol=0, atol=1e-7)
    covariance = (x - m).T @ (x - m) / len(x)
    torch.testing.assert_close(covariance, torch.linalg.inv(A), rtol=0, atol=1e-7)


def test_a_gaussian_kernel_is_at_rest_near_the_law():
    F = of.KL(lambda x: 0.5 * (x - 3).square().sum(-1))
    mu = of.Particles(torch.linspace(-1, 1, 60, dtype=F64)[:, None])
    run = of.flow(F, mu, SVGD(of.kernels.Gaussian(1.0)), dt=0.5, steps=600, every=600)
    x = run.final.points
    assert float(x.mean()) == pytest.approx(3, abs=1e-3)
    assert float(x.std()) == pytest.approx(1, abs=0.05)


def test_the_flow_is_not_that_of_wasserstein():
    # The velocity of one atom is the same; that of two far apart is halved.
    F = of.KL(lambda x: 0.5 * x.square().sum(-1))
    mu = of.Particles(torch.tensor([[-50.0], [50.0]], dtype=F64))
    moved = SVGD(BELL).step(F, mu, 0.1, None, torch.Generator()).measure
    torch.testing.assert_close(moved.points, mu.points * (1 - 0.05))


def test_its_temperature_is_reported_and_the_energy_is_the_rest():
    V = of.Potential(lambda x: x.square().sum(-1))
    run = of.flow(
        V + 0.4 * of.Entropy(), clouds.weighted(), SVGD(BELL), dt=0.1, steps=2
    )
    assert [info["temperature"] for info in run.info] == [0.4, 0.4]
    torch.testing.assert_close(run.records["energy"][0], V.value(clouds.weighted()))


def test_memory_never_holds_all_pairs():
    largest = [0]

    def watch(x, y):
        z = x * y
        largest[0] = max(largest[0], z.numel())
        return z.sum(-1)

    F, mu = of.KL(lambda x: x.square().sum(-1)), of.Particles(normal(900, 2))
    scheme = SVGD(of.kernels.TwoPoint(watch))
    scheme.step(F, mu, 0.1, None, torch.Generator())
    assert largest[0] <= 256 * 256 * 2


def test_a_heat_that_runs_backwards_is_refused():
    F = of.Potential(lambda x: x.square().sum(-1)) - 0.5 * of.Entropy()
    with pytest.raises(ValueError, match=r"negative factor -0\.5"):
        SVGD(BELL).step(F, clouds.weighted(), 0.1, None, torch.Generator())
