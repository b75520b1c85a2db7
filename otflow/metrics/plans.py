r"""The optimal plan between weighted particles, with the potentials that prove it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow.metrics.assignments import (
    brought_near,
    index_potential,
    network_simplex,
    squared_distances,
)
from otflow.metrics.balance import balanced
from otflow.metrics.duals import transform
from otflow.metrics.inputs import CloudLike, clouds
from otflow.metrics.line import staircase

__all__ = ["Plan", "couple", "transport_plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    r"""An optimal plan :math:`P` for :math:`|x-y|^2`, sparse, with its potentials.

    Cell k moves ``masses[k]`` from point ``rows[k]`` of :math:`\mu` to point
    ``columns[k]`` of :math:`\nu`. There are fewer than n + m cells. Zero entries are
    omitted, except that each zero-mass atom is listed once with the partner it would
    have.

    Parameters
    ----------
    rows, columns : Tensor, shape (k,), int64
        Indices of points.
    masses : Tensor, shape (k,)
        Non-negative masses of sum 1.
    cost : Tensor
        :math:`W_2^2(\mu, \nu) = \sum_k P_k |x_{r_k} - y_{c_k}|^2`, 0-d.
    f : Tensor, shape (n,)
        Potential on :math:`\mu`: the first variation of :math:`W_2^2` there.
    g : Tensor, shape (m,)
        Potential on :math:`\nu`. For all i and j :math:`f_i + g_j \le |x_i - y_j|^2`,
        with equality on the cells. The exception is a zero-mass atom of :math:`\nu`
        for which a zero-mass atom of :math:`\mu` forces a lower g. Further,
        :math:`\sum a_i f_i = \sum b_j g_j = W_2^2/2`.

    Attributes
    ----------
    rows, columns, masses, cost, f, g
        As above.

    See Also
    --------
    otflow.metrics.transport_plan : Computes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> nu = of.Particles(torch.tensor([[0.0]]))
    >>> of.metrics.transport_plan(mu, nu).dense()
    tensor([[0.5000],
            [0.5000]])
    """

    rows: Tensor
    columns: Tensor
    masses: Tensor
    cost: Tensor
    f: Tensor
    g: Tensor

    def dense(self) -> Tensor:
        """Return the plan as a full matrix (n, m).

        Returns
        -------
        Tensor, shape (n, m)
            Row sums are the weights of the first measure, column sums those of the
            second.
        """
        plan = self.masses.new_zeros(len(self.f), len(self.g))
        return plan.index_put((self.rows, self.columns), self.masses, accumulate=True)


def transport_plan(mu: CloudLike, nu: CloudLike) -> Plan:
    r"""Return the plan that minimises :math:`\sum_{ij} P_{ij} |x_i - y_j|^2`, exactly.

    Weights are divided by their sums. On the line the points are sorted. Otherwise, if
    ``mu.weights`` equals ``nu.weights``, as before and after a JKO step, the coupling
    by index is tried first. Else POT's network simplex :cite:p:`flamary2021pot` solves;
    its status and its duality gap are checked.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures, which are detached; points (n, d) stand for equal weights.

    Returns
    -------
    Plan
        The plan on the device of `mu`, in its dtype. It is solved in float64 on the
        CPU.

    Raises
    ------
    ValueError
        If dimensions or devices differ, or a point is not finite.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the cost matrix would exceed half of the memory.
    NotConverged
        If the solver stopped early or left a duality gap.

    See Also
    --------
    otflow.metrics.assignment : Equal weights, equally many.
    otflow.metrics.wasserstein2 : The distance, differentiable.

    Notes
    -----
    Time: O(n log n) on the line, O(n^2 d) if the coupling by index is optimal, about
    O(n^3) otherwise. Memory: O(n d) in the first two cases, 48 n m bytes otherwise. If
    the plan is degenerate, as for equal masses, the potentials are not unique and f is
    one of many subgradients.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75]))
    >>> nu = of.Particles(torch.tensor([[0.0], [1.0]]), torch.tensor([0.75, 0.25]))
    >>> plan = of.metrics.transport_plan(mu, nu)
    >>> plan.cost
    tensor(0.5000)
    >>> plan.dense()
    tensor([[0.2500, 0.0000],
            [0.5000, 0.2500]])
    """
    p, q = clouds(mu, nu)
    x, y = (c.points.detach().to("cpu", torch.float64) for c in (p, q))
    plan = couple(x, p.masses, y, q.masses)
    device, dtype = p.points.device, p.points.dtype
    return Plan(
        plan.rows.to(device),
        plan.columns.to(device),
        *(t.to(device, dtype) for t in (plan.masses, plan.cost, plan.f, plan.g)),
    )


def couple(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Plan:
    """Return the optimal plan of float64 tensors on the CPU, masses of sum 1."""
    # Squares of tiny coordinates would underflow. The plan does not depend on units.
    unit = unit_of(x, y)
    plan = _couple(x / unit, a, y / unit, b)
    cost, f, g = (unit * (unit * z) for z in (plan.cost, plan.f, plan.g))
    return replace(plan, cost=cost, f=f, g=g)


def _couple(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Plan:
    """Return the plan of points of size 1."""
    raw, middle = y, x.median(0).values
    y, shift = brought_near(x, y)
    i, j = a.nonzero()[:, 0], b.nonzero()[:, 0]
    rows, columns, masses, f, g = _couple_atoms(x[i], a[i], y[j], b[j])
    rows, columns, masses = balanced(
        rows, columns, masses, (x[i], a[i], f), (y[j], b[j], g)
    )
    rows, columns = i[rows], j[columns]

    # The potential at an atom without mass is the transform of the other measure's
    # potential. The atom joins the plan beside the partner that attains the minimum.
    idle_rows, idle_columns = (a == 0).nonzero()[:, 0], (b == 0).nonzero()[:, 0]
    f_idle, partners = transform(x[idle_rows], y[j], g)
    g_idle, sources = transform(y[idle_columns], x[i], f)
    rows = torch.cat([rows, idle_rows, i[sources]])
    columns = torch.cat([columns, j[partners], idle_columns])
    masses = torch.cat([masses, masses.new_zeros(len(rows) - len(masses))])
    # For two atoms without mass f + g may exceed the cost: then lower g.
    if len(idle_rows):
        between, _ = transform(y[idle_columns], x[idle_rows], f_idle)
        g_idle = torch.minimum(g_idle, between)
    f = a.index_put((torch.cat([i, idle_rows]),), torch.cat([f, f_idle]))
    g = b.index_put((torch.cat([j, idle_columns]),), torch.cat([g, g_idle]))

    cost = masses @ (x[rows] - raw[columns]).square().sum(1)
    f -= 2 * ((x - middle) @ shift)
    g += 2 * ((y - middle) @ shift)
    f += 0.5 * cost - a @ f
    g += 0.5 * cost - b @ g
    return Plan(rows, columns, masses, cost, f, g)


def _couple_atoms(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return cells and potentials; every mass is positive."""
    if x.shape[1] == 1:
        return staircase(x[:, 0], a, y[:, 0], b)
    if torch.equal(a, b):
        g = index_potential(x, y, a)
        if g is not None:
            index = torch.arange(len(x))
            return index, index, a, (x - y).square().sum(1) - g, g
    if len(a) == len(b) and bool((a == a[0]).all() and (b == b[0]).all()):
        scale = 1.0 / len(a)  # masses 1 make the plan a permutation, exactly
        a = b = torch.ones_like(a)
    else:
        scale = 1.0
    dense, f, g = network_simplex(squared_distances(x, y), a, b)
    rows, columns = dense.nonzero(as_tuple=True)
    return rows, columns, scale * dense[rows, columns], f, g
