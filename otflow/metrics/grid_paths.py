r"""Interpolations between densities on grids of the plane and of space.

A grid stands for atoms at the centres of its cells. Atoms of an interpolation lie
between the centres, so their masses are shared among the nearest centres, linearly
along each axis: the remap known as cloud in cell :cite:p:`hockney1988computer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._validation import check_kind
from otflow.errors import Unsupported
from otflow.measures import Box, GridDensity
from otflow.metrics.bridges import Bridge
from otflow.metrics.gluing import glue
from otflow.metrics.grids import common_shift
from otflow.metrics.inputs import Cloud, clouds
from otflow.metrics.plans import MANY, Plan, couple
from otflow.metrics.shares import shared

__all__ = ["check_grids", "check_unit_times", "glued_pairs", "grid_path", "joined"]

# Places this close to a centre, in cells and for each cell of the axis, lie on it: the
# rest is round-off, and would leave masses of 1e-16 in empty cells.
ROUND_OFF = 8 * torch.finfo(torch.float64).eps


class Pairs(NamedTuple):
    """Cells of two grids that are joined, and the mass that each pair carries.

    Tensors (k,) on the CPU; the masses are float64, of sum 1.
    """

    rows: Tensor
    columns: Tensor
    masses: Tensor


def check_grids(named: Mapping[str, Any]) -> None:
    """Raise unless these are densities on grids of one space, d >= 2, to be joined."""
    names = list(named)
    for name, mu in named.items():
        check_kind(mu, GridDensity, name)
        clouds(named[names[0]], mu, (names[0], name), grids=True)
        refuse_graph(
            "a geodesic on a grid",
            "the masses of an optimal plan have no derivative here",
            mu.weights,
            cure=f"{name}.detach()",
        )
        if not bool(mu.is_free.all()):
            msg = (
                f"a geodesic moves mass along straight lines, and there are obstacles "
                f"in {name}; make the densities without obstacles"
            )
            raise Unsupported(msg)


def check_unit_times(times: Sequence[float], why: str) -> None:
    """Raise ValueError unless all times lie in [0, 1]."""
    outside = [time for time in times if not 0 <= time <= 1]
    if outside:
        msg = f"t must lie in [0, 1], got {outside[0]:g}; {why}"
        raise ValueError(msg)


def joined(mu: GridDensity, nu: GridDensity, tolerance: float) -> Pairs | Bridge:
    """Return an optimal plan as pairs of cells, or one within a tolerance.

    Between large grids, and with a tolerance, it is blurred, and a `Bridge`.
    """
    p, q = clouds(mu, nu, grids=True)
    own, other = p.lattice, q.lattice
    assert own is not None
    assert other is not None
    if common_shift(own, other) is not None:
        # Each cell goes to the one as far from the first cell with mass.
        rows, columns = ((c.masses > 0).nonzero()[:, 0] for c in (p, q))
        return Pairs(rows, columns, p.masses[rows])
    many = int((p.masses > 0).sum()) * int((q.masses > 0).sum()) > MANY
    blurred = Bridge.between(own, other, tolerance) if tolerance and many else None
    return blurred or Pairs(*_cells(_coupled(p, q, tolerance)))


def glued_pairs(base: GridDensity, mu: GridDensity, nu: GridDensity) -> Pairs:
    """Return the pairs of cells that optimal plans from a base join."""
    p, *others = (clouds(base, m, grids=True)[1] for m in (base, mu, nu))
    _, (rows, columns), masses = glue([_coupled(p, q, 0.0) for q in others])
    return Pairs(rows, columns, masses)


def _coupled(p: Cloud, q: Cloud, tolerance: float) -> Plan:
    return couple(p.places, p.masses, q.places, q.masses, tolerance)


def _cells(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    full = plan.masses > 0
    masses = plan.masses[full]
    return plan.rows[full], plan.columns[full], masses / masses.sum()


def grid_path(
    mu: GridDensity, nu: GridDensity, plan: Pairs | Bridge, times: Sequence[float]
) -> list[GridDensity]:
    """Return the interpolations at times in [0, 1], each on a grid of its own.

    Parameters
    ----------
    mu, nu : GridDensity
        The ends, which are the answers at the times 0 and 1.
    plan : Pairs or Bridge
        What goes where.
    times : sequence of float
        Times.

    Returns
    -------
    list of GridDensity
        The corners of the box go along straight lines too. Along each axis it has as
        many cells as the end that has more.
    """
    shape = tuple(max(n, m) for n, m in zip(mu.shape, nu.shape, strict=True))
    found = []
    for time in times:
        if time in {0.0, 1.0}:
            found.append(nu if time else mu)
            continue
        lower, upper = (
            tuple(a + time * (b - a) for a, b in zip(x, y, strict=True))
            for x, y in ((mu.box.lower, nu.box.lower), (mu.box.upper, nu.box.upper))
        )
        box = Box.of(lower, upper, shape)
        if isinstance(plan, Bridge):
            masses = plan.at(time, box)
        else:
            ends = zip(_along(mu, plan.rows), _along(nu, plan.columns), strict=True)
            places = [
                _between(x, y, time, n) for (x, y), n in zip(ends, shape, strict=True)
            ]
            masses = shared(places, plan.masses, shape)
        found.append(_density(box, masses, mu, nu))
    return found


class _Axis(NamedTuple):
    """The distance of centres from the lower corner along an axis, and its side."""

    centres: Tensor
    side: float


def _along(mu: GridDensity, index: Tensor) -> list[_Axis]:
    """Return the places of cells along each axis."""
    cells = torch.unravel_index(index, mu.shape)
    return [
        _Axis(h * (i.double() + 0.5), h * n)
        for i, h, n in zip(cells, mu.box.spacing, mu.shape, strict=True)
    ]


def _between(x: _Axis, y: _Axis, time: float, n: int) -> Tensor:
    """Return places between x and y, in cells from the first centre of n cells.

    They are counted from the corner, which goes along a straight line too. So they keep
    their digits, however far from 0 the box lies.
    """
    step = ((1 - time) * x.side + time * y.side) / n
    places = ((1 - time) * x.centres + time * y.centres) / step - 0.5
    places = places.clamp(0, n - 1)
    nearest = places.round()
    close = (places - nearest).abs() <= ROUND_OFF * n
    return torch.where(close, nearest, places)


def _density(
    box: Box, weights: Tensor, mu: GridDensity, nu: GridDensity
) -> GridDensity:
    """Return masses on a box as a density, like both ends."""
    like = mu.weights
    masses = weights.to(like.device, like.dtype)
    if box == mu.box:
        return mu.with_weights(masses)
    rho = (masses / box.cell_volume).reshape(box.shape)
    # A border that is a wall of one end holds mass on purpose.
    walls = mu.walls or nu.walls
    return GridDensity(rho, box.lower, box.upper, walls=walls, normalize=True)
