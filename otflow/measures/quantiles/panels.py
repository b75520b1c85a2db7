"""Integrals of a density over an interval, on panels that are cut where needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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

Density = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Panels:
    """Masses (n,) of panels between their ends (n + 1,), and what they are known to.

    `errors` are the differences of Gauss rules on a panel and on its two parts;
    `places` what is left open by the round-off of the places alone.
    """

    ends: Tensor
    masses: Tensor
    errors: Tensor
    places: Tensor

    def mirrored(self) -> Panels:
        """Return the same panels from above, of the density at -x."""
        errors, places = self.errors.flip(0), self.places.flip(0)
        return Panels(-self.ends.flip(0), self.masses.flip(0), errors, places)


def _gauss() -> tuple[Tensor, Tensor]:
    """Return nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy(0.5 * (nodes + 1.0)), torch.from_numpy(0.5 * weights)


def rule(density: Density, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Return Gauss integrals from `start` to `stop`, (m,), and the values, (m, 8)."""
    t, a = _gauss()
    width = stop - start
    values = density(start[:, None] + width[:, None] * t)
    return width * (values @ a), values


def _end_weights() -> Tensor:
    """Return the weights with which the nodes extrapolate to END."""
    t = _gauss()[0]
    factors = (END - t[None]) / (t[:, None] - t[None]).fill_diagonal_(1.0)
    return factors.fill_diagonal_(1.0).prod(1)


@dataclass(frozen=True)
class _Cells:
    """Panels (m,), integrated as a whole and by two parts.

    `high` and `low` bound the values seen; `peak`, at `where`, is the highest value
    that was ever seen inside, by the panel or by those that it is a part of.
    """

    start: Tensor
    stop: Tensor
    left: Tensor
    right: Tensor
    error: Tensor
    high: Tensor
    low: Tensor
    peak: Tensor
    where: Tensor

    def part(self, chosen: Tensor) -> _Cells:
        return _Cells(*(x[chosen] for x in vars(self).values()))

    def join(self, other: _Cells) -> _Cells:
        """Return both, from left to right."""
        order = torch.cat([self.start, other.start]).argsort()
        mine, others = vars(self).values(), vars(other).values()
        pairs = zip(mine, others, strict=True)
        return _Cells(*(torch.cat([x, y])[order] for x, y in pairs))

    @property
    def reach(self) -> Tensor:
        return torch.maximum(self.start.abs(), self.stop.abs())

    @property
    def middle(self) -> Tensor:
        """Return where the parts meet."""
        return self.start + CUT * (self.stop - self.start)

    def parts(self, density: Density) -> _Cells:
        middle = self.middle
        peak, where = self.peak, self.where
        first = where <= middle
        return _cells(
            density,
            torch.stack([self.start, middle], 1).reshape(-1),
            torch.stack([middle, self.stop], 1).reshape(-1),
            torch.stack([self.left, self.right], 1).reshape(-1),
            torch.stack(
                [torch.where(first, peak, 0.0), torch.where(first, 0.0, peak)], 1
            ).reshape(-1),
            torch.stack([where, where], 1).reshape(-1),
        )


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
    t = _gauss()[0]
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


def adapt(
    density: Density,
    lower: float,
    upper: float,
    around: Sequence[float],
    floor: float,
    eps: float,
) -> Panels:
    r"""Cut panels until Gauss rules on each and on its two parts agree.

    A panel may be off by 16 `eps` times the mass up to and including it, from the
    nearer end, or `floor` times the whole mass if that is more; and by what the
    round-off of places leaves open, :math:`\mathrm{eps}\,|x|` times the variation of
    the density in it. A value that was seen is not forgotten: a panel is cut until
    its own nodes come within half of the highest value found in it, so that a peak
    that one node hit is not lost by the nodes of the parts.

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
        At most about 2^18; where so many do not do, `errors` say what is missing.
    """
    ends = _graded(lower, upper, around)
    start, stop = ends[:-1], ends[1:]
    whole, values = rule(density, start, stop)
    high, at = values.max(1)
    where = start + (stop - start) * _gauss()[0][at]
    cells = _cells(density, start, stop, whole, high, where)
    while True:
        mass = cells.left + cells.right
        below = mass.cumsum(0)
        above = mass.flip(0).cumsum(0).flip(0)
        nearer = torch.minimum(below, above).clamp_min(floor * float(below[-1]))
        places = eps * cells.reach * (cells.high - cells.low)
        allowed = torch.maximum(TOLERANCE * eps * nearer, places)
        width = cells.stop - cells.start
        lost = (cells.peak > 2 * cells.high) & (cells.peak * width > allowed)
        split = ((cells.error > allowed) | lost) & (width > PLACE * eps * cells.reach)
        count = int(split.sum())
        if not count or len(split) + count > MAX_PANELS:
            break
        cells = cells.part(~split).join(cells.part(split).parts(density))
    most = torch.maximum(cells.error, cells.peak * width)
    error = torch.where(lost, most, cells.error)
    return Panels(
        torch.cat(
            [torch.stack([cells.start, cells.middle], 1).reshape(-1), cells.stop[-1:]]
        ),
        torch.stack([cells.left, cells.right], 1).reshape(-1),
        (0.5 * error).repeat_interleave(2),
        (0.5 * places).repeat_interleave(2),
    )
