r"""Interval arithmetic with outward rounding, entry by entry on tensors.

An interval is a tensor (2, ...) of float64: its lower ends, then its upper ends. Every
operation returns an interval that contains the exact results of real arithmetic, for
all real arguments in the given intervals :cite:p:`moore2009introduction`. The ends may
be infinite; no end is NaN.

torch adds, multiplies, divides and takes roots with correct rounding. Its elementary
functions are off by at most `ULPS` units in the last place. That is an assumption on
the mathematical library below torch, and a test measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Interval",
    "add",
    "dot",
    "elementwise",
    "exact",
    "hull",
    "multiply",
    "negative",
    "outward",
    "reciprocal",
    "scale",
    "square",
    "total",
]

Interval: TypeAlias = Tensor
"""A tensor (2, ...) of float64: lower and upper ends."""

EPS = torch.finfo(torch.float64).eps
MAX = torch.finfo(torch.float64).max
TINY = torch.finfo(torch.float64).tiny
# Units in the last place by which exp, sin and their like may be off.
ULPS = 4.0


def exact(x: Tensor) -> Interval:
    """Return the intervals that hold one number each; float32 is widened exactly.

    NaN may be any number.
    """
    x = x.to(torch.float64)
    return _known(torch.stack([x, x]), ~x.isnan())


def outward(t: Interval, ulps: float | Tensor = 1.0) -> Interval:
    """Return intervals whose ends lie outside by units in the last place.

    A sum or product that torch rounded is off by half a unit. An end that is NaN, as
    that of an invalid operation, becomes infinite. A lower end that overflowed to
    infinity becomes the largest number, as it is a lower bound.
    """
    ends = t.abs().mul_(EPS * ulps).add_(TINY)
    low, high = ends.unbind()
    low.neg_()
    ends.add_(t)
    low.nan_to_num_(nan=-math.inf, posinf=MAX, neginf=-math.inf)
    high.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-MAX)
    return ends


def hull(t: Tensor, dim: int = 0) -> Interval:
    """Return the least intervals that contain candidates along an axis, unrounded."""
    return torch.stack([t.amin(dim), t.amax(dim)])


def negative(t: Interval) -> Interval:
    """Return minus an interval."""
    return t.flip(0).neg_()


def add(s: Interval, t: Interval) -> Interval:
    """Return the sum."""
    return outward(s + t)


def scale(t: Interval, c: Tensor | float) -> Interval:
    """Return an interval times a real number, or numbers that broadcast.

    A number that is not finite gives the whole line, as its product with 0 is not 0.
    """
    if not isinstance(c, Tensor):
        return outward((t if c >= 0 else t.flip(0)) * c)
    ends = outward(hull(_without_nan(t * c)))
    return _known(ends, torch.isfinite(c))


def multiply(s: Interval, t: Interval) -> Interval:
    """Return the product; both have the same number of axes."""
    products = _without_nan(s[:, None] * t)  # of any end with any end
    return outward(hull(products.flatten(0, 1)))


def square(t: Interval) -> Interval:
    """Return the square, at least 0."""
    ends = t * t
    straddles = (t[0] <= 0) & (t[1] >= 0)
    low = torch.where(straddles, 0.0, torch.minimum(ends[0], ends[1]))
    return _floor(outward(torch.stack([low, torch.maximum(ends[0], ends[1])])), 0.0)


def reciprocal(t: Interval) -> Interval:
    """Return one over an interval; the whole line where 0 lies inside."""
    low, high = t
    ends = torch.stack(
        [
            torch.where((low < 0) & (high >= 0) | (high == 0), -math.inf, 1.0 / high),
            torch.where((low <= 0) & (high > 0) | (low == 0), math.inf, 1.0 / low),
        ]
    )
    return outward(ends)


def total(
    t: Interval, dim: int | tuple[int, ...], *, keepdim: bool = False
) -> Interval:
    r"""Return the sum along axes, counted from the end.

    The error of a floating sum of n numbers, in any order, is at most about
    :math:`n u \sum|x_i|` with u the unit round-off :cite:p:`higham2002accuracy`.
    """
    dims = (dim,) if isinstance(dim, int) else dim
    if not dims:  # torch takes no axes for all
        return t
    n = math.prod(t.shape[k] for k in dims)
    ends = t.sum(dims, keepdim=keepdim)
    return _with_slack(ends, t.abs().sum(dims, keepdim=keepdim), n)


def dot(t: Interval, c: Tensor) -> Interval:
    """Return the product (..., n) @ (n, k), or of batches, with exact real numbers.

    A column of numbers that are not all finite gives the whole line.
    """
    n = c.shape[-2]
    low, high = t.unbind()
    middle = (0.5 * low).add_(high, alpha=0.5)
    size = c.abs()
    # The half width, and the round-off of a sum of n products.
    spread = torch.maximum(high - middle, middle - low).mul_(1 + 4 * EPS)
    spread = spread.add_(middle.abs(), alpha=(n + 4) * EPS)
    centre, reach = middle @ c, (spread @ size).mul_(1 + 2 * n * EPS).add_(TINY)
    ends = torch.stack([centre - reach, centre + reach])
    if bool(torch.isfinite(ends).all()):
        return outward(ends)
    return _dot_of_infinite(t, c)


def _dot_of_infinite(t: Interval, c: Tensor) -> Interval:
    """Return the product where ends are infinite; times 0 they count as 0."""
    if c.ndim > 2:  # each matrix of a batch has an axis for the rows of t
        c = c[..., None, :, :]
    ends = _without_nan(t[..., None] * c.clamp(min=0)).sum(-2)
    ends = ends + _without_nan(t.flip(0)[..., None] * c.clamp(max=0)).sum(-2)
    size = _without_nan(t.abs().amax(0)[..., None] * c.abs()).sum(-2)
    ends = _with_slack(ends, size.expand_as(ends), 2 * c.shape[-2] + 2)
    return _known(ends, torch.isfinite(c).all(-2))


def elementwise(
    function: Callable[[Tensor], Tensor], t: Interval, *, falling: bool = False
) -> Interval:
    """Return the range of a monotone elementary function of torch."""
    ends = function(t)
    return outward(ends.flip(0) if falling else ends, ULPS)


def _with_slack(ends: Interval, size: Interval, n: int) -> Interval:
    slack = (size * (n * EPS)).add_(TINY)
    slack[0].neg_()
    return outward(slack.add_(ends))


def _known(t: Interval, known: Tensor) -> Interval:
    """Return intervals that are the whole line where they are not known."""
    if bool(known.all()):
        return t
    low, high = t.masked_fill(~known, -math.inf)[0], t.masked_fill(~known, math.inf)[1]
    return torch.stack([low, high])


def _without_nan(products: Tensor) -> Tensor:
    """Return products in which 0 times infinity is 0: no end of an interval is NaN."""
    return products.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def _floor(t: Interval, bound: float) -> Interval:
    return t.clamp_(min=bound)
