r"""Proved lower bounds of a function on a box, by branch and bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.numerics.branching import Cells, Found, branch_and_bound
from otflow.numerics.enclosures import Enclosure, pairs
from otflow.numerics.intervals import EPS, Interval

__all__ = ["STARTS", "Bounded", "bound_below"]

Enclose = Callable[[Enclosure], Enclosure]

# Places from which a descent begins.
STARTS = 8
# Cells that are bounded together.
BATCH = 256
# A Newton step is too short to matter if it gains less than this share of the width of
# the bracket that suffices.
LITTLE = 0.1
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


def bound_below(
    enclose: Enclose,
    lower: Tensor,
    upper: Tensor,
    places: Tensor,
    *,
    sharp: Callable[[float], float],
    max_cells: int,
    steps: int,
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

    Returns
    -------
    Bounded
        The bound, and the least value that was found.
    """
    cells = _grid(lower, upper, max_cells)
    places = torch.cat([places, 0.5 * (cells[0] + cells[1])])
    at = enclose(Enclosure.of(places, places, 0)).value
    low_ones = places[at[1].argsort()[:STARTS]]
    places, at = _polish(enclose, low_ones, lower, upper, steps, sharp)
    k = int(at[1].argmin())
    # No bound is sharper than the round-off of one value.
    noise = 4 * float(at[1, k] - at[0, k])
    problem = _Negative(enclose, lower, upper, places, sharp, noise)
    found = branch_and_bound(
        problem,
        (*cells, _centres(*cells, places), torch.zeros_like(cells[0][:, 0])),
        -float(at[1, k]),
        places[k],
        budget=max_cells,
        at_once=BATCH,
    )
    return Bounded(-found.upper, -found.value, found.place, found.spent, found.closed)


@dataclass
class _Negative:
    """Minus the function: cells (lower, upper, centre, visits)."""

    enclose: Enclose
    lower: Tensor
    upper: Tensor
    places: Tensor
    sharp: Callable[[float], float]
    noise: float

    def goal(self, value: float) -> float:
        return value + max(self.sharp(-value), self.noise)

    def bound(self, cells: Cells) -> Found:
        """Bound the function from below, in three ways; the best counts."""
        a, b, c, visits = cells
        wide = self.enclose(Enclosure.of(a, b, 2))
        # Elsewhere the function may jump inside the cell, as beyond a pole. Then
        # neither the mean value theorem nor a slope of one sign says anything.
        continuous = torch.isfinite(wide.rows[:, : 1 + wide.d]).flatten(0, 1).all(0)
        thin = self.enclose(Enclosure.of(c, c, 1))
        value, slope = thin.value, thin.gradient.mT  # (2, C), (2, C, d)
        # Distances from the centre to the two faces, rounded outward.
        down, up = (a - c) * (1 + 4 * EPS), (b - c) * (1 + 4 * EPS)
        bends = _diagonal_bounds(wide, torch.maximum(up, -down))
        second = _lowest(slope, bends, down, up)
        steep = wide.gradient.mT
        first = _lowest(steep, torch.zeros_like(bends), down, up)
        parts = _plus(value[0], torch.stack([first, second]))
        parts = parts.amax(0).masked_fill_(~continuous, -torch.inf)
        bounds = torch.fmax(wide.value[0], parts)
        bounds.nan_to_num_(nan=-torch.inf, neginf=-torch.inf)
        # A cell on which the function rises along an axis holds the minimum only if it
        # lies at the lower face of the box, and falls, at the upper face.
        rising = (steep[0] > 0) & continuous[:, None]
        falling = (steep[1] < 0) & continuous[:, None]
        left_out = ((rising & (a > self.lower)) | (falling & (b < self.upper))).any(1)
        best = int(value[1].argmin())

        def cut(index: Tensor) -> tuple[Cells, Tensor]:
            # A face of the box takes the place of the cell.
            low = torch.where(falling, b, a)[index]
            high = torch.where(rising, a, b)[index]
            convex = ((bends[index] > 0) | (high <= low)).all(1) & continuous[index]
            again = convex & (visits[index] < CENTRINGS)
            middle, bend = slope.mean(0), _middle_diagonal(wide)
            newton = (c - torch.where(bend > 0, middle / bend, 0.0))[index]
            size = torch.maximum(steep[1], -steep[0])[index].nan_to_num(posinf=1e300)
            smear = size.clamp(max=1e300) * (high - low)
            # Between neighbouring floating numbers there is nothing to cut.
            far = torch.maximum(low.abs(), high.abs())
            cuttable = (high - low > 4 * EPS * far).any(1)
            once = (again & cuttable).nonzero()[:, 0]
            twice = (~again & cuttable).nonzero()[:, 0]
            kept = low[once], high[once]
            halves = _halves(low[twice], high[twice], smear[twice])
            centres = newton[once].clamp(*kept), _centres(*halves, self.places)
            old = visits[index][once] + 1
            new = (
                *(torch.cat(pair) for pair in zip(kept, halves, strict=True)),
                torch.cat(centres),
                torch.cat([old, old.new_zeros(2 * len(twice))]),
            )
            return new, torch.cat([once, twice, twice])

        upper = (-bounds).masked_fill(left_out, -torch.inf)
        return Found(upper, -float(value[1, best]), c[best], cut)


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
    total = value + parts.sum(-1)
    return total - (parts.shape[-1] + 2) * EPS * (value.abs() + parts.abs().sum(-1))


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


def _polish(
    enclose: Enclose,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    steps: int,
    sharp: Callable[[float], float],
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
        # Nor where twice the gain would not make a place the lowest one, or matter.
        least = float(high.min())
        enough = torch.maximum(high - low, 0.5 * (high - least))
        if bool((gain <= enough.clamp(min=LITTLE * sharp(least))).all()):
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


def _grid(lower: Tensor, upper: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Cut the box into about 64 cells, and at most so many; return their corners."""
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
    return edges[index, axes], edges[index + 1, axes]


def _halves(lower: Tensor, upper: Tensor, smear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the halves of cells, cut across the axis of the largest smear."""
    axis = smear.argmax(1, keepdim=True)
    middle = (0.5 * (lower + upper)).gather(1, axis)
    return (
        torch.cat([lower, lower.scatter(1, axis, middle)]),
        torch.cat([upper.scatter(1, axis, middle), upper]),
    )


def _centres(lower: Tensor, upper: Tensor, places: Tensor) -> Tensor:
    """Return a low place inside each cell, or else its middle."""
    inside = (lower[:, None] <= places) & (places <= upper[:, None])  # (C, k, d)
    inside = inside.all(2)
    place = places[inside.int().argmax(1)]
    return torch.where(inside.any(1)[:, None], place, 0.5 * (lower + upper))
