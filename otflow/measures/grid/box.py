"""A box cut into equal cells, and what a step may do to the masses in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._memory import check_memory
from otflow._validation import non_negative_int, real
from otflow._warn import warn
from otflow.errors import BoxWarning

__all__ = ["Box", "check_border", "fault_of_step", "mass_tolerance", "total_mass"]

MAX_DIM = 3
# A box is too small if more than this share of the mass lies beside its border; beside
# means this share of the side, at least one cell.
BORDER_SHARE, BORDER_WIDTH = 1e-3, 1 / 40
# Mass in that layer does not reach the border if the mean mass of its cells is more
# than so many times that of the outermost cell.
REACHED = 20.0


@dataclass(frozen=True)
class Box:
    """The box with corners `lower` and `upper`, cut into ``shape`` cells.

    Cells are numbered in C order. A *face* separates two neighbouring cells. Faces are
    numbered axis by axis; those in the border of the box are omitted.

    Parameters
    ----------
    lower, upper : tuple of float
        Corners.
    shape : tuple of int
        Number of cells along each axis.

    Attributes
    ----------
    lower, upper, shape
        As above.

    Examples
    --------
    >>> import otflow as of
    >>> box = of.measures.Box.of(0.0, [1.0, 2.0], (10, 10))
    >>> box.spacing, box.n_faces
    ((0.1, 0.2), 180)
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, lower: Any, upper: Any, shape: Any) -> Box:
        """Return the box of these corners, each one number, or one number per axis."""
        shape = (shape,) if not isinstance(shape, Sequence) else shape
        cells = tuple(non_negative_int(n, "shape", minimum=1) for n in shape)
        if not 1 <= len(cells) <= MAX_DIM:
            msg = (
                f"a grid has one to {MAX_DIM} axes, got shape {cells}; in higher "
                f"dimension use Particles or Gaussian"
            )
            raise ValueError(msg)
        low = _corner(lower, "lower", len(cells))
        high = _corner(upper, "upper", len(cells))
        if any(a >= b for a, b in zip(low, high, strict=True)):
            msg = f"lower must lie below upper on every axis, got {low} and {high}"
            raise ValueError(msg)
        return cls(low, high, cells)

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def n(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Length of a cell along each axis."""
        return tuple(
            (b - a) / n
            for a, b, n in zip(self.lower, self.upper, self.shape, strict=True)
        )

    @cached_property
    def cell_volume(self) -> float:
        """Volume of a cell."""
        return math.prod(self.spacing)

    @cached_property
    def face_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the array of inner faces across each axis."""
        return tuple(
            tuple(n - (a == axis) for a, n in enumerate(self.shape))
            for axis in range(self.dim)
        )

    @cached_property
    def n_faces(self) -> int:
        """Number of inner faces."""
        return sum(math.prod(shape) for shape in self.face_shapes)

    def axes(self, like: Tensor) -> list[Tensor]:
        """Return the centres along each axis, in the dtype and on the device of `like`.

        Parameters
        ----------
        like : Tensor
            Gives dtype and device.

        Returns
        -------
        list of Tensor
            Each of shape (n_axis,).
        """
        return [
            a + h * (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5)
            for a, h, n in zip(self.lower, self.spacing, self.shape, strict=True)
        ]

    def centres(self, like: Tensor) -> Tensor:
        """Return the centres of the cells, (n, d).

        Raises
        ------
        MemoryError
            If a few arrays of that shape do not fit into the memory.
        """
        what = f"a grid of {self.n} cells"
        bytes_needed = 4 * like.element_size() * self.n * self.dim
        check_memory(bytes_needed, what, "take fewer cells", like.device)
        grids = torch.meshgrid(*self.axes(like), indexing="ij")
        return torch.stack([g.reshape(-1) for g in grids], dim=-1)

    def split_faces(self, tangent: Tensor) -> list[Tensor]:
        """Return the entries of a tangent (n_faces,) across each axis, as arrays."""
        parts = torch.split(tangent, [math.prod(s) for s in self.face_shapes])
        return [p.reshape(s) for p, s in zip(parts, self.face_shapes, strict=True)]

    def join_faces(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the tangent (n_faces,) of arrays across each axis."""
        return torch.cat([p.reshape(-1) for p in parts])

    def gradient(self, f: Tensor) -> Tensor:
        """Return the differences of a function of the cells over the spacing.

        Parameters
        ----------
        f : Tensor, shape (n,)
            One value a cell.

        Returns
        -------
        Tensor, shape (n_faces,)
            Slopes across the inner faces.
        """
        f = f.reshape(self.shape)
        return self.join_faces(
            [f.diff(dim=axis) / h for axis, h in enumerate(self.spacing)]
        )

    def divergence(self, flux: Tensor) -> Tensor:
        """Return the outflow of each cell over its volume; nothing leaves the box.

        Parameters
        ----------
        flux : Tensor, shape (n_faces,)
            Flow per area through each inner face, positive upwards.

        Returns
        -------
        Tensor, shape (n,)
            Minus the adjoint of `gradient`.
        """
        shares = self.over_spacing(flux)
        return self.collect(shares, -shares)

    def over_spacing(self, faces: Tensor) -> Tensor:
        """Return the entries of a tangent (n_faces,), each over the spacing across."""
        parts = zip(self.split_faces(faces), self.spacing, strict=True)
        return self.join_faces([part / h for part, h in parts])

    def collect(self, below: Tensor, above: Tensor) -> Tensor:
        """Add each face's two contributions to the adjacent cells.

        Parameters
        ----------
        below, above : Tensor, shape (n_faces,)
            Contribution of each face to the cell below it and to the cell above it.

        Returns
        -------
        Tensor, shape (n,)
            The sums; the adjoint of `neighbours`.
        """
        total = below.new_zeros(self.shape)
        sides = zip(self.split_faces(below), self.split_faces(above), strict=True)
        for axis, (to_below, to_above) in enumerate(sides):
            n = self.shape[axis]
            total.narrow(axis, 0, n - 1).add_(to_below)
            total.narrow(axis, 1, n - 1).add_(to_above)
        return total.reshape(-1)

    def neighbours(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the cells below and above each inner face.

        Parameters
        ----------
        f : Tensor, shape (n,)
            One value a cell.

        Returns
        -------
        below, above : Tensor, shape (n_faces,)
            Values on both sides.
        """
        f = f.reshape(self.shape)
        sides = []
        for start in (0, 1):
            parts = [f.narrow(a, start, n - 1) for a, n in enumerate(self.shape)]
            sides.append(self.join_faces(parts))
        return sides[0], sides[1]

    def cell_of(self, x: Tensor) -> Tensor:
        """Return the index of the cell that holds each point (m, d): (m,), int64.

        Raises
        ------
        ValueError
            If a point lies outside the box.
        """
        x = x.detach()  # an index has no derivative
        index = torch.zeros_like(x[:, 0], dtype=torch.int64)
        for axis, (a, b, n) in enumerate(
            zip(self.lower, self.upper, self.shape, strict=True)
        ):
            t = (x[:, axis] - a) / (b - a)
            outside = ~((t >= 0) & (t <= 1))
            if bool(outside.any()):
                k = int(outside.nonzero()[0])
                msg = (
                    f"point {k} lies outside the box: coordinate {axis} is "
                    f"{float(x[k, axis]):.6g}, not in [{a:g}, {b:g}]; enlarge the box "
                    f"or drop the point"
                )
                raise ValueError(msg)
            # A point on the upper border belongs to the last cell.
            index = index * n + (t * n).long().clamp_max(n - 1)
        return index

    def interpolate(self, values: Tensor, x: Tensor) -> Tensor:
        """Return the multilinear interpolation of cell values at points (m, d): (m,).

        Beyond the outermost centres it is constant.

        Raises
        ------
        ValueError
            If a point lies outside the box.
        """
        self.cell_of(x)  # raises for points outside
        result = torch.zeros_like(x[:, 0])
        low, part = [], []
        for axis, (a, h, n) in enumerate(
            zip(self.lower, self.spacing, self.shape, strict=True)
        ):
            t = ((x[:, axis] - a) / h - 0.5).clamp(0, n - 1)
            low.append(t.floor().long().clamp_max(max(n - 2, 0)))
            part.append(t - low[-1])
        for corner in range(2**self.dim):
            index, weight = torch.zeros_like(low[0]), torch.ones_like(result)
            for axis, n in enumerate(self.shape):
                up = corner >> axis & 1
                # On an axis of one cell both neighbours are this cell.
                index = index * n + (low[axis] + up).clamp_max(n - 1)
                weight = weight * (part[axis] if up else 1 - part[axis])
            result = result + weight * values[index]
        return result


def _corner(value: Any, name: str, dim: int) -> tuple[float, ...]:
    if isinstance(value, (Sequence, Tensor)) or hasattr(value, "__len__"):
        refuse_graph(
            "a corner of a box",
            "a grid is fixed",
            *(v for v in value if isinstance(v, Tensor)),
            cure="the numbers alone",
        )
        entries = [float(v.detach()) if isinstance(v, Tensor) else v for v in value]
        if len(entries) != dim:
            msg = f"{name} must have {dim} entries, one an axis, got {len(entries)}"
            raise ValueError(msg)
        return tuple(real(v, name) for v in entries)
    return (real(value, name),) * dim


# Masses -------------------------------------------------------------------------------


def mass_tolerance(dtype: torch.dtype) -> float:
    """Return how far the sum of the masses may be from 1."""
    return 1e-5 if dtype == torch.float32 else 1e-9


def total_mass(masses: Tensor) -> float:
    """Return the sum of masses in float64."""
    return float(masses.detach().sum(dtype=torch.float64))


def fault_of_step(before: Tensor, after: Tensor) -> str | None:
    """Return what is wrong with the masses after a step, None if nothing."""
    if not bool((after >= 0).all() & after.sum().isfinite()):
        return (
            "cell masses left the non-negative finite numbers; take a smaller dt "
            "or use JKO"
        )
    kept, total = total_mass(before), total_mass(after)
    if abs(total - kept) > mass_tolerance(after.dtype):
        return (
            f"a step changed the mass from {kept:.9g} to {total:.9g}: nothing may "
            f"leave through a wall or an obstacle; stop the velocity there"
        )
    return None


def check_border(
    box: Box,
    weights: Tensor,
    is_free: Tensor,
    *,
    walls: bool,
    before: Tensor | None = None,
) -> None:
    """Warn (BoxWarning) of mass beside a border that stands for all space.

    It warns once along a flow: not if there was as much mass `before`.
    """
    if walls or not bool(is_free.all()):
        return
    share = _border_share(box, weights)
    if share > BORDER_SHARE and (
        before is None or _border_share(box, before) <= BORDER_SHARE
    ):
        msg = (
            f"{share:.2%} of the mass lies beside the border of the box {box.lower} to "
            f"{box.upper}: it is too small; enlarge it, or pass walls=True if the "
            f"border is a wall"
        )
        warn(msg, BoxWarning)


def _border_share(box: Box, weights: Tensor) -> float:
    """Return the mass of both outermost layers along an axis, the largest of all axes.

    A layer of one cell holds ever less mass as the grid is refined. So the layers of a
    fine grid are a share of the side.
    """
    mass = weights.detach().reshape(box.shape)
    shares = []
    for axis, n in enumerate(box.shape):
        wide = max(1, int(BORDER_WIDTH * n))
        along = mass.movedim(axis, 0).reshape(n, -1).sum(1)
        ends = (along,) if n == 1 else (along[:wide], along[-wide:].flip(0))
        layers = (min(end.sum(), REACHED * wide * end[0]) for end in ends)
        shares.append(float(sum(layers)))
    return max(shares)
