"""The faces of a grid as a graph: sparse matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from otflow._lazy import lazy_import

__all__ = ["Array", "Faces", "Index", "factor"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


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


def factor(matrix: Any) -> Any:
    """Return the LU factors of a sparse matrix whose diagonal may serve as pivots."""
    splu = lazy_import("scipy.sparse.linalg").splu
    return splu(
        matrix.tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
