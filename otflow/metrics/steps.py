r"""The exact W2 distance between step densities, or one and atoms, on the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._known import known_derivatives
from otflow._validation import check_like
from otflow.errors import Unsupported
from otflow.measures import GridDensity, Measure, Quantiles
from otflow.metrics.bracket import NOISE, Bracket
from otflow.metrics.inputs import Cloud, CloudLike, check_dimension, check_masses, cloud
from otflow.metrics.levels import Levels, snapped
from otflow.metrics.path import Path

__all__ = [
    "Steps",
    "between_steps",
    "bracketed",
    "cells_of_atoms",
    "common_edges",
    "coupled",
    "on_the_line",
    "quantiles_of",
]


@dataclass(frozen=True)
class Steps:
    """Ordered intervals with a uniform density on each; gaps may lie between them.

    An interval of length 0 is an atom.

    Parameters
    ----------
    left, right : Tensor, shape (n,)
        Ends of the intervals, float64.
    masses : Tensor, shape (n,)
        Masses, >= 0, of sum 1, float64.
    """

    left: Tensor
    right: Tensor
    masses: Tensor

    @classmethod
    def of(cls, mu: Measure) -> Steps | None:
        """Return the steps of a density on the line, None for any other measure."""
        if isinstance(mu, Quantiles):
            edges = mu.edges.double()
        elif isinstance(mu, GridDensity) and mu.dim == 1:
            # From the box, since the centres are rounded to the dtype of the masses.
            cells = torch.arange(
                len(mu.weights) + 1, dtype=torch.float64, device=mu.weights.device
            )
            edges = mu.box.lower[0] + mu.box.spacing[0] * cells
        else:
            return None
        masses = mu.weights.double()
        check_masses(mu)
        return cls(edges[:-1], edges[1:], masses / masses.sum())

    @classmethod
    def at(cls, atoms: Cloud) -> Steps:
        """Return the atoms of a cloud on the line, sorted."""
        x = atoms.points[:, 0].double()
        masses = torch.ones_like(x.detach())
        if atoms.weights is not None:
            masses = atoms.weights.double()
        order = x.detach().argsort(stable=True)
        x, masses = x[order], masses[order]
        return cls(x, x, masses / masses.sum())

    def over(self, unit: float) -> Steps:
        """Return these steps with lengths measured in another unit."""
        return Steps(self.left / unit, self.right / unit, self.masses)


def on_the_line(
    mu: CloudLike | Measure, nu: CloudLike | Measure
) -> tuple[Steps, Steps, Tensor] | None:
    """Return both measures as steps if one is a density on the line, else None.

    The other one may consist of atoms. The third entry is the points of `mu`.
    """
    own = [Steps.of(m) if isinstance(m, Measure) else None for m in (mu, nu)]
    if own == [None, None]:
        return None
    sides = []
    for part, measure, name in zip(own, (mu, nu), ("mu", "nu"), strict=True):
        if part is None:
            atoms = cloud(measure, name, grids=True)
            sides.append((Steps.at(atoms), atoms.points))
        else:
            assert isinstance(measure, Measure)
            sides.append((part, measure.points))
    (first, x), (second, y) = sides
    check_like(y, x, "nu", "mu")
    check_dimension(x, y, ("mu", "nu"))
    return first, second, x


def between_steps(mu: Steps, nu: Steps) -> Tensor:
    r"""Return :math:`W_2^2 = \int_0^1 |Q_\mu(s) - Q_\nu(s)|^2\,ds` of step densities.

    Quantile functions are piecewise linear. Between neighbouring levels of either
    measure let m be the mass and a, b the differences of the quantile functions at both
    ends; then the integral is :math:`m\,(a^2+ab+b^2)/3`. The derivative in the mass of
    a cell, also of an empty one, is the mean over the cell of the potential
    :math:`\varphi`, with :math:`\varphi'(x) = 2(x - T(x))`. Exact for any masses; time
    O(n log n).

    Parameters
    ----------
    mu, nu : Steps
        Step densities on one device.

    Returns
    -------
    Tensor
        0-d, float64, twice differentiable in the ends and in the masses.
    """
    lengths, x, y = (t.detach() for t in coupled(mu, nu))
    a, b = (x - y).unbind(1)
    value = lengths @ ((a + b).square() + a.square() + b.square()) / 6.0
    state = mu.left, mu.right, mu.masses, nu.left, nu.right, nu.masses
    return known_derivatives(value, state, _gradients)


def coupled(mu: Steps, nu: Steps) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masses of the monotone coupling's intervals (k,), and their ends.

    The ends are the values of both quantile functions, (k, 2) each.
    """
    return _couple(_full(mu), _full(nu))[:3]


def bracketed(mu: Steps, nu: Steps) -> tuple[float, Bracket, tuple[Tensor, Tensor]]:
    """Return the squared distance, bounds of it, and the ends of coupled intervals.

    The steps carry no graph, and are measured in a unit whose square is in range.
    """
    masses, x, y = coupled(mu, nu)
    a, b = (x - y).unbind(1)
    value = float(masses @ ((a + b).square() + a.square() + b.square()) / 6.0)
    # The mass that round-off leaves over may have to cross the whole support, and the
    # ends of cells carry the round-off of their distance from the origin.
    ends = torch.cat([mu.left, mu.right, nu.left, nu.right])
    extent = float(ends.max() - ends.min())
    moves = float((x - y).abs().max()) * float(ends.abs().max())
    noise = NOISE * (extent**2 + moves)
    return value, Bracket(max(0.0, value - noise), value + noise), (x, y)


def _gradients(*state: Tensor) -> list[Tensor]:
    """Return the derivatives in ends and masses, with the graph of the state."""
    mu, nu = Steps(*state[:3]), Steps(*state[3:])
    lengths, x, y, at, beside = _couple(_full(mu), _full(nu))
    a, b = (x - y).unbind(1)
    slopes = torch.stack([2 * a + b, a + 2 * b], 1) * (lengths / 3.0)[:, None]
    paths = [(x, y), (y, x)]
    if mu.masses.requires_grad or nu.masses.requires_grad:
        # If both quantile functions jump at one level, the distance has a kink in the
        # masses. Take the mean of the two subgradients, in which either jumps first.
        _, y_swapped, x_swapped, *_ = _couple(_full(nu), _full(mu))
        swapped = [(x_swapped, y_swapped), (y_swapped, x_swapped)]
    grads = []
    for side, (own, place, sign) in enumerate(((mu, at, 1.0), (nu, beside, -1.0))):
        full = own.masses.detach() > 0
        ends = torch.stack([1 - place.shares, place.shares])
        for part in (ends * slopes).sum(2):
            on_full = part.new_zeros(int(full.sum()))
            on_full = on_full.index_add(0, place.cell, sign * part)
            index = full.nonzero()[:, 0]
            grads.append(torch.zeros_like(own.left).index_put((index,), on_full))
        potential = torch.zeros_like(own.masses)
        if own.masses.requires_grad:
            cells = own.left, own.right
            potential = 0.5 * (
                Path.of(*paths[side], *cells).means(*cells)
                + Path.of(*swapped[side], *cells).means(*cells)
            )
        grads.append(potential)
    return grads


class _Place(NamedTuple):
    """The cell of each coupled interval, and where in it both ends lie, in [0, 1]."""

    cell: Tensor
    shares: Tensor


def _full(steps: Steps) -> Steps:
    """Return the cells that have mass."""
    full = steps.masses.detach() > 0
    return Steps(steps.left[full], steps.right[full], steps.masses[full])


def _couple(mu: Steps, nu: Steps) -> tuple[Tensor, Tensor, Tensor, _Place, _Place]:
    """Return the coupled intervals.

    These are the masses (k,), the quantile functions of both measures at the ends of
    each interval, (k, 2), and the places of these ends in the cells of both. At a level
    of both measures, mu jumps first.
    """
    own, other = Levels.of(mu.masses), Levels.of(nu.masses)
    other = snapped(other, own)
    inner, order = own.inner().merged(other.inner())
    levels = inner.within(own)
    is_own = order < len(own.side) - 2
    at = _places(own, levels, is_own)
    beside = _places(other, levels, ~is_own)
    return levels.steps(), _quantiles(mu, at), _quantiles(nu, beside), at, beside


def _quantiles(mu: Steps, place: _Place) -> Tensor:
    """Return the points of these places."""
    left, right = mu.left[place.cell, None], mu.right[place.cell, None]
    return left + place.shares * (right - left)


def _places(own: Levels, levels: Levels, is_own: Tensor) -> _Place:
    """Return where the quantile function is at both ends of intervals between levels.

    The number of own levels passed is the index of the cell. So a cell whose mass is
    below the round-off of the levels gets no interval.
    """
    cell = torch.cat([is_own.new_zeros(1, dtype=torch.int64), is_own.cumsum(0)])
    low, high = own.at(cell), own.at(cell + 1)
    width = high.above(low)
    empty = width <= 0
    ends = []
    outermost = is_own.new_ones(1)
    starts = Levels(levels.side[:-1], levels.value[:-1])
    stops = Levels(levels.side[1:], levels.value[1:])
    for at, mine, edge in (
        (starts, torch.cat([outermost, is_own]), 0.0),
        (stops, torch.cat([is_own, outermost]), 1.0),
    ):
        share = at.above(low) / width.masked_fill(empty, 1.0)
        share = share.masked_fill(empty, 0.0).clamp(0.0, 1.0)
        # At the ends of the cell the share is exactly 0 or 1.
        ends.append(share.masked_fill(mine, edge))
    return _Place(cell, torch.stack(ends, dim=1))


def cells_of_atoms(mu: Steps, atoms: Steps) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the mass of each atom comes from: both ends, and the barycentre.

    Parameters
    ----------
    mu : Steps
        A density.
    atoms : Steps
        Atoms with mass, on the same device.

    Returns
    -------
    low, high, barycentres : Tensor, shape (n,)
        In the order of the atoms, detached.
    """
    lengths, x, _, _, beside = _couple(_full(mu), atoms)
    lengths, x = lengths.detach(), x.detach()
    cell, count = beside.cell, len(atoms.masses)
    sums = lengths.new_zeros(count, 2).index_add(
        0, cell, torch.stack([lengths, lengths * x.mean(1)], 1)
    )
    low = x.new_full((count,), torch.inf).scatter_reduce(0, cell, x[:, 0], "amin")
    high = x.new_full((count,), -torch.inf).scatter_reduce(0, cell, x[:, 1], "amax")
    # An atom whose mass is round-off has no interval of its own: it ends where the one
    # before it does.
    high = high.cummax(0).values.clamp_min(float(x[0, 0]))
    low = torch.minimum(low, high)
    some = sums[:, 0] > 0
    means = sums[:, 1] / sums[:, 0].masked_fill(~some, 1.0)
    return low, high, torch.where(some, means, high)


def common_edges(parts: Sequence[Steps]) -> tuple[list[Tensor], Tensor]:
    r"""Return the quantile functions of step densities at their common levels.

    The levels are those of all densities, merged. Between two of them every quantile
    function is linear, and so is every mean of quantile functions.

    Parameters
    ----------
    parts : sequence of Steps
        Step densities on one device, whose masses carry no graph.

    Returns
    -------
    edges : list of Tensor, shape (k + 1,)
        For each density its quantile function at the levels; with the graph of its
        ends.
    masses : Tensor, shape (k,)
        Differences of the levels, > 0.

    Raises
    ------
    Unsupported
        If a density vanishes between two cells with mass: its quantile function jumps.
    """
    full = [_full(part) for part in parts]
    levels, union = [], None
    for part in full:
        own = Levels.of(part.masses)
        own = own if union is None else snapped(own, union)
        levels.append(own)
        both = own if union is None else own.merged(union.inner())[0]
        union = both.at(both.ranks())
    assert union is not None
    starts = Levels(union.side[:-1], union.value[:-1])
    edges = []
    for part, own in zip(full, levels, strict=True):
        inner = own.inner()
        order = inner.merged(union.inner())[1]
        is_own = order < len(inner.side)
        cell = torch.cat([order.new_zeros(1), is_own.cumsum(0)[~is_own]])
        visited = torch.cat([cell, cell.new_full((1,), len(part.masses) - 1)])
        if bool((part.left[1:] > part.right[:-1]).any() or (visited.diff() > 1).any()):
            msg = (
                "a density vanishes, to round-off, between two parts of its mass, so "
                "its quantile function jumps, and no Quantiles can hold the mean; mix "
                "it with a positive density, mu.mix(background, 1e-3), or take "
                "Particles(mu.points, mu.weights), up to a cell"
            )
            raise Unsupported(msg)
        low = own.at(cell)
        share = (starts.above(low) / own.at(cell + 1).above(low)).clamp(0.0, 1.0)
        left, right = part.left[cell], part.right[cell]
        edges.append(torch.cat([left + share * (right - left), part.right[-1:]]))
    return edges, union.steps()


def quantiles_of(edges: Tensor, masses: Tensor, like: Tensor) -> Quantiles:
    """Return quantiles in the dtype of a tensor; cells too short for it are joined.

    Parameters
    ----------
    edges : Tensor, shape (k + 1,)
        Non-decreasing, float64.
    masses : Tensor, shape (k,)
        Positive, float64.
    like : Tensor
        A tensor of the dtype.

    Returns
    -------
    Quantiles
        At most k cells.
    """
    q = edges.to(like.dtype)
    first = torch.cat([q.new_ones(1, dtype=torch.bool), q.detach().diff() > 0])
    count = int(first.sum())
    cell = (first.cumsum(0)[:-1] - 1).clamp_max(max(count - 2, 0))
    joined = masses.new_zeros(max(count - 1, 1)).index_add(0, cell, masses)
    return Quantiles(q[first], joined.to(like.dtype), normalize=True)
