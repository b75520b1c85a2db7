"""Laplacians on a grid: cyclic reduction on a line, else CG with multigrid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.numerics.krylov import conjugate_gradients
from otflow.numerics.tridiagonal import inverse, reduced

__all__ = ["GridLaplacian", "Multigrid", "blocks", "solve_laplacian"]

# Cells along the longest axis of the coarsest grid, and Jacobi sweeps there.
COARSEST, LAST_SWEEPS = 4, 20
# Jacobi sweeps before and after each correction, and their damping.
SWEEPS, DAMPING = 2, 0.7
# A correction that is constant on blocks is too small by about this factor. Below 2 the
# cycle stays positive definite.
OVERSHOOT = 1.8
# An axis is coarsened if the mean weight of its faces is at least this share of that of
# the heaviest axis. Across weaker faces Jacobi leaves no smooth error to correct.
STRONG = 0.25
# Largest grids, in cells, for a factorisation on the CPU. Its memory grows like n log n
# in two dimensions and like n^(4/3) in three.
DIRECT = {2: 2**18, 3: 2**14}


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

    def strong_axes(self) -> list[int]:
        """Return the axes with the strongest coupling of cells; none if all are 0."""
        weights = []
        for w in self.faces:
            count = (w > 0).sum().clamp_min(1)
            weights.append(w.sum() / count if w.numel() else w.new_zeros(()))
        strength = torch.stack(weights).tolist()
        least = STRONG * max(strength)
        return [a for a, s in enumerate(strength) if s > 0 and s >= least]

    def coarser(self, axes: Sequence[int]) -> GridLaplacian:
        """Return the matrix on blocks of two cells along some axes, by sums."""
        faces = []
        for axis, w in enumerate(self.faces):
            coarse = w
            if axis in axes:
                last = max(w.shape[axis], 1)
                between = torch.arange(1, last, 2, device=w.device)
                coarse = w.index_select(axis, between)
            faces.append(blocks(coarse, [a for a in axes if a != axis]))
        return GridLaplacian.of(faces, blocks(self.rest, axes))


@dataclass(frozen=True)
class Multigrid:
    """A preconditioner: one symmetric cycle from 0; on a line the inverse itself.

    Parameters
    ----------
    L : GridLaplacian
        The matrix.
    step : Tensor
        The damped inverse of its diagonal.
    axes : list of int
        The axes along which the next grid is coarser.
    coarser : Multigrid or None
        The cycle on this grid.
    """

    L: GridLaplacian
    step: Tensor
    axes: list[int]
    coarser: Multigrid | None

    @classmethod
    def of(cls, L: GridLaplacian) -> Multigrid:
        """Return the cycle of a matrix, with ever coarser ones."""
        # The axes of a diagonal matrix are none.
        axes = L.strong_axes() if max(L.rest.shape) > COARSEST else []
        coarser = cls.of(L.coarser(axes)) if axes else None
        return cls(L, DAMPING * inverse(L.diagonal), axes, coarser)

    def __call__(self, r: Tensor) -> Tensor:
        """Return an approximate solution for the right-hand side r, 0 where L is 0."""
        if _is_line(self.L):
            return _along_the_line(self.L, r)
        # Coarse corrections spread to cells where the matrix is 0: they are masked.
        return self._cycle(r) * (self.L.diagonal > 0)

    def _cycle(self, r: Tensor) -> Tensor:
        p = self.step * r
        for _ in range((SWEEPS if self.coarser else LAST_SWEEPS) - 1):
            p = p + self.step * (r - self.L.apply(p))
        if self.coarser is None:
            return p
        coarse = self.coarser._cycle(blocks(r - self.L.apply(p), self.axes))
        for axis in self.axes:
            coarse = coarse.repeat_interleave(2, axis).narrow(axis, 0, r.shape[axis])
        p = p + OVERSHOOT * coarse
        for _ in range(SWEEPS):
            p = p + self.step * (r - self.L.apply(p))
        return p


def solve_laplacian(
    L: GridLaplacian, rhs: Tensor, tolerance: float, limit: int
) -> tuple[Tensor, int]:
    """Solve Lp = rhs, with p = 0 where L is 0.

    If only one axis has more than one cell, cyclic reduction gives the solution. Else
    conjugate gradients solve the system, preconditioned by a multigrid cycle that
    coarsens the axes of strong coupling. If they do not converge, a sparse
    factorisation takes over on the CPU, for grids of moderate size. On a GPU and on
    larger grids the best iterate is returned.

    Parameters
    ----------
    L : GridLaplacian
        The matrix.
    rhs : Tensor
        An array on the grid, 0 where the diagonal is 0.
    tolerance : float
        Stop when the norm of the residual is below `tolerance` times that of `rhs`.
    limit : int
        Most iterations.

    Returns
    -------
    p : Tensor
        The solution, or the best that `limit` iterations give.
    iterations : int
        How many it took: about 5 for each two digits, on a grid of any size; 0 if it
        is direct.
    """
    goal = tolerance * float(rhs.norm())
    if goal == 0:
        return torch.zeros_like(rhs), 0
    if _is_line(L):
        return _along_the_line(L, rhs), 0
    p, size, iterations = _best_iterate(L, rhs, goal, limit)
    if not size <= goal:
        most = DIRECT[rhs.ndim]
        if rhs.device.type == "cpu" and rhs.numel() <= most:
            other = _factorised(L, rhs)
            if float((rhs - L.apply(other)).norm()) < size:
                p = other
    return p, iterations


def _best_iterate(
    L: GridLaplacian, rhs: Tensor, goal: float, limit: int
) -> tuple[Tensor, float, int]:
    """Return the iterate of least residual, the residual's norm and the iterations."""
    best, least, steps = torch.zeros_like(rhs), float(rhs.norm()), 0

    def seen(p: Tensor, r: Tensor) -> bool:
        nonlocal best, least, steps
        size, steps = float(r.norm()), steps + 1
        if size < least:
            best, least = p, size
        return not goal < size < math.inf

    cycle = Multigrid.of(L)
    conjugate_gradients(lambda p, _: L.apply(p), cycle, rhs, 0.0, limit, seen)
    return best, least, steps


def _is_line(L: GridLaplacian) -> bool:
    return L.rest.numel() == max(L.rest.shape)


def _along_the_line(L: GridLaplacian, rhs: Tensor) -> Tensor:
    """Solve along the only axis."""
    faces = L.faces[max(range(rhs.ndim), key=lambda a: rhs.shape[a])]
    found, _ = reduced(L.rest.reshape(-1), faces.reshape(-1), rhs.reshape(-1))
    return found.reshape(rhs.shape)


def _factorised(L: GridLaplacian, rhs: Tensor) -> Tensor:
    """Solve by SciPy's sparse LU, on the CPU in float64, scaled to a unit diagonal."""
    n, scale = rhs.numel(), inverse(L.diagonal).double().sqrt()
    index = torch.arange(n).reshape(rhs.shape)
    # A unit diagonal plus a last place: rows that are 0 become the identity, and a
    # matrix that is singular up to round-off becomes regular.
    own = torch.full_like(scale, 1.0 + torch.finfo(rhs.dtype).eps)
    rows, columns, entries = [index.reshape(-1)], [index.reshape(-1)], [own.reshape(-1)]
    for axis, w in enumerate(L.faces):
        i, j = (side.reshape(-1) for side in _sides(index, axis))
        below, above = _sides(scale, axis)
        rows += [i, j]
        columns += [j, i]
        entries += 2 * [-(w * below * above).reshape(-1)]
    where = (torch.cat(rows).numpy(), torch.cat(columns).numpy())
    sparse, linalg = lazy_import("scipy.sparse"), lazy_import("scipy.sparse.linalg")
    A = sparse.csc_matrix((torch.cat(entries).numpy(), where), shape=(n, n))
    try:
        factors = linalg.splu(A, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
    except RuntimeError:  # a pivot is 0 all the same; zero is no solution
        return torch.zeros_like(rhs)
    solution = factors.solve((scale * rhs).reshape(-1).numpy())
    return (scale * torch.from_numpy(solution).reshape(rhs.shape)).to(rhs)


def blocks(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return sums over blocks of two cells along some axes, by default all axes."""
    for axis in range(x.ndim) if axes is None else axes:
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
