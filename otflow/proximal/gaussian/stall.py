"""When a descent of Newton's method has stalled, as among kinks."""

from __future__ import annotations

from otflow.proximal.gaussian.maps import norm
from otflow.proximal.gaussian.problem import Point

__all__ = ["Watch"]

# A descent is among kinks if three things hold in WINDOW iterations. The objective
# falls by at most LITTLE of its whole fall. The gradient does not fall to KEPT of
# itself. And it changes by JUMP of itself in half of the iterations, though these are
# so short: where a node crosses a kink the gradient jumps. A smooth objective may be
# flat for long; then its gradient stays.
WINDOW = 4
LITTLE = 1e-4
KEPT = 0.6
JUMP = 0.1


class Watch:
    """Remembers the objective, the least gradient and its changes, by iterations."""

    def __init__(self, start: Point) -> None:
        self.last = start
        self.objectives, self.sizes, self.jumps = [start.objective], [start.size], [0.0]

    def has_stalled(self, point: Point) -> bool:
        """Note the end of an iteration; return whether it is among kinks."""
        self.objectives.append(min(point.objective, self.objectives[-1]))
        self.sizes.append(min(point.size, self.sizes[-1]))
        self.jumps.append(norm(point.gradient - self.last.gradient))
        self.last = point
        if len(self.sizes) <= WINDOW:
            return False
        whole = self.objectives[0] - self.objectives[-1]
        fall = self.objectives[-1 - WINDOW] - self.objectives[-1]
        kept = self.sizes[-1] > KEPT * self.sizes[-1 - WINDOW]
        jumps = sum(jump > JUMP * point.size for jump in self.jumps[-WINDOW:])
        return kept and fall <= LITTLE * whole and 2 * jumps >= WINDOW
