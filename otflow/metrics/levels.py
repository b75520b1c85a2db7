"""Values of distribution functions on the line, exact in both tails."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Levels", "snapped"]


@dataclass(frozen=True)
class Levels:
    """Values of a distribution function, exact in both tails, increasing.

    A level s <= 1/2 is the pair (0, s), a higher level the pair (1, s - 1). So a mass
    of 1e-30 at the upper end keeps its digits, which 1 - 1e-30 would lose.
    """

    side: Tensor
    value: Tensor

    @classmethod
    def of(cls, masses: Tensor) -> Levels:
        """Return the levels at the ends of cells of these masses, (n + 1,)."""
        zero = masses.new_zeros(1)
        below = torch.cat([zero, masses.cumsum(0)])
        above = torch.cat([masses.flip(0).cumsum(0).flip(0), zero])
        upper = below > 0.5
        upper[0], upper[-1] = False, True
        return cls(upper.double(), torch.where(upper, -above, below))

    def at(self, index: Tensor) -> Levels:
        """Return the levels at these indices."""
        return Levels(self.side[index], self.value[index])

    def above(self, other: Levels) -> Tensor:
        """Return these levels minus the others."""
        return (self.value - other.value) + (self.side - other.side)

    def inner(self) -> Levels:
        """Return all levels but 0 and 1."""
        return Levels(self.side[1:-1], self.value[1:-1])

    def within(self, whole: Levels) -> Levels:
        """Return inner levels with both ends of others, 0 and 1."""
        ends = (slice(None, 1), slice(-1, None))
        first, last = (Levels(whole.side[e], whole.value[e]) for e in ends)
        return Levels(
            torch.cat([first.side, self.side, last.side]),
            torch.cat([first.value, self.value, last.value]),
        )

    def steps(self) -> Tensor:
        """Return the masses between neighbouring levels."""
        return self.value.diff() + self.side.diff()

    def ranks(self) -> Tensor:
        """Return the indices of sorted levels without those equal to one before."""
        rises = self.steps() > 0
        return torch.cat([rises.new_ones(1), rises]).nonzero()[:, 0]

    def merged(self, other: Levels) -> tuple[Levels, Tensor]:
        """Return both sorted, and the order; at ties these levels go first."""
        both = Levels(
            torch.cat([self.side, other.side]), torch.cat([self.value, other.value])
        )
        order = both.value.argsort(stable=True)
        order = order[both.side[order].argsort(stable=True)]
        return both.at(order), order


def snapped(levels: Levels, marks: Levels) -> Levels:
    """Replace inner levels that equal a mark up to round-off by the mark.

    A level is a sum of positive masses, so its error is relative to the mass below or
    above.
    """
    tolerance = (len(levels.side) + len(marks.side)) * torch.finfo(torch.float64).eps
    low = int((marks.side == 0).sum())
    place = torch.where(
        levels.side == 0,
        torch.searchsorted(marks.value[:low], levels.value),
        low + torch.searchsorted(marks.value[low:], levels.value),
    )
    side, value = levels.side.clone(), levels.value.clone()
    nearest = torch.full_like(value, torch.inf)
    for mark in ((place - 1).clamp_min(0), place.clamp_max(len(marks.side) - 1)):
        target = marks.at(mark)
        apart = target.above(levels).abs()
        size = torch.maximum(target.value.abs(), levels.value.abs())
        meets = (apart <= tolerance * size) & (apart < nearest)
        side = torch.where(meets, target.side, side)
        value = torch.where(meets, target.value, value)
        nearest = torch.where(meets, apart, nearest)
    # Both ends are 0 and 1 for every measure.
    for new, old in ((side, levels.side), (value, levels.value)):
        new[0], new[-1] = old[0], old[-1]
    return Levels(side, value)
