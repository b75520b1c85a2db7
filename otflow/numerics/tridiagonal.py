"""Symmetric tridiagonal systems, solved without cancellation however stiff."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import

__all__ = ["Springs", "inverse", "reduced"]

# Above this ratio of a spring to an anchor LAPACK loses the anchors to round-off, since
# its diagonal sums both.
STIFF = 1e8


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
        stiff = STIFF * float(self.rows.min())
        if len(self.rows) > 1 and float(self.springs.max()) <= stiff:
            found = _lapack(self.diagonal, self.springs, rhs)
            return found if found is None else found.to(rhs.device)
        found, definite = reduced(self.rows, self.springs, rhs)
        return found if bool(definite & torch.isfinite(found).all()) else None


def _lapack(diagonal: Tensor, springs: Tensor, rhs: Tensor) -> Tensor | None:
    linalg = lazy_import("scipy.linalg")
    stored = torch.zeros(2, len(diagonal), dtype=torch.float64)
    stored[0] = diagonal
    stored[1, :-1] = -springs
    try:
        found = linalg.solveh_banded(
            stored.numpy(), rhs.cpu().numpy(), lower=True, check_finite=False
        )
    except linalg.LinAlgError:
        return None
    return torch.from_numpy(found) if np.isfinite(found).all() else None


def reduced(rows: Tensor, springs: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Solve the system of `Springs` by cyclic reduction.

    Every other node is eliminated. Its two springs share its anchor and its force
    between its neighbours, and become one spring in series. Anchors and springs are
    stored apart, so nothing is subtracted. The result, and the differences of
    neighbours, are accurate for any contrast of springs >= 0 and rows >= 0. Time O(n),
    in O(log n) operations on arrays.

    Parameters
    ----------
    rows, springs, force : Tensor
        As of `Springs`; `force` is the right-hand side.

    Returns
    -------
    x : Tensor, shape (n + 1,)
        The solution, 0 where a row of the matrix is 0.
    definite : Tensor of bool, shape ()
        Whether the matrix is positive definite.
    """
    if len(rows) == 1:
        return force * inverse(rows), (rows > 0).all()
    odd, even, left = rows[1::2], rows[::2].clone(), springs[::2]
    missing = len(left) - len(springs[1::2])
    right = torch.cat([springs[1::2], springs.new_zeros(missing)])
    total = odd + left + right
    share = inverse(total)
    to_left, to_right = left * share, right * share
    push, inner = force[::2].clone(), len(even) - 1
    even[: len(odd)] += odd * to_left
    even[1:] += (odd * to_right)[:inner]
    push[: len(odd)] += force[1::2] * to_left
    push[1:] += (force[1::2] * to_right)[:inner]
    solved, definite = reduced(even, (left * to_right)[:inner], push)
    x = torch.empty_like(force)
    x[::2] = solved
    beyond = torch.cat([solved[1:], solved.new_zeros(len(odd) - inner)])
    x[1::2] = force[1::2] * share + to_left * solved[: len(odd)] + to_right * beyond
    return x, definite & (total > 0).all()


def inverse(x: Tensor) -> Tensor:
    """Return 1 / x where x > 0, and 0 elsewhere."""
    return torch.where(x > 0, 1 / x.masked_fill(x <= 0, 1.0), 0.0)
