r"""Ranges of elementary functions and of their first two derivatives on intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from otflow.numerics.intervals import (
    EPS,
    ULPS,
    Interval,
    add,
    elementwise,
    hull,
    multiply,
    negative,
    outward,
    reciprocal,
    scale,
    square,
)

__all__ = ["FUNCTIONS", "Ranges", "power"]

Ranges: TypeAlias = Callable[[Interval, int], list[Interval]]
"""Ranges of f, f', f'' on an interval: the first 1 + order of them."""

# Beyond this distance from 0 the derivatives of tanh and erf are 0 in float64.
FAR = 1e3
THIRD = math.sqrt(1 / 3)
# Where torch puts t itself in the place of softplus(t).
TURN = 20.0


def _exp(t: Interval, order: int) -> list[Interval]:
    return [elementwise(torch.exp, t).clamp_(min=0.0)] * (1 + order)


def _expm1(t: Interval, order: int) -> list[Interval]:
    return [elementwise(torch.expm1, t).clamp_(min=-1.0), *_exp(t, order)[:order]]


def _log(t: Interval, order: int) -> list[Interval]:
    found = [elementwise(torch.log, _domain(t, 0.0))]
    if order:
        inverse = reciprocal(_domain(t, 0.0))
        found += [inverse, negative(square(inverse))]
    return found[: 1 + order]


def _log1p(t: Interval, order: int) -> list[Interval]:
    found = [elementwise(torch.log1p, _domain(t, -1.0))]
    if order:
        inverse = reciprocal(_domain(add(t, torch.ones_like(t)), 0.0))
        found += [inverse, negative(square(inverse))]
    return found[: 1 + order]


def _sin(t: Interval, order: int) -> list[Interval]:
    sine = _wave(torch.sin, t, 0.5 * math.pi)
    return [sine, *([_cosine(t), negative(sine)] if order else [])][: 1 + order]


def _cos(t: Interval, order: int) -> list[Interval]:
    cosine = _cosine(t)
    if not order:
        return [cosine]
    sine = _wave(torch.sin, t, 0.5 * math.pi)
    return [cosine, negative(sine), negative(cosine)][: 1 + order]


def _cosine(t: Interval) -> Interval:
    return _wave(torch.cos, t, 0.0)


def _wave(function: Callable[[Tensor], Tensor], t: Interval, peak: float) -> Interval:
    """Return the range of a function of period 2 pi with its maximum 1 at `peak`."""
    turns = (t - peak) / (2 * math.pi)
    slack = turns.abs().mul_(1e-14).add_(1e-14)
    # A peak that round-off may place inside is taken to be inside. So is one of an
    # interval of a turn or more, and of one that is not finite.
    first, last = turns[0] - slack[0], turns[1] + slack[1]
    top = ~(torch.floor(last) < torch.ceil(first))
    bottom = ~(torch.floor(last - 0.5) < torch.ceil(first - 0.5))
    low, high = outward(hull(function(t)), ULPS)
    low, high = low.masked_fill_(bottom, -1.0), high.masked_fill_(top, 1.0)
    return torch.stack([low, high]).clamp_(-1.0, 1.0)


def _tanh(t: Interval, order: int) -> list[Interval]:
    ends = torch.tanh(t)
    value = outward(ends, ULPS).clamp_(-1.0, 1.0)
    if not order:
        return [value]
    # The slope 1 - tanh^2 falls with |t|. The second derivative -2 tanh (1 - tanh^2)
    # has its extremes where tanh^2 = 1/3.
    slopes = 1.0 - ends * ends
    bend = _odd(-2.0 * ends * slopes, t, math.atanh(THIRD), 4 / 3 * THIRD)
    return [value, _bump(slopes, t, 1.0), bend][: 1 + order]


def _sigmoid(t: Interval, order: int) -> list[Interval]:
    value = elementwise(torch.sigmoid, t).clamp_(0.0, 1.0)
    # sigmoid(t) = (1 + tanh(t / 2)) / 2.
    half = _tanh(0.5 * t, order)
    return [value, *(0.5 ** (k + 1) * half[k] for k in range(1, 1 + order))]


def _erf(t: Interval, order: int) -> list[Interval]:
    value = elementwise(torch.erf, t).clamp_(-1.0, 1.0)
    if not order:
        return [value]
    near, height = t.clamp(-FAR, FAR), 2 / math.sqrt(math.pi)
    slopes = height * torch.exp(-near.square())
    # The second derivative has its extremes where 2 t^2 = 1.
    at = math.sqrt(0.5)
    bend = _odd(-2.0 * near * slopes, t, at, 2 * at * height * math.exp(-0.5))
    return [value, _bump(slopes, t, height), bend][: 1 + order]


def _bump(ends: Interval, t: Interval, top: float) -> Interval:
    """Return the range of an even function that falls with |t| from `top` at 0."""
    inside = (t[0] <= 0) & (t[1] >= 0)
    peak = ends.amax(0).masked_fill_(inside, top)
    return _loose(torch.stack([ends.amin(0), peak])).clamp_(min=0.0)


def _odd(ends: Interval, t: Interval, at: float, top: float) -> Interval:
    """Return the range of a function with extremes `top` at -at and -top at `at`."""
    low = ends.amin(0).masked_fill_((t[0] <= at) & (t[1] >= at), -top)
    high = ends.amax(0).masked_fill_((t[0] <= -at) & (t[1] >= -at), top)
    return _loose(torch.stack([low, high]))


def _loose(t: Interval) -> Interval:
    # exp(-x^2) multiplies the relative error of its exponent by x^2, and is so small
    # there that the product is below 1. So the error is a few units of 1.
    return torch.stack([t[0] - 32 * EPS, t[1] + 32 * EPS])


def _relu(t: Interval, order: int) -> list[Interval]:
    step = torch.stack([(t[0] > 0), (t[1] >= 0)]).to(t.dtype)
    return [t.clamp(min=0.0), step, _kink(t)][: 1 + order]


def _abs(t: Interval, order: int) -> list[Interval]:
    straddles = (t[0] <= 0) & (t[1] >= 0)
    low = torch.where(straddles, 0.0, t.abs().amin(0))
    value = torch.stack([low, t.abs().amax(0)])
    sign = torch.stack([(t[0] > 0) * 2.0 - 1.0, (t[1] >= 0) * 2.0 - 1.0])
    return [value, sign, 2.0 * _kink(t)][: 1 + order]


def _kink(t: Interval) -> Interval:
    """Return the second derivative of a kink at 0: infinite there, in a measure."""
    straddles = (t[0] <= 0) & (t[1] >= 0)
    zero = torch.zeros_like(t[0])
    return torch.stack([zero, torch.where(straddles, math.inf, 0.0)])


def _sqrt(t: Interval, order: int) -> list[Interval]:
    root = outward(_domain(t, 0.0).sqrt()).clamp_(min=0.0)
    if not order:
        return [root]
    slope = scale(reciprocal(root), 0.5).clamp_(min=0.0)
    # f'' = -2 f'^3
    second = scale(multiply(square(slope), slope), -2.0)
    return [root, slope, second][: 1 + order]


def _reciprocal(t: Interval, order: int) -> list[Interval]:
    value = reciprocal(t)
    if not order:
        return [value]
    squared = square(value)
    return [value, negative(squared), scale(multiply(squared, value), 2.0)][: 1 + order]


def _softplus(t: Interval, order: int) -> list[Interval]:
    value = elementwise(lambda x: x.relu() + torch.log1p(torch.exp(-x.abs())), t)
    # torch returns t itself beyond the turn, which is a step down of exp(-20).
    value = torch.stack([torch.where(t[1] > TURN, t[0], value[0]), value[1]])
    value = value.clamp_(min=0.0)
    slopes = _sigmoid(t, max(order - 1, 0))
    jumps = (t[0] <= TURN) & (t[1] > TURN)
    slopes = [torch.stack([s[0].masked_fill(jumps, -math.inf), s[1]]) for s in slopes]
    return [value, *slopes][: 1 + order]


def _atan(t: Interval, order: int) -> list[Interval]:
    value = elementwise(torch.atan, t)
    if not order:
        return [value]
    slope = reciprocal(add(square(t), torch.ones_like(t)))
    return [value, slope, scale(multiply(t, square(slope)), -2.0)][: 1 + order]


def _sinh(t: Interval, order: int) -> list[Interval]:
    value = elementwise(torch.sinh, t)
    return [value, _cosh_range(t), value][: 1 + order]


def _cosh(t: Interval, order: int) -> list[Interval]:
    value = _cosh_range(t)
    return [value, elementwise(torch.sinh, t), value][: 1 + order]


def _cosh_range(t: Interval) -> Interval:
    return elementwise(torch.cosh, _abs(t, 0)[0]).clamp_(min=1.0)


def power(exponent: float) -> Ranges:
    """Return the ranges of t^p: every t if p is a natural number, else t >= 0."""
    p = float(exponent)

    def ranges(t: Interval, order: int) -> list[Interval]:
        found = [_monomial(t, p)]
        if order:
            found.append(scale(_lowered(t, p, 1), p))
        if order > 1:
            # The factor is rounded twice.
            found.append(outward(scale(_lowered(t, p, 2), p * (p - 1)), 2.0))
        return found

    return ranges


def _lowered(t: Interval, p: float, k: int) -> Interval:
    """Return t^(p - k), with what the rounding of p - k leaves out."""
    found = _monomial(t, p - k)
    left_out = abs(float(Fraction(p) - k - Fraction(p - k)))
    if not left_out:
        return found
    # Where t is 0 or infinite, so is its power, whatever the exponent.
    logs = t.log().abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    return outward(found, 1.01 * logs * (left_out / EPS))


def _monomial(t: Interval, p: float) -> Interval:
    if p == 0:
        return torch.ones_like(t)
    if p == 1:
        return t
    if p.is_integer():
        if p < 0:
            return reciprocal(_monomial(t, -p))
        if p % 2 == 0:
            t = _abs(t, 0)[0]
        # torch multiplies; each product is off by half a unit.
        return outward(t**p, 2 * ULPS + abs(p))
    t = _domain(t, 0.0)
    return elementwise(lambda x: x**p, t, falling=p < 0).clamp_(min=0.0)


def _domain(t: Interval, least: float) -> Interval:
    """Return the part of an interval in [least, inf); the line where none is."""
    inside = torch.stack([t[0].clamp(min=least), t[1]])
    return torch.where(t[1] >= least, inside, math.nan)


FUNCTIONS: dict[str, Ranges] = {
    "abs": _abs,
    "atan": _atan,
    "cos": _cos,
    "cosh": _cosh,
    "erf": _erf,
    "exp": _exp,
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    "reciprocal": _reciprocal,
    "relu": _relu,
    "sigmoid": _sigmoid,
    "sin": _sin,
    "sinh": _sinh,
    "softplus": _softplus,
    "sqrt": _sqrt,
    "tanh": _tanh,
}
"""The functions by the names that torch gives them."""
