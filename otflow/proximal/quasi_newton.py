"""Minimise where W2 is flat: L-BFGS in the metric of the measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite
from otflow.measures import Measure

__all__ = ["Memory", "Point", "minimise"]

M = TypeVar("M", bound=Measure)

# Halvings of a trial step before the search gives up, and Armijo's constant.
MAX_HALVINGS = 30
DECREASE = 1e-4


@dataclass(frozen=True)
class Point(Generic[M]):
    """A measure with the objective's value and gradient there."""

    measure: M
    energy: float  # F
    objective: float  # dt F + half the transport cost
    gradient: Tensor  # of the objective, a tangent: displacement - dt velocity
    displacement: Tensor  # from the centre
    velocity: Tensor  # of the functional's flow


Evaluate = Callable[[M], Point[M]]


@dataclass(frozen=True)
class Memory:
    """The last steps and gradient changes: what L-BFGS knows of the curvature."""

    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    size: int = 10

    def add(self, measure: Measure, s: Tensor, y: Tensor) -> Memory:
        """Append a pair if its curvature is safely positive."""
        curvature = float(measure.inner(s, y))
        if not curvature > 1e-10 * float(measure.inner(s, s)):
            return self
        return replace(self, pairs=(*self.pairs, (s, y))[-self.size :])

    def direction(self, measure: Measure, gradient: Tensor) -> Tensor:
        """Return minus the approximate inverse Hessian times the gradient.

        The two-loop recursion in the measure's inner product. The Hessian is the
        identity plus dt Hess F, so the identity is its own first guess.
        """
        q, kept = gradient, []
        for s, y in reversed(self.pairs):
            curvature = measure.inner(s, y)
            if not float(curvature) > 0:  # the weights have changed since
                continue
            alpha = measure.inner(s, q) / curvature
            q = q - alpha * y
            kept.append((s, y, curvature, alpha))
        if kept:
            s, y, curvature, _ = kept[0]
            q = q * (curvature / measure.inner(y, y))
        for s, y, curvature, alpha in reversed(kept):
            q = q + (alpha - measure.inner(y, q) / curvature) * s
        return -q


def minimise(
    evaluate: Evaluate[M],
    start: Point[M],
    memory: Memory,
    *,
    converged: Callable[[Point[M]], bool],
    budget: int,
) -> tuple[Point[M], Memory, int]:
    """Descend from `start` until `converged`, within a budget of evaluations.

    The objective never increases. Returns the last point, the memory, and the number
    of evaluations; the caller asks `converged` again.
    """
    point, used = start, 0
    while not converged(point) and used < budget:
        direction = memory.direction(point.measure, point.gradient)
        slope = float(point.measure.inner(point.gradient, direction))
        if not slope < 0:
            memory = replace(memory, pairs=())
            direction = -point.gradient
            slope = -float(point.measure.inner(direction, direction))
        found, trials = _search(evaluate, point, direction, slope, budget - used)
        used += trials
        if found is None:
            if not memory.pairs:
                break
            memory = replace(memory, pairs=())
            continue
        step = point.measure.displacement_to(found.measure)
        memory = memory.add(point.measure, step, found.gradient - point.gradient)
        point = found
    return point, memory, used


def _search(
    evaluate: Evaluate[M],
    point: Point[M],
    direction: Tensor,
    slope: float,
    budget: int,
) -> tuple[Point[M] | None, int]:
    """Backtrack until the objective falls enough; None if it never does."""
    mu = point.measure
    # Close to the minimum a decrease drowns in round-off; there a smaller gradient at
    # an equal objective is progress.
    noise = 8 * torch.finfo(mu.dtype).eps * abs(point.objective)
    size = float(mu.inner(point.gradient, point.gradient))
    length = 1.0
    for trial in range(1, min(MAX_HALVINGS, budget) + 1):
        try:
            found = evaluate(mu.push(direction, length))
        except (Diverged, NonFinite):
            length *= 0.25
            continue
        if found.objective <= point.objective + DECREASE * length * slope:
            return found, trial
        if found.objective <= point.objective + noise:
            after = float(mu.inner(found.gradient, found.gradient))
            if after < 0.9 * size:
                return found, trial
        # The minimiser of the parabola through both values and the slope, kept in
        # [0.1, 0.5] of the trial.
        rise = found.objective - point.objective - length * slope
        guess = -0.5 * slope * length**2 / rise if rise > 0 else 0.5 * length
        length = min(max(guess, 0.1 * length), 0.5 * length)
    return None, min(MAX_HALVINGS, budget)
