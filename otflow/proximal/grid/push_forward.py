"""Carry the masses of a grid along a gradient map, one axis after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.measures import GridDensity
from otflow.measures.grid.box import Box
from otflow.measures.grid.remap import limited, remap

__all__ = [
    "Sweep",
    "cut_points",
    "distance_along_axes",
    "lifted",
    "mixed_potentials",
    "push_forward",
    "row_costs",
    "squared_diagonal",
    "transport_cost",
]

# A row below this share of all the mass counts as empty. Quotients of the masses of two
# other rows stay finite in float64.
VACUUM = 1e-100
# Cuts within this distance, in cells, count as equal.
SAME = 1e-9


@dataclass(frozen=True)
class Sweep:
    """One axis of a push-forward.

    Parameters
    ----------
    before, after : Tensor
        Masses of the cells, as arrays; rows along the axis keep their sums.
    """

    axis: int
    before: Tensor
    after: Tensor


def push_forward(
    masses: Tensor, phi: Tensor, box: Box, dt: float
) -> tuple[Tensor, list[Sweep], list[Tensor]]:
    r"""Return the masses of :math:`T_\#\mu`, :math:`T^{-1}(y) = y - dt\,\nabla\phi`.

    The minimum over y in :math:`\phi^c(x) = \min_y |x - y|^2/(2\,dt) - \phi(y)` is
    taken along one axis after the other. So the optimal map is a composition of maps
    that move one coordinate each. After the minimum over the last k axes, the potential
    depends on the old place along these axes and on the new place along the others.
    With this potential the map along the next axis is optimal on every row. Each row is
    remapped by its cumulative masses.

    Parameters
    ----------
    masses : Tensor, shape (n,)
        Masses of the cells.
    phi : Tensor, shape (n,)
        Potential at the new place; minus infinity where no mass may go.
    box : Box
        The grid.
    dt : float
        Length of the step in time.

    Returns
    -------
    masses : Tensor, shape (n,)
        New masses of the same total, >= 0.
    sweeps : list of Sweep
        Masses before and after each axis.
    mobility : list of Tensor
        For each axis an array on its inner faces: the mass that passes a face if its
        cut point moves by a cell, carried along by the later sweeps.
    """
    current = masses.reshape(box.shape)
    is_free = torch.isfinite(phi).reshape(box.shape)
    sweeps: list[Sweep] = []
    mobility: list[Tensor] = []
    for axis, potential in enumerate(mixed_potentials(phi.reshape(box.shape), box, dt)):
        h = box.spacing[axis]
        # What passes the faces of an earlier axis is carried along as mass is.
        for before, faces in enumerate(mobility):
            n = box.shape[before]
            low = potential.narrow(before, 0, n - 1)
            high = potential.narrow(before, 1, n - 1)
            mean = 0.5 * (low + high)
            # A face beside an obstacle has the potential of the free side.
            mean = torch.where(torch.isfinite(mean), mean, torch.maximum(low, high))
            cuts = cut_points(mean, axis, h, dt)
            mobility[before] = remap(faces, cuts, axis)[0]
        cuts = cut_points(potential, axis, h, dt)
        rows = current.movedim(axis, -1), is_free.movedim(axis, -1)
        moved, density = remap(current, cuts, axis, limited(*rows))
        mobility.append(density)
        sweeps.append(Sweep(axis, current, moved))
        current = moved
    return current.reshape(-1), sweeps, mobility


def mixed_potentials(phi: Tensor, box: Box, dt: float) -> list[Tensor]:
    """Return the potentials of the maps along each axis.

    The potential of an axis depends on the new place along the axes up to it and on the
    old place along the axes after it.

    Parameters
    ----------
    phi : Tensor
        An array on the grid.
    box : Box
        The grid.
    dt : float
        Length of the step in time.

    Returns
    -------
    list of Tensor
        Arrays on the grid, the last of them `phi`.
    """
    potentials = [phi]
    for axis in reversed(range(1, box.dim)):
        means = _envelope_means(potentials[0], axis, box.spacing[axis], dt)
        potentials.insert(0, -means)
    return potentials


def _envelope_means(phi: Tensor, axis: int, h: float, dt: float) -> Tensor:
    r"""Return the means over cells of :math:`\min_y |x - y|^2/(2\,dt) - \phi(y)`.

    The integral is exact, piece by piece between the cuts. So the masses are the
    gradient of a concave function, however far a cell of uniform mass is spread.
    """
    cuts = cut_points(phi, axis, h, dt)
    rows, unit = phi.movedim(axis, -1), h * h / (6.0 * dt)
    n = rows.shape[-1]
    finite = torch.isfinite(rows)
    cuts = cuts.clamp(0, n)
    zero = torch.zeros_like(rows[..., :1])
    starts, ends = torch.cat([zero, cuts], -1), torch.cat([cuts, zero + n], -1)
    place = torch.arange(n, dtype=rows.dtype, device=rows.device) + 0.5
    # Values relative to the highest one keep the sums small.
    top = torch.where(finite, rows, -math.inf).amax(-1, keepdim=True)
    top = torch.where(torch.isfinite(top), top, 0.0)
    height = torch.where(finite, rows - top, 0.0)

    def piece(start: Tensor, end: Tensor, j: Tensor, level: Tensor) -> Tensor:
        a, b = start - j, end - j
        return unit * (b - a) * (a * a + a * b + b * b) - level * (end - start)

    whole = piece(starts, ends, place, height).cumsum(-1)
    before = torch.cat([zero, whole[..., :-1]], -1)
    edges = torch.arange(1, n, dtype=rows.dtype, device=rows.device)
    edges = edges.expand(cuts.shape).contiguous()
    j = torch.searchsorted(cuts.contiguous(), edges)
    start, level = torch.gather(starts, -1, j), torch.gather(height, -1, j)
    inner = torch.gather(before, -1, j) + piece(start, edges, j + 0.5, level)
    sums = torch.cat([zero, inner, whole[..., -1:]], -1)
    means = sums.diff(dim=-1) - top
    means = torch.where(finite.any(-1, keepdim=True), means, math.inf)
    return means.movedim(-1, axis)


def cut_points(phi: Tensor, axis: int, h: float, dt: float) -> Tensor:
    r"""Return the places where the map cuts the mass of each row.

    Parameters
    ----------
    phi : Tensor
        Potential of every row along the axis.
    axis : int
        The axis.
    h, dt : float
        Spacing and length of the step.

    Returns
    -------
    Tensor
        For each inner face, along the last axis, the place :math:`y -
        dt\,\partial\phi` in cells from the lower end, non-decreasing. The mass left of
        this place goes left of the face.
    """
    phi = phi.movedim(axis, -1)
    n = phi.shape[-1]
    place = torch.arange(n, dtype=phi.dtype, device=phi.device) + 0.5
    scale = dt / h**2
    wins = torch.isfinite(phi)
    if bool(wins.all()):
        cuts = (place + 0.5)[:-1] - scale * phi.diff(dim=-1)
        # After a potential was raised to the hull, cuts agree up to round-off.
        if bool((cuts.diff(dim=-1) >= -SAME).all()):
            return cuts.cummax(-1).values
    return _winners(phi, scale)[0]


def _winners(phi: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the cuts between the cells that win mass in a row, and these cells."""
    n = phi.shape[-1]
    place = torch.arange(n, dtype=phi.dtype, device=phi.device) + 0.5
    wins = torch.isfinite(phi)
    # Each round removes a winner, so there are at most n rounds.
    while True:
        # The next winners on both sides of each face.
        left, right = _next(wins)
        left, right = left[..., :-1], right[..., 1:]
        a, b = left.clamp_min(0), right.clamp_max(n - 1)
        rise = torch.gather(phi, -1, b) - torch.gather(phi, -1, a)
        gap = (b - a).clamp_min(1).to(phi.dtype)
        cuts = 0.5 * (place[a] + place[b]) - scale * rise / gap
        # No winner on one side: all the mass goes to the other.
        cuts = torch.where(right == n, float(n), torch.where(left < 0, 0.0, cuts))
        # A winner whose share ends before it starts never wins.
        ends = torch.nn.functional.pad(cuts, (0, 1), value=math.inf)
        starts = torch.nn.functional.pad(cuts, (1, 0), value=-math.inf)
        lost = wins & (ends < starts)
        if not bool(lost.any()):
            return cuts, wins
        wins = wins & ~lost


def _next(wins: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last winner up to each cell of a row, and the next from it on.

    Without such a winner they are -1 and n.
    """
    index = torch.arange(wins.shape[-1], device=wins.device)
    ahead = torch.where(wins, index, len(index)).flip(-1).cummin(-1).values.flip(-1)
    return torch.where(wins, index, -1).cummax(-1).values, ahead


def lifted(phi: Tensor, box: Box, dt: float) -> Tensor:
    r"""Raise a potential where it wins no mass, to the value where it is about to win.

    Where :math:`|y|^2/2 - dt\,\phi(y)` lies above its lower convex hull along an axis,
    y is the best place for no x. There :math:`\phi` is raised to the hull. This does
    not change :math:`\phi^c`. It is the step of :cite:t:`jacobs2021back` that always
    raises the dual, one axis after the other.

    Parameters
    ----------
    phi : Tensor
        An array on the grid; minus infinity bars a cell, and stays.
    box : Box
        The grid.
    dt : float
        Length of the step in time.

    Returns
    -------
    Tensor
        An array >= `phi`.
    """
    for axis, h in enumerate(box.spacing):
        rows, scale = phi.movedim(axis, -1), dt / h**2
        n = rows.shape[-1]
        bend = 1.0 - scale * rows.diff(n=2, dim=-1) if n > 2 else rows[..., :0]
        # A convex row wins mass in each of its cells: nothing lies above its hull.
        if bool((bend >= 0).all()):
            continue
        wins = _winners(rows, scale)[1]
        index = torch.arange(n, device=rows.device)
        a, b = _next(wins)
        between = (a >= 0) & (b < n) & ~wins & torch.isfinite(rows)
        a, b = a.clamp_min(0), b.clamp_max(n - 1)
        share = (index - a).to(rows.dtype) / (b - a).clamp_min(1).to(rows.dtype)
        low, high = torch.gather(rows, -1, a), torch.gather(rows, -1, b)
        hull = low + share * (high - low) - (index - a) * (b - index) / (2 * scale)
        rows = torch.where(between, torch.maximum(rows, hull), rows)
        phi = rows.movedim(-1, axis)
    return phi


def row_costs(sweep: Sweep, h: float) -> float:
    r"""Return the summed :math:`W_2^2` of all rows of a sweep, exactly.

    The optimal coupling on a line joins equal levels. Both quantile functions are
    linear between the levels of the cells' edges. Quantiles are places within the row,
    so a row costs at most its mass times the square of its length.
    """
    before = sweep.before.movedim(sweep.axis, -1)
    after = sweep.after.movedim(sweep.axis, -1)
    n = before.shape[-1]
    before, after = before.reshape(-1, n).double(), after.reshape(-1, n).double()
    total, goal = before.sum(-1, keepdim=True), after.sum(-1, keepdim=True)
    # A row with almost no mass may lose it to round-off. Such mass counts as moved
    # through the whole row.
    dust = VACUUM * total.sum()
    keep = ((total > dust) & (goal > dust)).squeeze(-1)
    lost = float(total[~keep].sum()) * n * n
    before, after, total = before[keep], after[keep], total[keep]
    after = after * (total / goal[keep])
    low, high = _levels(before, total), _levels(after, total)
    levels = torch.cat([low, high], -1).sort(-1).values
    first = _quantiles(low, levels)
    second = _quantiles(high, levels)
    # The difference is linear on each piece, so the integral of its square is exact.
    a, b = (p - q for p, q in zip(first, second, strict=True))
    cost = levels.diff(dim=-1) * (a.square() + a * b + b.square()) / 3
    return (float(cost.sum()) + lost) * h * h


def transport_cost(sweeps: Sequence[Sweep], box: Box, relocated: float) -> float:
    r"""Return an upper bound of :math:`W_2^2`, the cost of a plan.

    Each sweep moves one coordinate that no other sweep moves, along rows whose
    densities are constant on cells. Its cost is the squared distance on the line, which
    is exact. In 1-D the sum is :math:`W_2^2`.

    Parameters
    ----------
    sweeps : sequence of Sweep
        One for each axis.
    box : Box
        The grid.
    relocated : float
        Mass that was moved afterwards. It counts as moved through the whole box.

    Returns
    -------
    float
        The cost.
    """
    total = sum(row_costs(sweep, box.spacing[sweep.axis]) for sweep in sweeps)
    return total + relocated * squared_diagonal(box)


def squared_diagonal(box: Box) -> float:
    """Return the squared diagonal of a box."""
    return sum((b - a) ** 2 for a, b in zip(box.lower, box.upper, strict=True))


def distance_along_axes(mu: GridDensity, nu: GridDensity) -> float:
    r"""Return the root of the sum of the squared W2 of the marginals on the axes.

    The root is at most W2, since each axis is a projection. It equals W2 on a line, for
    products, and if one density is a translate of the other.
    """
    square = 0.0
    for axis, h in enumerate(mu.box.spacing):
        others = [k for k in range(mu.dim) if k != axis]
        marginals = []
        for measure in (mu, nu):
            w = measure.weights.detach().double().reshape(mu.shape)
            w = w.sum(others) if others else w
            marginals.append(w / w.sum())
        square += row_costs(Sweep(0, *marginals), h)
    return math.sqrt(square)


def _levels(masses: Tensor, total: Tensor) -> Tensor:
    """Return the levels of the edges of cells, from 0 to the total."""
    # Round-off may lift a sum above the total, and levels must not decrease.
    inner = torch.minimum(masses.cumsum(-1)[..., :-1], total)
    return torch.cat([torch.zeros_like(total), inner, total], -1)


def _quantiles(edges: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the quantile at both ends of each piece between levels, in cells."""
    n = edges.shape[-1] - 1
    low, high = levels[..., :-1], levels[..., 1:]
    # The middle of a piece lies in one cell, whichever way its ends are rounded.
    middle = 0.5 * (low + high)
    cell = torch.searchsorted(edges, middle, right=True).sub_(1).clamp_(0, n - 1)
    start, end = torch.gather(edges, -1, cell), torch.gather(edges, -1, cell + 1)
    width = end - start
    safe = torch.where(width > 0, width, 1.0)
    return (
        cell + ((low - start) / safe).clamp(0, 1),
        cell + ((high - start) / safe).clamp(0, 1),
    )
