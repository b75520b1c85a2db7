"""Factors of the linear systems of a step by finite volumes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from otflow._lazy import lazy_import

__all__ = ["Array", "Factors", "Index", "Layout", "factor", "factor_positive"]

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Most products of a factorisation in a band: about a fifth of a second. Above, a sparse
# factorisation has less fill.
MOST_PRODUCTS = 1e9


class Factors(Protocol):
    """Solves a system for any right-hand side."""

    def solve(self, rhs: Array) -> Array:
        """Return the solution."""


class Band:
    """Cholesky factors of a matrix in a band.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite to round-off.
    """

    def __init__(self, band: Array, order: Index) -> None:
        self.order = order
        linalg = lazy_import("scipy.linalg")
        self.factors = linalg.cholesky_banded(
            band, overwrite_ab=True, lower=True, check_finite=False
        )

    def solve(self, rhs: Array) -> Array:
        """Return the solution."""
        solution = np.empty_like(rhs)
        solution[self.order] = lazy_import("scipy.linalg").cho_solve_banded(
            (self.factors, True), rhs[self.order], check_finite=False
        )
        return solution


class Layout:
    """The places of the lower triangle of a symmetric matrix in a narrow band.

    Parameters
    ----------
    n : int
        Number of rows.
    rows, columns : ndarray of int
        The entries, one of each pair. Entries with the same place add up.

    Attributes
    ----------
    cheap : bool
        Whether factors in the band cost little.
    """

    def __init__(self, n: int, rows: Index, columns: Index) -> None:
        # An entry counts from both sides: the ordering reads the whole pattern.
        own = np.arange(n)
        first = np.concatenate([own, rows, columns])
        second = np.concatenate([own, columns, rows])
        ones = np.ones(len(first))
        graph = lazy_import("scipy.sparse").csr_array((ones, (first, second)), (n, n))
        ordering = lazy_import("scipy.sparse.csgraph").reverse_cuthill_mckee
        self.order = ordering(graph, symmetric_mode=True)
        rank = np.empty(n, dtype=np.int64)
        rank[self.order] = own
        first, second = rank[rows], rank[columns]
        below = np.abs(first - second)
        self.n, self.width = n, int(below.max(initial=0)) + 1
        self.cheap = float(n) * self.width**2 <= MOST_PRODUCTS
        self.place = np.minimum(first, second) * self.width + below

    def factor(self, entries: Array) -> Band:
        """Return the factors of the matrix with these entries."""
        size = self.n * self.width
        flat = np.bincount(self.place, entries, size).astype(np.float64, copy=False)
        return Band(flat.reshape(self.n, self.width).T, self.order)


def factor_positive(matrix: Any) -> Factors:
    """Return factors of a sparse, symmetric and positive definite matrix."""
    lower = lazy_import("scipy.sparse").tril(matrix).tocoo()
    layout = Layout(matrix.shape[0], lower.row, lower.col)
    return layout.factor(lower.data) if layout.cheap else factor(matrix)


def factor(matrix: Any) -> Factors:
    """Return the LU factors of a sparse matrix whose diagonal may serve as pivots."""
    # Pivots on the diagonal keep the ordering, and with it the fill, that the symmetric
    # pattern asks for.
    splu = lazy_import("scipy.sparse.linalg").splu
    factors: Factors = splu(
        matrix.tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return factors
