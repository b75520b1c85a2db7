r"""Laguerre cells of atoms and the walls between them, in the plane and in space.

The cells are :math:`C_j = \{x : \ell_j(x) \ge \ell_k(x)\ \text{for all } k\}` with
:math:`\ell_j(x) = x\cdot y_j - w_j`. Their corners are the slopes of the lower faces of
the convex hull of the points :math:`(y_j, w_j)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import NotConverged

__all__ = ["Diagram", "diagram"]

# Distance of the guards from the atoms, in the largest distance of an atom from the
# middle. The guards must surround the atoms, and their planes must rise faster than
# those of the atoms. A larger distance would cost digits.
APART = 4.0


@dataclass(frozen=True, eq=False)
class Diagram:
    """Laguerre cells, closed by guards: atoms whose own cells lie outside the box.

    Parameters
    ----------
    first, second : Tensor, shape (k,), int64
        Atoms on both sides of each wall; the guards have the indices n to n + 2 d - 1.
    normals : Tensor, shape (k, d)
        ``y[second] - y[first]``, across the wall.
    corners : Tensor, shape (k, p, d)
        Corners of each wall in cyclic order, two in the plane. Walls with fewer than p
        corners repeat one.
    vertices : Tensor, shape (f, d)
        Corners of the cells.
    meeting : Tensor, shape (f, d + 1), int64
        The atoms whose cells meet at each corner; guards are at least n.
    """

    first: Tensor
    second: Tensor
    normals: Tensor
    corners: Tensor
    vertices: Tensor
    meeting: Tensor


def diagram(y: Tensor, w: Tensor, lower: Tensor, upper: Tensor) -> Diagram:
    """Return the cells of atoms y, (n, d), of heights w, in a box; d is 2 or 3.

    Time O(n log n) in the plane, and in space for atoms that fill it.
    """
    d = y.shape[1]
    points, heights = _guarded(y, w, lower, upper)
    lifted = torch.cat([points, heights[:, None]], 1)
    spatial = lazy_import("scipy.spatial")
    try:
        hull = spatial.ConvexHull(lifted.numpy(), qhull_options="Qt")
    except spatial.QhullError as error:
        msg = (
            "the cells of the atoms are not known to round-off; make one atom of those "
            "that lie close together"
        )
        raise NotConverged(msg) from error
    equations = torch.from_numpy(hull.equations)
    faces = torch.from_numpy(hull.simplices).long()
    below = equations[:, d] < 0
    slopes = equations[:, :d] / -equations[:, d:-1].masked_fill(~below[:, None], -1.0)
    walls = _segments if d == 2 else _polygons
    first, second, corners = walls(hull, faces, below, slopes, len(points))
    real = (first < len(y)) | (second < len(y))
    first, second, corners = first[real], second[real], corners[real]
    normals = points[second] - points[first]
    return Diagram(first, second, normals, corners, slopes[below], faces[below])


def _guarded(
    y: Tensor, w: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the atoms and heights with those of the guards."""
    d = y.shape[1]
    middle = 0.5 * (y.amin(0) + y.amax(0))
    reach = float((y - middle).abs().max()) or 1.0
    axes = torch.eye(d, dtype=y.dtype)
    guards = middle + APART * d * reach * torch.cat([axes, -axes])
    # The plane of a guard stays below that of one atom, everywhere in the box.
    moves = guards - y[0]
    highest = torch.maximum(moves * lower, moves * upper).sum(1) + w[0]
    margin = reach * float((upper - lower).max())
    return torch.cat([y, guards]), torch.cat([w, highest + margin])


def _segments(
    hull: object, faces: Tensor, below: Tensor, slopes: Tensor, _: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the walls in the plane, each between the corners of two faces."""
    beside = torch.from_numpy(hull.neighbors).long()  # type: ignore[attr-defined]
    own = torch.arange(len(faces))[:, None].expand_as(beside)
    face, place = (below[:, None] & below[beside] & (own < beside)).nonzero(
        as_tuple=True
    )
    other = beside[face, place]
    first, second = (faces[face, (place + k) % 3] for k in (1, 2))
    return first, second, torch.stack([slopes[face], slopes[other]], 1)


def _polygons(
    _: object, faces: Tensor, below: Tensor, slopes: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the walls in space, each with the corners of all faces at an edge."""
    faces, slopes = faces[below], slopes[below]
    pairs = torch.combinations(torch.arange(4))
    ends = faces[:, pairs].sort(2).values.reshape(-1, 2)
    face = torch.arange(len(faces)).repeat_interleave(len(pairs))
    keys, wall, sizes = torch.unique(
        ends[:, 0] * count + ends[:, 1], return_inverse=True, return_counts=True
    )
    return keys // count, keys % count, _in_order(slopes[face], wall, sizes)


def _in_order(corners: Tensor, wall: Tensor, sizes: Tensor) -> Tensor:
    """Return the corners of each convex polygon by angle, (k, p, 3)."""
    order = wall.argsort(stable=True)
    rank = torch.arange(len(wall)) - (sizes.cumsum(0) - sizes)[wall[order]]
    most = int(sizes.max())
    table = order.new_full((len(sizes), most), -1)
    table[wall[order], rank] = order
    # A polygon of fewer corners repeats its first.
    table = torch.where(table < 0, table[:, :1], table)
    places = corners[table]
    arms = places - places.mean(1, keepdim=True)
    # Two axes in the plane of the polygon, by its longest arm and the one most askew.
    rows = torch.arange(len(places))
    longest = arms.square().sum(2).argmax(1)
    u = arms[rows, longest]
    u = u / u.norm(dim=1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    askew = arms - (arms * u[:, None]).sum(2, keepdim=True) * u[:, None]
    v = askew[rows, askew.square().sum(2).argmax(1)]
    v = v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    angles = torch.atan2((arms * v[:, None]).sum(2), (arms * u[:, None]).sum(2))
    turn = angles.argsort(dim=1)
    return places.gather(1, turn[:, :, None].expand_as(places))
