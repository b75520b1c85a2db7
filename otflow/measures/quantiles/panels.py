"""Integrals of a density over an interval, on panels that are cut where needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.numerics.quadrature import gauss_legendre

__all__ = ["Panels", "adapt", "rule"]

# Panels to start with, how far they are graded towards a place (in halvings of the
# interval), and how many there may be.
START = 2048
GRADED = 50
MAX_PANELS = 2**18
# Gauss-Legendre nodes in each.
NODES = 8
# Where a panel is cut. Halves have a blind spot: of a jump close to the middle they and
# the whole see the same. So cut, the rules differ by at least .019 times the jump,
# wherever it is between their nodes; the error is at most 2.7 times the difference.
CUT = 0.4315
# A jump between an end and the first node is seen by values this close to the ends.
END = 1e-6
# Round-off units of the mass on the nearer side that a panel may be off by; and of a
# place, the least width of a panel.
TOLERANCE = 16.0
PLACE = 16.0
# So many panels that the round-off of places left unfit, the narrowest, are looked at
# for a singularity. It is one if a value in it is this much above those beside it: next
# to a jump, or in a kink, the values are as high.
MAX_SPOTS = 2**14
GROWTH = 1.1

Density = Callable[[Tensor], Tensor]


class Panels(NamedTuple):
    """Masses (n,) of panels between their ends (n + 1,), with their accuracy.

    `errors` are the differences of Gauss rules on a panel and on its two parts.
    `places` are the errors that the round-off of the places alone causes. At `spots`
    (k,) the density grows beyond what places resolve; `hidden` is the mass within the
    distances `near`, as far as it was seen or follows from the growth.
    """

    ends: Tensor
    masses: Tensor
    errors: Tensor
    places: Tensor
    spots: Tensor
    near: Tensor
    hidden: Tensor

    def mirrored(self) -> Panels:
        """Return the same panels from above: those of the density at -x."""
        there = self._replace(ends=-self.ends, spots=-self.spots)
        return Panels(*(x.flip(0) for x in there))

    def variance(self) -> float:
        """Return the variance, as if each panel had a constant density."""
        share = self.masses / self.masses.sum()
        middle, width = (self.ends[1:] + self.ends[:-1]) / 2, self.ends.diff()
        squares = (middle - share @ middle).square() + width.square() / 12
        return float(share @ squares)

    def hidden_below(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden mass below places x, and the part too near to x to tell.

        A quantile near a spot is known to its round-off, whatever the mass there.
        """
        sums = []
        for end, right in (
            (self.spots + self.near, False),
            (self.spots - self.near, True),
        ):
            at, order = end.sort()
            below = torch.cat([at.new_zeros(1), self.hidden[order].cumsum(0)])
            sums.append(below[torch.searchsorted(at, x, right=right)])
        return sums[0], sums[1] - sums[0]


def rule(density: Density, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Return Gauss integrals from `start` to `stop`, (m,), and the values, (m, 8)."""
    t, a = gauss_legendre(NODES)
    width = stop - start
    values = density(start[:, None] + width[:, None] * t)
    return width * (values @ a), values


def _end_weights() -> Tensor:
    """Return the weights with which the nodes extrapolate to END."""
    t = gauss_legendre(NODES)[0]
    factors = (END - t[None]) / (t[:, None] - t[None]).fill_diagonal_(1.0)
    return factors.fill_diagonal_(1.0).prod(1)


class _Cells(NamedTuple):
    """Panels (m,), integrated as a whole and by two parts.

    `high` and `low` bound the values seen. `spread` is their range without those at the
    ends and the highest one. `peak`, at `where`, is the highest value ever seen inside,
    by the panel or by a panel that it is a part of.
    """

    start: Tensor
    stop: Tensor
    left: Tensor
    right: Tensor
    error: Tensor
    high: Tensor
    low: Tensor
    spread: Tensor
    peak: Tensor
    where: Tensor

    def part(self, chosen: Tensor) -> _Cells:
        return _Cells(*(x[chosen] for x in self))

    def join(self, other: _Cells) -> _Cells:
        """Return both, from left to right."""
        order = torch.cat([self.start, other.start]).argsort()
        pairs = zip(self, other, strict=True)
        return _Cells(*(torch.cat(pair)[order] for pair in pairs))

    @property
    def reach(self) -> Tensor:
        return torch.maximum(self.start.abs(), self.stop.abs())

    @property
    def middle(self) -> Tensor:
        """Return where the parts meet."""
        return self.start + CUT * (self.stop - self.start)

    def parts(self, density: Density) -> _Cells:
        middle, first = self.middle, self.where <= self.middle
        lower, upper = self.peak * first, self.peak * ~first
        sides = [(self.start, middle), (middle, self.stop), (self.left, self.right)]
        sides += [(lower, upper), (self.where, self.where)]
        return _cells(density, *(_woven(a, b) for a, b in sides))


def _woven(a: Tensor, b: Tensor) -> Tensor:
    """Return the entries of both in turn."""
    return torch.stack([a, b], 1).reshape(-1)


def _cells(
    density: Density,
    start: Tensor,
    stop: Tensor,
    whole: Tensor,
    peak: Tensor,
    where: Tensor,
) -> _Cells:
    width = stop - start
    middle = start + CUT * width
    left, below = rule(density, start, middle)
    right, above = rule(density, middle, stop)
    t = gauss_legendre(NODES)[0]
    shares = torch.cat([CUT * t, CUT + (1 - CUT) * t])
    shares = torch.cat([shares, shares.new_tensor([END * CUT, 1 - END * (1 - CUT)])])
    ends = density(start[:, None] + width[:, None] * shares[-2:])
    values = torch.cat([below, above, ends], 1)
    high, at = values.max(1)
    place = start + width * shares[at]
    # What the extrapolation to an end misses may hold up to the first node.
    weights, first = _end_weights(), float(t[0])
    lower = CUT * first * width * (below @ weights - ends[:, 0]).abs()
    upper = (1 - CUT) * first * width * (above.flip(1) @ weights - ends[:, 1]).abs()
    new = high >= peak
    return _Cells(
        start,
        stop,
        left,
        right,
        torch.stack([(whole - left - right).abs(), lower, upper]).max(0).values,
        high,
        values.min(1).values,
        values[:, :-2].topk(2).values[:, 1] - values[:, :-2].min(1).values,
        torch.where(new, high, peak),
        torch.where(new, place, where),
    )


def _graded(lower: float, upper: float, around: Sequence[float]) -> Tensor:
    """Return ends of even panels, and of some that shrink towards each place."""
    even = torch.linspace(lower, upper, START + 1, dtype=torch.float64)
    shares = 0.5 ** torch.arange(1, GRADED + 1, dtype=torch.float64)
    near = (upper - lower) * torch.cat([-shares, shares.new_zeros(1), shares])
    ends = torch.cat([even, *(place + near for place in around)])
    ends = ends[(ends >= lower) & (ends <= upper)].sort().values
    return torch.cat([ends[:1], ends[1:][ends.diff() > 0]])


def _hidden(
    density: Density, cells: _Cells, unfit: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return spots where the density outgrows places, distances, and masses there.

    `unfit` are cells that are cut no more though their rules differ. What they saw does
    not give the mass of a singularity, which is seen only as far as the places go.
    Distances from the highest value are in units of 16 round-offs (or of a 16th of the
    cell). Let A be the mean of the density on the distances 4 to 16, a that on 16 to
    64, m the mass on 4 to 16, and :math:`\rho = A/a`. If the density is a power of the
    distance, the mass within 1 is :math:`m\,\rho^2/(16 - 4\rho)`, the sum of a
    geometric series. The larger of this mass and the mass seen there counts, twice.
    """
    none = cells.start.new_zeros(0)
    at = unfit.nonzero()[:, 0]
    if not len(at):
        return none, none, none
    width = cells.stop - cells.start
    at = at[width[at].argsort()[:MAX_SPOTS]].sort().values
    spot, highest = cells.where[at], cells.peak[at]
    place = PLACE * eps * cells.reach[at]
    # The highest value is that close to the singularity of its cell.
    unit = torch.maximum(place, width[at] / 16)
    lower, upper = cells.start[0], cells.stop[-1]
    hidden = torch.zeros_like(unit)
    beside = torch.zeros_like(unit)
    for sign in (-1.0, 1.0):
        ends = [(spot + sign * 4.0**j * unit).clamp(lower, upper) for j in (1, 2, 3)]
        mass, values = rule(density, ends[0], ends[1])
        more = rule(density, ends[1], ends[2])[0]
        near = mass / (ends[1] - ends[0])
        far = more / (ends[2] - ends[1])
        ratio = (near / far).nan_to_num(1.0, math.inf)
        rest = mass.abs() * ratio.square() / (4.0 * (4.0 - ratio))
        rest = torch.where(ratio < 4.0, rest, math.inf)
        # Beyond an end of the interval there is neither mass nor a value.
        hidden += torch.where(mass == 0, 0.0, rest)
        seen = torch.where(mass == 0, 0.0, values.max(1).values)
        beside = torch.maximum(beside, seen)
    # What was seen.
    i = torch.searchsorted(cells.stop, spot - unit, right=True)
    j = torch.searchsorted(cells.start, spot + unit)
    total = torch.cat([none.new_zeros(1), (cells.left + cells.right).cumsum(0)])
    # Twice: the rounded places of the panels beside it count too.
    hidden = 2 * torch.maximum(hidden, total[j] - total[i])
    # Cells next to each other see the same singularity: the highest speaks for it.
    one = (highest > GROWTH * beside).nonzero()[:, 0]
    if not len(one):
        return none, none, none
    apart = spot[one].diff() > 64 * unit[one][1:]
    group = torch.cat([one.new_zeros(1), apart.to(one).cumsum(0)])
    top = none.new_zeros(int(group[-1]) + 1)
    top = top.scatter_reduce(0, group, highest[one], "amax")
    one, group = (x[highest[one] == top[group]] for x in (one, group))
    one = one[torch.cat([group.new_ones(1), group.diff()]) > 0]
    return spot[one], place[one], hidden[one]


def adapt(
    density: Density,
    lower: float,
    upper: float,
    around: Sequence[float],
    floor: float,
    eps: float,
) -> Panels:
    r"""Cut panels until Gauss rules on each and on its two parts agree.

    The error that a panel may have is 16 `eps` times the mass up to and including it,
    from the nearer end, or `floor` times the whole mass in place of that mass, if it is
    more. It may also be what the round-off of places causes, :math:`\mathrm{eps}\,|x|`
    times the variation of the density in the panel. Where the density outgrows the
    places, `hidden` bounds the missing mass. A panel is cut until its own nodes come
    within half of the highest value ever found in it: so a peak that one node hit is
    not lost by the nodes of the parts.

    Parameters
    ----------
    density : callable
        Places of any shape -> values of that shape, finite and >= 0.
    lower, upper : float
        The interval.
    around : sequence of float
        Places in it towards which panels shrink from the start.
    floor : float
        The smallest share of the mass that matters.
    eps : float
        Round-off of places and values.

    Returns
    -------
    Panels
        At most about 2^18. If these are too few, `errors` say what is missing.
    """
    ends = _graded(lower, upper, around)
    start, stop = ends[:-1], ends[1:]
    whole, values = rule(density, start, stop)
    high, at = values.max(1)
    where = start + (stop - start) * gauss_legendre(NODES)[0][at]
    cells = _cells(density, start, stop, whole, high, where)
    while True:
        mass = cells.left + cells.right
        below = mass.cumsum(0)
        above = mass.flip(0).cumsum(0).flip(0)
        nearer = torch.minimum(below, above).clamp_min(floor * float(below[-1]))
        places = eps * cells.reach * (cells.high - cells.low)
        # One value, or one close to an end, says nothing of the variation: a
        # singularity beside it would excuse itself.
        inside = eps * cells.reach * cells.spread
        allowed = torch.maximum(TOLERANCE * eps * nearer, inside)
        width = cells.stop - cells.start
        lost = (cells.peak > 2 * cells.high) & (cells.peak * width > allowed)
        split = ((cells.error > allowed) | lost) & (width > PLACE * eps * cells.reach)
        count = int(split.sum())
        if not count or len(split) + count > MAX_PANELS:
            break
        cells = cells.part(~split).join(cells.part(split).parts(density))
    most = torch.maximum(cells.error, cells.peak * width)
    error = torch.where(lost, most, cells.error)
    # In panels of a few last places all rules see the same few values, and agree.
    blind = width <= 4 * PLACE * eps * cells.reach
    unfit = (cells.error > TOLERANCE * eps * nearer) | lost | blind
    return Panels(
        torch.cat([_woven(cells.start, cells.middle), cells.stop[-1:]]),
        _woven(cells.left, cells.right),
        (0.5 * error).repeat_interleave(2),
        (0.5 * places).repeat_interleave(2),
        *_hidden(density, cells, unfit, eps),
    )
