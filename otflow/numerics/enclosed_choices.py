"""The operations of torch on enclosures that choose: maxima, clamps, soft maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from otflow.numerics.elementary import FUNCTIONS
from otflow.numerics.enclosed_operations import (
    Operand,
    add,
    axes_from_end,
    check_no_cast,
    enclosed,
    times,
)
from otflow.numerics.enclosures import (
    Enclosure,
    NotEnclosed,
    compose,
    operation,
    padded,
    pairs,
    product,
)

__all__: list[str] = []


@operation("maximum")
def _maximum(x: Operand, y: Operand) -> Enclosure:
    a, b = _alike(x, y)
    u, v = a.rows, b.rows
    both = torch.stack([torch.minimum(u[0], v[0]), torch.maximum(u[1], v[1])])
    both[:, 0] = torch.maximum(u[:, 0], v[:, 0])
    if a.order > 1:
        # At a kink the second derivative is a positive measure along the jump.
        for k, (i, j) in enumerate(zip(*pairs(a.d), strict=True), start=1 + a.d):
            both[1, k] = math.inf
            if i != j:
                both[0, k] = -math.inf
    # Branches that only touch meet at a face of the cell, where both slopes count: its
    # neighbour there may be on the other branch.
    above, below = u[0, 0] > v[1, 0], v[0, 0] > u[1, 0]
    return a.like(torch.where(above, u, torch.where(below, v, both)))


@operation("minimum")
def _minimum(x: Operand, y: Operand) -> Any:
    return times(_maximum(times(x, -1.0), times(y, -1.0)), -1.0)


@operation("clamp", "hardtanh", "clamp_min")
def _clamp(x: Enclosure, low: Operand | None = None, high: Any = None) -> Any:
    found: Any = x if low is None else _maximum(x, low)
    return found if high is None else _minimum(found, high)


operation("clamp_max")(_minimum)


@operation("amax")
def _amax(x: Enclosure, dim: Sequence[int] | int = (), keepdim: bool = False) -> Any:
    found = x
    for k in axes_from_end(x, dim or None):
        parts = [found.like(t.unsqueeze(k)) for t in found.rows.unbind(k)]
        found = reduce(_maximum, parts)
    return found if keepdim else _without(found, axes_from_end(x, dim or None))


@operation("amin")
def _amin(x: Enclosure, dim: Sequence[int] | int = (), keepdim: bool = False) -> Any:
    return times(_amax(times(x, -1.0), dim, keepdim), -1.0)


@operation("logsumexp")
def _logsumexp(x: Enclosure, dim: Sequence[int] | int, keepdim: bool = False) -> Any:
    dims = axes_from_end(x, dim)
    # Any constant may be taken out; the largest middle keeps exp in range.
    shift = x.value.nan_to_num(0.0, 0.0, 0.0).mean(0).amax(dims, keepdim=True)
    shares = compose(add(x, shift, alpha=-1), FUNCTIONS["exp"])
    total: Any = shares.sum(dims, keepdim=True)
    found = add(compose(total, FUNCTIONS["log"]), shift)
    return found if keepdim else _without(found, dims)


@operation("where")
def _where(condition: Tensor, x: Operand, y: Operand) -> Enclosure:
    if isinstance(condition, Enclosure):
        msg = "torch.where of a condition on x has no interval extension here"
        raise NotEnclosed(msg)
    a, b = _alike(x, y)
    return a.like(torch.where(condition, a.rows, b.rows))


@operation("leaky_relu")
def _leaky_relu(x: Enclosure, slope: float = 0.01) -> Any:
    return _maximum(x, times(x, slope)) if slope <= 1 else _minimum(x, times(x, slope))


@operation("gelu")
def _gelu(x: Enclosure, *, approximate: str = "none") -> Any:
    if approximate != "none":
        msg = f"gelu with approximate={approximate!r} has no interval extension here"
        raise NotEnclosed(msg)
    step = compose(times(x, math.sqrt(0.5)), FUNCTIONS["erf"])
    return times(product(x, add(step, 1.0)), 0.5)


@operation("log_sigmoid_forward")
def _log_sigmoid(x: Enclosure) -> Any:
    return times(compose(times(x, -1.0), FUNCTIONS["softplus"]), -1.0), x


@operation("prod")
def _prod(x: Enclosure, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Any:
    check_no_cast(dtype)
    k = axes_from_end(x, dim)[0]
    found = reduce(product, [x.like(t) for t in x.rows.unbind(k)])
    return found.unsqueeze(dim) if keepdim else found


@operation("cumsum")
def _cumsum(x: Enclosure, dim: int, *, dtype: Any = None) -> Any:
    check_no_cast(dtype)
    k = axes_from_end(x, dim)[0]
    parts = [x.like(t) for t in x.rows.unbind(k)]
    sums = [parts[0]]
    for part in parts[1:]:
        sums.append(add(sums[-1], part))
    return x.like(torch.stack([s.rows for s in sums], k))


@operation("hypot")
def _hypot(x: Operand, y: Operand) -> Any:
    a, b = _alike(x, y)
    return a.like(torch.stack([a.rows, b.rows], -1)).norm(dim=-1)


def _alike(x: Operand, y: Operand) -> tuple[Enclosure, Enclosure]:
    """Return two enclosures of one shape."""
    like = x if isinstance(x, Enclosure) else y
    assert isinstance(like, Enclosure)
    a, b = enclosed(x, like), enclosed(y, like)
    n = max(a.ndim, b.ndim)
    rows = torch.broadcast_tensors(padded(a, n), padded(b, n))  # type: ignore[no-untyped-call]
    return like.like(rows[0]), like.like(rows[1])


def _without(x: Enclosure, dims: Sequence[int]) -> Enclosure:
    """Return an enclosure without axes of length 1."""
    axes = sorted(k % x.ndim for k in dims)
    left = [n for k, n in enumerate(x.shape) if k not in axes]
    return x.like(x.rows.reshape(*x.rows.shape[:2], *left))
