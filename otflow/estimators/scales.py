"""Centres and scales of data, by which neurons of standard normal weights fit them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scale"]

Array = NDArray[np.floating]
# A standard deviation below this share of the largest entry is round-off of a constant.
ROUND_OFF = 10.0


@dataclass(frozen=True, eq=False)
class Scale:
    r"""The map :math:`x \mapsto (x - c) / s` of each column.

    Parameters
    ----------
    center, spread : ndarray, shape (d,)
        The centres c and the spreads s > 0.

    Attributes
    ----------
    center, spread
        As above.
    """

    center: Array
    spread: Array

    @staticmethod
    def of(data: Array, weights: Array) -> Scale:
        """Return the weighted means and standard deviations of columns.

        Parameters
        ----------
        data : ndarray, shape (n, d)
            Rows.
        weights : ndarray, shape (n,)
            Weights of the rows.

        Returns
        -------
        Scale
            The spread of a constant column is 1.
        """
        data = data.astype(np.float64)
        shares = weights.astype(np.float64) / weights.sum(dtype=np.float64)
        # In units of the largest entry, so that no square overflows or vanishes.
        sizes = np.abs(data).max(axis=0)
        units = np.where(sizes > 0, sizes, 1.0)
        center = shares @ (data / units)
        spread = np.sqrt(shares @ np.square(data / units - center))
        noise = ROUND_OFF * np.finfo(np.float64).eps
        return Scale(center * units, np.where(spread > noise, spread * units, 1.0))

    @staticmethod
    def identity(columns: int) -> Scale:
        """Return the scale that changes nothing.

        Parameters
        ----------
        columns : int
            Number of columns.

        Returns
        -------
        Scale
            Centres 0 and spreads 1.
        """
        return Scale(np.zeros(columns), np.ones(columns))

    def to_unit_length(self, data: Array) -> Scale:
        """Return the scale by which rows have a length of about 1.

        Then the outer and the inner weights of a neuron have gradients of one size.

        Parameters
        ----------
        data : ndarray, shape (n, d)
            The rows that the scale was made of.

        Returns
        -------
        Scale
            Larger spreads: all are multiplied by the root of the number of columns that
            are not constant.
        """
        varying = int(np.count_nonzero((data != data[:1]).any(axis=0)))
        return Scale(self.center, self.spread * max(1, varying) ** 0.5)

    def apply(self, data: Array) -> Array:
        """Return the scaled rows, of the dtype of the data.

        Parameters
        ----------
        data : ndarray, shape (n, d)
            Rows.

        Returns
        -------
        ndarray, shape (n, d)
            Scaled rows.
        """
        scaled = (data - self.center) / self.spread
        return scaled.astype(data.dtype)

    def undo(self, data: Array) -> Array:
        """Return rows in the units of the data, the inverse of `apply`.

        Parameters
        ----------
        data : ndarray, shape (n, d)
            Scaled rows.

        Returns
        -------
        ndarray, shape (n, d)
            Rows, of the dtype of `data`.
        """
        rows = data * self.spread + self.center
        return rows.astype(data.dtype)
