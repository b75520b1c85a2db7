"""Minimise where W2 is flat: L-BFGS in the metric of the measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite
from otflow.measures import Measure

__all__ = ["Memory", "Outcome", "Point", "last_places", "minimise", "round_off"]

M = TypeVar("M", bound=Measure)

# Halvings of a trial step before the search gives up, and Armijo's constant.
MAX_HALVINGS = 30
DECREASE = 1e-4
# Evaluations without any progress before a descent ends. Gradients do not fall at each:
# where they alone tell, as in float32 close to a stiff minimum, 25 were too few.
PATIENCE = 40
# Share of the budget for which the gradient may stay as it is, while the objective
# falls by no more than a share of its whole fall.
SLOW = 0.25
SHARE = 1e-2
# Multiples of it, modulo 1, follow no pattern.
GOLDEN = 0.6180339887498949


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

    def stiffness(self, measure: Measure) -> float:
        """Return the largest curvature seen, at least 1: that of half a square."""
        seen = [float(measure.norm(y) / measure.norm(s)) for s, y in self.pairs]
        return max([1.0, *seen])

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


@dataclass(frozen=True)
class Outcome(Generic[M]):
    """Where a descent ended, what it knows, what it spent."""

    point: Point[M]
    memory: Memory
    used: int
    stalled: bool  # neither the objective nor its gradient fell any more


def last_places(x: Tensor) -> Tensor:
    """Return a unit in the last place of each entry, of signs without a pattern."""
    count = torch.arange(1, x.numel() + 1, device=x.device, dtype=torch.float64)
    sign = ((count * GOLDEN) % 1.0 < 0.5).to(x.dtype).reshape(x.shape) * 2 - 1
    return torch.finfo(x.dtype).eps * x.abs() * sign


def round_off(point: Point[M], evaluate: Evaluate[M]) -> float:
    """Return to what size the gradient at a point is known in its dtype.

    The gradient is taken anew where every coordinate is off by one unit in its last
    place: no number of this dtype determines it better. Two evaluations, with signs
    that follow no pattern of the atoms.
    """
    mu = point.measure
    unit = last_places(mu.points)
    sizes = [0.0]
    for side in (1.0, -1.0):
        try:
            beside = evaluate(mu.push(unit, side))
        except (Diverged, NonFinite):
            continue
        sizes.append(float(mu.norm(beside.gradient - point.gradient)))
    return max(sizes)


def _roughness(point: Point[M], evaluate: Evaluate[M]) -> float:
    """Return by how much the objective differs one unit in the last place away."""
    mu, found = point.measure, [0.0]
    for side in (1.0, -1.0):
        try:
            beside = evaluate(mu.push(last_places(mu.points), side))
        except (Diverged, NonFinite):
            continue
        found.append(abs(beside.objective - point.objective))
    return max(found)


def minimise(
    evaluate: Evaluate[M],
    start: Point[M],
    memory: Memory,
    *,
    converged: Callable[[Point[M]], bool],
    budget: int,
) -> Outcome[M]:
    """Descend from `start` until `converged`, within a budget of evaluations.

    The objective never increases but by its round-off. Where for `PATIENCE`
    evaluations neither it nor the gradient falls, as at round-off, or for a share of
    the budget both hardly do, as at a kink, the descent has stalled and ends, at the
    least gradient of the least objective. The caller asks `converged` again.
    """
    point, used = start, 0
    watch = _Watch(start, budget)
    while not converged(point) and used < budget:
        direction = memory.direction(point.measure, point.gradient)
        slope = float(point.measure.inner(point.gradient, direction))
        if not slope < 0:
            memory = replace(memory, pairs=())
            direction = -point.gradient
            slope = -float(point.measure.inner(direction, direction))
        found, trials = _search(evaluate, point, direction, slope, budget - used, watch)
        used += trials
        if found is None:
            if not memory.pairs and watch.noise == 0 and used + 2 < budget:
                # Terms that cancel make the objective rougher than its size tells.
                watch.noise, used = 2 * _roughness(point, evaluate), used + 2
            elif not memory.pairs:
                return Outcome(watch.best, memory, used, used < budget)
            memory = replace(memory, pairs=())
            continue
        step = point.measure.displacement_to(found.measure)
        memory = memory.add(point.measure, step, found.gradient - point.gradient)
        point = found
        if watch.has_stalled(point, used):
            return Outcome(watch.best, memory, used, not converged(watch.best))
    return Outcome(point, memory, used, False)


class _Watch(Generic[M]):
    """Keeps the least objective and gradient so far, and when they last fell."""

    def __init__(self, start: Point[M], budget: int) -> None:
        self.first = self.mark = self.least = start.objective
        self.best, self.size = start, _size(start)
        self.half, self.noise = self.size, 0.0
        self.fell = self.smaller = self.halved = 0
        self.slow = max(PATIENCE, int(SLOW * budget))
        self.falls = [(0, start.objective)]

    def has_stalled(self, point: Point[M], used: int) -> bool:
        """Take note of a point; say whether there was no progress for too long."""
        self.least = min(self.least, point.objective)
        self.falls.append((used, self.least))
        if self.mark - self.least > _noise(point):
            self.mark, self.fell = self.least, used
        size = _size(point)
        if size < 0.9 * self.size:
            self.smaller = used
        if size <= 0.5 * self.half:
            self.half, self.halved = size, used
        if size < self.size or self.best.objective > self.least + _noise(point):
            self.best, self.size = point, size
        if used - max(self.fell, self.smaller) >= PATIENCE:
            return True
        # At a kink the gradient stays while the falls of the objective shrink.
        if used - self.halved < self.slow:
            return False
        then = max(k for k, _ in self.falls if k <= used - self.slow)
        before = min(fall for k, fall in self.falls if k <= then)
        return before - self.least <= SHARE * (self.first - self.least)


def _size(point: Point[Any]) -> float:
    return float(point.measure.norm(point.gradient))


def _noise(point: Point[Any]) -> float:
    """Return the round-off of the objective."""
    return 8 * torch.finfo(point.measure.dtype).eps * abs(point.objective)


def _search(
    evaluate: Evaluate[M],
    point: Point[M],
    direction: Tensor,
    slope: float,
    budget: int,
    watch: _Watch[M],
) -> tuple[Point[M] | None, int]:
    """Backtrack until the objective falls enough; None if it never does."""
    mu = point.measure
    # Close to the minimum a decrease drowns in round-off; there a smaller slope along
    # the direction, at an equal objective, is progress: the approximate conditions of
    # Wolfe. The least objective so far keeps such steps from adding up.
    noise, least = max(_noise(point), watch.noise), watch.least
    # A step within the round-off of the points goes nowhere.
    whole = float(mu.norm(direction))
    still = 0.5 * torch.finfo(mu.dtype).eps * float(mu.norm(mu.points))
    length = 1.0
    for trial in range(1, min(MAX_HALVINGS, budget) + 1):
        if length * whole <= still and trial > 1:
            return None, trial - 1
        try:
            found = evaluate(mu.push(direction, length))
        except (Diverged, NonFinite):
            length *= 0.25
            continue
        if found.objective <= point.objective + DECREASE * length * slope:
            return found, trial
        if found.objective <= min(point.objective, least + noise) + noise:
            after = float(mu.inner(found.gradient, direction))
            if abs(after) <= 0.9 * abs(slope):
                return found, trial
        # The minimiser of the parabola through both values and the slope, kept in
        # [0.1, 0.5] of the trial.
        rise = found.objective - point.objective - length * slope
        guess = -0.5 * slope * length**2 / rise if rise > 0 else 0.5 * length
        length = min(max(guess, 0.1 * length), 0.5 * length)
    return None, min(MAX_HALVINGS, budget)
