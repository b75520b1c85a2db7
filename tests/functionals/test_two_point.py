"""Interactions by kernels of two points."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.measures.sums import pair_slope
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import normal

F64 = torch.float64
TwoPoint = of.kernels.TwoPoint


def skew(x, y):
    """Return a kernel that is neither symmetric nor of the difference."""
    return (x[..., 0] * y[..., 1]).sin() + (x - y).square().sum(-1) * x.sum(-1)


class TestSkew(FunctionalContract):
    def make(self, dtype=F64):
        return of.Interaction(TwoPoint(skew))


class TestFeatures(FunctionalContract):
    def make(self, dtype=F64):
        return of.Interaction(
            TwoPoint(lambda x, y: (x * y).sum(-1).cosh(), features=torch.sin)
        )


class TestConvex(FunctionalContract):
    def make(self, dtype=F64):
        K = TwoPoint(lambda x, y: (x + y).square().sum(-1) / 2, modulus=0.0)
        return of.Interaction(K)


def test_it_is_the_double_sum_and_sees_the_symmetric_part():
    mu, x = clouds.weighted(300, 2), normal(7, 2, seed=4)
    F, w, p = of.Interaction(TwoPoint(skew)), mu.weights, mu.points
    table = skew(p[:, None], p[None])
    torch.testing.assert_close(F.value(mu), 0.5 * w @ table @ w)
    expected = 0.5 * (skew(x[:, None], p[None]) + skew(p[None], x[:, None])) @ w
    torch.testing.assert_close(F.first_variation(mu, x), expected)
    torch.testing.assert_close(mu.convolve(TwoPoint(skew), x), expected)


@pytest.mark.parametrize(
    "W",
    [of.kernels.Gaussian(0.7), lambda z: z.square().sum(-1).cos() + z[..., 0]],
    ids=["radial", "function"],
)
def test_of_the_difference_it_is_that_kernel(W):
    mu = clouds.weighted(20, 2)
    F, G = of.Interaction(TwoPoint(lambda x, y: W(x - y))), of.Interaction(W)
    for found, expected in zip(
        F.value_and_velocity(mu), G.value_and_velocity(mu), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_singular_one_omits_the_pairs_of_an_atom_with_itself():
    K = TwoPoint(lambda x, y: -(x - y).norm(dim=-1).log(), singular=True)
    mu = clouds.weighted(9, 2)
    F, G = of.Interaction(K), of.Interaction(of.kernels.Log())
    torch.testing.assert_close(F.value(mu), G.value(mu))
    torch.testing.assert_close(F.velocity(mu), G.velocity(mu))


def test_other_measures_sum_over_the_pairs_of_their_points():
    K = TwoPoint(lambda x, y: -(-(x - y).square().sum(-1) / 8).exp())
    cells = of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)), lower=-3.0, upper=3.0, shape=(200,)
    )
    line = of.Quantiles(torch.linspace(-1, 1, 200, dtype=F64))
    law = of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    for mu in (cells, line, law):
        expected = -mu.interaction(of.kernels.Gaussian(2.0))
        found = mu.interaction(K)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)
        velocity = of.Interaction(K).velocity(mu)
        assert bool(velocity.isfinite().all())


@pytest.mark.parametrize("make", ["cells", "line", "law"])
def test_a_jko_step_treats_it_as_a_term_of_no_special_kind(make):
    mu = {
        "cells": lambda: of.GridDensity.from_function(
            lambda x: torch.exp(-x.square().sum(-1)), lower=-4.0, upper=4.0, shape=(48,)
        ).to(F64),
        "line": lambda: of.Quantiles(torch.linspace(-1, 1, 40, dtype=F64)),
        "law": lambda: of.Gaussian(torch.ones(1, dtype=F64), torch.eye(1, dtype=F64)),
    }[make]()
    pull = of.Interaction(TwoPoint(lambda x, y: (x - y).square().sum(-1) / 2))
    V = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    F, G = V + pull, V + of.Interaction(of.kernels.Quadratic())
    ends = [of.flow(H, mu, of.JKO(), dt=0.05, steps=2).final for H in (F, G)]
    means = [end.expectation(lambda x: x[:, 0]) for end in ends]
    squares = [end.expectation(lambda x: x[:, 0] ** 2) for end in ends]
    torch.testing.assert_close(*means, rtol=0, atol=1e-3)
    torch.testing.assert_close(*squares, rtol=2e-2, atol=1e-3)


def test_memory_never_holds_all_pairs():
    largest = [0]

    def watch(x, y):
        z = x - y
        largest[0] = max(largest[0], z.numel())
        return z.square().sum(-1)

    n = 1500
    mu = of.Particles(normal(n, 2))
    F = of.Interaction(TwoPoint(watch))
    F.velocity(mu)
    F.first_variation(mu, mu.points)
    F.velocity(mu, mu.points)
    assert largest[0] <= 256 * 256 * 2 < n * n


def test_parameters_of_the_kernel_are_differentiated():
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    mu = clouds.weighted()
    value = of.Interaction(TwoPoint(lambda x, y: a * skew(x, y))).value(mu)
    (found,) = torch.autograd.grad(value, a)
    torch.testing.assert_close(found, of.Interaction(TwoPoint(skew)).value(mu))
    b = torch.tensor(0.7, dtype=F64, requires_grad=True)
    K = TwoPoint(lambda x, y: (x * y).sum(-1), features=lambda x: b * x)
    potential = mu.convolve(K, normal(3, 2))
    (found,) = torch.autograd.grad(potential.sum(), b)
    torch.testing.assert_close(found, 2 * potential.sum().detach() / b.detach())


def test_a_second_derivative_in_the_points():
    x = normal(6, 2).requires_grad_()
    mu = of.Particles(x)
    F = of.Interaction(TwoPoint(skew))
    velocity = F.velocity(mu)
    (found,) = torch.autograd.grad(velocity.square().sum(), x)
    value = 0.5 * skew(x[:, None], x[None]).mean()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    (expected,) = torch.autograd.grad((6 * slope).square().sum(), x)
    torch.testing.assert_close(found, expected)


# Fields anywhere ----------------------------------------------------------------------

FIELDS = {
    "gaussian": of.kernels.Gaussian(0.9),
    "energy": of.kernels.Energy(),
    "log": of.kernels.Log(),
    "sum": of.kernels.Gaussian(0.5) - 2 * of.kernels.Log(),
    "function": of.kernels.Function(lambda z: z.square().sum(-1).cos() + z[..., 0]),
    "two points": TwoPoint(skew),
    "features": TwoPoint(lambda x, y: (x * y).sum(-1), features=torch.sin),
}


@pytest.mark.parametrize("far", [0.0, 1e5], ids=["near", "far"])
@pytest.mark.parametrize("K", FIELDS.values(), ids=FIELDS)
def test_the_closed_field_is_that_of_autodiff(K, far):
    shift = far * torch.tensor([1.0, 0.0], dtype=F64)
    points, x = normal(400, 2), normal(300, 2, seed=1)
    masses = normal(400, 3, seed=2)
    if not isinstance(K, TwoPoint):  # their values would be of size 1e15 there
        x = x + shift
    potentials, slopes = K.field(x, points, masses, gradients=True)
    alone, none = K.field(x, points, masses, gradients=False)
    torch.testing.assert_close(potentials, alone, rtol=1e-12, atol=1e-12)
    assert none.numel() == 0
    y = x.clone().requires_grad_()
    for k in range(3):
        total = K.even_pairs(K.rows(y)[:, None], K.rows(points)) @ masses[:, k]
        (slope,) = torch.autograd.grad(total.sum(), y)
        torch.testing.assert_close(potentials[:, k], total.detach())
        torch.testing.assert_close(slopes[:, k], slope, rtol=1e-8, atol=1e-10)


def test_a_field_at_an_atom_of_a_singular_kernel_is_an_error():
    mu = clouds.weighted(5, 2)
    with pytest.raises(of.errors.NonFinite):
        of.Interaction(of.kernels.Log()).velocity(mu, mu.points[:1])


def test_a_field_at_probes_keeps_their_graph():
    mu, x = clouds.weighted(5, 2), normal(3, 2, seed=8).requires_grad_()
    V = of.Potential(lambda z: z.sin().sum(-1))
    F = 2 * of.Interaction(of.kernels.Gaussian(0.9)) + V
    velocity = F.velocity(mu, x)
    (found,) = torch.autograd.grad(velocity.sum(), x)
    h, e = 1e-5, torch.tensor([1.0, 0.0], dtype=F64)
    up, down = (F.velocity(mu, x.detach() + s * h * e) for s in (1, -1))
    torch.testing.assert_close(
        found[:, 0], (up - down).sum(1) / (2 * h), rtol=1e-6, atol=1e-8
    )
    slope = pair_slope(of.kernels.Gaussian(0.9), x, mu.points, mu.weights)
    assert slope.requires_grad


def test_probes_of_a_radial_kernel_need_no_differentiation(monkeypatch):
    def refused(*_):
        pytest.fail("a pair left the closed form")

    # A subclass with a __call__ of its own would have no closed form.
    monkeypatch.setattr(of.kernels.RadialKernel, "__call__", refused)
    F, mu = of.Interaction(of.kernels.Gaussian(0.7)), clouds.weighted(40, 2)
    empty = of.Particles(
        torch.cat([mu.points, normal(9, 2, seed=6)]),
        torch.cat([mu.weights, mu.weights.new_zeros(9)]),
    )
    F.velocity(mu, normal(9, 2, seed=6))
    F.first_variation(mu, normal(9, 2, seed=6))
    F.velocity(empty)
