r"""Transport for a ground cost of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor
from otflow._typing import ArrayLike
from otflow._validation import check_like, check_map
from otflow.metrics.assignments import check_pairs
from otflow.metrics.ground import Ground, least_plan, simplex_cells
from otflow.metrics.inputs import Cloud, CloudLike, clouds
from otflow.metrics.plans import Plan, placed
from otflow.metrics.weights import is_weighted, weight_term

__all__ = ["least_cost_plan", "transport_cost"]

Cost: TypeAlias = Callable[[Tensor, Tensor], Tensor] | ArrayLike
"""A function of two points, or the matrix of the costs between points."""


def least_cost_plan(mu: CloudLike, nu: CloudLike, cost: Cost) -> Plan:
    r"""Return the plan that minimises :math:`\sum_{ij} P_{ij} c(x_i, y_j)`.

    It is optimal up to round-off, and the potentials prove it: :math:`f_i + g_j \le
    c(x_i, y_j)` for all i and j, so :math:`\sum a_i f_i + \sum b_j g_j` is a lower
    bound. Costs may be negative.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures, which are detached; points (n, d) stand for equal weights. Weights are
        divided by their sums.
    cost : callable or Tensor, shape (n, m)
        The ground cost c. A function takes points (n, 1, d) and (1, m, d) to costs
        (n, m), and points (k, d) and (k, d) to costs (k,): reduce over the last axis.

    Returns
    -------
    Plan
        The plan on the device of `mu`, in its dtype; ``plan.bracket`` holds the bounds.

    Raises
    ------
    ValueError
        If dimensions, shapes or devices differ, or if a point or a cost is not finite.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    InvalidFunctional
        If the function returns another shape or dtype.
    MemoryError
        If the arrays would exceed half of the memory.
    NotConverged
        If the bounds differ by more than 1e-6 of the cost.

    See Also
    --------
    otflow.metrics.transport_cost : Its cost, differentiable.
    otflow.metrics.transport_plan : Squared distances, by faster methods.

    Notes
    -----
    Solved in float64 on the CPU by POT's network simplex :cite:p:`flamary2021pot`:
    about O(n^3) and 48 n m bytes.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> plan = of.metrics.least_cost_plan(x, x, lambda x, y: -(x - y).abs().sum(-1))
    >>> plan.dense()
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]])
    >>> plan.cost
    tensor(-1.)
    >>> -1.0 in plan.bracket
    True
    """
    p, q = clouds(mu, nu)
    return placed(_planned(p, q, _table(p, q, cost)), p.points)


def transport_cost(mu: CloudLike, nu: CloudLike, cost: Cost) -> Tensor:
    r"""Return :math:`\min_P \sum_{ij} P_{ij} c(x_i, y_j)`, exactly.

    Differentiable in points and weights of both measures, and in the matrix of costs,
    whose gradient is the plan:

    .. math:: \frac{\partial}{\partial x_i} = \sum_j P_{ij} \nabla_1 c(x_i, y_j), \qquad
        \frac{\partial}{\partial a_i} = f_i - \sum_k a_k f_k.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures; points (n, d) stand for equal weights 1/n.
    cost : callable or Tensor, shape (n, m)
        The ground cost, as for `least_cost_plan`, with a graph.

    Returns
    -------
    Tensor
        0-d, in the dtype and on the device of `mu`.

    See Also
    --------
    otflow.metrics.least_cost_plan : The plan. It lists the errors and the costs.
    otflow.metrics.wasserstein : For powers of the distance.

    Notes
    -----
    As for `wasserstein2_squared`, the gradient in the weights is one of many where the
    plan is degenerate, and a second derivative that does not exist raises.

    Examples
    --------
    >>> import torch, otflow as of
    >>> costs = torch.tensor([[1.0, 2.0], [5.0, 3.0]], requires_grad=True)
    >>> x = torch.zeros(2, 1)
    >>> value = of.metrics.transport_cost(x, x, costs)
    >>> value.backward()
    >>> value, costs.grad
    (tensor(2., grad_fn=...), tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]]))
    """
    p, q = clouds(mu, nu)
    table = _table(p, q, cost)
    plan = _planned(p, q, table)
    device = p.points.device
    rows, columns = plan.rows.to(device), plan.columns.to(device)
    if callable(cost):
        x, y = p.points[rows], q.points[columns]
        costs = _checked(cost(x, y), x, torch.Size([len(rows)]))
    else:
        costs = as_float_tensor(cost, "cost")[rows, columns]
    costs = costs.to("cpu", torch.float64)
    value = plan.masses @ costs
    if is_weighted(p, q):
        value = value + weight_term(p, q, plan, costs)
    return value.to(p.points)


def _table(p: Cloud, q: Cloud, cost: Cost) -> Tensor:
    """Return the matrix of costs, checked: float64, on the CPU, detached."""
    n, m = len(p.points), len(q.points)
    check_pairs(n, m, torch.device("cpu"))
    if callable(cost):
        x, y = p.points.detach(), q.points.detach()
        with torch.no_grad():
            table = _checked(cost(x[:, None], y[None]), x, torch.Size([n, m]))
    else:
        table = as_float_tensor(cost, "cost").detach()
        if table.shape != (n, m):
            msg = (
                f"cost has shape {tuple(table.shape)}, and mu and nu have {n} and {m} "
                f"points; give the matrix ({n}, {m}) of the costs c(x_i, y_j)"
            )
            raise ValueError(msg)
        check_like(table, p.points, "cost", "mu")
    if not bool(table.isfinite().all()):
        i, j = (int(k) for k in (~table.isfinite()).nonzero()[0])
        msg = (
            f"the cost of pair ({i}, {j}) is {float(table[i, j])}; forbid a pair by a "
            f"finite cost above the others, e.g. cost.clamp(max=1e6)"
        )
        raise ValueError(msg)
    return table.to("cpu", torch.float64)


def _checked(costs: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    what, cure = "a ground cost", "reduce over the last axis, e.g. .sum(-1)"
    return check_map(costs, x, shape, what, "points x", cure)


def _planned(p: Cloud, q: Cloud, table: Tensor) -> Plan:
    a, b = p.masses, q.masses
    ground = Ground(lambda i, j: table[i][:, j], lambda i, j: table[i, j])
    return least_plan(
        ground, a, b, lambda i, j: simplex_cells(table[i][:, j], a[i], b[j])
    )
