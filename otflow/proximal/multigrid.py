"""Conjugate gradients, preconditioned by multigrid, for Laplacians on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GridLaplacian", "blocks", "solve_laplacian"]

# Cells along the longest axis of the coarsest grid, and sweeps of Jacobi there.
COARSEST, LAST_SWEEPS = 4, 20
# Sweeps of Jacobi before and after each correction, and their damping.
SWEEPS, DAMPING = 2, 0.7
# A correction that is constant on blocks is too small by about this factor; below 2
# the cycle stays positive definite.
OVERSHOOT = 1.8


@dataclass(frozen=True)
class GridLaplacian:
    r"""The matrix :math:`(Lp)_i = d_i p_i + \sum_{f = (i, j)} w_f (p_i - p_j)`.

    Parameters
    ----------
    faces : list of Tensor
        Weights w >= 0 of the inner faces across each axis, as arrays.
    rest : Tensor
        The diagonal d >= 0, an array on the grid.
    diagonal : Tensor
        The whole diagonal of the matrix.
    """

    faces: list[Tensor]
    rest: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, faces: list[Tensor], rest: Tensor) -> GridLaplacian:
        """Return the matrix of these weights."""
        diagonal = rest.clone()
        for axis, w in enumerate(faces):
            below, above = _sides(diagonal, axis)
            below.add_(w)
            above.add_(w)
        return cls(faces, rest, diagonal)

    def apply(self, p: Tensor) -> Tensor:
        """Return Lp."""
        out = self.diagonal * p
        for axis, w in enumerate(self.faces):
            below, above = _sides(out, axis)
            p_below, p_above = _sides(p, axis)
            below.sub_(w * p_above)
            above.sub_(w * p_below)
        return out

    def inside(self, mask: Tensor) -> GridLaplacian:
        """Return the matrix of the cells in `mask` alone, with 0 around them."""
        faces, rest = [], self.rest * mask
        for axis, w in enumerate(self.faces):
            below, above = _sides(mask, axis)
            faces.append(w * (below & above))
            to_below, to_above = _sides(rest, axis)
            to_below.add_(w * (below & ~above))
            to_above.add_(w * (above & ~below))
        return GridLaplacian.of(faces, rest)

    def coarser(self) -> GridLaplacian:
        """Return the matrix on blocks of two cells along each axis, by sums."""
        faces = []
        for axis, w in enumerate(self.faces):
            between = torch.arange(1, w.shape[axis], 2, device=w.device)
            coarse = w.index_select(axis, between)
            for other in range(w.ndim):
                if other != axis:
                    coarse = _pairs(coarse, other)
            faces.append(coarse)
        return GridLaplacian.of(faces, blocks(self.rest))


def solve_laplacian(
    L: GridLaplacian, rhs: Tensor, tolerance: float, limit: int
) -> tuple[Tensor, int]:
    """Solve Lp = rhs, 0 where L is.

    Parameters
    ----------
    L : GridLaplacian
        The matrix.
    rhs : Tensor
        An array on the grid, 0 where the diagonal is.
    tolerance : float
        Stop when the residual is below it times the right-hand side.
    limit : int
        Most iterations.

    Returns
    -------
    p : Tensor
        The solution, or the best that `limit` iterations give.
    iterations : int
        How many it took: about 5 for each two digits, on a grid of any size.
    """
    goal = tolerance * float(rhs.norm())
    p, r = torch.zeros_like(rhs), rhs
    if goal == 0:
        return p, 0
    levels = [L]
    while max(levels[-1].rest.shape) > COARSEST:
        levels.append(levels[-1].coarser())
    inverses = [_inverse(M.diagonal) for M in levels]
    # Coarse corrections spread to where the matrix is 0.
    acts = L.diagonal > 0
    z = _cycle(levels, inverses, r) * acts
    d, rz = z, (r * z).sum()
    for k in range(1, limit + 1):
        q = L.apply(d)
        bend = (d * q).sum()
        if not float(bend) > 0:
            return p, k
        p = p + (rz / bend) * d
        r = r - (rz / bend) * q
        if float(r.norm()) <= goal:
            return p, k
        z = _cycle(levels, inverses, r) * acts
        rz, before = (r * z).sum(), rz
        d = z + (rz / before) * d
    return p, limit


def _cycle(levels: list[GridLaplacian], inverses: list[Tensor], r: Tensor) -> Tensor:
    """Return one symmetric V-cycle from 0."""
    L, step = levels[0], DAMPING * inverses[0]
    p = step * r
    for _ in range((SWEEPS if len(levels) > 1 else LAST_SWEEPS) - 1):
        p = p + step * (r - L.apply(p))
    if len(levels) == 1:
        return p
    coarse = _cycle(levels[1:], inverses[1:], blocks(r - L.apply(p)))
    for axis, n in enumerate(r.shape):
        coarse = coarse.repeat_interleave(2, axis).narrow(axis, 0, n)
    p = p + OVERSHOOT * coarse
    for _ in range(SWEEPS):
        p = p + step * (r - L.apply(p))
    return p


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x.masked_fill(x <= 0, 1.0), 0.0)


def blocks(x: Tensor) -> Tensor:
    """Return the sums over blocks of two cells along each axis."""
    for axis in range(x.ndim):
        x = _pairs(x, axis)
    return x


def _pairs(x: Tensor, axis: int) -> Tensor:
    n = x.shape[axis]
    if n % 2:
        pad = [0, 0] * (x.ndim - 1 - axis) + [0, 1]
        x = torch.nn.functional.pad(x, pad)
    shape = [*x.shape[:axis], (n + 1) // 2, 2, *x.shape[axis + 1 :]]
    return x.reshape(shape).sum(axis + 1)


def _sides(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return views of the cells below and above the inner faces across an axis."""
    n = x.shape[axis]
    return x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
