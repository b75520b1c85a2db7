r"""Walls between Laguerre cells, cut at the cells of a grid.

A density that is constant on the cells of a grid has a primitive along the first axis.
By the divergence theorem the mass of a polytope is the flux of this primitive through
its walls. So only the pieces of walls in cells are visited, never the cells inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.metrics.laguerre import Diagram

__all__ = ["Cells", "StepDensity", "integrals"]

# Polygons of one tile, about: their arrays stay in the cache.
PIECES = 2**13
# Rules that integrate quadratic functions over a segment and a triangle: barycentric
# coordinates of the nodes, and their shares.
RULES = {
    2: ([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], [1 / 6, 2 / 3, 1 / 6]),
    3: ([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]], [1 / 3, 1 / 3, 1 / 3]),
}


@dataclass(frozen=True, eq=False)
class StepDensity:
    """A density that is constant on the cells of a regular grid; float64, on the CPU.

    Parameters
    ----------
    lower, spacing : Tensor, shape (d,)
        Lower corner, and the sides of a cell.
    masses : Tensor, shape (n_1, ..., n_d)
        Masses of the cells, of sum 1.
    """

    lower: Tensor
    spacing: Tensor
    masses: Tensor

    @property
    def upper(self) -> Tensor:
        """The upper corner, (d,)."""
        return self.lower + self.spacing * torch.tensor(self.masses.shape)

    @cached_property
    def primitives(self) -> tuple[Tensor, Tensor, Tensor]:
        """Density, and its primitives of order 0 and 1 along the first axis.

        The primitives are those at the lower face of each cell. Behind the last cell
        follows one without mass.
        """
        rho = self.masses / self.spacing.prod()
        count, shape = len(rho), (-1, *[1] * (rho.ndim - 1))
        h = self.spacing[0]
        middle = self.lower[0] + h * (torch.arange(count, dtype=h.dtype) + 0.5)
        zero = torch.zeros_like(rho[:1])
        mass = torch.cat([zero, (h * rho).cumsum(0)])
        moment = torch.cat([zero, (h * middle.reshape(shape) * rho).cumsum(0)])
        return torch.cat([rho, zero]), mass, moment

    def coarser(self, factor: int, floor: float) -> StepDensity:
        """Return the density of blocks of so many cells along each axis.

        A share `floor` of the mass is spread evenly. The last block of an axis may
        reach beyond the box.
        """
        masses = self.masses
        for k, count in enumerate(self.masses.shape):
            more = -count % factor
            if count > 1 and more:
                end = masses.narrow(k, 0, 1).expand(
                    *masses.shape[:k], more, *masses.shape[k + 1 :]
                )
                masses = torch.cat([masses, torch.zeros_like(end)], k)
            if count > 1:
                before, after = masses.shape[:k], masses.shape[k + 1 :]
                masses = masses.reshape(*before, -1, factor, *after).sum(k + 1)
        shape = torch.tensor(self.masses.shape)
        wide = torch.where(shape > 1, float(factor), 1.0)
        masses = (1 - floor) * masses + floor / masses.numel()
        return StepDensity(self.lower, self.spacing * wide, masses)


class Cells(NamedTuple):
    """Masses, first moments, and the mass per length at the walls.

    Shapes (n,), (n, d), and (k,): the integral of the density over each wall.
    """

    masses: Tensor
    moments: Tensor
    walls: Tensor


class _Pieces(NamedTuple):
    """Segments or triangles, (k, d, d), their walls, and the cells of the grid."""

    corners: Tensor
    wall: Tensor
    cell: tuple[Tensor, ...]


def integrals(cells: Diagram, density: StepDensity, n: int) -> Cells:
    """Return the integrals of a density over the cells of n atoms.

    Exact up to round-off. Time and memory are those of the pieces: for N cells of the
    grid along an axis O(n^(1/2) N) in the plane, O(n^(1/3) N^2) in space.
    """
    d = density.masses.ndim
    total = n + 2 * d
    sums = density.masses.new_zeros(total, d + 1)
    walls = density.masses.new_zeros(len(cells.first))
    rho, mass, moment = density.primitives
    rule, shares = (torch.tensor(z, dtype=torch.float64) for z in RULES[d])
    for pieces in _segments(cells, density) if d == 2 else _triangles(cells, density):
        at = rule @ pieces.corners
        normal = _areas(pieces.corners)
        height, left = (
            rho[pieces.cell],
            density.lower[0] + density.spacing[0] * (pieces.cell[0].to(torch.float64)),
        )
        x = at[:, :, 0]
        step = x - left[:, None]
        flow = mass[pieces.cell][:, None] + height[:, None] * step
        along = moment[pieces.cell][:, None] + height[:, None] * (
            step * (0.5 * (x + left[:, None]))
        )
        fluxes = torch.cat(
            [flow[:, :, None], along[:, :, None], flow[:, :, None] * at[:, :, 1:]], 2
        )
        through = (shares[:, None] * fluxes).sum(1) * normal[:, :1]
        across = (normal * cells.normals[pieces.wall]).sum(1)
        through = through * across.sign()[:, None]
        sums.index_add_(0, cells.first[pieces.wall], through)
        sums.index_add_(0, cells.second[pieces.wall], through, alpha=-1)
        walls.index_add_(0, pieces.wall, height * normal.norm(dim=1))
    return Cells(sums[:n, 0], sums[:n, 1:], walls)


def _areas(corners: Tensor) -> Tensor:
    """Return the normals of segments or triangles, as long as their size."""
    edges = corners[:, 1:] - corners[:, :1]
    if corners.shape[2] == 2:
        return torch.stack([edges[:, 0, 1], -edges[:, 0, 0]], 1)
    normals: Tensor = 0.5 * torch.linalg.cross(edges[:, 0], edges[:, 1])
    return normals


def _segments(cells: Diagram, density: StepDensity) -> Iterator[_Pieces]:
    """Cut the walls of the plane at the lines of the grid, in order along each."""
    a, b = cells.corners.unbind(1)
    move = b - a
    # Flux leaves through whatever is right of the box too; not above, below or left.
    high = density.upper.clone()
    high[0] = torch.inf
    start, stop = a.new_zeros(len(a)), a.new_ones(len(a))
    for k in range(2):
        still = move[:, k] == 0
        slope = move[:, k].masked_fill(still, 1.0)
        ends = torch.stack([density.lower[k] - a[:, k], high[k] - a[:, k]], 1)
        inside = still & (ends[:, 0] <= 0) & (ends[:, 1] > 0)
        ends = ends / slope[:, None]
        low, top = ends.amin(1), ends.amax(1)
        low = low.masked_fill(still, 0.0)
        top = torch.where(still, torch.where(inside, 1.0, -1.0), top)
        start, stop = torch.maximum(start, low), torch.minimum(stop, top)
    kept = (start < stop).nonzero()[:, 0]
    a, move, start, stop = a[kept], move[kept], start[kept], stop[kept]
    rows = [torch.arange(len(a))] * 2
    times = [start, stop]
    for k in range(2):
        count = density.masses.shape[k]
        ends = a[:, k : k + 1] + torch.stack([start, stop], 1) * move[:, k : k + 1]
        ends = (ends - density.lower[k]) / density.spacing[k]
        first = ends.amin(1).floor().long().clamp(0, count) + 1
        last = ends.amax(1).ceil().long().clamp(0, count + 1) - 1
        row, line = _ranges(first, last)
        place = density.lower[k] + density.spacing[k] * line.to(torch.float64)
        slope = move[row, k]
        time = (place - a[row, k]) / slope.masked_fill(slope == 0, 1.0)
        rows.append(row)
        times.append(torch.clamp(time, start[row], stop[row]))
    row, time = torch.cat(rows), torch.cat(times)
    order = time.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    row, time = row[order], time[order]
    piece = ((row[1:] == row[:-1]) & (time[1:] > time[:-1])).nonzero()[:, 0]
    row, ends = row[piece], torch.stack([time[piece], time[piece + 1]], 1)
    corners = a[row, None] + ends[:, :, None] * move[row, None]
    yield _Pieces(corners, kept[row], _places(corners, density))


def _places(corners: Tensor, density: StepDensity) -> tuple[Tensor, ...]:
    """Return the index of the cell of each piece; the first axis has one cell more."""
    middle = (corners.mean(1) - density.lower) / density.spacing
    shape = density.masses.shape
    return tuple(
        middle[:, k].floor().long().clamp(0, count - (k > 0))
        for k, count in enumerate(shape)
    )


def _ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of each range and each of its whole numbers, ends included."""
    sizes = (last - first + 1).clamp_min(0)
    row = torch.arange(len(first)).repeat_interleave(sizes)
    rank = torch.arange(len(row)) - (sizes.cumsum(0) - sizes)[row]
    return row, first[row] + rank


def _triangles(cells: Diagram, density: StepDensity) -> Iterator[_Pieces]:
    """Cut the walls of space at the planes of the grid, tile by tile."""
    corners = cells.corners
    low = ((corners.amin(1) - density.lower) / density.spacing).floor()
    high = ((corners.amax(1) - density.lower) / density.spacing).floor()
    shape = torch.tensor(density.masses.shape, dtype=torch.float64)
    meets = ((high >= 0) & (low[:, :] < shape + torch.tensor([torch.inf, 0, 0]))).all(1)
    wall = meets.nonzero()[:, 0]
    extent = (torch.minimum(high, shape) - low.clamp_min(0.0) + 1)[wall].clamp_min(1.0)
    # A plane meets no more cells than two sides of its box have, times a few.
    work = (extent.prod(1) / extent.amin(1)).cumsum(0)
    tile = (work / PIECES).floor().long()
    for own in torch.split(wall, torch.bincount(tile).tolist()):
        if not len(own):
            continue
        parts, whose = corners[own], own
        for k in range(3):
            parts, row = _slabs(parts, density, k)
            whose = whose[row]
        first, rest = parts[:, :1], parts[:, 1:]
        count = rest.shape[1] - 1
        fans = torch.stack(
            [first.expand(-1, count, -1), rest[:, :-1], rest[:, 1:]], 2
        ).reshape(-1, 3, 3)
        cell = tuple(z.repeat_interleave(count) for z in _places(parts, density))
        yield _Pieces(fans, whose.repeat_interleave(count), cell)


def _slabs(parts: Tensor, density: StepDensity, k: int) -> tuple[Tensor, Tensor]:
    """Return convex polygons cut into the layers of cells along an axis, and whose."""
    count, h = density.masses.shape[k], float(density.spacing[k])
    start = float(density.lower[k])
    ends = torch.stack([parts[:, :, k].amin(1), parts[:, :, k].amax(1)], 1)
    ends = (ends - start) / h
    last = count if k == 0 else count - 1
    low = ends[:, 0].floor().clamp(0, count).long()
    high = (ends[:, 1].ceil() - 1).clamp(-1, last).long()
    # A polygon in a plane of the grid belongs to the layer above.
    flat = (ends[:, 1] == ends[:, 0]) & (ends[:, 0] >= 0) & (ends[:, 0] <= last + 1)
    high = torch.where(flat, low.clamp_max(last), high)
    row, layer = _ranges(low, high)
    parts = parts[row]
    bottom = start + h * layer.to(torch.float64)
    top = start + h * (layer + 1).to(torch.float64)
    if k == 0:
        top = top.masked_fill(layer == count, torch.inf)
    whole = (parts[:, :, k].amin(1) >= bottom) & (parts[:, :, k].amax(1) <= top)
    cut = (~whole).nonzero()[:, 0]
    if not len(cut):
        return parts, row
    clipped = _clipped(parts[cut], parts[cut][:, :, k] - bottom[cut, None])
    clipped = _clipped(clipped, top[cut, None] - clipped[:, :, k])
    most = max(clipped.shape[1], parts.shape[1])
    parts, clipped = (
        torch.cat([z, z[:, -1:].expand(-1, most - z.shape[1], -1)], 1)
        for z in (parts, clipped)
    )
    return parts.index_copy(0, cut, clipped), row


def _clipped(parts: Tensor, height: Tensor) -> Tensor:
    """Return the part of convex polygons where a linear function is >= 0."""
    count = parts.shape[1]
    height = height.clamp_max(torch.finfo(height.dtype).max)
    after = height.roll(-1, 1)
    inside = height >= 0
    crosses = inside != (after >= 0)
    share = (height / (height - after).masked_fill(~crosses, 1.0)).masked_fill(
        ~crosses, 0.0
    )
    cuts = parts + share[:, :, None] * (parts.roll(-1, 1) - parts)
    both = torch.stack([parts, cuts], 2).reshape(len(parts), 2 * count, -1)
    kept = torch.stack([inside, crosses], 2).reshape(len(parts), 2 * count)
    # Kept corners first, in order; a polygon has at most one corner more than before.
    number = kept.sum(1, keepdim=True).clamp_min(1)
    most = int(number.max())
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    place = torch.arange(most)[None].minimum(number - 1)
    order = order.gather(1, place)
    return both.gather(1, order[:, :, None].expand(-1, -1, parts.shape[2]))
