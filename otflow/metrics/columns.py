r"""The optimal plan between many atoms, by column generation; no (n, m) array.

A plan on a few cells of the cost matrix is a plan on all of them, so its cost is an
upper bound. Potentials with :math:`f_i + g_j \le |x_i - y_j|^2` for *all* i and j give
the lower bound :math:`\sum a_i f_i + \sum b_j g_j`. Each round solves on the chosen
cells, transforms the potentials over all cells, and adds those cells that the
potentials find cheapest, until both bounds meet :cite:p:`schmitzer2015sparse`. The
first cells and potentials come from coarser measures :cite:p:`gerber2017multiscale`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._pairs import tiles
from otflow.metrics.bracket import NOISE
from otflow.metrics.duals import SHARE, squares
from otflow.metrics.simplex import network_simplex, sparse_simplex

__all__ = ["Bounded", "between_many", "cheapest"]

# Up to this many atoms a level is solved with all cells.
FEW = 1000
# Atoms of a cell of the coarser level. The work of a level grows about as its square.
TOGETHER = 4
# Share of the cost to which a coarser level is solved: it only chooses cells.
COARSE = 0.05
# Neighbours of the place that the coarser plan sends an atom to: the first cells.
NEIGHBOURS = 8
# Cells of an atom that a round adds, those of least reduced cost.
ADDED = 4
# Most rounds; each lowers the gap by a factor of some 30, down to round-off.
ROUNDS = 40
# Up to this dimension a tree finds least costs faster than all pairs do.
TREES = 6


class Bounded(NamedTuple):
    """A plan, feasible potentials, and the bounds that they prove.

    ``noise`` is the round-off of the bounds.
    """

    rows: Tensor
    columns: Tensor
    masses: Tensor
    f: Tensor
    g: Tensor
    lower: float
    upper: float
    noise: float


def between_many(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, tolerance: float
) -> Bounded:
    r"""Return a plan whose cost is optimal up to a share `tolerance`.

    The first cells come from the optimal plan between coarser measures, in which about
    four neighbouring atoms are one: each atom is moved as its coarse atom is, and
    coupled to the neighbours of that place.

    Time for n atoms in d <= 3: about that of the network simplex on 12 n cells, near
    n^1.7; memory O(n). In higher dimensions a round also compares all pairs, O(n^2 d).

    Parameters
    ----------
    x, a : Tensor, shapes (n, d) and (n,)
        Points, of size 1 at most, and positive masses; float64, on the CPU.
    y, b : Tensor, shapes (m, d) and (m,)
        The other measure, of the same mass.
    tolerance : float
        The rounds end when ``upper - lower <= tolerance * upper``, or when no cell
        improves the plan.

    Returns
    -------
    Bounded
        The plan and its bounds.
    """
    # Far from the origin the linear terms below would have its distance in their
    # round-off. Between points that are close the differences are exact.
    middle = x.median(0).values
    x, y = x - middle, y - middle
    # A common move shifts all potentials by linear terms. Without it they are flat, and
    # the search for least reduced costs is local.
    shift = (b @ y) / b.sum() - (a @ x) / a.sum()
    y = y - shift
    found = _improved(x, a, y, b, _start(x, a, y, b), tolerance)
    f = found.f - 2 * (x @ shift)
    g = found.g + 2 * (y @ shift) + shift @ shift
    move = float(a @ (f - found.f) + b @ (g - found.g))
    return found._replace(f=f, g=g, lower=found.lower + move, upper=found.upper + move)


def cheapest(x: Tensor, y: Tensor, g: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the least |x_i - y_j|^2 - g_j over j, and their j: (n, count) each."""
    count = min(count, len(y))
    if x.shape[1] > TREES:
        parts = [
            (squares(x[i], y) - g).topk(count, largest=False) for i in tiles(len(x))
        ]
        return torch.cat([p.values for p in parts]), torch.cat(
            [p.indices for p in parts]
        )
    # |x - y|^2 + (top - g) is a squared distance in one dimension more.
    height = (g.max() - g).sqrt()
    spatial = lazy_import("scipy.spatial")
    tree = spatial.cKDTree(torch.cat([y, height[:, None]], 1).numpy())
    places = torch.cat([x, x.new_zeros(len(x), 1)], 1).numpy()
    index = torch.from_numpy(tree.query(places, range(1, count + 1))[1])
    # By differences: the tree's distances carry the round-off of the largest g.
    values = (x[:, None] - y[index]).square().sum(2) - g[index]
    values, order = values.sort(dim=1)
    return values, index.gather(1, order)


class _Start(NamedTuple):
    """Cells i m + j that carry a plan, near the optimal one, and rough potentials."""

    cells: Tensor
    f: Tensor
    g: Tensor


def _start(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> _Start:
    """Return the cells and the potentials that a coarser plan suggests."""
    n, m = len(x), len(y)
    if max(n, m) <= FEW:
        return _Start(torch.arange(n * m), torch.zeros_like(a), torch.zeros_like(b))
    groups, others = gathered(x, TOGETHER), gathered(y, TOGETHER)
    coarse_x, coarse_a = _merged(x, a, groups)
    coarse_y, coarse_b = _merged(y, b, others)
    start = _start(coarse_x, coarse_a, coarse_y, coarse_b)
    plan = _improved(coarse_x, coarse_a, coarse_y, coarse_b, start, COARSE)
    move = (_means(plan.rows, plan.columns, plan, coarse_y) - coarse_x)[groups]
    back = (_means(plan.columns, plan.rows, plan, coarse_x) - coarse_y)[others]
    near, there = _neighbours(x + move, y), _neighbours(y + back, x)
    i, j = _members(plan.rows, plan.columns, groups, others)
    # The gradients of the potentials are -2 times the moves.
    f = plan.f[groups] - 2 * (move * (x - coarse_x[groups])).sum(1)
    g = plan.g[others] - 2 * (back * (y - coarse_y[others])).sum(1)
    return _Start(_with(i * m + j, near, there), f, g)


def _with(cells: Tensor, near: Tensor, there: Tensor) -> Tensor:
    """Return the sorted cells with those of each row, (n, k), and of each column."""
    n, m = len(near), len(there)
    by_row = torch.arange(n)[:, None] * m + near
    by_column = there * m + torch.arange(m)[:, None]
    every = torch.cat([cells, by_row.reshape(-1), by_column.reshape(-1)])
    found: Tensor = torch.unique(every, sorted=True)
    return found


def _improved(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, start: _Start, tolerance: float
) -> Bounded:
    """Solve on these cells, and add cells until the bounds meet."""
    m, (cells, f, g) = len(y), start
    if len(cells) == len(x) * m:
        return _on_all_cells(x, a, y, b)
    best: Bounded | None = None
    for _ in range(ROUNDS):
        rows, columns = cells // m, cells % m
        costs = (x[rows] - y[columns]).square().sum(1)
        # Reduced costs: the solver's tolerance is a share of the largest.
        masses, dual = sparse_simplex(rows, columns, costs - f[rows] - g[columns], a, b)
        values, near = cheapest(x, y, g + dual, ADDED)
        f = values[:, 0]
        values, there = cheapest(y, x, f, ADDED)
        g = values[:, 0]
        upper = float(masses @ costs)
        plan = _with_all_atoms(rows, columns, masses, near[:, 0], there[:, 0], (a, b))
        # The tree compares sums of this size.
        sizes = (f.max() - f.min()) + (g.max() - g.min()) + costs.max()
        noise = NOISE * float(a.sum() * sizes)
        found = Bounded(*plan, f, g, float(a @ f + b @ g), upper, noise)
        best = found if best is None else _better(found, best)
        gap = best.upper - best.lower
        more = _with(cells, near, there)
        if gap <= max(tolerance, SHARE) * best.upper or len(more) == len(cells):
            break
        cells = more
    assert best is not None
    return best


def _with_all_atoms(
    rows: Tensor,
    columns: Tensor,
    masses: Tensor,
    near: Tensor,
    there: Tensor,
    sides: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells with mass, and one for each atom that the solver left without.

    The masses of such atoms are below the round-off of the others.
    """
    full = masses > 0
    rows, columns, masses = rows[full], columns[full], masses[full]
    a, b = sides
    lost, other = (
        (torch.bincount(index, minlength=len(mass)) == 0).nonzero()[:, 0]
        for index, mass in ((rows, a), (columns, b))
    )
    return (
        torch.cat([rows, lost, there[other]]),
        torch.cat([columns, near[lost], other]),
        torch.cat([masses, a[lost], b[other]]),
    )


def _on_all_cells(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Bounded:
    costs = squares(x, y)
    plan, f, g = network_simplex(costs, a, b)
    rows, columns = plan.nonzero(as_tuple=True)
    upper, lower = float((plan * costs).sum()), float(a @ f + b @ g)
    noise = NOISE * float(a.sum() * costs.max())
    return Bounded(rows, columns, plan[rows, columns], f, g, lower, upper, noise)


def _better(found: Bounded, best: Bounded) -> Bounded:
    """Return the best plan with the best potentials of two."""
    plan = found if found.upper <= best.upper else best
    dual = found if found.lower >= best.lower else best
    return plan._replace(f=dual.f, g=dual.g, lower=dual.lower, noise=dual.noise)


def gathered(x: Tensor, size: int) -> Tensor:
    """Return the index of a cell for each point; each cell has about `size` points.

    Cells are halved, as many points on each side, across their longest side.
    """
    n, d = x.shape
    cell, count = torch.zeros(n, dtype=torch.int64), 1
    while n > size * count:
        to_all = cell[:, None].expand(n, d)
        low = x.new_zeros(count, d).scatter_reduce(
            0, to_all, x, "amin", include_self=False
        )
        high = x.new_zeros(count, d).scatter_reduce(
            0, to_all, x, "amax", include_self=False
        )
        across = (high - low).argmax(1)
        order = x.gather(1, across[cell][:, None])[:, 0].argsort(stable=True)
        order = order[cell[order].argsort(stable=True)]
        sizes = torch.bincount(cell, minlength=count)
        starts = sizes.cumsum(0) - sizes
        rank = torch.arange(n) - starts[cell[order]]
        upper = (2 * rank >= sizes[cell[order]]).to(torch.int64)
        cell = cell.index_put((order,), 2 * cell[order] + upper)
        count *= 2
    return cell


def _merged(x: Tensor, a: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the barycentres and the masses of cells."""
    count = int(cell.max()) + 1
    masses = a.new_zeros(count).index_add(0, cell, a)
    sums = x.new_zeros(count, x.shape[1]).index_add(0, cell, a[:, None] * x)
    return sums / masses[:, None], masses


def _means(index: Tensor, other: Tensor, plan: Bounded, y: Tensor) -> Tensor:
    """Return the barycentre of the targets of each atom."""
    count = int(index.max()) + 1
    total = y.new_zeros(count).index_add(0, index, plan.masses)
    sums = y.new_zeros(count, y.shape[1]).index_add(
        0, index, plan.masses[:, None] * y[other]
    )
    return sums / total[:, None]


def _neighbours(x: Tensor, y: Tensor) -> Tensor:
    return cheapest(x, y, y.new_zeros(len(y)), NEIGHBOURS)[1]


def _members(
    rows: Tensor, columns: Tensor, groups: Tensor, others: Tensor
) -> tuple[Tensor, Tensor]:
    """Return all pairs of members of coupled cells."""
    sizes, widths = torch.bincount(groups), torch.bincount(others)
    firsts, starts = sizes.cumsum(0) - sizes, widths.cumsum(0) - widths
    own, beside = groups.argsort(stable=True), others.argsort(stable=True)
    pairs = sizes[rows] * widths[columns]
    edge = torch.arange(len(rows)).repeat_interleave(pairs)
    place = torch.arange(int(pairs.sum())) - (pairs.cumsum(0) - pairs)[edge]
    width = widths[columns[edge]]
    i = own[firsts[rows[edge]] + place // width]
    j = beside[starts[columns[edge]] + place % width]
    return i, j
