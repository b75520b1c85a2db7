"""The optimal assignment: which point goes where when all masses are equal."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._typing import ArrayLike
from otflow.errors import NotConverged
from otflow.metrics.inputs import check_memory, clouds
from otflow.metrics.monotone import supporting_potential

__all__ = ["assignment", "match", "network_simplex", "squared_distances"]

# The network simplex pivots; POT's own limit, 1e5, is met from 2,000 points on.
MAX_PIVOTS = 10**8

# Up to here the shortest-path solver is instant, and loading POT is not.
SMALL = 256


def assignment(x: ArrayLike, y: ArrayLike) -> Tensor:
    r"""Return :math:`\operatorname{argmin}_\sigma \sum_i |x_i - y_{\sigma(i)}|^2`.

    Exact. Both ends of a JKO step cost O(n^2 d): that the identity is optimal is proved
    first, by a convex potential (a dual solution). Else pairs that are still close are
    left to SciPy's shortest augmenting paths :cite:p:`crouse2016implementing`, and far
    ones to POT's network simplex :cite:p:`flamary2021pot`, whose status and duality gap
    are checked. Points on the line are sorted.

    Parameters
    ----------
    x, y : Tensor or ndarray, shape (n, d)
        Points; detached. The work is done in float64 on the CPU.

    Returns
    -------
    Tensor, shape (n,), int64
        The permutation, on the device of `x`: ``y[sigma]`` is the aligned copy of `y`.

    Raises
    ------
    ValueError
        If the shapes differ, or a point is not finite.
    MemoryError
        If the cost matrix, needed only where the identity is not optimal, would exceed
        half of the memory.
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
    # Each cloud about its own mean: the optimal assignment is the same, and the costs
    # of clouds far from one another do not cancel.
    s, t = s - s.mean(0), t - t.mean(0)
    if supporting_potential(s, t) is not None:
        return torch.arange(len(s), device=device)
    return match(squared_distances(s, t)).to(device)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (n, m), without cancellation, if there is memory for it."""
    # The cost matrix, and at most five more arrays of its size in the solvers.
    check_memory(
        48 * len(x) * len(y),
        f"an exact transport of {len(x)} points to {len(y)}",
        "take fewer points: Particles(mu.sample(n, generator))",
        x.device,
    )
    distance = lazy_import("scipy.spatial.distance")
    return torch.from_numpy(distance.cdist(x.numpy(), y.numpy(), "sqeuclidean"))


def match(cost: Tensor) -> Tensor:
    """Return the permutation that minimises the sum of cost[i, sigma(i)]."""
    n = len(cost)
    near = cost.argmin(dim=1) == torch.arange(n)
    if n <= SMALL or int(near.sum()) >= n / 2:
        optimize = lazy_import("scipy.optimize")
        return torch.from_numpy(optimize.linear_sum_assignment(cost.numpy())[1])
    # Masses 1, not 1/n: the flows of the simplex are then integers, exactly.
    ones = torch.ones(n, dtype=torch.float64)
    plan, _, _ = network_simplex(cost, ones, ones)
    sigma = plan.argmax(dim=1)
    if not torch.equal(sigma.sort().values, torch.arange(n)):
        msg = "the transport plan of equal masses is not a permutation"
        raise NotConverged(msg, result=plan)
    return sigma


def network_simplex(
    cost: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return POT's optimal plan (n, m) with its potentials, checked by duality.

    Every mass must be positive: at atoms of mass zero POT fills the potentials in.
    """
    ot = lazy_import("ot")
    # Its tolerances are absolute: costs of size 1, whatever the units of the points.
    unit = float(cost.max()) or 1.0
    try:
        plan, log = cast(
            "tuple[Any, dict[str, Any]]",
            ot.emd(
                a.numpy(),
                b.numpy(),
                (cost / unit).numpy(),
                numItermax=MAX_PIVOTS,
                log=True,
            ),
        )
    except UserWarning as warning:  # the caller turned warnings into errors
        raise _stopped_early(str(warning)) from warning
    if log["result_code"] != 1:
        raise _stopped_early(str(log["warning"]))
    g = unit * torch.from_numpy(np.asarray(log["v"], dtype=np.float64))
    f = (cost - g).amin(dim=1)  # feasible whatever g is
    plan = torch.from_numpy(plan)
    primal, dual = float((plan * cost).sum()), float(a @ f + b @ g)
    total = float(a.sum())
    gap = primal - dual
    if not abs(gap) <= 1e-9 * primal + 1e-12 * unit * total:
        msg = (
            f"the exact transport solver left a duality gap of {gap / total:.3g} "
            f"at cost {primal / total:.6g}; rescale the points, or use fewer"
        )
        raise NotConverged(msg, info={"gap": gap / total}, result=plan)
    return plan, f, g


def _stopped_early(reason: str) -> NotConverged:
    msg = (
        f"the exact transport solver stopped before the optimum ({reason}); use fewer "
        f"points, or sinkhorn_divergence"
    )
    return NotConverged(msg, info={"max_pivots": MAX_PIVOTS})
