"""The optimal assignment: which point goes where when all masses are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._lazy import lazy_import
from otflow._memory import check_memory
from otflow._typing import ArrayLike
from otflow.errors import NotConverged
from otflow.metrics.columns import between_many
from otflow.metrics.duals import SHARE, proved, squares
from otflow.metrics.inputs import clouds
from otflow.metrics.monotone import round_off, supporting_potential
from otflow.metrics.simplex import REPEATS, network_simplex

__all__ = [
    "assignment",
    "brought_near",
    "check_pairs",
    "index_potential",
    "match",
    "squared_distances",
    "without_offset",
]

# Up to this many points the shortest-path solver takes less time than loading POT.
SMALL = 256

# Up to this many points shortest paths cost less than the proof that the identity is
# optimal.
FEW = 64

# Above this many points columns take less time than all pairs, and less memory.
MANY = 4000
# Largest gap of an assignment, as a share of its cost.
ACCEPTED = 1e-6


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
    NotConverged
        If the solver stopped early, or left a gap above 1e-6 of the cost.

    See Also
    --------
    otflow.metrics.transport_plan : Weighted points.

    Notes
    -----
    Time: O(n log n) on the line, O(n^2 d) if the identity is optimal, about O(n^3)
    otherwise up to 4000 points, with 48 n^2 bytes at most. More points are matched as
    by ``transport_plan(method="columns")``, in O(n) memory.

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
    # The assignment does not depend on a common offset, nor on units. A large offset
    # would cost digits, and squares of tiny coordinates would underflow.
    s, t = without_offset(s, t)
    unit = unit_of(s, t)
    s, t = s / unit, t / unit
    t, _ = brought_near(s, t)
    n = len(s)
    if n > FEW and index_potential(s, t, s.new_full((n,), 1.0 / n)) is not None:
        return torch.arange(n, device=device)
    if n > MANY:
        return _by_columns(s, t).to(device)
    return match(squared_distances(s, t)).to(device)


def _by_columns(x: Tensor, y: Tensor) -> Tensor:
    """Return the permutation of many points."""
    # Masses 1, not 1/n: the flows of the simplex are then integers, exactly.
    ones = torch.ones(len(x), dtype=torch.float64)
    found = between_many(x, ones, y, ones, 0.0)
    gap = found.upper - found.lower - found.noise
    _check_permutation(found.rows, found.columns, len(x))
    if gap > ACCEPTED * found.upper:
        msg = (
            f"the assignment of {len(x)} points was left with a duality gap of "
            f"{gap / found.upper:.3g} of its cost; take fewer points, or use "
            f"transport_plan with a tolerance"
        )
        raise NotConverged(msg, info={"gap": gap}, result=found.columns)
    return found.columns


def _check_permutation(rows: Tensor, columns: Tensor, n: int) -> None:
    every = torch.arange(n)
    if not (torch.equal(rows, every) and torch.equal(columns.sort().values, every)):
        msg = "the transport plan of equal masses is not a permutation"
        raise NotConverged(msg, result=columns)


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


def without_offset(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both clouds minus one of their points, along axes where this is exact.

    The difference of two numbers within a factor of 2 of each other has no round-off.
    """
    both = torch.cat([x, y])
    low, high = both.amin(0), both.amax(0)
    far = ((low > 0) & (high <= 2 * low)) | ((high < 0) & (low >= 2 * high))
    offset = torch.where(far, low, 0.0)
    return x - offset, y - offset


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
        _check_permutation(rows, sigma, n)
    for _ in range(REPEATS):
        own = cost[rows, sigma]
        rest = cost[:, sigma] - own
        change = torch.from_numpy(optimize.linear_sum_assignment(rest.numpy())[1])
        # A gain below 1e-12 of the cost may be round-off.
        if not float(rest[rows, change].sum()) < -1e-12 * float(own.sum()):
            return sigma
        sigma = sigma[change]
    return sigma
