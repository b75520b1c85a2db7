"""POT's network simplex, on all pairs or on few, with what proves its plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import NotConverged
from otflow.metrics.duals import SHARE, along_the_plan

__all__ = ["REPEATS", "network_simplex", "sparse_simplex"]

# Pivots of the network simplex. POT's default, 1e5, is too few from 2,000 points on.
MAX_PIVOTS = 10**8

# Most solves that start from the answer of the solve before; one is usually enough.
REPEATS = 4


def network_simplex(
    cost: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an optimal plan (n, m) and feasible potentials, which tell how far it is.

    Every mass must be positive: at atoms of mass zero the potentials of POT prove
    nothing. If the potentials leave a duality gap, the problem is solved again with the
    costs minus the potentials, which are small where mass moves.
    """
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    total, limit = float(a.sum()), float(cost.max())
    rest, best = cost, (float("inf"), cost, f, g)
    for _ in range(REPEATS):
        costs = rest.clamp_max(limit)
        plan, dual = _simplex(costs, a, b)
        plan = _with_all_atoms(plan, costs - dual, a, b)
        f, g = along_the_plan(cost, plan, g + dual)
        rest = cost - f[:, None] - g
        least = rest.min(dim=1)
        gap = -float(a @ least.values.clamp_max(0.0))
        primal = float((plan * cost).sum())
        if gap < best[0]:
            best = gap, plan, f, g
        if gap <= SHARE * primal:
            break
        # A cell of much larger reduced cost is in no optimal plan. Its cost is clipped:
        # the solver scales costs by the largest, and would not resolve the gap.
        limit = min(limit, 1e4 * gap / total)
    _, plan, f, g = best
    # Lower f until the potentials are feasible to the last digit.
    f = f + (cost - f[:, None] - g).amin(dim=1).clamp_max(0.0)
    return plan, f, g


def _simplex(cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return POT's plan and its potentials on the columns."""
    # The tolerances of POT are absolute, so the costs are scaled to size 1.
    unit = float(cost.abs().max()) or 1.0
    plan, dual = _solved((cost / unit).numpy(), a, b)
    return torch.from_numpy(plan), unit * dual


def _solved(costs: Any, a: Tensor, b: Tensor, **options: Any) -> tuple[Any, Tensor]:
    """Return POT's plan, in the format of the costs, and its potentials on columns."""
    ot = lazy_import("ot")
    options |= {"numItermax": MAX_PIVOTS, "log": True}
    try:
        plan, log = ot.emd(a.numpy(), b.numpy(), costs, **options)
    except UserWarning as warning:  # the caller turned warnings into errors
        raise _stopped_early(str(warning)) from warning
    if log["result_code"] != 1:
        raise _stopped_early(str(log["warning"]))
    return plan, torch.from_numpy(np.asarray(log["v"], dtype=np.float64))


def sparse_simplex(
    rows: Tensor, columns: Tensor, costs: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the masses of the best plan on these cells, and potentials on columns.

    The cells are sorted, row by row, and must carry a plan.
    """
    sparse = lazy_import("scipy.sparse")
    unit = float(costs.abs().max()) or 1.0
    cells = (rows.numpy(), columns.numpy())
    matrix = sparse.coo_matrix(((costs / unit).numpy(), cells), shape=(len(a), len(b)))
    plan, dual = _solved(matrix, a, b, center_dual=False)
    found = sparse.coo_matrix(plan)
    place = np.searchsorted(
        cells[0] * len(b) + cells[1],
        found.row.astype(np.int64) * len(b) + found.col,
    )
    masses = np.zeros(len(costs))
    masses[place] = found.data
    return torch.from_numpy(masses), unit * dual


def _with_all_atoms(plan: Tensor, rest: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a cell for each atom whose mass is below the round-off of the others."""
    lost = (plan.amax(1) == 0).nonzero()[:, 0]
    if len(lost):
        plan = plan.index_put((lost, rest[lost].argmin(1)), a[lost])
    lost = (plan.amax(0) == 0).nonzero()[:, 0]
    if len(lost):
        high = rest[:, lost] - rest.amin(1, keepdim=True)
        plan = plan.index_put((high.argmin(0), lost), b[lost])
    return plan


def _stopped_early(reason: str) -> NotConverged:
    msg = (
        f"the exact transport solver stopped before the optimum ({reason}); use fewer "
        f"points, or sinkhorn_divergence"
    )
    return NotConverged(msg, info={"max_pivots": MAX_PIVOTS})
