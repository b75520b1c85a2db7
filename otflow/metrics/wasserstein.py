r"""Exact W2 between weighted particles: plan, distance, gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._autodiff import tiles
from otflow.errors import NotConverged
from otflow.metrics.assignment import assignment, network_simplex, squared_distances
from otflow.metrics.inputs import Cloud, CloudLike, clouds
from otflow.metrics.line import staircase

__all__ = ["Plan", "transport_plan", "wasserstein2", "wasserstein2_squared"]


@dataclass(frozen=True)
class Plan:
    r"""An optimal transport plan, sparse, with the potentials that prove it optimal.

    Parameters
    ----------
    rows, columns : Tensor, shape (k,)
        Cells that carry mass: from atom ``rows`` to atom ``columns``.
    masses : Tensor, shape (k,)
        Their masses, of sum 1.
    cost : Tensor
        :math:`W_2^2`, 0-d.
    f, g : Tensor, shapes (n,) and (m,)
        Kantorovich potentials: :math:`f_i + g_j \le |x_i - y_j|^2`, with equality on
        the plan. They are c-transforms of one another, so right at atoms without mass.
    gap : float
        Duality gap, cost minus the dual value: 0 up to round-off.

    Attributes
    ----------
    rows, columns, masses, cost, f, g, gap
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> of.metrics.transport_plan(x, x + 1).dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """

    rows: Tensor
    columns: Tensor
    masses: Tensor
    cost: Tensor
    f: Tensor
    g: Tensor
    gap: float

    def dense(self) -> Tensor:
        """Return the plan as a matrix (n, m)."""
        plan = self.masses.new_zeros(len(self.f), len(self.g))
        plan[self.rows, self.columns] = self.masses
        return plan


def transport_plan(mu: CloudLike, nu: CloudLike) -> Plan:
    r"""Return an optimal plan for :math:`W_2^2 = \min_P \sum_{ij} P_{ij}|x_i - y_j|^2`.

    Exact: sorting on the line, POT's network simplex :cite:p:`flamary2021pot`
    otherwise, with a limit on pivots that is out of reach, its status and its duality
    gap checked.

    Parameters
    ----------
    mu, nu : Particles, or Tensor or ndarray of shape (n, d)
        Measures; an array stands for equal weights. Detached.

    Returns
    -------
    Plan
        On the dtype and device of the points; solved in float64 on the CPU.

    Raises
    ------
    ValueError, TypeError
        If the measures differ in dimension, dtype or device.
    MemoryError
        If the cost matrix would exceed half of the memory.
    NotConverged
        If the solver stopped early or left a duality gap.

    Notes
    -----
    Time O((n + m) log(n + m)) on the line, about O(n^3) otherwise; memory O(n m) except
    on the line.

    Examples
    --------
    >>> import torch, otflow as of
    >>> plan = of.metrics.transport_plan(torch.zeros(2, 2), torch.ones(3, 2))
    >>> float(plan.cost)
    2.0
    """
    p, q = clouds(mu, nu)
    return _plan(p, q)


def wasserstein2_squared(mu: CloudLike, nu: CloudLike) -> Tensor:
    r"""Return :math:`W_2^2(\mu, \nu)`, with :math:`|x - y|^2` and no 1/2.

    Parameters
    ----------
    mu, nu : Particles, or Tensor or ndarray of shape (n, d)
        Measures; an array stands for equal weights.

    Returns
    -------
    Tensor
        0-d; differentiable once in points (:math:`\partial_{x_i} = 2\sum_j P_{ij}
        (x_i - y_j)`) and in weights (the potentials, up to a constant).

    Raises
    ------
    ValueError, TypeError, MemoryError, NotConverged
        As `transport_plan`.

    Notes
    -----
    Cost: as `assignment` for equal weights in equal number, else as `transport_plan`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> of.metrics.wasserstein2_squared(x, x.detach() + 3.0)
    tensor(9., grad_fn=<...>)
    """
    p, q = clouds(mu, nu)
    x, y = p.points, q.points
    carries_mass = any(
        c.weights is not None and c.weights.requires_grad for c in (p, q)
    )
    if len(x) == len(y) and p.is_uniform and q.is_uniform and not carries_mass:
        aligned = y[assignment(x, y)]
        return (x - aligned).square().sum(1).mean()
    plan = _plan(p, q)
    moved = (x[plan.rows] - y[plan.columns]).square().sum(1)
    total = plan.masses @ moved
    # The gradient in the masses is the potential; as a term it adds 0 to the value.
    for c, potential in ((p, plan.f), (q, plan.g)):
        if c.weights is not None and c.weights.requires_grad:
            centred = potential - potential.mean()
            total = total + (c.weights - c.weights.detach()) @ centred
    return total


def wasserstein2(mu: CloudLike, nu: CloudLike) -> Tensor:
    r"""Return the Wasserstein distance :math:`W_2(\mu, \nu)`, the root.

    Parameters
    ----------
    mu, nu : Particles, or Tensor or ndarray of shape (n, d)
        Measures; an array stands for equal weights.

    Returns
    -------
    Tensor
        0-d; differentiable as `wasserstein2_squared`, with gradient 0 at distance 0.

    Raises
    ------
    ValueError, TypeError, MemoryError, NotConverged
        As `transport_plan`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> of.metrics.wasserstein2(x, x + torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    return safe_sqrt(wasserstein2_squared(mu, nu))


def safe_sqrt(x: Tensor) -> Tensor:
    """Return the root with gradient 0, in place of infinity, at 0."""
    zero = x <= 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def _plan(p: Cloud, q: Cloud) -> Plan:
    like = p.points
    x = p.points.detach().to("cpu", torch.float64)
    y = q.points.detach().to("cpu", torch.float64)
    a, b = p.masses, q.masses
    # Atoms without mass take no part; their potentials come by c-transform.
    rows, columns = a.nonzero()[:, 0], b.nonzero()[:, 0]
    if x.shape[1] == 1:
        i, j, masses, _, g = staircase(x[rows, 0], a[rows], y[columns, 0], b[columns])
    else:
        shift = x[rows].mean(0)
        cost = squared_distances(x[rows] - shift, y[columns] - shift)
        dense, _, g = network_simplex(cost, a[rows], b[columns])
        i, j = dense.nonzero(as_tuple=True)
        masses = dense[i, j]
    i, j = rows[i], columns[j]
    moved = (x[i] - y[j]).square().sum(1)
    f = _c_transform(x, y[columns], g)
    g = _c_transform(y, x[rows], f[rows])
    total = masses @ moved
    gap = float(total - a @ f - b @ g)
    size = float(x.square().max() + y.square().max())
    if not abs(gap) <= 1e-9 * float(total) + 1e-12 * size:
        msg = f"the transport plan left a duality gap of {gap:.3g} at cost {total:.6g}"
        raise NotConverged(msg, info={"gap": gap})
    return Plan(
        rows=i.to(like.device),
        columns=j.to(like.device),
        masses=masses.to(like),
        cost=total.to(like),
        f=f.to(like),
        g=g.to(like),
        gap=gap,
    )


def _c_transform(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """Return min_j |x_i - y_j|^2 - g_j, block by block."""
    parts = [
        (torch.cdist(block, y, compute_mode=_DIRECT).square() - g).amin(dim=1)
        for block in (x[rows] for rows in tiles(len(x)))
    ]
    return torch.cat(parts)


_DIRECT = "donot_use_mm_for_euclid_dist"
