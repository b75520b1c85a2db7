r"""The optimal plan for any ground cost, with the potentials that prove it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.errors import NotConverged
from otflow.metrics.balance import with_masses
from otflow.metrics.bracket import NOISE, Bracket
from otflow.metrics.duals import SHARE
from otflow.metrics.plans import ACCEPTED, Plan
from otflow.metrics.simplex import network_simplex

__all__ = ["Cells", "Ground", "least_plan", "simplex_cells"]


@dataclass(frozen=True)
class Ground:
    """A ground cost between the points of two measures, detached, float64, on the CPU.

    Parameters
    ----------
    table : callable
        Takes indices i (k,) and j (l,) to the costs between these points, (k, l).
    pairs : callable
        Takes indices i (k,) and j (k,) to the costs of these pairs, (k,).
    """

    table: Callable[[Tensor, Tensor], Tensor]
    pairs: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Cells:
    """Cells of a plan between atoms with mass, and potentials of these atoms."""

    rows: Tensor
    columns: Tensor
    masses: Tensor
    f: Tensor
    g: Tensor
    method: str


def simplex_cells(costs: Tensor, a: Tensor, b: Tensor) -> Cells:
    """Return the best cells for a matrix of costs (n, m) and positive masses."""
    scale = 1.0
    if len(a) == len(b) and bool((a == a[0]).all() and (b == b[0]).all()):
        scale = 1.0 / len(a)  # masses 1 make the plan a permutation, exactly
        a = b = torch.ones_like(a)
    # The duality gap is compared with the cost, so the least cost is moved to 0.
    least = costs.min()
    dense, f, g = network_simplex(costs - least, a, b)
    rows, columns = dense.nonzero(as_tuple=True)
    masses = scale * dense[rows, columns]
    return Cells(rows, columns, masses, f + least, g, "simplex")


def _transform(
    ground: Ground, side: int, own: Tensor, others: Tensor, potential: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the least cost minus potential, and its place in `others`, tile by tile.

    The atoms `own` are those of the first measure for side 0, of the second for 1.
    """
    values, places = own.new_zeros(len(own), dtype=potential.dtype), own.clone()
    for k in tiles(len(own)):
        at = own[k]
        costs = ground.table(others, at).T if side else ground.table(at, others)
        values[k], places[k] = (costs - potential).min(dim=1)
    return values, places


def least_plan(
    ground: Ground, a: Tensor, b: Tensor, find: Callable[[Tensor, Tensor], Cells]
) -> Plan:
    """Return the plan of least cost for masses of sum 1; raises NotConverged.

    Parameters
    ----------
    ground : Ground
        The costs.
    a, b : Tensor, shapes (n,) and (m,)
        Masses of both measures, float64, on the CPU.
    find : callable
        Takes the indices of the atoms with mass to cells between them.

    Returns
    -------
    Plan
        The plan, float64, on the CPU. The mass of each atom is accurate relative to
        that mass.
    """
    i, j = a.nonzero()[:, 0], b.nonzero()[:, 0]
    cells, atoms = find(i, j), (i, j)
    potentials = cells.f, cells.g

    def cheapest(side: int, index: Tensor, others: Tensor) -> Tensor:
        own, other = atoms[side][index], atoms[1 - side][others]
        return _transform(ground, side, own, other, potentials[1 - side][others])[1]

    rows, columns, masses = with_masses(
        cells.rows, cells.columns, cells.masses, a[i], b[j], cheapest
    )
    rows, columns = i[rows], j[columns]
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    f[i], g[j] = cells.f, cells.g

    # The potential at an atom without mass is the transform of the other measure's
    # potential. The atom joins the plan beside the partner that attains the minimum.
    idle, other = (a == 0).nonzero()[:, 0], (b == 0).nonzero()[:, 0]
    f[idle], partners = _transform(ground, 0, idle, j, g[j])
    g[other], sources = _transform(ground, 1, other, i, f[i])
    if len(idle):
        # For two atoms without mass f + g may exceed the cost: then lower g.
        between, _ = _transform(ground, 1, other, idle, f[idle])
        g[other] = torch.minimum(g[other], between)
    rows = torch.cat([rows, idle, i[sources]])
    columns = torch.cat([columns, j[partners], other])
    masses = torch.cat([masses, masses.new_zeros(len(rows) - len(masses))])

    costs = ground.pairs(rows, columns)
    cost = masses @ costs
    noise = NOISE * float(a @ f.abs() + b @ g.abs() + masses @ costs.abs())
    bound = a @ f + b @ g
    if cells.method == "sorted":
        # What proves this plan is its order, not the potentials, which are sums.
        bound, noise = cost, NOISE * float(masses @ costs.abs())
    else:
        # Least costs of rows, or of columns, are feasible potentials without round-off.
        table = ground.table(i, j)
        least_of = (a[i] @ table.amin(1), b[j] @ table.amin(0))
        if float(cost - torch.maximum(*least_of)) <= SHARE * abs(float(cost)):
            bound, noise = cost, NOISE * float(masses @ costs.abs())
    bound = torch.minimum(bound, cost)
    bracket = Bracket(float(bound) - noise, float(cost) + noise)
    gap, size = float(cost - bound), float(masses @ costs.abs())
    if gap <= max(noise, SHARE * size):
        bound = cost
    f += 0.5 * bound - a @ f
    g += 0.5 * bound - b @ g
    plan = Plan(rows, columns, masses, cost, f, g, bracket, cells.method)
    if not bracket.width <= ACCEPTED * size and size > 0:
        msg = (
            f"the transport solver left a duality gap of {gap:.3g}, with a round-off "
            f"of {noise:.3g}, of the cost {float(cost):.6g}; take costs of less "
            f"contrast, or a smaller p"
        )
        raise NotConverged(msg, info={"gap": gap, "noise": noise}, result=plan)
    return plan
