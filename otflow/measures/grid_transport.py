"""The push-forward of a density on a grid by a map close to the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.measures.box import Box

__all__ = ["remap"]


def remap(box: Box, weights: Tensor, moves: Tensor, is_free: Tensor) -> Tensor:
    r"""Return the masses of the push-forward by :math:`x \mapsto x + m(x)`.

    The map is factored, without error, into one sweep along each axis: later
    displacements are carried along by the earlier sweeps. A sweep finds where each face
    came from and integrates over the old cells a parabola that has the mass of each,
    so masses are kept to round-off and none becomes negative, for moves of any size.

    Parameters
    ----------
    box : Box
        The grid.
    weights : Tensor, shape (n,)
        Masses.
    moves : Tensor, shape (n_faces,)
        Displacement of each face along its axis, 0 at obstacles.
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
    all_free = bool(is_free.all())
    for axis in range(box.dim):
        walls = _with_ends(closed[axis].movedim(axis, -1), True)
        arrivals = _arrivals(_with_ends(fields[axis].movedim(axis, -1), 0.0), walls)
        rows = mass.movedim(axis, -1)
        origins = torch.where(walls, _indices(arrivals), _origins(arrivals, 0.0))
        mass = _integrate(rows, origins, walls).movedim(-1, axis)
        for later in range(axis + 1, box.dim):
            fields[later] = _carried(
                fields[later], fields[axis], later, axis, smooth=all_free
            )
    return mass.reshape(-1)


def _indices(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)


def _with_ends(x: Tensor, value: float | bool) -> Tensor:
    """Append the two walls of the box, with one value, along the last axis."""
    end = x.new_full((*x.shape[:-1], 1), value)
    return torch.cat([end, x, end], dim=-1)


def _arrivals(moves: Tensor, walls: Tensor) -> Tensor:
    """Return where faces arrive, in cells: in order, and not beyond the next wall."""
    start = _indices(moves)
    left = torch.where(walls, start, -torch.inf).cummax(-1).values
    right = torch.where(walls, start, torch.inf).flip(-1).cummin(-1).values.flip(-1)
    end = torch.minimum(torch.maximum(start + moves, left), right)
    # Faces that pass one another meet half way.
    first = end.cummax(-1).values
    last = end.flip(-1).cummin(-1).values.flip(-1)
    return 0.5 * (first + last)


def _origins(arrivals: Tensor, offset: float) -> Tensor:
    """Return where the faces (offset 0) or centres (1/2) came from, in cells."""
    n = arrivals.shape[-1] - 1
    wanted = _indices(arrivals if offset == 0 else arrivals[..., :-1]) + offset
    wanted = wanted.contiguous()
    k = torch.searchsorted(arrivals.contiguous(), wanted, right=True) - 1
    k = k.clamp(0, n - 1)
    low, high = arrivals.gather(-1, k), arrivals.gather(-1, k + 1)
    gap = high - low
    part = (wanted - low) / torch.where(gap > 0, gap, 1.0)
    return (k + part).clamp(0, n)


def _integrate(mass: Tensor, origins: Tensor, walls: Tensor) -> Tensor:
    """Return the masses that lie between consecutive origins."""
    left, right = _edges(mass, walls)
    n = mass.shape[-1]
    cell = origins.floor().long().clamp_max(n - 1)
    s = origins - cell
    m, a, b = (x.gather(-1, cell) for x in (mass, left, right))
    curve = 6 * m - 3 * (a + b)
    # The mass of the cell below the origin, by a parabola with the edge values a, b.
    part = s * (a + s * (0.5 * (b - a + curve) - s * curve / 3))
    part = torch.where(s == 1, m, part)
    low, high = cell[..., :-1], cell[..., 1:]
    sums = torch.cat([torch.zeros_like(mass[..., :1]), mass.cumsum(-1)], dim=-1)
    whole = sums.gather(-1, high) - sums.gather(-1, torch.minimum(low + 1, high))
    first = torch.where(low == high, 0.0, m[..., :-1])
    # No parabola is negative: a sum below zero is round-off.
    return (first - part[..., :-1] + whole + part[..., 1:]).clamp_min(0)


def _edges(mass: Tensor, walls: Tensor) -> tuple[Tensor, Tensor]:
    """Return the density, in mass a cell, at the left and right edge of each cell.

    Of order 4 inside; between 0 and 3 times that of the cell, which keeps the parabola
    through it non-negative.
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
    field: Tensor, sweep: Tensor, own: int, axis: int, *, smooth: bool
) -> Tensor:
    """Return a displacement along `own`, as a function of where `axis` has led it."""
    n = sweep.shape[own]
    # The sweep on the faces across `own`: the mean of both sides.
    sweep = 0.5 * (sweep.narrow(own, 0, n - 1) + sweep.narrow(own, 1, n - 1))
    moves = _with_ends(sweep.movedim(axis, -1), 0.0)
    walls = torch.zeros_like(moves, dtype=torch.bool)
    walls[..., 0] = walls[..., -1] = True
    place = _origins(_arrivals(moves, walls), 0.5) - 0.5  # in units of centres
    values = field.movedim(axis, -1)
    return _interpolate(values, place, smooth=smooth).movedim(-1, axis)


def _interpolate(values: Tensor, place: Tensor, *, smooth: bool) -> Tensor:
    """Return values between the entries of rows, cubic if smooth, else linear."""
    n = values.shape[-1]
    if not smooth or n < 4:
        place = place.clamp(0, n - 1)
        k = place.floor().long().clamp_max(n - 2)
        t = place - k
        return values.gather(-1, k) * (1 - t) + values.gather(-1, k + 1) * t
    k = place.floor().long().clamp(1, n - 3)
    t = place - k
    cubic = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    terms = [c * values.gather(-1, k + j - 1) for j, c in enumerate(cubic)]
    return terms[0] + terms[1] + terms[2] + terms[3]
