"""Scalar equations: against SciPy, and where Newton's method alone would fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import wrightomega

from otflow.errors import NotConverged
from otflow.numerics.roots import bisect, increasing_root, wright_omega


def test_wright_omega_is_that_of_scipy():
    x = torch.cat(
        [
            torch.linspace(-60, 60, 20_001, dtype=torch.float64),
            torch.logspace(1, 300, 300, dtype=torch.float64),
            -torch.logspace(1, 300, 300, dtype=torch.float64),
        ]
    )
    expected = torch.from_numpy(wrightomega(x.numpy()).real)
    torch.testing.assert_close(wright_omega(x), expected, rtol=2e-14, atol=0)
    x = x.float().clamp(-80, 1e30)
    expected = torch.from_numpy(wrightomega(x.double().numpy()).real)
    torch.testing.assert_close(wright_omega(x).double(), expected, rtol=3e-6, atol=0)


def test_wright_omega_differentiates():
    """y' = y / (1 + y)."""
    x = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    y = wright_omega(x)
    y.sum().backward()
    y = y.detach()
    torch.testing.assert_close(x.grad, y / (1 + y), rtol=1e-8, atol=0)


def count(f, z, typical):
    """Return the root and how often f was called."""
    calls = []

    def function(z):
        calls.append(1)
        return f(z)

    return increasing_root(function, z, typical), len(calls)


@pytest.mark.parametrize("start", [-500.0, -3.0, 0.0, 3.0, 500.0])
@pytest.mark.parametrize("k", [0.1, 1.0, 9.0])
def test_an_exponential_is_solved_in_few_steps(start, k):
    """e^{kz} = 2 needs k |start| steps of Newton's method."""
    z = torch.tensor([start], dtype=torch.float64)

    def f(z):
        return (k * z).exp() - 2, k * (k * z).exp(), (k * z).exp() + 2

    found, calls = count(f, z, 2.0)
    assert float(found) == pytest.approx(np.log(2) / k, rel=1e-14)
    assert calls < 60


def test_flat_ends_and_overflows_are_bisected():
    target = torch.tensor([-0.9999, -0.3, 0.0, 0.999999], dtype=torch.float64)

    def f(z):  # tanh(20 z): Newton's method leaves at once
        y = (20 * z).tanh()
        return y - target, 20 * (1 - y * y), y.abs() + target.abs()

    found, calls = count(f, torch.full_like(target, 3.0), 1.0)
    torch.testing.assert_close(found, target.atanh() / 20, rtol=1e-9, atol=1e-15)
    assert calls < 90

    def g(z):  # NaN on the right
        y = torch.where(z > 2, torch.nan, z.exp())
        return y - 3, y, y + 3

    found, _ = count(g, torch.tensor([400.0], dtype=torch.float64), 3.0)
    assert float(found) == pytest.approx(np.log(3), rel=1e-14)


def test_no_root_is_no_number():
    z = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(NotConverged, match="did not settle in 400 steps"):
        increasing_root(lambda z: (1 + 0 * z, 0 * z, 1 + 0 * z), z, 1.0)


def test_a_cliff_is_bisected():
    # Newton's steps jump from one side of a steep arctangent to the other.
    def cliff(z):
        t = 1e4 * (z - 1.0)
        return t.atan(), 1e4 / (1 + t.square()), torch.ones_like(z)

    start = torch.tensor([-3.0, 0.0, 0.9, 5.0], dtype=torch.float64)
    root = increasing_root(cliff, start, 1.0)
    torch.testing.assert_close(root, torch.ones_like(start), rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_settled_roots_are_not_bisected(seed):
    """Near the end Newton's step is within round-off of an end of the bracket."""
    generator = torch.Generator().manual_seed(seed)
    goal = -25 * torch.rand(200, generator=generator, dtype=torch.float64)
    target = 2 * goal.exp()
    calls = [0]

    def f(z):
        calls[0] += 1
        value = 2 * z.exp()
        return value - target, value, value + target

    start = goal + 0.3 * torch.rand(200, generator=generator, dtype=torch.float64)
    root = increasing_root(f, start, target + 2)
    torch.testing.assert_close(root, goal, rtol=1e-14, atol=1e-14)
    assert calls[0] <= 8


def test_bisection_ends_on_either_side_of_each_condition():
    goal = torch.tensor([0.1, 2.0, 3.5], dtype=torch.float64)
    zero, four = torch.zeros_like(goal), torch.full_like(goal, 4.0)
    inside, outside = bisect(lambda x: x <= goal, zero, four, 40)
    assert bool((inside <= goal).all())
    assert bool((outside > goal).all())
    assert float((outside - inside).max()) <= 4.0 * 2.0**-40
    # From the other side, and between integers.
    inside, outside = bisect(lambda x: x > goal, four, zero, 40)
    assert bool((inside > goal).all())
    assert bool((outside <= goal).all())
    places, ends = torch.tensor([0, 0, 0]), torch.tensor([9, 9, 9])
    last, first = bisect(lambda k: k * k <= torch.tensor([0, 16, 80]), places, ends, 4)
    assert last.tolist() == [0, 4, 8]
    assert first.tolist() == [1, 5, 9]
