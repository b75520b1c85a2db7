"""When a descent over quantiles has stalled, as at a kink."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from otflow.proximal.quantiles.objective import Expansion, Objective

__all__ = ["Watch"]

# The descent has stalled, as at a kink, if for this share of the budget neither the
# gradient nor the complementarity gap halves, and the objective falls by less than
# SHARE of its whole fall.
SLOW = 0.5
SHARE = 1e-2
# A descent is among kinks if three things hold in WINDOW evaluations. The objective
# falls by at most LITTLE of its whole fall, the decrement does not fall to KEPT of
# itself, and in half of the steps the gradient changes by JUMP of itself, though these
# are so short: it jumps where a quantile crosses a kink.
WINDOW = 12
LITTLE = 1e-4
KEPT = 0.6
JUMP = 0.1


class State(Protocol):
    """What a descent tells of a place: the point, the decrement, the gap, the force."""

    problem: Objective
    point: Expansion
    residual: float
    lost: float
    rest: Tensor
    barrier: float

    @property
    def noise(self) -> float:
        """Round-off of the merit."""


class Watch:
    """Remembers when the descent last made progress."""

    def __init__(self, start: State, budget: int) -> None:
        self.first = self.objective = start.point.objective
        self.residual, self.lost = start.residual, start.lost
        self.slow, self.last = max(25.0, SLOW * budget), 0
        self.before = start
        self.past = [(1, self.objective, self.residual, False)]

    def has_stalled(self, state: State, used: int) -> bool:
        """Note a state; return whether there was no progress for too long."""
        objective = state.point.objective
        if self._is_among_kinks(state, used):
            return True
        enough = SHARE * (self.first - objective) + state.noise
        # A fall within round-off is no progress, nor is one that is small beside the
        # whole.
        better = objective < self.objective - enough
        if better or state.residual <= 0.5 * self.residual:
            self.last = used
        if self.last == used or state.lost < 0.5 * self.lost:
            self.objective = min(self.objective, objective)
            self.residual = min(self.residual, state.residual)
            self.lost, self.last = min(self.lost, state.lost), used
        return used - self.last >= self.slow

    def _is_among_kinks(self, state: State, used: int) -> bool:
        """Note a state; return whether the gradient jumps and nothing else moves."""
        root = state.problem.lumped.rsqrt()
        change = float((root * (state.rest - self.before.rest)).norm())
        jump = change > JUMP * float((root * state.rest).norm())
        self.before, (_, low, least, _) = state, self.past[-1]
        objective = min(low, state.point.objective)
        self.past.append((used, objective, min(least, state.residual), jump))
        # A barrier moves the gradient too. Cells without an energy may become atoms,
        # and then the descent goes on until it says so. Where V is concave, quantiles
        # may stay long on a smooth hill.
        band, lumped = state.point.band, state.problem.lumped
        curved = bool((band.springs > 0).any() and (band.rows > 0.99 * lumped).all())
        if state.barrier or not curved or used <= WINDOW:
            return False
        then = next(row for row in reversed(self.past) if row[0] <= used - WINDOW)
        recent = [jump for k, _, _, jump in self.past if k > used - WINDOW]
        fall, whole = then[1] - objective, self.first - objective
        kept = self.past[-1][2] > KEPT * then[2]
        return kept and fall <= LITTLE * whole and 2 * sum(recent) >= len(recent) > 1
