"""Distances of many pairs at once agree with those of each pair."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from otflow.metrics import batched_wasserstein2_squared, wasserstein2_squared
from otflow.testing.clouds import normal

F64 = torch.float64


def pairs(b, n, d, dtype=F64):
    return normal(b, n, d, dtype=dtype), normal(b, n, d, seed=1, dtype=dtype) + 0.5


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 6, 80])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_each_pair_has_its_distance(d, n, dtype):
    x, y = pairs(4, n, d, dtype)
    x.requires_grad_()
    y.requires_grad_()
    values = batched_wasserstein2_squared(x, y)
    assert values.shape == (4,)
    assert values.dtype == dtype
    grads = torch.autograd.grad(values.sum(), (x, y))
    for k in range(4):
        one = wasserstein2_squared(x[k], y[k])
        torch.testing.assert_close(values[k], one)
        expected = torch.autograd.grad(one, (x, y))
        torch.testing.assert_close(grads[0][k], expected[0][k])
        torch.testing.assert_close(grads[1][k], expected[1][k])


def test_second_derivatives_and_coincidence():
    x, y = pairs(3, 5, 2)
    assert torch.autograd.gradgradcheck(
        batched_wasserstein2_squared, (x.requires_grad_(), y)
    )
    at = x.detach().clone().requires_grad_()
    values = batched_wasserstein2_squared(at, x.detach())
    (grad,) = torch.autograd.grad(values.sum(), at)
    assert not bool(values.any())
    assert not bool(grad.any())


def test_arrays_and_float32_far_away():
    x, y = pairs(3, 5, 1)
    values = batched_wasserstein2_squared(x.numpy(), y.numpy())
    assert torch.equal(values, batched_wasserstein2_squared(x, y))
    far, other = (x + 1000).float(), (y + 1000).float()
    exact = batched_wasserstein2_squared(far.double(), other.double())
    found = batched_wasserstein2_squared(far, other)
    np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=1e-6)


def test_what_is_wrong_is_named():
    x, _ = pairs(3, 5, 2)
    with pytest.raises(TypeError, match="convert one"):
        batched_wasserstein2_squared(x, x.float())
    with pytest.raises(ValueError, match="must be finite"):
        batched_wasserstein2_squared(x, x / 0)
    with pytest.raises(ValueError, match=r"shape \(B, n, d\)"):
        batched_wasserstein2_squared(x[0, 0], x)


@pytest.mark.parametrize("d", [1, 2])
def test_no_pair_has_no_distance(d):
    x = torch.empty(0, 3, d, dtype=torch.float64, requires_grad=True)
    found = batched_wasserstein2_squared(x, x.detach())
    assert (found.shape, found.dtype, found.requires_grad) == ((0,), x.dtype, True)
    with pytest.raises(TypeError, match="must be float32 or float64"):
        batched_wasserstein2_squared(x.detach().long(), x.detach().long())


@pytest.mark.parametrize("shape", [(2, 0, 2), (2, 3, 0), (0, 0, 1)])
def test_an_empty_cloud_is_named_with_its_shape(shape):
    x = torch.empty(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}: clouds")):
        batched_wasserstein2_squared(x, x)
