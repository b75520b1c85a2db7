r"""The distances W_p between weighted particles, exact and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._validation import real
from otflow.metrics.assignments import check_pairs
from otflow.metrics.distances import Distant, root, wasserstein2
from otflow.metrics.ground import Cells, Ground, least_plan, simplex_cells
from otflow.metrics.inputs import clouds
from otflow.metrics.line import staircase
from otflow.metrics.weights import is_weighted, weight_term

__all__ = ["wasserstein"]

# Largest p: beyond it round-off of the large costs may hide the small ones.
LARGEST = 20.0


def wasserstein(mu: Distant, nu: Distant, p: float = 1.0) -> Tensor:
    r"""Return :math:`W_p(\mu, \nu) = (\min_P \sum_{ij} P_{ij} |x_i - y_j|^p)^{1/p}`.

    Exact, for the Euclidean norm. For p = 1 it is the earth mover's distance of
    Kantorovich and Rubinstein :cite:p:`villani2003topics`.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures; points (n, d) stand for equal weights 1/n. For p = 2 also those of
        `wasserstein2`.
    p : float
        Power, in [1, 20].

    Returns
    -------
    Tensor
        0-d, in the dtype and on the device of `mu`, differentiable in points and
        weights. At distance 0 the gradient is 0. Where points of a pair coincide and p
        = 1, the gradient is one of many subgradients; it takes 0 for the pair.

    Raises
    ------
    ValueError
        If p is not in [1, 20], if dimensions or devices differ, or if a point is not
        finite.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the cost matrix would exceed half of the memory.
    NotConverged
        If the solver stopped early.

    See Also
    --------
    otflow.metrics.wasserstein2 : p = 2, for many atoms and for densities.
    otflow.metrics.least_cost_plan : The plan, for any cost.

    Notes
    -----
    Solved in float64 on the CPU. On the line O(n log n), since the monotone plan is
    optimal for each p, and O(n k) for the potentials of k atoms without mass. Else by
    POT's network simplex :cite:p:`flamary2021pot`, about O(n^3), with 48 n m bytes. As
    for `wasserstein2_squared`, the gradient in the weights is one of many where the
    plan is degenerate.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> of.metrics.wasserstein(x, x + torch.tensor([3.0, 4.0]))
    tensor(5.)
    >>> of.metrics.wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0]]), p=3)
    tensor(4.5549)
    """
    p = real(p, "p")
    if not 1 <= p <= LARGEST:
        msg = f"p must lie in [1, {LARGEST:g}], got {p:g}; take p=1 or p=2"
        raise ValueError(msg)
    if p == 2:
        return wasserstein2(mu, nu)
    first, second = clouds(mu, nu)
    x, y = (c.points.to("cpu", torch.float64) for c in (first, second))
    both = torch.cat([x, y]).detach()
    middle = both.amin(0)
    # No distance exceeds the diagonal, so powers of shares of it do not overflow.
    extent = both.amax(0) - middle
    unit = unit_of(extent)  # the squares of tiny extents would underflow
    unit = unit * float((extent / unit).norm()) or 1.0
    x, y = (x - middle) / unit, (y - middle) / unit
    s, t = x.detach(), y.detach()
    a, b = first.masses, second.masses

    def power(moves: Tensor) -> Tensor:
        own: Tensor = root(moves.square().sum(-1)) ** p
        return own

    def rise(start: Tensor, end: Tensor, other: Tensor) -> Tensor:
        return (end - other).abs() ** p - (start - other).abs() ** p

    def find(i: Tensor, j: Tensor) -> Cells:
        if s.shape[1] == 1:
            return Cells(*staircase(s[i, 0], a[i], t[j, 0], b[j], rise), "sorted")
        check_pairs(len(i), len(j), s.device)
        return simplex_cells(ground.table(i, j), a[i], b[j])

    ground = Ground(
        lambda i, j: power(s[i][:, None] - t[j]),
        lambda i, j: power(s[i] - t[j]),
    )
    plan = least_plan(ground, a, b, find)
    moves = x[plan.rows] - y[plan.columns]
    if is_weighted(first, second):
        costs = power(moves)
        total = plan.masses @ costs + weight_term(first, second, plan, costs)
    else:
        # A unit of the moves' own size, which may be far below that of the clouds.
        own = float(moves.detach().abs().max()) or 1.0
        unit, total = unit * own, plan.masses @ power(moves / own)
    zero = total <= 0
    value = total.masked_fill(zero, 1.0) ** (1.0 / p)
    return (unit * value.masked_fill(zero, 0.0)).to(first.points)
