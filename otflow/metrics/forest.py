r"""Potentials along the cells of a plan as functions of their costs, to any order.

The cells of a basic plan are the edges of a forest. Near a plan that is not degenerate
the cells do not change. There the plan is linear in the masses and the potentials are
linear in the costs; each map is the transpose of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from otflow._graphs import only_without_mass
from otflow._known import linear
from otflow._lazy import lazy_import
from otflow.errors import Unsupported

__all__ = ["Forest", "potentials"]

# A cell with a smaller share of the mass of either end is round-off, so that the plan
# is degenerate there.
DEGENERATE = 1e-11
# Error, relative to the largest entry, up to which row and column sums of a part agree.
BALANCE = 1e-9


@dataclass(frozen=True)
class _Tree:
    """The nodes in the order of a search from the roots, each with its parent."""

    node: Any
    parent: Any
    cell: Any
    part: Any


@dataclass(frozen=True)
class Forest:
    """The cells of a plan as edges between rows and columns.

    Parameters
    ----------
    rows, columns, masses : Tensor, shape (k,)
        The cells.
    a, b : Tensor, shapes (n,) and (m,)
        The masses of rows and columns.
    """

    rows: Tensor
    columns: Tensor
    masses: Tensor
    a: Tensor
    b: Tensor

    @cached_property
    def idle(self) -> Any:
        """Array of bool: whether a cell belongs to an atom without mass."""
        return ((self.a[self.rows] == 0) | (self.b[self.columns] == 0)).numpy()

    @cached_property
    def tree(self) -> _Tree:
        """The search tree; column j is the node n + j, and n + m the common root."""
        graphs = lazy_import("scipy.sparse.csgraph")
        sparse = lazy_import("scipy.sparse")
        n, top = len(self.a), len(self.a) + len(self.b)
        least = torch.minimum(self.a[self.rows], self.b[self.columns]).numpy()
        firm = (self.masses.numpy() > DEGENERATE * least) | self.idle
        kept = firm.nonzero()[0]
        rows, columns = self.rows.numpy()[kept], n + self.columns.numpy()[kept]
        # Cells are numbered from 1, since a sparse matrix drops zeros.
        graph = sparse.coo_matrix((kept + 1, (rows, columns)), shape=(top + 1, top + 1))
        graph = graph.tocsr()
        count, part = graphs.connected_components(graph[:top, :top], directed=False)
        roots = np.full(count, -1)
        roots[part[::-1]] = np.arange(top - 1, -1, -1)
        links = (np.full(count, len(least) + 1), (np.full(count, top), roots))
        graph = graph + sparse.coo_matrix(links, shape=graph.shape).tocsr()
        graph = graph + graph.T
        nodes, before = graphs.breadth_first_order(graph, top, directed=False)
        nodes = nodes[before[nodes] != top][1:]
        parents = before[nodes]
        cells = np.asarray(graph[nodes, parents]).reshape(-1) - 1
        return _Tree(nodes, parents, cells, part)

    def heights(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Return potentials with f + g = cost on the cells, 0 at the roots.

        Raises Unsupported if the plan has several parts, whose heights relative to one
        another the costs do not determine.
        """
        n = len(self.a)
        height, cost = np.zeros(n + len(self.b)), costs.numpy()
        if cost.any():
            tree = self.tree
            if tree.part.max() > 0 and cost[~self.idle].any():
                raise self._kink()
            for node, up, cell in zip(tree.node, tree.parent, tree.cell, strict=True):
                height[node] = cost[cell] - height[up]
        both = torch.from_numpy(height)
        return both[:n], both[n:]

    def flow(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the plan with the row sums u and the column sums v, of any sign.

        Raises Unsupported if u and v have different sums in a part: there is no such
        plan, and the derivative that needs it does not exist.
        """
        cells = np.zeros(len(self.rows))
        left = np.concatenate([u.numpy(), v.numpy()])
        if not left.any():
            return torch.from_numpy(cells)
        if only_without_mass.active():
            own = torch.where(self.a[self.rows] == 0, u[self.rows], v[self.columns])
            return own.masked_fill(~torch.from_numpy(self.idle), 0.0)
        n, tree = len(self.a), self.tree
        signed = np.concatenate([left[:n], -left[n:]])
        missing = np.bincount(tree.part, weights=signed)
        if np.abs(missing).max() > BALANCE * np.abs(left).max():
            raise self._kink()
        for k in range(len(tree.node) - 1, -1, -1):
            node = tree.node[k]
            cells[tree.cell[k]] = left[node]
            left[tree.parent[k]] -= left[node]
        return torch.from_numpy(cells)

    def _kink(self) -> Unsupported:
        msg = (
            f"the plan falls into {self.tree.part.max() + 1} parts that exchange no "
            f"mass, as between equal weights: there the distance has a kink in the "
            f"weights, and neither its gradient in them, the first variation, has a "
            f"derivative, nor the velocity in the weights; let the weights carry no "
            f"graph, weights.detach(), and differentiate the velocity in the points, "
            f"or use sinkhorn_divergence"
        )
        return Unsupported(msg)


def potentials(
    forest: Forest, costs: Tensor, f: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the potentials f and g of a plan, as functions of the costs of its cells.

    Parameters
    ----------
    forest : Forest
        The cells of the plan.
    costs : Tensor, shape (cells,)
        Their costs, with a graph.
    f, g : Tensor, shapes (n,) and (m,)
        The potentials, detached.

    Returns
    -------
    f, g : Tensor
        The same numbers, in the graph of the costs.
    """
    both = linear(forest.heights, forest.flow, costs, at=(f, g))
    return cast("tuple[Tensor, Tensor]", both)
