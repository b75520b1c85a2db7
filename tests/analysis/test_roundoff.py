"""Round-off inside of a functional refutes no true modulus, and hides no false one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import otflow as of
from otflow.analysis import displacement_convexity, falsify
from otflow.analysis.roundoff import roughness, shaken
from otflow.testing import clouds

F64 = torch.float64


class OfNumpy(of.Functional):
    """The mean of |x|^2 in single precision, by numpy: values alone."""

    def __init__(self, modulus):
        self.declared = modulus

    def modulus(self, dim):
        return self.declared

    def value(self, mu):
        x = mu.points.detach().numpy().astype(np.float32)
        return torch.tensor(float((x**2).sum(-1).mean()), dtype=mu.dtype)


class Slopes(torch.autograd.Function):
    """The same potential, with its slope by numpy."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        y = x.detach().numpy().astype(np.float32)
        return torch.tensor((y**2).sum(-1).astype(float))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        y = x.detach().numpy().astype(np.float32)
        return g[..., None] * torch.tensor((2 * y).astype(float))


def far(c):
    """Return x^2 / 2, as two terms that cancel."""
    return (
        lambda modulus: of.Potential(
            lambda x: (0.5 * (x + c).square() - c * x).sum(-1), modulus=modulus
        ),
        1.0,
    )


def far_sum(c):
    """Return the same as a sum of functionals."""
    return (
        lambda modulus: (
            of.Potential(lambda x: 0.5 * (x + c).square().sum(-1), modulus=modulus)
            + of.Potential(lambda x: -c * x.sum(-1), modulus=0.0)
        ),
        1.0,
    )


# Functionals with their moduli; their round-off does not come from the positions.
ROUNDED = {
    "terms that cancel, 100": far(1e2),
    "terms that cancel, 1e4": far(1e4),
    "terms that cancel, 1e8": far(1e8),
    "functionals that cancel": far_sum(1e6),
    "a square in single precision": (
        lambda modulus: of.Potential(
            lambda x: x.float().square().sum(-1).double(), modulus=modulus
        ),
        2.0,
    ),
    "values by numpy in single precision": (OfNumpy, 2.0),
    "slopes by numpy in single precision": (
        lambda modulus: of.Potential(Slopes.apply, modulus=modulus),
        2.0,
    ),
}


def ends(seed):
    return (of.Particles(clouds.normal(2, 2, seed=s)) for s in (seed, seed + 50))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDED)
def test_round_off_inside_refutes_no_true_modulus(name):
    make, modulus = ROUNDED[name]
    for seed in range(8):
        a, b = ends(seed)
        report = displacement_convexity(make(modulus), a, b, times=5)
        assert not report.violates_declared, (seed, report)
        if seed < 3:
            lie = displacement_convexity(make(1.1 * modulus), a, b, times=5)
            assert lie.violates_declared, (seed, lie)
    assert not falsify(make(modulus), a, evaluations=60).refuted


@pytest.mark.slow
def test_a_smooth_maximum_in_single_precision_stays_convex():
    F = of.Potential(lambda x: (3 * x.float()).logsumexp(-1).double(), modulus=0.0)
    for seed in range(8):
        a, b = ends(seed)
        report = displacement_convexity(F, a, b)
        assert not report.violates_declared, (seed, report)
        assert 0 < report.roundoff < 1e-1


def test_shaken_last_places_are_those_of_each_operation():
    x = torch.full((1000,), 0.3, dtype=F64)
    eps, single = torch.finfo(F64).eps, torch.finfo(torch.float32).eps

    def largest(function, x=x):
        plain = function(x)
        moved = (shaken(function, x, seed) - plain for seed in range(3))
        return max(float(change.abs().max()) for change in moved)

    # Moving numbers changes none.
    assert largest(lambda x: torch.cat([-x, x.clone().reshape(10, 100).flatten()])) == 0
    assert 0.9 * eps < largest(lambda x: x + 0.7) <= 2 * eps
    assert 0.9e6 * eps < largest(lambda x: (x + 1e6) - 1e6) < 1.3e6 * eps
    assert 0.2 * single < largest(lambda x: x.float().double()) < 0.4 * single
    # In place too, and in sums of terms that cancel.
    assert 0.9e6 * eps < largest(lambda x: x.clone().add_(1e6).sub_(1e6)) < 1.3e6 * eps
    y = torch.tensor([1e6, -1e6, 1.0], dtype=F64)
    assert largest(lambda y: y.sum(), y) > 1e5 * eps
    assert largest(lambda y: y @ torch.ones_like(y), y) > 1e5 * eps

    def slope(x):
        at = x.detach().requires_grad_()
        (g,) = torch.autograd.grad((0.5 * (at + 1e6).square() - 1e6 * at).sum(), at)
        return g

    assert largest(slope) > 1e5 * eps


def test_shaking_leaves_nothing_behind():
    before = clouds.global_state()
    x = clouds.normal(4, 2)
    known = x.clone()
    one, same, other = (shaken(lambda x: x.cos().sum(), x, s) for s in (1, 1, 2))
    assert one == same != other
    assert torch.equal(x, known)
    assert clouds.global_state() == before


def test_a_function_that_cannot_be_shaken_is_evaluated_as_it_is():
    def strict(x):
        assert float(x * 3.0) == 3.0
        return x * 3.0

    assert float(shaken(strict, torch.ones(1, dtype=F64), 0)) == 3.0


def test_roughness_is_the_size_of_errors_and_none_of_smooth_functions():
    low, high = -torch.ones(3, dtype=F64), torch.ones(3, dtype=F64)
    assert float(roughness(lambda x: x.cos(), low, high).max()) < 1e-14
    grain = roughness(lambda x: x.float().double(), low, high)
    assert float(grain.min()) > 1e-9
    assert float(grain.max()) < 1e-7
