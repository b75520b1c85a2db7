"""The faces of a grid as a graph: sparse matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from otflow._lazy import lazy_import
from otflow.proximal.grid.finite_volume.factors import (
    Array,
    Factors,
    Index,
    Layout,
    factor,
    factor_positive,
)

__all__ = ["Array", "Faces", "Index"]


@dataclass(frozen=True)
class Faces:
    """Open faces between cells, which are numbered among themselves.

    Parameters
    ----------
    low, high : ndarray of int, shape (m,)
        The cells on both sides of each face.
    conductance : ndarray, shape (m,)
        One over the squared spacing across each face.
    n : int
        Number of cells.
    """

    low: Index
    high: Index
    conductance: Array
    n: int

    @property
    def largest(self) -> float:
        """The largest conductance, 1 without faces."""
        return float(self.conductance.max(initial=0.0)) or 1.0

    @cached_property
    def sides(self) -> Index:
        """The cells below and above the faces, (2, m)."""
        return np.stack([self.low, self.high])

    @cached_property
    def rooms(self) -> Index:
        """The number of the connected part of the room that a cell lies in, (n,)."""
        components = lazy_import("scipy.sparse.csgraph").connected_components
        labels: Index = components(self.laplacian(self.conductance), directed=False)[1]
        return labels

    @cached_property
    def normal(self) -> NormalEquations:
        """Assembles the systems of Newton's method."""
        return NormalEquations(self)

    @cached_property
    def incidence(self) -> Any:
        """The outflow of fluxes as a sparse matrix, (n, m)."""
        m = len(self.low)
        data = np.repeat([1.0, -1.0], m)
        where = (self.sides.ravel(), np.tile(np.arange(m), 2))
        return lazy_import("scipy.sparse").csr_array((data, where), shape=(self.n, m))

    @cached_property
    def levelling(self) -> Factors:
        """Factors of the Laplacian whose weights are the conductances."""
        # The Laplacian is singular. Right sides sum to 0 in each room, so a small
        # addition to the diagonal only fixes a constant in each.
        trace = lazy_import("scipy.sparse").eye_array(self.n) * 1e-10 * self.largest
        return factor_positive(self.laplacian(self.conductance) + trace)

    def upstream(self, values: Array) -> tuple[Index, Index]:
        """Return the cells that fluxes of these signs leave, and those they enter."""
        up = values >= 0
        return np.where(up, self.low, self.high), np.where(up, self.high, self.low)

    def matrix(self, diagonal: Array, entries: Array) -> Any:
        """Return the sparse matrix of a diagonal and of entries at the faces, (2, m).

        Entry (0, f) couples the cell below the face f to the cell above; entry (1, f)
        couples the cell above to the cell below.
        """
        sparse, own = lazy_import("scipy.sparse"), np.arange(self.n)
        rows = np.concatenate([own, *self.sides])
        columns = np.concatenate([own, *self.sides[::-1]])
        data = np.concatenate([diagonal, *entries])
        return sparse.csr_array((data, (rows, columns)), shape=(self.n, self.n))

    def laplacian(self, weights: Array) -> Any:
        """Return the sparse Laplacian of the graph with these weights on the faces."""
        both = np.stack([weights, weights])
        return self.matrix(self.at_sides(both), -both)

    def sum_at(self, cells: Index, values: Array) -> Array:
        """Return for each cell the sum of the values whose entry in `cells` is it."""
        total: Array = np.bincount(cells, values, self.n).astype(np.float64)
        return total

    def at_sides(self, values: Array) -> Array:
        """Return for each cell the sum of values (2, m) over the faces beside it.

        Row 0 counts at the cell below a face, row 1 at the cell above.
        """
        return self.sum_at(self.low, values[0]) + self.sum_at(self.high, values[1])

    def outflow(self, flux: Array) -> Array:
        """Return what leaves each cell by signed fluxes, positive upwards."""
        return self.sum_at(self.low, flux) - self.sum_at(self.high, flux)


class NormalEquations:
    r"""Assembles and factors :math:`J^T D J + L` on the faces of a room.

    :math:`(J\phi)_K = \phi_K + \sum_L s_{KL}\,(\phi_K - \phi_L)` with shares s, over
    the cells L beside K. D is diagonal and L a Laplacian. The places of the entries
    are found once.

    Parameters
    ----------
    faces : Faces
        The faces.
    """

    def __init__(self, faces: Faces) -> None:
        self.faces = faces
        n, m = faces.n, len(faces.low)
        sides, others = faces.sides.ravel(), faces.sides[::-1].ravel()
        # The row of a cell in J: the cell itself, then the cells beside it. Rows of
        # fewer cells are filled up by an entry that is 0.
        turn = np.argsort(sides, kind="stable")
        rank = np.arange(2 * m) - np.searchsorted(sides[turn], sides[turn])
        most = int(rank.max(initial=-1)) + 1
        table = np.full((n, most + 1), n + 2 * m)
        table[:, 0] = np.arange(n)
        table[sides[turn], rank + 1] = n + turn
        self.table = table
        cells = np.concatenate([np.arange(n), others, [-1]])[table]
        self.first, self.second = np.triu_indices(most + 1)
        rows, columns = cells[:, self.first].ravel(), cells[:, self.second].ravel()
        self.kept = np.flatnonzero((rows >= 0) & (columns >= 0))
        rows, columns = rows[self.kept], columns[self.kept]
        # The entries of L follow: its diagonal, then one for each face.
        self.layout = Layout(
            n,
            np.concatenate([rows, np.arange(n), faces.low]),
            np.concatenate([columns, np.arange(n), faces.high]),
        )

    def factor(self, share: Array, diagonal: Array, weights: Array) -> Factors:
        """Return the factors for shares (2, m), D and the weights of L.

        Raises
        ------
        RuntimeError
            If the matrix is singular to round-off.
        """
        if self.layout.cheap:
            try:
                return self._band(share, diagonal, weights)
            except np.linalg.LinAlgError:
                # Negative by round-off: elimination in another order may succeed.
                pass
        J = self.matrix(share)
        D = lazy_import("scipy.sparse").diags_array(diagonal)
        sparse: Factors = factor(J.T @ D @ J + self.faces.laplacian(weights))
        return sparse

    def matrix(self, share: Array) -> Any:
        """Return J, sparse."""
        return self.faces.matrix(1 + self.faces.at_sides(share), -share)

    def _band(self, share: Array, diagonal: Array, weights: Array) -> Factors:
        faces = self.faces
        own, total = 1 + faces.at_sides(share), faces.at_sides(np.stack([weights] * 2))
        values = np.concatenate([own, *-share, np.zeros(1)])[self.table]
        pairs = diagonal[:, None] * values[:, self.first] * values[:, self.second]
        entries = [pairs.ravel()[self.kept], total, -weights]
        return self.layout.factor(np.concatenate(entries))
