"""The optimal assignment: which point goes where when all masses are equal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._lazy import lazy_import
from otflow._memory import check_memory
from otflow._typing import ArrayLike
from otflow.errors import NotConverged
from otflow.metrics.duals import SHARE, along_the_plan, proved, squares
from otflow.metrics.inputs import clouds
from otflow.metrics.monotone import round_off, supporting_potential

__all__ = [
    "assignment",
    "brought_near",
    "check_pairs",
    "index_potential",
    "match",
    "network_simplex",
    "sparse_simplex",
    "squared_distances",
]

# Pivots of the network simplex. POT's default, 1e5, is too few from 2,000 points on.
MAX_PIVOTS = 10**8

# Up to this many points the shortest-path solver takes less time than loading POT.
SMALL = 256

# Up to this many points shortest paths cost less than the proof that the identity is
# optimal.
FEW = 64

# Most solves that start from the answer of the solve before; one is usually enough.
REPEATS = 4


def assignment(x: ArrayLike, y: ArrayLike) -> Tensor:
    r"""Return :math:`\operatorname{argmin}_\sigma \sum_i |x_i - y_{\sigma(i)}|^2`.

    The result is exact. Points on the line are sorted. Otherwise a convex potential (a
    dual solution) first tries to prove that the identity is optimal, as it is between
    the two ends of a JKO step. If that fails, SciPy's shortest augmenting paths
    :cite:p:`crouse2016implementing` solve for clouds that are close, and POT's network
    simplex :cite:p:`flamary2021pot` for clouds far apart; its status and duality gap
    are checked.

    Parameters
    ----------
    x, y : Tensor or ndarray, shape (n, d)
        Points. They are detached, and solved in float64 on the CPU.

    Returns
    -------
    Tensor, shape (n,), int64
        The permutation, on the device of `x`: ``y[sigma]`` is the aligned copy of `y`.

    Raises
    ------
    ValueError
        If the shapes differ, or a point is not finite.
    MemoryError
        If the identity is not optimal and the cost matrix exceeds half of the memory.
    NotConverged
        If the solver stopped early.

    See Also
    --------
    otflow.metrics.transport_plan : Weighted points.

    Notes
    -----
    Time: O(n log n) on the line, O(n^2 d) if the identity is optimal, about O(n^3)
    otherwise. Memory: O(n d) in the first two cases, 48 n^2 bytes at most otherwise.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    >>> y = torch.tensor([[5.0, 4.0], [0.0, 0.1], [1.0, 0.1]])
    >>> of.metrics.assignment(x, y)
    tensor([1, 2, 0])
    """
    p, q = clouds(x, y, ("x", "y"))
    if len(p.points) != len(q.points):
        msg = (
            f"x has {len(p.points)} points but y has {len(q.points)}: an assignment "
            f"needs as many; use transport_plan, which splits masses"
        )
        raise ValueError(msg)
    device = p.points.device
    s = p.points.detach().to("cpu", torch.float64)
    t = q.points.detach().to("cpu", torch.float64)
    if s.shape[1] == 1:
        sigma = torch.empty(len(s), dtype=torch.int64)
        sigma[s[:, 0].argsort(stable=True)] = t[:, 0].argsort(stable=True)
        return sigma.to(device)
    # Squares of tiny coordinates would underflow. The assignment does not depend on
    # units.
    unit = unit_of(s, t)
    s, t = s / unit, t / unit
    t, _ = brought_near(s, t)
    n = len(s)
    if n > FEW and index_potential(s, t, s.new_full((n,), 1.0 / n)) is not None:
        return torch.arange(n, device=device)
    return match(squared_distances(s, t)).to(device)


def brought_near(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return y minus a shift, and the shift, which keep the optimal plan.

    The costs between distant clouds lose digits by cancellation. The shift is 0 for
    clouds that overlap, where differences of points have little round-off.
    """
    middles = x.median(0).values, y.median(0).values
    shift = middles[1] - middles[0]
    spread = max(
        float((z - middle).abs().max())
        for z, middle in zip((x, y), middles, strict=True)
    )
    if float(shift.abs().max()) <= spread:
        shift = torch.zeros_like(shift)
    return y - shift, shift


def index_potential(x: Tensor, y: Tensor, masses: Tensor) -> Tensor | None:
    """Return potentials on y that prove the coupling by index optimal, or None.

    The search for a convex potential uses products of matrices, with the round-off of
    squared coordinates. If this round-off exceeds 1e-10 of the cost, a second test
    uses differences of points.
    """
    cost = float(masses @ (x - y).square().sum(1))
    if cost == 0.0:
        return torch.zeros_like(masses)
    middle = x.median(0).values
    s, t = x - middle, y - middle
    phi = supporting_potential(s, t)
    if phi is None:
        return None
    g = t.square().sum(1) - 2 * phi
    if 2 * round_off(s, t) <= SHARE * cost:
        return g
    return proved(x, y, g, masses)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (n, m), by differences; MemoryError if there is no room."""
    check_pairs(len(x), len(y), x.device)
    return squares(x, y)


def check_pairs(n: int, m: int, device: torch.device) -> None:
    """Raise MemoryError if an exact transport of n to m points does not fit."""
    # The cost matrix, and at most five more arrays of its size in the solvers.
    check_memory(
        48 * n * m,
        f"an exact transport of {n} points to {m}",
        "take fewer points: Particles(mu.sample(n, generator))",
        device,
    )


def match(cost: Tensor) -> Tensor:
    """Return the permutation that minimises the sum of cost[i, sigma(i)].

    The potentials of a solver are as large as the largest cost, so differences below
    their round-off are lost. The problem is therefore relabelled by the answer, with
    its costs subtracted, and solved again until the cost no longer falls.
    """
    optimize = lazy_import("scipy.optimize")
    n = len(cost)
    sigma = rows = torch.arange(n)
    if n <= FEW:
        pass  # the loop below improves the identity
    elif n <= SMALL or int((cost.argmin(dim=1) == rows).sum()) >= n / 2:
        sigma = torch.from_numpy(optimize.linear_sum_assignment(cost.numpy())[1])
    else:
        # Masses 1, not 1/n: the flows of the simplex are then integers, exactly.
        ones = torch.ones(n, dtype=torch.float64)
        plan, _, _ = network_simplex(cost, ones, ones)
        sigma = plan.argmax(dim=1)
        if not torch.equal(sigma.sort().values, rows):
            msg = "the transport plan of equal masses is not a permutation"
            raise NotConverged(msg, result=plan)
    for _ in range(REPEATS):
        own = cost[rows, sigma]
        rest = cost[:, sigma] - own
        change = torch.from_numpy(optimize.linear_sum_assignment(rest.numpy())[1])
        # A gain below 1e-12 of the cost may be round-off.
        if not float(rest[rows, change].sum()) < -1e-12 * float(own.sum()):
            return sigma
        sigma = sigma[change]
    return sigma


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
    ot = lazy_import("ot")
    # The tolerances of POT are absolute, so the costs are scaled to size 1.
    unit = float(cost.abs().max()) or 1.0
    try:
        costs = (cost / unit).numpy()
        plan, log = ot.emd(a.numpy(), b.numpy(), costs, numItermax=MAX_PIVOTS, log=True)
    except UserWarning as warning:  # the caller turned warnings into errors
        raise _stopped_early(str(warning)) from warning
    if log["result_code"] != 1:
        raise _stopped_early(str(log["warning"]))
    dual = unit * torch.from_numpy(np.asarray(log["v"], dtype=np.float64))
    return torch.from_numpy(plan), dual


def sparse_simplex(
    rows: Tensor, columns: Tensor, costs: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the masses of the best plan on these cells, and potentials on columns.

    The cells are sorted, row by row, and must carry a plan.
    """
    ot, sparse = lazy_import("ot"), lazy_import("scipy.sparse")
    unit = float(costs.abs().max()) or 1.0
    cells = (rows.numpy(), columns.numpy())
    matrix = sparse.coo_matrix(((costs / unit).numpy(), cells), shape=(len(a), len(b)))
    plan, log = ot.emd(
        a.numpy(), b.numpy(), matrix, numItermax=MAX_PIVOTS, log=True, center_dual=False
    )
    if log["result_code"] != 1:
        raise _stopped_early(str(log["warning"]))
    found = sparse.coo_matrix(plan)
    place = np.searchsorted(
        cells[0] * len(b) + cells[1],
        found.row.astype(np.int64) * len(b) + found.col,
    )
    masses = np.zeros(len(costs))
    masses[place] = found.data
    dual = unit * torch.from_numpy(np.asarray(log["v"], dtype=np.float64))
    return torch.from_numpy(masses), dual


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
