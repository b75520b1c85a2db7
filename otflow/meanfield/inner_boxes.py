r"""The largest value of sums of units over a box of inner weights, bracketed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from otflow.meanfield.kinks import (
    CLIMBERS,
    EPS,
    IDLE,
    ROUND,
    TEMPORARY,
    Level,
    Maximum,
    as_found,
    dual_directions,
    gains,
)
from otflow.meanfield.units import Erf, Relu, Sigmoid, Tanh, Unit
from otflow.numerics.branching import Cells, Found, branch_and_bound

__all__ = ["UnitSums", "largest_in_box"]

# The corners of a box are tried in so many dimensions.
MOST_CORNERS = 6
# A bracket narrower than this share of its upper end is closed.
CLOSED = 1e-10
# Boxes of a round at whose corners g is tried.
BEST = 64
# Entries of a temporary array below which a larger one takes hardly more time, and
# most parts of few boxes.
SMALL = 2**14
PARTS = 64

Turning: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def _tanh(slope: Tensor) -> tuple[Tensor, Tensor]:
    height = (1 - slope).sqrt_()
    return torch.log1p(height).sub_(slope.log(), alpha=0.5), height


def _sigmoid(slope: Tensor) -> tuple[Tensor, Tensor]:
    x, height = _tanh(4 * slope)
    return 2 * x, 0.5 * height


def _erf(slope: Tensor) -> tuple[Tensor, Tensor]:
    x = (math.log(2 / math.sqrt(math.pi)) - slope.log()).clamp_min_(0).sqrt_()
    return x, torch.erf(x)


def _relu(slope: Tensor) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(slope)
    return zero, zero


@dataclass(frozen=True)
class Shape:
    r"""A unit that bends up to 0 and down beyond, symmetric about :math:`\varphi(0)`.

    Or one with a kink at 0, which is linear elsewhere.

    Parameters
    ----------
    turning : callable
        Maps slopes a to the :math:`x \ge 0` with :math:`\varphi'(x) = a`, and to
        :math:`\varphi(x) - \varphi(0)`.
    steepest : float
        The largest slope.
    middle : float
        :math:`\varphi(0)`.
    """

    turning: Turning
    steepest: float
    middle: float = 0.0


# By class, not by name: a user's unit may have the name of another.
SHAPES: Mapping[type[Unit], Shape] = MappingProxyType(
    {
        Relu: Shape(_relu, 1.0),
        Tanh: Shape(_tanh, 1.0),
        Sigmoid: Shape(_sigmoid, 0.25, 0.5),
        Erf: Shape(_erf, 2 / math.sqrt(math.pi)),
    }
)
TINY = torch.finfo(torch.float64).tiny


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
        return value @ self.q, self._summed(slope)

    def _summed(self, slope: Tensor) -> Tensor:
        """Return the sums (B, m, q) of slopes (B, n) of the unit."""
        return (slope[:, None] * self.q.T) @ self.z

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
        """Whether the shape of the unit is known, and so bounds on boxes are."""
        return type(self.unit) in SHAPES

    def chords(self, t: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return linear functions close to the unit on intervals, and how close.

        On :math:`|x - t| \le r` the chord of :math:`\varphi` has some slope a. There
        :math:`\varphi(x) - a x` is largest and least at an end, or where
        :math:`\varphi' = a`. This holds for any a, so that round-off in a is harmless.

        Parameters
        ----------
        t, reach : Tensor, shape (B, n)
            Middles of the intervals, and halves r of their lengths.

        Returns
        -------
        value, slope, error : Tensor, shape (B, n)
            The function is ``value + slope * (x - t)``, up to the error.
        """
        shape = SHAPES[type(self.unit)]
        low, high = t - reach, t + reach
        left, right = self.unit(low), self.unit(high)
        slope = ((right - left) / (2 * reach)).nan_to_num_(0.0, 0.0, 0.0)
        slope.clamp_(TINY, shape.steepest)
        turn, height = shape.turning(slope)
        height = height - slope * turn
        left.addcmul_(slope, low, value=-1)
        right.addcmul_(slope, high, value=-1)
        top, bottom = torch.maximum(left, right), torch.minimum(left, right)
        inside = (low <= turn) & (turn <= high)
        top = torch.where(inside, torch.maximum(top, shape.middle + height), top)
        inside = (low <= -turn) & (-turn <= high)
        bottom = torch.where(
            inside, torch.minimum(bottom, shape.middle - height), bottom
        )
        value = (top + bottom).mul_(0.5).addcmul_(slope, t)
        return value, slope, (top - bottom).mul_(0.5)

    def bound(self, centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return upper bounds of the dual norm of g on boxes, and where it is large.

        Chords of the unit make g a linear function, whose norm is largest at a corner,
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
        value, slope, error = self.chords(centre @ self.z.T, half @ self.z.abs().T)
        rest = error @ self.weights
        values, slope = value @ self.q, self._summed(slope)
        q = centre.shape[1]
        if q <= MOST_CORNERS and values.shape[1] > 1:
            signs = half.new_tensor(list(itertools.product((1.0, -1.0), repeat=q)))
            moves = signs[:, None] * half  # (2^q, B, q)
            corners = values + torch.einsum("cbq,bmq->cbm", moves, slope)
            linear = self.size_of(corners).amax(0)
        else:
            moved = (slope.abs() @ half[:, :, None])[:, :, 0]
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
        The bracket; its upper end is infinite if the shape of the unit is unknown.
    """
    value, place = _climb(g, lower, upper, starts, ascents, level)
    if not g.is_bounded:
        return _answer(g, value, place, math.inf)
    slack = g.noise(torch.maximum(lower.abs(), upper.abs()))
    boxes = _Boxes(g, slack, level)
    whole: Cells = ((lower + upper)[None] / 2, (upper - lower)[None] / 2)
    parts = boxes.parts(whole, min(boxes.few, budget))[0]
    found = branch_and_bound(
        boxes,
        parts,
        value,
        place,
        budget=budget,
        at_once=max(1, min(ROUND, TEMPORARY // len(g.z))),
    )
    answer = _answer(g, found.value, found.place, found.upper + slack)
    return replace(answer, closed=True) if found.closed else answer


def _answer(g: UnitSums, value: float, place: Tensor, top: float) -> Maximum:
    closed = top - value <= 1e-9 * value
    return Maximum(value, top, place, g.direction(g(place[None])[0]), closed)


class _Boxes:
    """The dual norm of g on boxes: cells (centre, half), each of shape (B, q)."""

    def __init__(self, g: UnitSums, slack: float, level: Level) -> None:
        self.g, self.slack, self.level = g, slack, level
        # A side counts by how much g may vary along it.
        self.scale = g.weights @ g.z.abs()
        self.few = max(1, min(PARTS, SMALL // len(g.z)))

    def goal(self, value: float) -> float:
        slack = max(self.slack, CLOSED * value)
        return max(value + slack, self.level(value)) - self.slack

    def bound(self, cells: Cells) -> Found:
        tops, corners = self.g.bound(*cells)
        # The largest value often lies on a side of the box, where no centre is.
        if len(tops) > BEST:
            corners = corners[tops.topk(BEST).indices]
        sizes = self.g.size_of(self.g(corners))
        best = int(sizes.argmax())

        def cut(index: Tensor) -> tuple[Cells, Tensor]:
            chosen = tuple(t[index] for t in cells)
            return self.parts(chosen, max(self.few, 2 * len(index)))

        return Found(tops, float(sizes[best]), corners[best], cut)

    def parts(self, cells: Cells, count: int) -> tuple[Cells, Tensor]:
        """Cut boxes into at most so many parts, and say of which box each is one."""
        (centre, half), parents = cells, torch.arange(len(cells[0]))
        parents = parents.to(centre.device)
        while 2 * len(centre) <= count:
            side = (half * self.scale).argmax(1, keepdim=True)
            move = 0.5 * half.gather(1, side)
            centre = torch.cat(
                [centre.scatter_add(1, side, -move), centre.scatter_add(1, side, move)]
            )
            half = half.scatter(1, side, move).repeat(2, 1)
            parents = parents.repeat(2)
        return (centre, half), parents


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
        uphill = (u[:, None] @ slope)[:, 0] * sides
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
