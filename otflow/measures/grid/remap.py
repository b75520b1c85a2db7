"""Carry the masses of a grid along a map, one axis after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.measures.grid.box import Box

__all__ = ["limited", "remap", "transported"]

Edges = tuple[Tensor, Tensor]

# Faces are put in order in several passes. A pass places the faces of a row that are
# beside more mass than this share of the largest.
SHARES = (1e-1, 1e-2, 1e-4, 1e-8, 1e-16, 0.0)


def transported(box: Box, weights: Tensor, moves: Tensor, is_free: Tensor) -> Tensor:
    r"""Return the masses of the push-forward by :math:`x \mapsto x + m(x)`.

    The map is factored, without error, into one sweep along each axis: earlier sweeps
    carry the later displacements along. A sweep finds the origin of each face, and
    integrates a parabola over the old cells between the origins. The parabola has the
    mass of its cell. So the total mass is kept to round-off and no mass becomes
    negative, for moves of any size.

    Parameters
    ----------
    box : Box
        The grid.
    weights : Tensor, shape (n,)
        Masses.
    moves : Tensor, shape (n_faces,)
        Displacement of each face along its axis, 0 at obstacles. Between two empty
        cells it does not matter.
    is_free : Tensor of bool, shape (n,)
        False in obstacles.

    Returns
    -------
    Tensor, shape (n,)
        New masses. The error is O(h^2) times the size of the moves where density and
        moves are smooth. Where the map folds, and at walls, mass sticks together.

    Notes
    -----
    Time O(n log n), memory O(n).
    """
    below, above = box.neighbours(is_free)
    closed = box.split_faces(~(below & above))
    fields = [m / h for m, h in zip(box.split_faces(moves), box.spacing, strict=True)]
    mass = weights.reshape(box.shape)
    for axis in range(box.dim):
        if box.shape[axis] == 1:
            continue
        rows = mass.movedim(axis, -1)
        walls = _with_ends(closed[axis].movedim(axis, -1), True)
        heavy = _with_ends(torch.maximum(rows[..., 1:], rows[..., :-1]), 0.0)
        bears = walls | (heavy > 0)
        ends = _arrivals(_with_ends(fields[axis].movedim(axis, -1), 0.0), walls, heavy)
        origins = _origins(ends, walls, bears, 0.0)
        origins = torch.where(walls, _indices(ends), origins)
        for later in range(axis + 1, box.dim):
            is_open = ~closed[later]
            fields[later] = _carried(fields, mass, is_open, later, axis)
        mass = remap(mass, origins[..., 1:-1], axis, _parabolic(rows, walls))[0]
    return mass.reshape(-1)


def _indices(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)


def _with_ends(x: Tensor, value: float | bool) -> Tensor:
    """Append the two walls of the box, with one value, along the last axis."""
    end = x.new_full((*x.shape[:-1], 1), value)
    return torch.cat([end, x, end], dim=-1)


def _rising(x: Tensor) -> Tensor:
    return x.cummax(-1).values


def _rising_from_right(x: Tensor) -> Tensor:
    return x.flip(-1).cummin(-1).values.flip(-1)


def _arrivals(moves: Tensor, walls: Tensor, heavy: Tensor) -> Tensor:
    """Return where faces arrive, in cells: in order, and not beyond the next wall.

    Faces that pass one another meet half way. Faces beside much mass are placed first,
    and the others give way. Otherwise the tail of a density, fast where logarithms have
    steep slopes, would sweep the bulk along.
    """
    start = _indices(moves)
    low = _rising(torch.where(walls, start, -torch.inf))
    high = _rising_from_right(torch.where(walls, start, torch.inf))
    end = start + moves
    largest = heavy.amax(-1, keepdim=True)
    for share in SHARES:
        bears = walls | (heavy > share * largest)
        end = torch.minimum(torch.maximum(end, low), high)
        first = _rising(torch.where(bears, end, -torch.inf))
        last = _rising_from_right(torch.where(bears, end, torch.inf))
        middle = 0.5 * (first + last)
        low = _rising(torch.where(bears, middle, -torch.inf))
        high = _rising_from_right(torch.where(bears, middle, torch.inf))
    return _rising(torch.minimum(torch.maximum(end, low), high))


def _origins(arrivals: Tensor, walls: Tensor, bears: Tensor, offset: float) -> Tensor:
    """Return where the faces (offset 0) or centres (1/2) came from, in cells.

    The linear inverse is followed by one step of Newton's method on the cubic through
    four faces. The origins are differentiated, so their error must be O(h^3).
    """
    n = arrivals.shape[-1] - 1
    wanted = _indices(arrivals if offset == 0 else arrivals[..., :-1]) + offset
    wanted = wanted.contiguous()
    k = torch.searchsorted(arrivals.contiguous(), wanted, right=True) - 1
    k = k.clamp(0, n - 1)
    low, high = arrivals.gather(-1, k), arrivals.gather(-1, k + 1)
    gap = torch.where(high > low, high - low, 1.0)
    t = ((wanted - low) / gap).clamp(0, 1)
    excess = _excess(t, k, arrivals, _all_three(bears) & ~walls)
    t = (t + excess / gap).clamp(0, 1)
    return _rising(k + t)


def _excess(t: Tensor, k: Tensor, values: Tensor, smooth: Tensor) -> Tensor:
    """Return by how much the chord from entry k to k + 1 exceeds the cubic, at t.

    Second differences count at the entries where `smooth` is True; if only one end of
    the chord has one, the parabola stands for the cubic, and else the chord itself.
    """
    bend = torch.zeros_like(values)
    bend[..., 1:-1] = values.diff(dim=-1).diff(dim=-1)
    here, there = smooth[..., :-1], smooth[..., 1:]
    left, right = bend[..., :-1], bend[..., 1:]
    first = torch.where(here, left, torch.where(there, right, 0.0)).gather(-1, k)
    second = torch.where(there, right, torch.where(here, left, 0.0)).gather(-1, k)
    return t * (1 - t) / 6 * ((2 - t) * first + (1 + t) * second)


def _all_three(known: Tensor) -> Tensor:
    """Return where an entry and both its neighbours are known; False at the ends."""
    result = torch.zeros_like(known)
    result[..., 1:-1] = known[..., :-2] & known[..., 1:-1] & known[..., 2:]
    return result


def remap(
    masses: Tensor, cuts: Tensor, axis: int, edges: Edges | None = None
) -> tuple[Tensor, Tensor]:
    """Return the masses between the cut points of each row, and densities at the cuts.

    Within a cell the density is the parabola with the mass of the cell and the given
    values at its edges. By default it is linear, with the slope of van Leer's limiter:
    exact for linear densities, never negative, and never outside of the range of the
    neighbouring cells.

    Parameters
    ----------
    masses : Tensor
        Array of masses; n cells along the axis.
    cuts : Tensor
        For each inner face, n - 1 along the last axis, a place in cells from the lower
        end, non-decreasing. The mass left of this place goes left of the face.
    axis : int
        The axis of the rows.
    edges : tuple of Tensor, optional
        Densities at the lower and the upper edge of each cell, in mass a cell; the
        cells of a row lie along the last axis.

    Returns
    -------
    masses : Tensor
        New masses, non-negative. Rows keep their sums.
    density : Tensor
        Mass per cell at the cut points, rows along the axis; 0 at the ends of a row.
    """
    mass = masses.movedim(axis, -1)
    n = mass.shape[-1]
    zero = torch.zeros_like(mass[..., :1])
    cuts = torch.cat([zero, cuts.clamp(0, n), zero + n], dim=-1)
    cell = cuts.floor().long().clamp_max(n - 1)
    s = cuts - cell
    m, a, b = (x.gather(-1, cell) for x in (mass, *(edges or limited(mass))))
    curve = 6 * m - 3 * (a + b)
    density = torch.where((cuts > 0) & (cuts < n), a + s * (b - a + curve * (1 - s)), 0)
    # The mass of the cell below the cut, by a parabola with the edge values a, b.
    part = s * (a + s * (0.5 * (b - a + curve) - s * curve / 3))
    part = torch.where(s == 1, m, part)
    low, high = cell[..., :-1], cell[..., 1:]
    sums = torch.cat([zero, mass.cumsum(-1)], dim=-1)
    whole = sums.gather(-1, high) - sums.gather(-1, torch.minimum(low + 1, high))
    first = torch.where(low == high, 0.0, m[..., :-1])
    # No parabola is negative: a sum below zero is round-off.
    new = (first - part[..., :-1] + whole + part[..., 1:]).clamp_min(0)
    return new.movedim(-1, axis), density[..., 1:-1].movedim(-1, axis)


def limited(mass: Tensor, is_free: Tensor | None = None) -> Edges:
    """Return the densities at the edges of cells by van Leer's slope.

    The slope is 0 in the cells at the ends of a row and beside cells that are not free.
    """
    steps = mass.diff(dim=-1)
    if is_free is not None:
        steps = steps * (is_free[..., 1:] & is_free[..., :-1])
    a, b = steps[..., :-1], steps[..., 1:]
    centred, least = 0.5 * (a + b).abs(), 2 * torch.minimum(a.abs(), b.abs())
    slope = torch.where(a * b > 0, a.sign() * torch.minimum(centred, least), 0.0)
    slope = torch.nn.functional.pad(slope, (1, 1))
    return mass - 0.5 * slope, mass + 0.5 * slope


def _parabolic(mass: Tensor, walls: Tensor) -> Edges:
    """Return the densities at the edges of cells, of order 4 inside.

    They are limited to between 0 and 3 times the density of the cell, so that the
    parabola stays non-negative. `walls` tells of each face, n + 1 along the last axis,
    whether mass beside it stands against a wall.
    """
    below, above = mass[..., :-1], mass[..., 1:]
    edge = 0.5 * (below + above)
    if mass.shape[-1] >= 4:
        inner = (7 * (below + above)[..., 1:-1] - mass[..., :-3] - mass[..., 3:]) / 12
        blocked = walls[..., 1:-3] | walls[..., 3:-1]
        edge[..., 1:-1] = torch.where(blocked, edge[..., 1:-1], inner)
    # At a wall the line through the two cells beside it, if there are two.
    inner_walls = walls[..., 1:-1]
    slope = torch.where(inner_walls, 0.0, 0.5 * (above - below))
    end = torch.zeros_like(mass[..., :1])
    left = torch.cat([end, edge], dim=-1)
    right = torch.cat([edge, end], dim=-1)
    left = torch.where(walls[..., :-1], mass - torch.cat([slope, end], -1), left)
    right = torch.where(walls[..., 1:], mass + torch.cat([end, slope], -1), right)
    return (
        torch.minimum(left.clamp_min(0), 3 * mass),
        torch.minimum(right.clamp_min(0), 3 * mass),
    )


def _carried(
    fields: list[Tensor], mass: Tensor, is_open: Tensor, own: int, axis: int
) -> Tensor:
    """Return the displacement along `own`, as a function of the place after `axis`."""
    n = mass.shape[own]
    m = mass.shape[axis]
    # On the faces across `own`: the mean of both sides, or that side which has mass.
    filled = mass > 0
    known = filled.narrow(axis, 0, m - 1) | filled.narrow(axis, 1, m - 1)
    one, two = (known.narrow(own, k, n - 1) for k in (0, 1))
    first, second = (fields[axis].narrow(own, k, n - 1) for k in (0, 1))
    share = torch.where(one == two, 0.5, one.to(mass.dtype))
    sweep = share * first + (1 - share) * second
    moves = _with_ends(sweep.movedim(axis, -1), 0.0)
    beside = (mass.narrow(own, 0, n - 1) + mass.narrow(own, 1, n - 1)).movedim(axis, -1)
    walls = torch.zeros_like(moves, dtype=torch.bool)
    walls[..., 0] = walls[..., -1] = True
    bears = walls | _with_ends((beside[..., 1:] > 0) | (beside[..., :-1] > 0), True)
    place = _origins(_arrivals(moves, walls, bears), walls, bears, 0.5) - 0.5
    known = (beside > 0) & is_open.movedim(axis, -1)
    values = fields[own].movedim(axis, -1)
    return _interpolate(values, place, known).movedim(-1, axis)


def _interpolate(values: Tensor, place: Tensor, known: Tensor) -> Tensor:
    """Return values between the entries of rows, cubic where all of them are known."""
    k = place.floor().long().clamp(0, values.shape[-1] - 2)
    t = place - k
    filled = _filled(values, known)
    low, high = filled.gather(-1, k), filled.gather(-1, k + 1)
    return low + t * (high - low) - _excess(t, k, values, _all_three(known))


def _filled(values: Tensor, known: Tensor) -> Tensor:
    """Return rows with the nearest known entry in place of each unknown one."""
    n = values.shape[-1]
    here = torch.arange(n, device=values.device).expand_as(values)
    left = here.masked_fill(~known, -n).cummax(-1).values
    right = _rising_from_right(here.masked_fill(~known, 2 * n))
    nearest = torch.where(here - left <= right - here, left, right)
    return values.gather(-1, torch.where(known.any(-1, keepdim=True), nearest, here))
