"""Barycentres of particles whose points and masses are free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.measures import Particles
from otflow.metrics.gluing import glue
from otflow.metrics.inputs import cloud
from otflow.metrics.plans import couple

__all__ = ["free_support"]

# Largest error of the marginals, in sum, of a solution of the linear program. Its
# vertices come from one solve, so their error is round-off.
FEASIBLE = 1e-12
# Moves up to this share of the largest coordinate are round-off: they count as none.
ROUND_OFF = 64 * torch.finfo(torch.float64).eps


def free_support(
    mus: Sequence[Particles],
    weights: Tensor,
    start: Particles | None,
    tolerance: float,
    most: int,
) -> tuple[Particles, float, int]:
    r"""Return a stationary barycentre of particles, its residual and the iterations.

    If cells of mass m join the atom x with atoms :math:`y_i`, and move to their mean
    :math:`\bar x`, the value falls by :math:`m|x - \bar x|^2` at least. The value is
    bounded below, so the moves tend to 0.

    Parameters
    ----------
    mus : sequence of Particles
        The measures, checked.
    weights : Tensor, shape (N,)
        Their weights, positive, of sum 1, with their graph.
    start : Particles, optional
        Start, whose masses are kept; by default masses are free.
    tolerance : float
        Residual at which to stop.
    most : int
        Most iterations.

    Returns
    -------
    measure : Particles
        In the dtype of the first measure, with the graph of points and weights.
    residual : float
        The :math:`L^2` norm of the move over the root of the value.
    iterations : int
        Number of times that plans to all measures were found.
    """
    clouds, shares = [cloud(mu, "mu") for mu in mus], weights.tolist()
    targets = [c.points.detach().to("cpu", torch.float64) for c in clouds]
    others = [c.masses for c in clouds]
    begin = max(mus, key=lambda mu: mu.n) if start is None else start
    at = cloud(begin, "start")
    x, a = at.points.detach().to("cpu", torch.float64), at.masses
    x, a = x[a > 0], a[a > 0]
    bound = sum(mu.n for mu in mus) - len(mus) + 1
    noise = ROUND_OFF * max(float(y.abs().max()) for y in targets)
    residual, count = float("inf"), 0
    while True:
        plans = [couple(x, a, y, b) for y, b in zip(targets, others, strict=True)]
        value = sum(
            share * float(plan.cost) for share, plan in zip(shares, plans, strict=True)
        )
        rows, columns, masses = glue(plans)
        means = _means(targets, columns, shares)
        drawn = _averaged(means, rows, masses, x)
        if start is None:
            move = _length(masses, means - x[rows])
        else:
            move = _length(a, drawn - x)
        count += 1
        residual = 0.0 if move <= noise else move / max(value**0.5, move)
        if residual <= tolerance or count == most:
            break
        if start is None:
            x, a = _pruned(means, masses, columns, targets, others, shares, bound)
        else:
            x = drawn
    device = mus[0].device
    live = _means([mu.points for mu in mus], [c.to(device) for c in columns], weights)
    points = _averaged(live, rows.to(device), masses.to(live), x.to(live))
    uniform = bool((a == a[0]).all())
    own = None if uniform else a.to(live)
    return Particles(points, own, normalize=not uniform), residual, count


def _means(
    points: Sequence[Tensor],
    columns: Sequence[Tensor],
    shares: Sequence[float] | Tensor,
) -> Tensor:
    """Return the mean of the atoms of each cell."""
    moved = [
        share * y[column]
        for share, y, column in zip(shares, points, columns, strict=True)
    ]
    return torch.stack(moved).sum(0)


def _length(masses: Tensor, moves: Tensor) -> float:
    """Return the root of the mean of the squared moves."""
    return float((masses @ moves.square().sum(1)).sqrt())


def _averaged(means: Tensor, rows: Tensor, masses: Tensor, x: Tensor) -> Tensor:
    """Return the mean of the cells of each atom; one below round-off stays at x."""
    total = masses.new_zeros(len(x)).index_add(0, rows, masses)[:, None]
    sums = torch.zeros_like(x).index_add(0, rows, masses[:, None] * means)
    return torch.where(total > 0, sums / total.masked_fill(total <= 0, 1.0), x)


def _pruned(
    means: Tensor,
    masses: Tensor,
    columns: Sequence[Tensor],
    targets: Sequence[Tensor],
    others: Sequence[Tensor],
    shares: Sequence[float],
    bound: int,
) -> tuple[Tensor, Tensor]:
    """Return points and masses of at most `bound` cells, of no larger cost.

    A vertex of the linear program over the masses of the cells has no more cells with
    mass than there are independent marginals.
    """
    if len(masses) <= bound:
        return means, masses
    optimize, sparse = lazy_import("scipy.optimize"), lazy_import("scipy.sparse")
    apart = [
        share * (means - y[column]).square().sum(1)
        for share, y, column in zip(shares, targets, columns, strict=True)
    ]
    cells = np.arange(len(masses))
    ones = np.ones(len(masses))
    blocks = [
        sparse.csr_matrix((ones, (column.numpy(), cells)), (len(y), len(masses)))
        for y, column in zip(targets, columns, strict=True)
    ]
    marginals, goal = sparse.vstack(blocks), torch.cat(list(others)).numpy()
    cost = torch.stack(apart).sum(0)
    size = float(cost.max()) or 1.0
    answer = optimize.linprog(
        (cost / size).numpy(), A_eq=marginals, b_eq=goal, method="highs-ds"
    )
    if answer.x is None or not np.abs(marginals @ answer.x - goal).sum() <= FEASIBLE:
        return means, masses  # all cells are allowed too
    found = torch.from_numpy(answer.x)
    full = found > 0
    return means[full], found[full] / found[full].sum()
