"""The descent of a JKO step: to a small gradient, and off kinks that hide one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite
from otflow.measures import Measure
from otflow.numerics.lbfgs import Memory, Outcome, beside, minimise
from otflow.proximal.tangent_objective import Objective, Place

__all__ = ["Descent", "Warm", "descend"]

M = TypeVar("M", bound=Measure)

# A stalled descent has converged if its gradient is at most KNOWN times its own error.
# The error is measured at two points only, and so is itself known to a factor.
KNOWN = 3.0


@dataclass(frozen=True)
class Descent(Outcome[Place[M]]):
    """Where a descent ended, and the error of the gradient there."""

    known: float = 0.0


def descend(
    objective: Objective[M],
    start: Place[M],
    memory: Memory,
    tolerance: float,
    budget: int,
) -> Descent[M]:
    """Descend until the gradient is small, or is within its own error."""

    def converged(point: Place[M]) -> bool:
        goal = tolerance * point.moved
        if point.size <= goal:
            return True
        # Only the part of the gradient that rounding does not explain counts. It is
        # taken coordinate by coordinate: the large round-off of a far atom must not
        # let the other atoms stop.
        excess = (point.gradient.abs() - objective.places(point)).clamp_min(0.0)
        return objective.norm(excess) <= goal

    end = minimise(
        objective, start, memory, converged=converged, budget=budget, curved=True
    )
    while end.converged and budget - end.used > 3:
        tried, beyond = _off_false_zeros(objective, end.point)
        end = replace(end, used=end.used + tried)
        if beyond is None:
            break
        left = budget - end.used
        lower = minimise(
            objective,
            beyond,
            memory.empty(),
            converged=converged,
            budget=left,
            curved=True,
        )
        if not lower.point.objective < end.point.objective:
            break
        end = replace(lower, used=end.used + lower.used)
    point, used, known, settled = end.point, end.used, 0.0, end.converged
    if end.stalled:
        # The descent is at a kink, or the gradient is at its error. The change of the
        # gradient under one unit in the last place of each coordinate tells which.
        near = beside(objective, point)
        gaps = [objective.norm(p.gradient - point.gradient) for p in near]
        known, used = max(gaps, default=0.0), used + 2
        settled = point.size <= KNOWN * known
    # Round-off of the points enters the gradient times the curvature.
    known = max(known, objective.floor(point) * end.memory.stiffness)
    away = end.stalled and not settled
    # Pairs across kinks are no curvature: the next step would crawl with them.
    memory = end.memory.empty() if away else end.memory
    return Descent(point, memory, used, settled, away, known)


def _off_false_zeros(
    objective: Objective[M], point: Place[M]
) -> tuple[int, Place[M] | None]:
    """Return the place beside kinks where the derivative 0 is false, or None.

    At a kink automatic differentiation may return 0 where no subgradient is 0. So it
    does for relu(x) - relu(-x) / 2 at 0, whose slopes are 1 and 1/2: a coordinate that
    starts there never moves. The slopes beside such a kink are of one sign. The first
    number counts the evaluations.
    """
    still = point.displacement == 0
    if not bool(still.any()):
        return 0, None
    info = torch.finfo(point.gradient.dtype)
    sizes = point.measure.magnitudes(point.displacement)
    size = max(float(sizes.max()), info.tiny**0.5)
    step = still.to(point.gradient.dtype) * (info.eps * size)
    beside = []
    try:
        for side in (1.0, -1.0):
            beside.append(objective.move(point, step, side).gradient)
            still = still & (beside[-1].abs() > info.eps**0.5 * size)
            still = still & (beside[-1] * beside[0] > 0)
            if not bool(still.any()):
                return len(beside), None
        downhill = -step * beside[0].sign() * still
        return 3, objective.move(point, downhill, 1.0)
    except (Diverged, NonFinite):
        return len(beside) + 1, None


@dataclass(frozen=True)
class Warm:
    """Curvature pairs of the step before, for a step of the same dt and shape."""

    memory: Memory
    dt: float
    weights: tuple[Tensor, ...]

    def fit(self, objective: Objective[Any], start: Place[Any]) -> Memory | None:
        """Return the pairs in the product of another step, None if they do not fit.

        They fit only if tangents are flat. Elsewhere the tangents of two measures are
        no vectors of one space.
        """
        pairs, mu, like = self.memory.pairs, objective.source, start.gradient
        if not (mu.flat and self.dt == objective.dt and pairs):
            return None
        s = pairs[0].step
        if (s.shape, s.dtype, s.device) != (like.shape, like.dtype, like.device):
            return None
        then, now = self.weights, mu.constants()
        same = len(then) == len(now) and all(map(torch.equal, then, now))
        return self.memory if same else self.memory.anew(objective.inner)
