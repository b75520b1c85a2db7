r"""Proved lower bounds of a function on a box, by branch and bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.numerics.enclosures import Enclosure, pairs
from otflow.numerics.intervals import EPS, Interval

__all__ = ["STARTS", "Bounded", "bound_below", "polish"]

Enclose = Callable[[Enclosure], Enclosure]

# Cells that are bounded together: so many entries of second derivatives at most.
ENTRIES = 2**16
# Places from which a descent begins.
STARTS = 8
# A convex cell is centred anew at most so many times before it is cut.
CENTRINGS = 3


@dataclass
class Bounded:
    """A proved lower bound of a function on a box.

    Parameters
    ----------
    bound : float
        No value on the box is lower.
    best : float
        An upper bound of the least value, from its place.
    argmin : Tensor, shape (d,)
        That place.
    cells : int
        Number of cells that were bounded.
    finished : bool
        Whether the bound is as sharp as was asked for.
    """

    bound: float
    best: float
    argmin: Tensor
    cells: int
    finished: bool


@dataclass
class _Cells:
    """Cells that may hold the minimum, with lower bounds that are known already."""

    lower: Tensor
    upper: Tensor
    centre: Tensor
    bound: Tensor
    visits: Tensor

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, index: Tensor | slice) -> _Cells:
        return _Cells(*(t[index] for t in vars(self).values()))

    def join(self, other: _Cells) -> _Cells:
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Cells(*(torch.cat(pair) for pair in both))


def bound_below(
    enclose: Enclose,
    lower: Tensor,
    upper: Tensor,
    places: Tensor,
    *,
    sharp: Callable[[float], float],
    max_cells: int,
    steps: int,
    batch: int = 256,
) -> Bounded:
    """Bound a function on a box from below.

    Parameters
    ----------
    enclose : callable
        Maps the enclosure of points (C, d) to that of values (C,).
    lower, upper : Tensor, shape (d,)
        Corners of the box.
    places : Tensor, shape (k, d)
        Where low values are expected; at least one.
    sharp : callable
        Maps the least value that is known to the width of the bracket that suffices.
    max_cells : int
        Number of cells after which the bound is returned as it is.
    steps : int
        Number of Newton steps from low places.
    batch : int
        Number of cells that are bounded together.

    Returns
    -------
    Bounded
        The bound, and the least value that was found.
    """
    cells, done, count = _grid(lower, upper, places, max_cells), torch.inf, 0
    places = torch.cat([places, cells.centre])
    at = enclose(Enclosure.of(places, places, 0)).value
    low_ones = places[at[1].argsort()[:STARTS]]
    places, at = polish(enclose, low_ones, lower, upper, steps)
    k = int(at[1].argmin())
    best, argmin = float(at[1, k]), places[k]
    noise = 4 * float(at[1, k] - at[0, k])
    cells.centre = _centres(cells.lower, cells.upper, places)
    while True:
        # No bound is sharper than the round-off of one value.
        target = best - max(sharp(best), noise)
        settled = cells.bound >= target
        done = min([done, *cells.bound[settled].tolist()])
        cells = cells.take(~settled)
        if not len(cells) or count >= max_cells:
            break
        order = cells.bound.argsort()
        size = min(batch, max_cells - count)
        now, cells = cells.take(order[:size]), cells.take(order[size:])
        count += len(now)
        low = _bounds(enclose, now, lower, upper)
        k = int(low.tops.argmin())
        if low.tops[k] < best:
            best, argmin = float(low.tops[k]), now.centre[k]
        now.bound = torch.maximum(now.bound, low.bounds)
        now = now.take(low.kept)
        target = best - max(sharp(best), noise)
        # Between neighbouring floating numbers there is nothing to cut.
        reach = torch.maximum(now.lower.abs(), now.upper.abs())
        cuttable = (now.upper - now.lower > 4 * EPS * reach).any(1)
        open_ = (now.bound < target) & cuttable
        done = min([done, *now.bound[~open_].tolist()])
        cells = cells.join(
            _children(now.take(open_), low.take(low.kept).take(open_), places)
        )
    bound = min([done, best, *cells.bound.tolist()])
    return Bounded(bound, best, argmin, count, not len(cells))


@dataclass
class _Found:
    """What one sweep over cells found."""

    bounds: Tensor
    tops: Tensor
    kept: Tensor
    smear: Tensor
    newton: Tensor
    convex: Tensor

    def take(self, index: Tensor) -> _Found:
        return _Found(*(t[index] for t in vars(self).values()))


def _bounds(enclose: Enclose, cells: _Cells, lower: Tensor, upper: Tensor) -> _Found:
    """Bound the function on each cell from below, in three ways; the best counts."""
    a, b, c = cells.lower, cells.upper, cells.centre
    wide = enclose(Enclosure.of(a, b, 2))
    # Elsewhere the function may jump inside the cell, as beyond a pole. Then neither
    # the mean value theorem nor a slope of one sign says anything.
    ends = torch.cat([wide.value[:, None], wide.gradient], 1)
    continuous = torch.isfinite(ends).all(0).all(0)
    thin = enclose(Enclosure.of(c, c, 1))
    value, slope = thin.value, thin.gradient.mT  # (2, C), (2, C, d)
    # Distances from the centre to the two faces, rounded outward.
    down, up = (a - c) * (1 + 4 * EPS), (b - c) * (1 + 4 * EPS)
    bends = _diagonal_bounds(wide, torch.maximum(up, -down))
    second = _lowest(slope, bends, down, up)
    steep = wide.gradient.mT
    first = _lowest(steep, torch.zeros_like(bends), down, up)
    expansions = [
        _plus(value[0], parts).masked_fill(~continuous, -torch.inf)
        for parts in (first, second)
    ]
    bounds = torch.stack([wide.value[0], *expansions])
    bounds = bounds.nan_to_num(nan=-torch.inf, neginf=-torch.inf).amax(0)
    # A cell on which the function rises along an axis holds the minimum only if it
    # lies at the lower face of the box, and falls, at the upper face.
    rising = (steep[0] > 0) & continuous[:, None]
    falling = (steep[1] < 0) & continuous[:, None]
    kept = ~((rising & (a > lower)) | (falling & (b < upper))).any(1)
    # A face of the box takes the place of the cell.
    cells.upper = torch.where(rising & (a <= lower), a, b)
    cells.lower = torch.where(falling & (b >= upper), b, a)
    size = torch.maximum(steep[1], -steep[0]).nan_to_num(posinf=1e300)
    smear = size.clamp(max=1e300) * (cells.upper - cells.lower)
    middle, bend = slope.mean(0), _middle_diagonal(wide)
    convex = ((bends > 0) | (cells.upper <= cells.lower)).all(1) & continuous
    newton = c - torch.where(bend > 0, middle / bend, 0.0)
    return _Found(bounds, value[1], kept, smear, newton, convex)


def _lowest(slope: Tensor, bend: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return the least of s t + h t^2 / 2 per axis, for s in an interval."""
    lowest = torch.zeros_like(bend)
    # For t >= 0 the lower slope counts, for t <= 0 the upper one.
    for s, end in ((slope[0], up), (slope[1], down)):
        # Where the parabola opens downward the end counts.
        turn = torch.where(bend > 0, -s / bend, end).nan_to_num()
        t = turn.clamp(end.clamp(max=0.0), end.clamp(min=0.0))
        straight, bent = s * t, 0.5 * bend * t * t
        value = straight + bent - 8 * EPS * (straight.abs() + bent.abs())
        lowest = torch.minimum(lowest, torch.where(t != 0, value, 0.0))
    return lowest


def _plus(value: Tensor, parts: Tensor) -> Tensor:
    total = value + parts.sum(1)
    return total - (parts.shape[1] + 2) * EPS * (value.abs() + parts.abs().sum(1))


def _diagonal_bounds(wide: Enclosure, reach: Tensor) -> Tensor:
    r"""Return h with :math:`t^T H t \ge \sum_i h_i t_i^2` for the Hessians in a cell.

    As :math:`2|t_i t_j| \le t_i^2 r_j/r_i + t_j^2 r_i/r_j`, for the half sides r.
    """
    d, curvature = wide.d, wide.curvature
    bends = reach.new_zeros(reach.shape)
    size = torch.maximum(curvature[0].abs(), curvature[1].abs())
    for k, (i, j) in enumerate(zip(*pairs(d), strict=True)):
        if i == j:
            bends[:, i] += curvature[0, k]
            continue
        ratio = reach[:, j] / reach[:, i]
        free = (reach[:, i] > 0) & (reach[:, j] > 0)
        bends[:, i] -= torch.where(free, size[k] * ratio, 0.0)
        bends[:, j] -= torch.where(free, size[k] / ratio, 0.0)
    slack = (4 + d) * EPS * (bends.abs() + size.sum(0)[:, None])
    return (bends - slack).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def _middle_diagonal(wide: Enclosure) -> Tensor:
    middle = wide.curvature.mean(0)
    same = [k for k, (i, j) in enumerate(zip(*pairs(wide.d), strict=True)) if i == j]
    return middle[same].T


def polish(
    enclose: Enclose, x: Tensor, lower: Tensor, upper: Tensor, steps: int
) -> tuple[Tensor, Interval]:
    """Return lower places (k, d), by projected Newton steps, and intervals there."""
    found = enclose(Enclosure.of(x, x, 2))
    length = x.new_ones(len(x), 1)
    for _ in range(steps):
        new = _newton(found, x, lower, upper, length)
        # Where round-off hides what the step would gain there is no more to find.
        slope = found.gradient.abs().amax(0).T
        low, high = found.value
        gain = ((new - x).abs() * slope).sum(1)
        # Nor where twice the gain would not make a place the lowest one.
        if bool((gain <= torch.maximum(high - low, 0.5 * (high - high.min()))).all()):
            break
        moved = enclose(Enclosure.of(new, new, 2))
        fell = moved.value[1] < found.value[1]
        x = torch.where(fell[:, None], new, x)
        found = found.like(torch.where(fell, moved.rows, found.rows))
        length = torch.where(fell[:, None], (2 * length).clamp(max=1.0), length / 4)
    return x, found.value


def _newton(
    found: Enclosure, x: Tensor, lower: Tensor, upper: Tensor, length: Tensor
) -> Tensor:
    """Return the places after one step, downhill also where the Hessian is not."""
    rows = (0.5 * found.rows[0] + 0.5 * found.rows[1]).nan_to_num(0.0, 0.0, 0.0)
    d = found.d
    slope, bends = rows[1 : 1 + d].T, rows[1 + d :]
    hessian = x.new_zeros(len(x), d, d)
    for k, (i, j) in enumerate(zip(*pairs(d), strict=True)):
        hessian[:, i, j] = hessian[:, j, i] = bends[k]
    # A coordinate that is pushed against its wall stays.
    stuck = ((x <= lower) & (slope > 0)) | ((x >= upper) & (slope < 0))
    slope = slope.masked_fill(stuck, 0.0)
    hessian = hessian.masked_fill(stuck[:, :, None] | stuck[:, None, :], 0.0)
    reach = 0.1 * (upper - lower).min()
    values, vectors = torch.linalg.eigh(hessian)
    along = (vectors.mT @ slope[..., None])[..., 0]
    size = torch.maximum(values.abs(), along.abs() / reach)
    step = torch.where(size > 0, -along / size, 0.0)
    step = (vectors @ step[..., None])[..., 0]
    new: Tensor = x + length * step
    return new.clamp(lower, upper)


def _grid(lower: Tensor, upper: Tensor, places: Tensor, most: int) -> _Cells:
    """Cut the box into about 64 cells, and at most so many."""
    d = len(lower)
    n = max(1, round(64 ** (1 / d)))
    while n > 1 and n**d > most:
        n -= 1
    steps = torch.arange(n + 1).to(lower) / n
    edges = lower + (upper - lower) * steps[:, None]
    edges[-1] = upper
    numbers = torch.arange(n, device=lower.device)
    index = torch.cartesian_prod(*[numbers] * d).reshape(-1, d)
    axes = torch.arange(d, device=lower.device)
    low, high = edges[index, axes], edges[index + 1, axes]
    bound = low.new_full((len(low),), -torch.inf)
    visits = torch.zeros_like(bound)
    return _Cells(low, high, _centres(low, high, places), bound, visits)


def _children(cells: _Cells, found: _Found, places: Tensor) -> _Cells:
    """Cut cells in two, or centre convex ones anew."""
    again = found.convex & (cells.visits < CENTRINGS)
    kept, cut = cells.take(again), cells.take(~again)
    kept.centre = found.take(again).newton.clamp(kept.lower, kept.upper)
    kept.visits = kept.visits + 1
    axis = found.take(~again).smear.argmax(1, keepdim=True)
    middle = 0.5 * (cut.lower + cut.upper)
    first, second = cut.take(slice(None)), cut.take(slice(None))
    first.upper = cut.upper.scatter(1, axis, middle.gather(1, axis))
    second.lower = cut.lower.scatter(1, axis, middle.gather(1, axis))
    new = first.join(second)
    new.centre = _centres(new.lower, new.upper, places)
    new.visits = torch.zeros_like(new.visits)
    return kept.join(new)


def _centres(lower: Tensor, upper: Tensor, places: Tensor) -> Tensor:
    """Return a low place inside each cell, or else its middle."""
    centre = 0.5 * (lower + upper)
    for place in places:
        inside = ((lower <= place) & (place <= upper)).all(1)
        centre = torch.where(inside[:, None], place, centre)
    return centre
