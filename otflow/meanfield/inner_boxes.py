r"""The largest value of sums of units over a box of inner weights, bracketed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from otflow.meanfield.cones import CLIMBERS, ROUND, TEMPORARY
from otflow.meanfield.kinks import (
    EPS,
    IDLE,
    Level,
    Maximum,
    as_found,
    dual_directions,
    gains,
)
from otflow.meanfield.units import Erf, Relu, Sigmoid, Tanh, Unit

__all__ = ["UnitSums", "largest_in_box"]

# The corners of a box are tried in so many dimensions.
MOST_CORNERS = 6
# A bracket narrower than this share of its upper end is closed.
CLOSED = 1e-10
# Boxes of a round at whose corners g is tried.
BEST = 64


def _tanh(t: Tensor) -> Tensor:
    value = torch.tanh(t)
    return 2 * value.abs() * (1 - value * value)


def _sigmoid(t: Tensor) -> Tensor:
    value = torch.sigmoid(t)
    return value * (1 - value) * (1 - 2 * value).abs()


def _erf(t: Tensor) -> Tensor:
    return (4 / math.sqrt(math.pi)) * t.abs() * torch.exp(-t * t)


# Of each unit |phi''|, an even function, and where it is largest: beyond it falls.
# A class, not a name: a user's unit may have the name of another.
Curvature: TypeAlias = tuple[Callable[[Tensor], Tensor], float]
CURVATURES: Mapping[type[Unit], Curvature] = MappingProxyType(
    {
        Tanh: (_tanh, math.atanh(1 / math.sqrt(3))),
        Sigmoid: (_sigmoid, math.log(2 + math.sqrt(3))),
        Erf: (_erf, math.sqrt(0.5)),
    }
)


class UnitSums:
    r"""The function :math:`g(v) = \sum_k q_k\,\varphi(v\cdot z_k)` of inner weights v.

    Parameters
    ----------
    z : Tensor, shape (n, q)
        Rows, in float64.
    coefficients : Tensor, shape (n, m)
        The factors q of the m outputs.
    unit : Unit
        The function :math:`\varphi`.
    norm : str
        "l1" or "l2", of the outputs' weights; values are measured in its dual norm.
    """

    def __init__(self, z: Tensor, coefficients: Tensor, unit: Unit, norm: str) -> None:
        self.z, self.q, self.unit, self.norm = z, coefficients, unit, norm
        self.weights = self.size_of(coefficients)  # (n,)

    def __call__(self, v: Tensor) -> Tensor:
        """Return g at rows (B, q): (B, m)."""
        return self.unit(v @ self.z.T) @ self.q

    def value_and_slope(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return g (B, m) and its derivative (B, m, q) at rows (B, q)."""
        t = v @ self.z.T
        value = self.unit(t)
        slope = self.unit.slope(t, value, torch.empty_like(t))
        bent = torch.einsum("bk,km,kq->bmq", slope, self.q, self.z)
        return value @ self.q, bent

    def size_of(self, values: Tensor) -> Tensor:
        """Return the dual norm of values (..., m): (...)."""
        order = math.inf if self.norm == "l1" else 2
        size: Tensor = torch.linalg.vector_norm(values, order, dim=-1)
        return size

    def direction(self, values: Tensor) -> Tensor:
        """Return unit vectors u of outputs with u.g = |g|, for g (..., m)."""
        return dual_directions(values, self.norm)

    @property
    def is_bounded(self) -> bool:
        """Whether the curvature of the unit is known, and so bounds on boxes are."""
        return type(self.unit) is Relu or type(self.unit) in CURVATURES

    def _remainder(self, t: Tensor, reach: Tensor) -> Tensor:
        r"""Return bounds of :math:`|\varphi(t + s) - \varphi(t) - \varphi'(t) s|`.

        They hold for all :math:`|s|` up to `reach`.
        """
        if type(self.unit) is Relu:
            return (reach - t.abs()).clamp_min(0)
        curvature, highest = CURVATURES[type(self.unit)]
        nearest = (t.abs() - reach).clamp_min(0)
        steepest = curvature(nearest.clamp_min(highest))
        return 0.5 * steepest * reach * reach

    def bound(self, centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return upper bounds of the dual norm of g on boxes, and where it is large.

        By Taylor's formula g is a linear function, whose norm is largest at a corner,
        and a remainder.

        Parameters
        ----------
        centre, half : Tensor, shape (B, q)
            Centres, and halves of the sides.

        Returns
        -------
        upper : Tensor, shape (B,)
            Bounds.
        corners : Tensor, shape (B, q)
            The corners to which the largest output rises from the centres.
        """
        values, slope = self.value_and_slope(centre)
        rest = self._remainder(centre @ self.z.T, half @ self.z.abs().T) @ self.weights
        q = centre.shape[1]
        if q <= MOST_CORNERS and values.shape[1] > 1:
            signs = half.new_tensor(list(itertools.product((1.0, -1.0), repeat=q)))
            moves = signs[:, None] * half  # (2^q, B, q)
            corners = values + torch.einsum("cbq,bmq->cbm", moves, slope)
            linear = self.size_of(corners).amax(0)
        else:
            moved = torch.einsum("bq,bmq->bm", half, slope.abs())
            linear = self.size_of(values.abs() + moved)
        most = values.abs().argmax(1)
        rows = torch.arange(len(values), device=values.device)
        uphill = values[rows, most, None].sign() * slope[rows, most]
        return linear + rest, centre + half * uphill.sign()

    def noise(self, corner: Tensor) -> float:
        """Return the round-off of g where v is at most `corner` in modulus."""
        n, q = self.z.shape
        reach = 1 + self.z.abs() @ corner
        return (n + q + 64) * EPS * float(self.weights @ reach)


def largest_in_box(
    g: UnitSums,
    lower: Tensor,
    upper: Tensor,
    starts: Tensor,
    *,
    budget: int,
    ascents: int,
    level: Level = as_found,
) -> Maximum:
    r"""Bracket the largest dual norm of g on a box.

    Parameters
    ----------
    g : UnitSums
        The function.
    lower, upper : Tensor, shape (q,)
        Corners of the box.
    starts : Tensor, shape (k, q)
        Where to look for a large value.
    budget : int
        Most boxes to bound.
    ascents : int
        Steps of ascent from each start.
    level : callable
        Maps the largest value found to a bound at least as large, which is sharp
        enough.

    Returns
    -------
    Maximum
        The bracket; its upper end is infinite if the curvature of the unit is unknown.
    """
    value, place = _climb(g, lower, upper, starts, ascents, level)
    if not g.is_bounded:
        return _answer(g, value, place, math.inf)
    slack = g.noise(torch.maximum(lower.abs(), upper.abs()))
    at_once = max(1, min(ROUND, TEMPORARY // len(g.z)))
    # A side counts by how much g may vary along it.
    scale = g.weights @ g.z.abs()
    boxes = torch.stack([(lower + upper) / 2, (upper - lower) / 2])[None]  # (B, 2, q)
    tops, corners = g.bound(boxes[:, 0], boxes[:, 1])
    spent, dropped = 1, 0.0
    while True:
        # The largest value often lies on a side of the box, where no centre is.
        near = corners[tops[-len(corners) :].topk(min(BEST, len(corners))).indices]
        sizes = g.size_of(g(near))
        if float(sizes.max()) > value:
            value, place = float(sizes.max()), near[sizes.argmax()]
        goal = max(value + max(slack, CLOSED * value), level(value))
        alive = tops + slack > goal
        low = tops[~alive]
        dropped = max(dropped, float(low.max()) if len(low) else 0.0)
        if not bool(alive.any()):
            found = _answer(g, value, place, max(value, dropped) + slack)
            return replace(found, closed=True)
        if spent >= budget:
            top = max(float(tops.max()), dropped) + slack
            return _answer(g, value, place, top)
        boxes, tops = boxes[alive], tops[alive]
        count = min(len(tops), at_once, max(1, (budget - spent) // 2))
        order = tops.argsort(descending=True)
        halves = _halves(boxes[order[:count]], scale)
        bounds, corners = g.bound(halves[:, 0], halves[:, 1])
        bounds = torch.minimum(bounds, tops[order[:count]].repeat(2))
        spent += len(halves)
        boxes = torch.cat([boxes[order[count:]], halves])
        tops = torch.cat([tops[order[count:]], bounds])


def _answer(g: UnitSums, value: float, place: Tensor, top: float) -> Maximum:
    closed = top - value <= 1e-9 * value
    return Maximum(value, top, place, g.direction(g(place[None])[0]), closed)


def _halves(boxes: Tensor, scale: Tensor) -> Tensor:
    """Return both halves (2B, 2, q) of boxes, cut across the side that counts most."""
    rows = torch.arange(len(boxes), device=boxes.device)
    side = (boxes[:, 1] * scale).argmax(1)
    move = 0.5 * boxes[rows, 1, side]
    one, two = boxes.clone(), boxes.clone()
    one[rows, 0, side] -= move
    two[rows, 0, side] += move
    halves = torch.cat([one, two])
    all_rows = torch.arange(len(halves), device=boxes.device)
    halves[all_rows, 1, side.repeat(2)] = move.repeat(2)
    return halves


def _climb(
    g: UnitSums,
    lower: Tensor,
    upper: Tensor,
    starts: Tensor,
    ascents: int,
    level: Level,
) -> tuple[float, Tensor]:
    """Return the largest value found by ascent from starts, and its place."""
    v = torch.cat([starts, ((lower + upper) / 2)[None]]).clamp(lower, upper)
    sides = upper - lower
    sizes = g.size_of(g(v))
    sizes, first = sizes.topk(min(CLIMBERS, len(sizes)))
    v, step = v[first], v.new_full((len(first), 1), 0.5)
    top, idle = float(sizes.max()), 0
    for _ in range(ascents):
        if idle == IDLE or float(step.max()) < 1e-8:
            break
        values, slope = g.value_and_slope(v)
        u = g.direction(values)
        # In units of the sides, so that a step of 1 crosses the box.
        uphill = torch.einsum("bm,bmq->bq", u, slope) * sides
        uphill = torch.nn.functional.normalize(uphill, dim=1)
        new = (v + step * uphill * sides).clamp(lower, upper)
        found = g.size_of(g(new))
        better = found > sizes
        v = torch.where(better[:, None], new, v)
        sizes = torch.where(better, found, sizes)
        step = torch.where(better[:, None], 2 * step, step / 4)
        if level is not as_found:
            high = float(sizes.max())
            idle = 0 if gains(level, top, high) else idle + 1
            top = max(top, high)
    best = int(sizes.argmax())
    return float(sizes[best]), v[best]
