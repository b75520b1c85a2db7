"""Optimal transport on the line: merge the steps of both quantile functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow.metrics.levels import Levels, snapped

__all__ = ["staircase"]


def _rise_of_squares(start: Tensor, end: Tensor, other: Tensor) -> Tensor:
    """Return |end - other|^2 - |start - other|^2, by differences."""
    return (end - start) * ((end - other) + (start - other))


def staircase(
    x: Tensor,
    a: Tensor,
    y: Tensor,
    b: Tensor,
    rise: Callable[[Tensor, Tensor, Tensor], Tensor] = _rise_of_squares,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""Return the optimal plan between weighted points on the line, and potentials.

    The plan is :math:`(F_\mu^{-1}, F_\nu^{-1})_\# \mathrm{Leb}[0, 1]`. Over sorted
    points its cells form a staircase, along which :math:`f_i + g_j = |x_i - y_j|^2`
    gives the potentials one by one :cite:p:`peyre2019computational`. At a diagonal step
    of the staircase either corner gives a valid potential. The mean of both is taken,
    so that the potentials between a measure and itself are 0.

    Parameters
    ----------
    x, a : Tensor, shape (n,)
        Points and positive masses of sum 1, float64.
    y, b : Tensor, shape (m,)
        Points and masses of the other measure.
    rise : callable
        Takes places s, t and u to c(t - u) - c(s - u), for a convex cost c with c(0) =
        0 and c(-z) = c(z). The default is the square. The plan is the same for all.

    Returns
    -------
    rows, columns, masses : Tensor, shape (k,)
        Cells of positive mass, k < n + m.
    f, g : Tensor, shapes (n,) and (m,)
        Potentials: f_i + g_j <= |x_i - y_j|^2, with equality on the plan.
    """
    i, j = x.argsort(stable=True), y.argsort(stable=True)
    x, y = x[i], y[j]
    # Levels near 1 count from above, so that the least masses keep their partners.
    own, other = Levels.of(a[i]), Levels.of(b[j])
    down, right = own.inner(), snapped(other, own).inner()

    f, g = torch.zeros_like(x), torch.zeros_like(y)
    # A path down and right in the matrix of cells. At equal levels it goes down first
    # in one order, and right first in the other.
    levels, order = down.merged(right)
    swapped = right.merged(down)[1]
    for is_down in (order < len(x) - 1, swapped >= len(y) - 1):
        rows, columns = _path(is_down), _path(~is_down)
        before_down, before_right = columns[:-1][is_down], rows[:-1][~is_down]
        # Sums of differences: these lose no digits far from the origin.
        below, beside = y[before_down], x[before_right]
        f_steps = rise(x[:-1], x[1:], below)
        g_steps = rise(y[:-1], y[1:], beside)
        f[i] += 0.5 * torch.cat([f.new_zeros(1), f_steps.cumsum(0)])
        g[j] += 0.5 * torch.cat([g.new_zeros(1), g_steps.cumsum(0)])
    g += rise(y[:1], x[:1], y[:1])

    masses = levels.within(own).steps()
    kept = masses > 0
    return i[rows[kept]], j[columns[kept]], masses[kept], f, g


def _path(moves: Tensor) -> Tensor:
    """Return the coordinate of each cell of a path that starts at 0."""
    steps = moves.to(torch.int64).cumsum(0)
    return torch.cat([steps.new_zeros(1), steps])
