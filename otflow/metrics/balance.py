"""Correct the cells of a plan so that the mass of each atom is accurate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from otflow.metrics.duals import transform

__all__ = ["Cheapest", "balanced", "with_masses"]

# Error of the row and column sums of a plan, relative to the mass of the atom.
ACCURACY = 1e-13

Side = tuple[Tensor, Tensor, Tensor]
"""Points, masses and potentials of atoms with mass."""

Cheapest: TypeAlias = Callable[[int, Tensor, Tensor], Tensor]
"""Takes a measure, 0 or 1, some of its atoms (k,), and some of the other's (l,).

Returns the place in the latter of the atom of least reduced cost, (k,).
"""


def balanced(
    rows: Tensor, columns: Tensor, masses: Tensor, source: Side, target: Side
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells of a plan for |x - y|^2 with accurate masses.

    Parameters
    ----------
    rows, columns, masses : Tensor, shape (k,)
        Cells, accurate to the round-off of 1.
    source, target : tuple of Tensor
        Points, masses and potentials of both measures; every mass is positive.

    Returns
    -------
    rows, columns, masses : Tensor
        Cells, at least one for each atom.
    """
    sides = source, target

    def cheapest(side: int, index: Tensor, others: Tensor) -> Tensor:
        (x, *_), (y, _, g) = sides[side], sides[1 - side]
        return transform(x[index], y[others], g[others])[1]

    return with_masses(rows, columns, masses, source[1], target[1], cheapest)


def with_masses(
    rows: Tensor,
    columns: Tensor,
    masses: Tensor,
    a: Tensor,
    b: Tensor,
    cheapest: Cheapest,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells with the mass of each atom accurate relative to that mass.

    A solver knows masses up to the round-off of 1, which may exceed the mass of a small
    atom. The barycentre of the atom's targets depends on the atom's cells alone, so
    these need a relative accuracy.

    Parameters
    ----------
    rows, columns, masses : Tensor, shape (k,)
        Cells, accurate to the round-off of 1.
    a, b : Tensor, shapes (n,) and (m,)
        Masses of both measures, all positive.
    cheapest : callable
        Where the potentials send an atom, see `Cheapest`.

    Returns
    -------
    rows, columns, masses : Tensor
        Cells, at least one for each atom.
    """
    lost = (torch.bincount(rows, minlength=len(a)) == 0).nonzero()[:, 0]
    if len(lost):
        partners = cheapest(0, lost, torch.arange(len(b)))
        rows, columns = torch.cat([rows, lost]), torch.cat([columns, partners])
        masses = torch.cat([masses, a[lost]])
    lost = (torch.bincount(columns, minlength=len(b)) == 0).nonzero()[:, 0]
    if len(lost):
        partners = cheapest(1, lost, torch.arange(len(a)))
        rows, columns = torch.cat([rows, partners]), torch.cat([columns, lost])
        masses = torch.cat([masses, b[lost]])
    scaled = masses
    for index, own in ((rows, a), (columns, b)):
        scaled = scaled * (own / _sums(index, scaled, own))[index]
    if float((_sums(rows, scaled, a) / a - 1).abs().max()) <= 1e2 * ACCURACY:
        return rows, columns, scaled
    return _small_first(rows, columns, masses, (a, b), cheapest)


def _sums(index: Tensor, masses: Tensor, own: Tensor) -> Tensor:
    return torch.zeros_like(own).index_add(0, index, masses)


def _small_first(
    rows: Tensor,
    columns: Tensor,
    masses: Tensor,
    both: tuple[Tensor, Tensor],
    cheapest: Cheapest,
) -> tuple[Tensor, Tensor, Tensor]:
    """Distribute the mass of the atoms, the smallest first.

    An atom first fills its own cells. The rest goes to the atom of least reduced cost
    that still has room. The largest atoms come last and absorb the round-off, which is
    small relative to their masses.
    """
    n, room = len(both[0]), torch.cat(both).tolist()
    cells: list[list[tuple[int, float]]] = [[] for _ in room]
    for i, j, mass in zip(
        rows.tolist(), columns.tolist(), masses.tolist(), strict=True
    ):
        cells[i].append((n + j, mass))
        cells[n + j].append((i, mass))
    placed: dict[tuple[int, int], float] = defaultdict(float)
    done = [False] * len(room)

    def send(node: int, other: int, mass: float) -> None:
        row, column = (node, other - n) if node < n else (other, node - n)
        placed[row, column] += mass
        room[other] -= mass

    def taker_of(node: int, mass: float) -> int | None:
        """Return the cheapest atom of the other measure with room for this mass.

        If no atom has room for all of it, return the one with the most room; if none
        has any, None.
        """
        side = int(node >= n)
        first, k = (0, node - n) if side else (n, node)
        others = range(len(both[1 - side]))
        free = {j: room[first + j] for j in others if not done[first + j]}
        roomy = [j for j, left in free.items() if left >= mass]
        if roomy:
            best = cheapest(side, torch.tensor([k]), torch.tensor(roomy))
            return first + roomy[int(best)]
        most = max(free, key=free.__getitem__, default=None)
        return None if most is None or free[most] <= 0 else first + most

    for node in sorted(range(len(room)), key=room.__getitem__):
        whole = left = room[node]
        done[node] = True
        open_cells = [(k, mass) for k, mass in cells[node] if not done[k]]
        total = sum(mass for _, mass in open_cells)
        for other, mass in open_cells:
            sent = min(whole * (mass / total), room[other])
            if sent > 0:
                send(node, other, sent)
                left -= sent
        while left > ACCURACY * whole:
            taker = taker_of(node, left)
            if taker is None:
                break
            sent = min(left, room[taker])
            send(node, taker, sent)
            left -= sent
        room[node] = 0.0
    index = torch.tensor(list(placed), dtype=torch.int64)
    found = torch.tensor(list(placed.values()), dtype=torch.float64)
    return index[:, 0], index[:, 1], found
