r"""The largest value on a sphere of sums of kinks, bracketed on simplicial cones."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from otflow.meanfield.circle import largest_on_circle
from otflow.meanfield.kinks import (
    CLIMBERS,
    IDLE,
    ROUND,
    TEMPORARY,
    Kinks,
    Level,
    Maximum,
    as_found,
    gains,
)
from otflow.meanfield.relaxations import relaxed_bound
from otflow.numerics.branching import Cells, Found, branch_and_bound

__all__ = ["largest_on_cones", "largest_on_sphere"]

# Most dimensions in which the sphere is cut into cones, and those in which all faces
# of a cone are tried.
MOST_ORTHANTS = 10
MOST_FACES = 5
# Entries of a temporary array below which a larger one takes hardly more time, and
# most parts of few cones.
SMALL = 2**15
PARTS = 64


def bound(g: Kinks, cones: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return upper bounds on cones and what decides them.

    A cone (q, q) is that of its rows :math:`v_i`, which lie in one orthant and have
    :math:`|v_i|_1 = 1`. Kinks that the cone does not meet are linear there. A kink
    that bends up is convex: it lies below its interpolation from the rows. One that
    bends down lies below :math:`\alpha\,v\cdot z_k`, with :math:`0\le\alpha\le1`.
    So g lies below a linear function of given values at the rows.

    Parameters
    ----------
    g : Kinks
        The function.
    cones : Tensor, shape (B, q, q)
        Rows of each cone.

    Returns
    -------
    upper : Tensor, shape (B,)
        Bounds of the dual norm of g on the part of the cone of norm 1.
    values : Tensor, shape (B, q, m)
        g at the rows.
    loads : Tensor, shape (B, n)
        The factors of the kinks in the side that decides.
    """
    z = cones @ g.z.T  # (B, q, n)
    up = z.clamp_min(0)
    values = cones @ g.straight.T + up @ g.bent  # (B, q, m)
    high, low = z.amax(1), z.amin(1)
    mixed = (low < 0) & (high > 0)
    share = (high > -low).to(z)  # alpha, by the longer side
    extra = torch.where(mixed[:, None], up - share[:, None] * z, 0.0)  # >= 0
    if g.norm == "l2" and g.outputs > 1:
        weights = g.bent.norm(dim=1)
        heights = values.norm(dim=-1)
        # A norm of linear functions is convex: it lies below its interpolation.
        moved = values - (extra @ g.bent)
        heights = torch.maximum(heights, moved.norm(dim=-1) + extra @ weights)
        sides, loads = heights[None], weights[None, :, None]
    else:
        down, lift = g.bent.clamp_max(0).abs(), g.bent.clamp_min(0)
        over = (values + extra @ down).permute(2, 0, 1)  # (m, B, q)
        under = (-values + extra @ lift).permute(2, 0, 1)
        sides = torch.cat([over, under])  # (2m, B, q)
        loads = torch.stack([down.T, lift.T]).reshape(-1, len(g.z))[:, :, None]
    count = len(sides)
    uppers = _largest(g, cones.repeat(count, 1, 1), sides.flatten(0, 1))
    uppers = uppers.reshape(count, -1)  # (2m, B)
    upper, side = uppers.max(0)
    return upper, values, loads[side, :, 0]


def _largest(g: Kinks, cones: Tensor, heights: Tensor) -> Tensor:
    r"""Return bounds of a linear function on the parts of cones of norm 1.

    For the norm "l1" it is the largest of its values h at the rows. For "l2" any
    vector l with :math:`v_i\cdot l \ge h_i` for all i gives the bound |l|: on the
    cone the function lies below :math:`v\cdot l`. The best l is the projection of
    the function on the cone; it lies on one of its faces.
    """
    if g.norm == "l1":
        return heights.amax(1)
    q = cones.shape[-1]
    sign = torch.sign(cones.sum(1))  # v.sign = |v|_1 = 1 for each row
    gram = cones @ cones.transpose(1, 2)
    faces = _faces(q).to(heights)[:, None]  # (f, 1, q)
    # Rows that do not belong to a face get the share 0.
    part = gram * faces[..., None] * faces[..., None, :] + torch.diag_embed(1 - faces)
    # A thin cone has a singular matrix; whatever comes back is mended.
    share = torch.linalg.solve_ex(part, (heights * faces)[..., None])[0]
    normal = (share.transpose(2, 3) @ cones).nan_to_num_()  # (f, B, 1, q)
    lack = heights - (normal * cones).sum(-1)
    mended = normal[:, :, 0] + lack.amax(2).clamp_min_(0)[..., None] * sign
    best = mended.norm(dim=-1).amin(0)
    # No function is above its largest value times the largest |v|_1 of norm 1.
    rough = heights.amax(1).clamp_min(0) * math.sqrt(q)
    return torch.minimum(best, rough)


@cache
def _faces(q: int) -> Tensor:
    """Return which rows belong to the faces of a cone, (f, q)."""
    sizes = range(1, q + 1) if q <= MOST_FACES else (1, q)
    kinds = itertools.product((0.0, 1.0), repeat=q)
    return torch.tensor([face for face in kinds if sum(face) in sizes])


def cut(g: Kinks, cones: Tensor, loads: Tensor) -> Tensor:
    """Return both halves (2B, q, q) of cones, cut at their kinks or at an edge.

    A cone is cut at the kink of the largest share in its bound. The loads (B, n) are
    the factors of the kinks.
    """
    q = cones.shape[1]
    z = cones @ g.z.T  # (B, q, n)
    tall = torch.minimum(z.amax(1), -z.amin(1))  # negative away from the kink
    excess, kink = (tall * loads).max(1)
    z = z.gather(2, kink[:, None, None].expand(-1, q, 1))[:, :, 0]
    (top, i), (bottom, j) = z.max(1), z.min(1)
    part = (bottom / (bottom - top)).nan_to_num_(0.5)  # the share of row i
    smooth = (excess <= g.noise / len(g.z)) | ~((part > 0) & (part < 1))
    if bool(smooth.any()):
        # Where no kink matters, the longest edge is halved.
        longest = torch.cdist(cones, cones).flatten(1).argmax(1)
        i = torch.where(smooth, longest // q, i)
        j = torch.where(smooth, longest % q, j)
        part = part.masked_fill_(smooth, 0.5)
    at_i, at_j = (k[:, None, None].expand(-1, 1, q) for k in (i, j))
    point = torch.lerp(
        cones.gather(1, at_j), cones.gather(1, at_i), part[:, None, None]
    )
    point = point / point.abs().sum(2, keepdim=True)
    return torch.cat([cones.scatter(1, at_i, point), cones.scatter(1, at_j, point)])


def largest_on_sphere(
    g: Kinks, starts: Tensor, *, budget: int, ascents: int, level: Level = as_found
) -> Maximum:
    r"""Bracket the largest dual norm of g on the sphere of its norm.

    Parameters
    ----------
    g : Kinks
        The function.
    starts : Tensor, shape (k, q)
        Where to look for a large value.
    budget : int
        Most cones to bound.
    ascents : int
        Steps of ascent from each start.
    level : callable
        Maps the largest value found to a bound at least as large, which is sharp
        enough.

    Returns
    -------
    Maximum
        The bracket. It is closed for q = 2, and else if the budget suffices.
    """
    q = g.z.shape[1]
    if q == 2:
        return largest_on_circle(g)
    return largest_on_cones(g, starts, budget=budget, ascents=ascents, level=level)


def largest_on_cones(
    g: Kinks, starts: Tensor, *, budget: int, ascents: int, level: Level = as_found
) -> Maximum:
    """Bracket the largest dual norm of g on the sphere, cone by cone."""
    q = g.z.shape[1]
    value, place = _climb(g, starts, ascents, level)
    top = g.size * math.sqrt(q)
    if q > MOST_ORTHANTS:
        answer = _answer(g, value, place, min(top, relaxed_bound(g)))
        return replace(answer, advice=f"in dimension {q} it is a convex relaxation's")
    problem = _Cones(g, level)
    found = branch_and_bound(
        problem,
        (_orthants(g.z),),
        value,
        place,
        budget=max(budget, 2**q),
        at_once=max(1, min(ROUND, TEMPORARY // (q * len(g.z)))),
    )
    upper = min(found.upper, top) + problem.slack
    if found.closed:
        return replace(_answer(g, found.value, found.place, upper), closed=True)
    upper = max(min(upper, relaxed_bound(g)), found.value)
    return _answer(g, found.value, found.place, upper)


class _Cones:
    """The dual norm of g on cones: cells (rows,), of shape (B, q, q)."""

    def __init__(self, g: Kinks, level: Level) -> None:
        self.g, self.level, self.depth = g, level, 0
        self.few = max(1, min(PARTS, SMALL // g.z.numel()))

    @property
    def slack(self) -> float:
        """Round-off: each cut moves a row by a unit in the last place."""
        return (1 + self.depth) * self.g.noise

    def goal(self, value: float) -> float:
        return max(value + self.slack, self.level(value))

    def bound(self, cells: Cells) -> Found:
        g, (cones,) = self.g, cells
        upper, values, loads = bound(g, cones)
        sizes = g.size_of(values) / g.length(cones)
        best = int(sizes.argmax())
        value, place = float(sizes.flatten()[best]), cones.flatten(0, 1)[best]
        if g.norm == "l2":
            value, place = _better(g, cones.mean(1), value, place)

        def parts(index: Tensor) -> tuple[Cells, Tensor]:
            parents, new = torch.arange(len(index), device=index.device), cones[index]
            factors, most = loads[index], max(self.few, 2 * len(index))
            while 2 * len(new) <= most:
                new, factors = cut(g, new, factors), factors.repeat(2, 1)
                parents = parents.repeat(2)
                self.depth += 1
            return (new,), parents

        return Found(upper, value, place, parts)


def _orthants(z: Tensor) -> Tensor:
    """Return the orthants as cones, (2^q, q, q)."""
    signs = itertools.product((1.0, -1.0), repeat=z.shape[1])
    return torch.stack([torch.diag(z.new_tensor(s)) for s in signs])


def _answer(g: Kinks, value: float, place: Tensor, upper: float) -> Maximum:
    place = place / g.length(place[None])
    closed = upper - value <= 1e-9 * max(value, g.noise)
    return Maximum(value, upper, place, g.direction(g(place[None])[0]), closed)


def _better(g: Kinks, v: Tensor, value: float, place: Tensor) -> tuple[float, Tensor]:
    """Return the best of the known place, of places, and of a step of ascent there."""
    for _ in range(2):
        found = g(v)
        sizes = g.size_of(found) / g.length(v)
        best = int(sizes.argmax())
        if float(sizes[best]) > value:
            value, place = float(sizes[best]), v[best]
        v = _uphill(g, v, found)
    return value, place


def _uphill(g: Kinks, v: Tensor, values: Tensor) -> Tensor:
    """Return where the linear pieces of the norm of g at rows are largest."""
    u = g.direction(values)
    slope = (u[:, None] @ g.slope(v))[:, 0]
    if g.norm == "l1":
        j = slope.abs().argmax(1, keepdim=True)
        slope = torch.zeros_like(slope).scatter(1, j, slope.gather(1, j).sign())
    return torch.where(slope.norm(dim=1, keepdim=True) > 0, slope, v)


def _climb(
    g: Kinks, starts: Tensor, ascents: int, level: Level
) -> tuple[float, Tensor]:
    """Return the largest value found by ascent from starts, and its place."""
    v = starts[g.length(starts) > 0]
    v = torch.cat([v, torch.eye(g.z.shape[1], dtype=v.dtype, device=v.device)])
    v = v / g.length(v)[:, None]
    sizes = g.size_of(g(v))
    sizes, first = sizes.topk(min(CLIMBERS, len(sizes)))
    v = v[first]
    step = torch.ones_like(sizes)
    top, idle = float(sizes.max()), 0
    for _ in range(ascents):
        if idle == IDLE or float(step.max()) < 1e-6:
            break
        goal = _uphill(g, v, g(v))
        goal = goal / g.length(goal)[:, None]
        new = (1 - step)[:, None] * v + step[:, None] * goal
        length = g.length(new)
        new = torch.where(length[:, None] > 0, new, v)
        new = new / g.length(new)[:, None]
        found = g.size_of(g(new))
        better = found > sizes
        v = torch.where(better[:, None], new, v)
        sizes = torch.where(better, found, sizes)
        step = torch.where(better, (2 * step).clamp_max(1), step / 2)
        if level is not as_found:
            high = float(sizes.max())
            idle = 0 if gains(level, top, high) else idle + 1
            top = max(top, high)
    best = int(sizes.argmax())
    return float(sizes[best]), v[best]
