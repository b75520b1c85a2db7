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
        """The cells that each face takes from, upwards and downwards, (2, m)."""
        return np.stack([self.low, self.high])

    @cached_property
    def rooms(self) -> Index:
        """The number of the room of each cell."""
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
        data = np.concatenate([np.ones(m), -np.ones(m)])
        where = (np.concatenate([self.low, self.high]), np.tile(np.arange(m), 2))
        return lazy_import("scipy.sparse").csr_array((data, where), shape=(self.n, m))

    @cached_property
    def levelling(self) -> Factors:
        """Factors of the Laplacian, by the conductances.

        A balance is zero in each room, so a trace on the diagonal only fixes constants.
        """
        trace = lazy_import("scipy.sparse").eye_array(self.n) * 1e-10 * self.largest
        return factor_positive(self.laplacian(self.conductance) + trace)

    def upstream(self, values: Array) -> tuple[Index, Index]:
        """Return the cell that each face takes from and the one that it gives to."""
        up = values >= 0
        return np.where(up, self.low, self.high), np.where(up, self.high, self.low)

    def matrix(
        self, diagonal: Array, rows: Index, columns: Index, entries: Array
    ) -> Any:
        """Return a sparse matrix of a diagonal and one entry a face."""
        sparse = lazy_import("scipy.sparse")
        own = np.arange(self.n)
        where = (np.concatenate([own, rows]), np.concatenate([own, columns]))
        data = np.concatenate([diagonal, entries])
        return sparse.csr_array((data, where), shape=(self.n, self.n))

    def laplacian(self, weights: Array) -> Any:
        """Return the sparse Laplacian of the graph with these weights on the faces."""
        total = self.sum_at(self.low, weights) + self.sum_at(self.high, weights)
        rows = np.concatenate([self.low, self.high])
        columns = np.concatenate([self.high, self.low])
        return self.matrix(total, rows, columns, -np.concatenate([weights, weights]))

    def sum_at(self, cells: Index, values: Array) -> Array:
        """Return, for each cell, the sum of the values that name it."""
        total: Array = np.bincount(cells, values, self.n).astype(np.float64)
        return total

    def at_sides(self, values: Array) -> Array:
        """Return, for each cell, the sum over its faces of the row of its own side."""
        return self.sum_at(self.low, values[0]) + self.sum_at(self.high, values[1])

    def outflow(self, flux: Array) -> Array:
        """Return what leaves each cell by signed fluxes, positive upwards."""
        return self.sum_at(self.low, flux) - self.sum_at(self.high, flux)


class NormalEquations:
    r"""Assembles and factors :math:`J^T D J + L` on the faces of a room.

    J is the identity plus the outflow of each cell by shares of the differences across
    its faces, D diagonal and L a Laplacian. Where the entries lie does not change.
    """

    def __init__(self, faces: Faces) -> None:
        self.faces = faces
        n, m = faces.n, len(faces.low)
        sides = np.concatenate([faces.low, faces.high])
        others = np.concatenate([faces.high, faces.low])
        # Of the row of a cell: itself, then the ways out of it; the last is no way.
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
                pass  # negative by round-off: elimination in another order may do
        J = self.matrix(share)
        D = lazy_import("scipy.sparse").diags_array(diagonal)
        sparse: Factors = factor(J.T @ D @ J + self.faces.laplacian(weights))
        return sparse

    def matrix(self, share: Array) -> Any:
        """Return J, sparse."""
        return self.faces.matrix(
            1 + self.faces.at_sides(share),
            np.append(self.faces.low, self.faces.high),
            np.append(self.faces.high, self.faces.low),
            -share.reshape(-1),
        )

    def _band(self, share: Array, diagonal: Array, weights: Array) -> Factors:
        faces = self.faces
        values = np.concatenate(
            [1 + faces.at_sides(share), -share.reshape(-1), np.zeros(1)]
        )[self.table]
        pairs = diagonal[:, None] * values[:, self.first] * values[:, self.second]
        total = faces.sum_at(faces.low, weights) + faces.sum_at(faces.high, weights)
        entries = [pairs.ravel()[self.kept], total, -weights]
        return self.layout.factor(np.concatenate(entries))
