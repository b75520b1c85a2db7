"""Finite differences, to which contracts compare derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otflow.measures import Measure


def derivative(f: Callable[[float], Tensor], h: float = 1e-3) -> Tensor:
    """Return f'(0) by the central formula of order 4.

    The error is about h^4 from the formula, and eps/h from round-off.
    """
    near, far = f(h) - f(-h), f(2 * h) - f(-2 * h)
    return (8 * near - far) / (12 * h)


def mean_derivative(f: Callable[[float], Tensor], h: float = 1e-4) -> Tensor:
    """Return the mean of f'(0-) and f'(0+), each by a one-sided formula of order 4."""
    factors = ((48, 1), (-36, 2), (16, 3), (-3, 4))
    total = sum(c * (f(k * h) - f(-k * h)) for c, k in factors)
    return torch.as_tensor(total) / (24 * h)


def gradient_field(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-3) -> Tensor:
    """Return the gradients (n, d) of a function that maps rows (n, d) to (n,)."""

    def along(axis: Tensor) -> Tensor:
        return derivative(lambda t: f(x + t * axis), h)

    return torch.stack([along(e) for e in torch.eye(x.shape[1]).to(x)], -1)


def mass_derivative(
    value: Callable[[Any], Tensor], mu: Measure, rate: Tensor, h: float = 1e-3
) -> Tensor:
    """Return the derivative of a value along the reweighting of `mu` by a rate."""
    return derivative(lambda t: value(mu.reweight(rate, t)), h)


def second_difference(f: Callable[[float], Tensor], t: float, h: float) -> Tensor:
    """Return (f(t+h) - 2 f(t) + f(t-h)) / h^2."""
    return (f(t + h) - 2 * f(t) + f(t - h)) / h**2
