"""Potentials of a transport plan: refined, and used to prove optimality."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._pairs import tiles

__all__ = ["along_the_plan", "proved", "squares", "transform"]

# Most rounds of lowering; a potential with errors of round-off needs a few.
ROUNDS = 8
# Largest duality gap that counts as a proof, as a share of the cost.
SHARE = 1e-10


def squares(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2, (n, m), without cancellation; float64, on the CPU."""
    distance = lazy_import("scipy.spatial.distance")
    return torch.from_numpy(distance.cdist(x.numpy(), y.numpy(), "sqeuclidean"))


def transform(x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum over j of |x_i - y_j|^2 - g_j, and its j, for every i."""
    if len(x) == 0:
        return x.new_zeros(0), torch.zeros(0, dtype=torch.int64)
    parts = [(squares(x[i], y) - g).min(dim=1) for i in tiles(len(x))]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def proved(x: Tensor, y: Tensor, g: Tensor, masses: Tensor) -> Tensor | None:
    r"""Return potentials that prove the coupling by index optimal, or None.

    With :math:`f_i = |x_i - y_i|^2 - g_i` the cost exceeds the optimum by at most

    .. math:: \sum_j a_j \max_i \max(0,\; f_i + g_j - |x_i - y_j|^2).

    The proof holds if this sum is at most 1e-10 of the cost. The sum is computed from
    differences of points, so its round-off is that of the potentials, not of squared
    coordinates. Potentials that violate a constraint by round-off are lowered.

    Parameters
    ----------
    x, y : Tensor, shape (n, d)
        Points, float64, on the CPU.
    g : Tensor, shape (n,)
        Approximate potentials on y.
    masses : Tensor, shape (n,)
        Masses of sum 1.

    Returns
    -------
    Tensor, shape (n,), or None
        Potentials on y; None if the coupling is not proved optimal.
    """
    own = (x - y).square().sum(1)
    cost = float(masses @ own)
    gap = float("inf")
    for _ in range(ROUNDS):
        highest, _ = transform(y, x, own - g)
        excess = (g - highest).clamp_min(0.0)
        before, gap = gap, float(masses @ excess)
        if gap <= SHARE * cost:
            return g
        if not gap <= 0.5 * before:
            return None
        g = torch.minimum(g, highest)
    return None


def along_the_plan(cost: Tensor, plan: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return potentials with :math:`f_i + g_j = c_{ij}` on the cells of a plan.

    The cells of a basic plan are the edges of a forest. One potential of a tree gives
    the others edge by edge, with the round-off of a few costs; the potentials of a
    simplex method carry the round-off of all pivots. `g` gives the first potential of
    each tree. Trees whose potentials violate the constraints are lowered.

    Parameters
    ----------
    cost, plan : Tensor, shape (n, m)
        Costs and masses. The masses are >= 0, with a positive one in each row and
        column.
    g : Tensor, shape (m,)
        Approximate potentials of the columns.

    Returns
    -------
    f, g : Tensor, shapes (n,) and (m,)
        Potentials.
    """
    graphs = lazy_import("scipy.sparse.csgraph")
    n, m = cost.shape
    rows, columns = (t.numpy() for t in plan.nonzero(as_tuple=True))
    cells = np.ones(len(rows)), (rows, n + columns)
    graph = lazy_import("scipy.sparse").coo_matrix(cells, shape=(n + m, n + m)).tocsr()
    graph = graph + graph.T
    count, parts = graphs.connected_components(graph, directed=False)
    height = np.zeros(n + m)
    value, start = cost.numpy(), g.numpy()
    roots = np.full(count, -1)
    roots[parts[n:][::-1]] = np.arange(n + m - 1, n - 1, -1)
    if count == m == n:  # a permutation
        row_of = plan.argmax(dim=0).numpy()
        height[n:] = start
        height[row_of] = value[row_of, np.arange(m)] - start
    else:
        for root in roots:
            height[root] = start[root - n]
            order, before = graphs.breadth_first_order(graph, root, directed=False)
            for node in order[1:]:
                parent = before[node]
                i, j = (node, parent - n) if node < n else (parent, node - n)
                height[node] = value[i, j] - height[parent]
    heights = torch.from_numpy(height)
    f, g = heights[:n], heights[n:]
    tree = torch.from_numpy(parts.astype(np.int64))
    gap = float("inf")
    for _ in range(ROUNDS if count > 1 else 0):
        excess = ((cost - f[:, None]).amin(dim=0) - g).clamp_max(0.0)
        before_gap, gap = gap, -float(excess.sum())
        if gap == 0.0 or not gap <= 0.5 * before_gap:
            break
        lower = f.new_zeros(count).scatter_reduce(0, tree[n:], excess, "amin")
        f, g = f - lower[tree[:n]], g + lower[tree[n:]]
    return f, g
