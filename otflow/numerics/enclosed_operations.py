"""The operations of torch on enclosures: arithmetic, sums, products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from otflow.numerics.elementary import FUNCTIONS, TURN, Ranges, power
from otflow.numerics.enclosures import (
    Enclosure,
    NotEnclosed,
    compose,
    constant,
    constant_rows,
    operation,
    padded,
    product,
)
from otflow.numerics.intervals import (
    Interval,
    dot,
    multiply,
    negative,
    outward,
    scale,
    total,
)

__all__ = ["Operand", "add", "axes_from_end", "check_no_cast", "enclosed", "times"]

Operand = Enclosure | Tensor | float


def _of_one_number(ranges: Ranges) -> Callable[[Enclosure], Enclosure]:
    return lambda x: compose(x, ranges)


for _name, _ranges in FUNCTIONS.items():
    operation(_name)(_of_one_number(_ranges))


@operation("softplus")
def _softplus(x: Enclosure, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if threshold != TURN:
        msg = f"softplus with threshold={threshold} has no interval extension here"
        raise NotEnclosed(msg)
    if beta == 1:
        return compose(x, FUNCTIONS["softplus"])
    return _divide(compose(times(x, beta), FUNCTIONS["softplus"]), beta)


# Arithmetic --------------------------------------------------------------------------


@operation("neg")
def _negative(x: Enclosure) -> Enclosure:
    return x.like(negative(x.rows))


@operation("add")
def add(x: Operand, y: Operand, *, alpha: float = 1) -> Any:
    """Return x + alpha y; tensors and numbers do not depend on the points."""
    if alpha != 1:
        y = times(y, alpha)
    like = x if isinstance(x, Enclosure) else y
    assert isinstance(like, Enclosure)
    a, b = enclosed(x, like), enclosed(y, like)
    n = max(a.ndim, b.ndim)
    return like.like(outward(padded(a, n) + padded(b, n)))


@operation("sub")
def _subtract(x: Operand, y: Operand, *, alpha: float = 1) -> Any:
    return add(x, times(y, -alpha))


@operation("rsub")
def _subtract_from(x: Operand, y: Operand, *, alpha: float = 1) -> Any:
    return add(y, times(x, -alpha))


@operation("mul")
def times(x: Operand, y: Operand) -> Any:
    """Return x y, entry by entry."""
    if isinstance(x, Enclosure) and isinstance(y, Enclosure):
        return compose(x, power(2.0)) if x is y else product(x, y)
    if isinstance(y, Enclosure):
        x, y = y, x
    if not isinstance(x, Enclosure):
        return x * y
    c = constant(y, x)
    if not isinstance(y, Tensor):
        return x.like(scale(x.rows, float(y)))
    n = max(x.ndim, y.ndim)
    return x.like(scale(padded(x, n), c.reshape(*[1] * (n - c.ndim), *c.shape)))


@operation("div")
def _divide(x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        msg = f"a division with rounding_mode={rounding_mode!r} jumps"
        raise NotEnclosed(msg)
    if isinstance(y, Enclosure):
        return times(x, compose(y, FUNCTIONS["reciprocal"]))
    assert isinstance(x, Enclosure)
    divisor = constant_rows(y, x)
    if not isinstance(y, Tensor):
        ends = x.rows / y
        return x.like(outward(ends if y > 0 else ends.flip(0)))
    return product(x, compose(x.like(divisor), FUNCTIONS["reciprocal"]))


@operation("pow")
def _power(x: Operand, y: Operand) -> Enclosure:
    if isinstance(x, Enclosure) and not isinstance(y, Tensor):
        return compose(x, power(float(constant(y, x))))
    if isinstance(y, Enclosure) and not isinstance(x, Tensor) and x > 0:
        base = y.rows.new_full((2, 1), x)
        exponent = multiply(
            y.rows, FUNCTIONS["log"](base, 0)[0].reshape(2, *[1] * (y.ndim + 1))
        )
        return compose(y.like(exponent), FUNCTIONS["exp"])
    msg = "torch.pow has an interval extension for numbers as exponents alone"
    raise NotEnclosed(msg)


@operation("square")
def _square(x: Enclosure) -> Enclosure:
    return compose(x, power(2.0))


@operation("rsqrt")
def _rsqrt(x: Enclosure) -> Enclosure:
    return compose(compose(x, FUNCTIONS["sqrt"]), FUNCTIONS["reciprocal"])


@operation("silu")
def _silu(x: Enclosure) -> Enclosure:
    return product(x, compose(x, FUNCTIONS["sigmoid"]))


# Sums and products of matrices -------------------------------------------------------


@operation("sum")
def _sum(
    x: Enclosure,
    dim: Sequence[int] | int | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Enclosure:
    check_no_cast(dtype)
    return x.like(total(x.rows, axes_from_end(x, dim), keepdim=keepdim))


@operation("mean")
def _mean(
    x: Enclosure,
    dim: Sequence[int] | int | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Enclosure:
    dims = axes_from_end(x, dim)
    count = math.prod(x.shape[k] for k in dims)
    added: Enclosure = _sum(x, dim, keepdim, dtype=dtype)
    return x.like(outward(added.rows / count))


@operation("mm", "bmm", "mv", "dot")
def _matmul(x: Operand, y: Operand) -> Any:
    if isinstance(x, Enclosure) and isinstance(y, Enclosure):
        left = x.like(x.rows.unsqueeze(-1)) if y.ndim > 1 else x
        right = y.like(y.rows.unsqueeze(-3)) if x.ndim > 1 and y.ndim > 1 else y
        return _sum(product(left, right), -2 if y.ndim > 1 else -1)
    if isinstance(x, Enclosure):
        c = constant(y, x)
        if c.ndim == 1:
            return x.like(dot(x.rows, c[:, None])[..., 0])
        return x.like(dot(x.rows, c))
    assert isinstance(y, Enclosure)
    c = constant(x, y)
    rows = y.rows[..., None] if y.ndim == 1 else y.rows
    turned = dot(rows.mT, c.reshape(-1, c.shape[-1]).T if c.ndim < 3 else c.mT).mT
    if c.ndim == 1:
        turned = turned[..., 0, :]
    return y.like(turned[..., 0] if y.ndim == 1 else turned)


@operation("addmm", "addmv")
def _addmm(b: Operand, x: Operand, y: Operand, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return add(times(b, beta), times(_matmul(x, y), alpha))


@operation("linalg_vector_norm", "norm")
def _norm(
    x: Enclosure,
    ord: Any = 2,  # the name that torch gives it
    dim: Sequence[int] | int | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Any:
    check_no_cast(dtype)
    if ord == 1:
        return _sum(compose(x, FUNCTIONS["abs"]), dim, keepdim)
    if ord not in (2, None):
        msg = f"a norm of order {ord} has no interval extension here"
        raise NotEnclosed(msg)
    squared: Enclosure = _sum(compose(x, power(2.0)), dim, keepdim)
    root = compose(squared, FUNCTIONS["sqrt"])
    if not x.order:
        return root
    # The norm has slope at most 1 in each entry, also at 0 where the root has none.
    slopes = _sum(compose(x, _slope_of_norm), dim, keepdim)
    n = x.d + 1
    low = torch.maximum(root.rows[0, 1:n], slopes.rows[0, 1:n])
    high = torch.minimum(root.rows[1, 1:n], slopes.rows[1, 1:n])
    root.rows[0, 1:n], root.rows[1, 1:n] = low, high
    return root


def _slope_of_norm(t: Interval, order: int) -> list[Interval]:
    one = torch.ones_like(t)
    return [t, torch.stack([-one[0], one[1]]), torch.stack([-one[0], one[1]])][
        : 1 + order
    ]


# Helpers -----------------------------------------------------------------------------


def enclosed(x: Operand, like: Enclosure) -> Enclosure:
    """Return a tensor or a number as an enclosure that does not depend on x."""
    if isinstance(x, Enclosure):
        return x
    return like.like(constant_rows(x, like))


def axes_from_end(x: Enclosure, dim: Sequence[int] | int | None) -> tuple[int, ...]:
    """Return axes counted from the end."""
    if not x.ndim:
        return ()
    dims = (dim,) if isinstance(dim, int) else tuple(dim or range(x.ndim))
    return tuple(k % x.ndim - x.ndim for k in dims)


def check_no_cast(dtype: Any) -> None:
    """Raise `NotEnclosed` for another dtype than float64."""
    if dtype not in (None, torch.float64):
        msg = f"a cast to {dtype} has no interval extension here"
        raise NotEnclosed(msg)
