"""Symmetric tridiagonal systems, solved without cancellation however stiff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import

__all__ = ["Springs"]

# Above this ratio of a spring to an anchor LAPACK loses the anchors to round-off, since
# its diagonal sums both.
STIFF = 1e8

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Springs:
    r"""The matrix of nodes anchored by `rows` and joined in a chain by `springs`.

    The quadratic form is :math:`\sum_i r_i x_i^2 + \sum_i k_i (x_{i+1} - x_i)^2`. The
    diagonal is :math:`r_i + k_{i-1} + k_i`, and the entries beside it are :math:`-k_i`.

    Parameters
    ----------
    rows : Tensor, shape (n + 1,)
        The anchors r: the sums of the rows.
    springs : Tensor, shape (n,)
        The springs k: minus the entries beside the diagonal.
    """

    rows: Tensor
    springs: Tensor

    @property
    def diagonal(self) -> Tensor:
        """Diagonal of the matrix, (n + 1,)."""
        diagonal = self.rows.clone()
        diagonal[:-1] += self.springs
        diagonal[1:] += self.springs
        return diagonal

    def times(self, v: Tensor) -> Tensor:
        """Return the product with a vector."""
        result, pull = self.rows * v, self.springs * v.diff()
        result[:-1] -= pull
        result[1:] += pull
        return result

    def solve(self, rhs: Tensor) -> Tensor | None:
        """Return the solution, or None if the matrix is not positive definite.

        The solve runs on the CPU in time O(n). n + 1 numbers are copied there and back.

        Parameters
        ----------
        rhs : Tensor, shape (n + 1,)
            Right-hand side, float64.

        Returns
        -------
        Tensor or None
            The solution, by LAPACK. Stiff springs, as at a bound that is met, are
            solved by cyclic reduction, which never subtracts if springs >= 0 and
            rows > 0.
        """
        if len(self.springs) and float(self.springs.max()) > STIFF * float(
            self.rows.min()
        ):
            with np.errstate(invalid="ignore", over="ignore"):
                found = _reduce(
                    *(x.cpu().numpy() for x in (self.rows, self.springs, rhs))
                )
        else:
            found = _lapack(self.diagonal, self.springs, rhs)
        if found is None or not np.isfinite(found).all():
            return None
        return torch.from_numpy(found).to(rhs.device)


def _lapack(diagonal: Tensor, springs: Tensor, rhs: Tensor) -> Array | None:
    if len(diagonal) == 1:
        alone: Array = (rhs / diagonal).cpu().numpy()
        return alone if float(diagonal) > 0 else None
    linalg = lazy_import("scipy.linalg")
    stored = torch.zeros(2, len(diagonal), dtype=torch.float64)
    stored[0] = diagonal
    stored[1, :-1] = -springs
    try:
        found: Array = linalg.solveh_banded(
            stored.numpy(), rhs.cpu().numpy(), lower=True, check_finite=False
        )
    except linalg.LinAlgError:
        return None
    return found


def _reduce(rows: Array, springs: Array, force: Array) -> Array | None:
    """Eliminate every other node, solve for the rest, and put them back."""
    if len(rows) == 1:
        return force / rows if rows[0] > 0 else None
    odd, even = rows[1::2], rows[::2].copy()
    left = springs[::2]
    right = np.append(springs[1::2], np.zeros(len(left) - len(springs[1::2])))
    total = odd + left + right
    if not (total > 0).all():
        return None
    # A node is eliminated: its two springs share its anchor and its force between its
    # neighbours, and become one spring in series.
    to_left, to_right = left / total, right / total
    push, inner = force[::2].copy(), len(even) - 1
    even[: len(odd)] += odd * to_left
    even[1:] += (odd * to_right)[:inner]
    push[: len(odd)] += force[1::2] * to_left
    push[1:] += (force[1::2] * to_right)[:inner]
    solved = _reduce(even, (left * to_right)[:inner], push)
    if solved is None:
        return None
    x = np.empty_like(force)
    x[::2] = solved
    beyond = np.append(solved[1:], np.zeros(len(odd) - inner))
    x[1::2] = force[1::2] / total + to_left * solved[: len(odd)] + to_right * beyond
    return x
