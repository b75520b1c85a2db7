"""L-BFGS in a given inner product, with an objective that falls by construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite

__all__ = ["Memory", "Outcome", "Point", "Space", "last_places", "minimise"]

# Most trials of a line search, and Armijo's constant.
MAX_HALVINGS = 30
DECREASE = 1e-4
# Evaluations without progress after which a descent ends. Near a stiff minimum in
# float32 only the gradient shows progress, and it does not fall at each evaluation: 25
# are too few there.
PATIENCE = 40
# A descent has stalled if for the share SLOW of the budget the gradient does not halve,
# and the objective falls by at most SHARE of its whole fall.
SLOW = 0.25
SHARE = 1e-2
# A descent is among kinks if four things hold. In WINDOW evaluations the objective
# falls by at most LITTLE of its whole fall. The least gradient g does not fall to KEPT
# of itself. |g|^2 / 2 is at most PROMISED of the whole fall: the sum of |u|^2 / 2 and
# a convex function lies at most so high above its minimum. And the stiffness |change of
# the gradient| / |step| grows: half of the steps see GROWTH times the largest one
# before. Among kinks the gradient jumps however short a step is. A smooth objective
# meets its stiff directions first.
WINDOW = 8
LITTLE = 1e-4
KEPT = 0.6
PROMISED = 1e-3
GROWTH = 1.5
# Multiples of the golden ratio, modulo 1, are spread evenly and without period.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Point:
    """The objective, its gradient and the norm of the gradient at one place.

    A subclass adds the place itself.
    """

    objective: float
    gradient: Tensor
    size: float


P = TypeVar("P", bound=Point)
Inner = Callable[[Tensor, Tensor], Tensor]


class Space(Protocol[P]):
    """The space of an objective: its inner product and its moves."""

    def inner(self, u: Tensor, v: Tensor, /) -> Tensor:
        """Return the scalar product of two vectors, 0-d."""

    def norm(self, u: Tensor, /) -> float:
        """Return the length of a vector."""

    def move(self, point: P, vector: Tensor, length: float, /) -> P:
        """Return the point at the end of a vector times a length.

        Raises `Diverged` or `NonFinite` if there is no such point.
        """

    def difference(self, start: P, end: P, /) -> Tensor:
        """Return the vector from one point to another."""

    def unit(self, point: P, /) -> Tensor:
        """Return a vector of one unit in the last place of each coordinate."""


class Pair(NamedTuple):
    """A step, the change of the gradient along it, and their products."""

    step: Tensor
    change: Tensor
    curvature: float  # <step, change>
    square: float  # |change|^2
    stiffness: float  # |change| / |step|


@dataclass(frozen=True)
class Memory:
    """The last steps and changes of the gradient, which approximate the curvature."""

    pairs: tuple[Pair, ...] = ()
    size: int = 10

    @property
    def stiffness(self) -> float:
        """The largest curvature seen, at least 1, the curvature of |u|^2 / 2."""
        return max([1.0, *(pair.stiffness for pair in self.pairs)])

    def add(self, inner: Inner, s: Tensor, y: Tensor) -> Memory:
        """Return the memory with a pair added if its curvature is safely positive."""
        curvature, length = float(inner(s, y)), float(inner(s, s))
        square = float(inner(y, y))
        # The squares of a short step may underflow.
        if not curvature > 1e-10 * length or not min(length, square) > 0:
            return self
        pair = Pair(s, y, curvature, square, (square / length) ** 0.5)
        return replace(self, pairs=(*self.pairs, pair)[-self.size :])

    def anew(self, inner: Inner) -> Memory:
        """Return the same pairs in another inner product."""
        memory = Memory(size=self.size)
        for pair in self.pairs:
            memory = memory.add(inner, pair.step, pair.change)
        return memory

    def empty(self) -> Memory:
        """Return the memory without pairs."""
        return replace(self, pairs=())

    def direction(self, inner: Inner, gradient: Tensor) -> Tensor:
        """Return minus the approximate inverse Hessian times the gradient.

        The two-loop recursion :cite:p:`nocedal2006numerical`. Without pairs the
        approximate Hessian is the identity.
        """
        if not self.pairs:
            return -gradient
        q, shares = gradient, []
        for pair in reversed(self.pairs):
            shares.append(inner(pair.step, q) / pair.curvature)
            q = q - shares[-1] * pair.change
        # The curvature along the last step scales the first guess of the Hessian.
        last = self.pairs[-1]
        q = q * (last.curvature / last.square)
        for pair, share in zip(self.pairs, reversed(shares), strict=True):
            q = q + (share - inner(pair.change, q) / pair.curvature) * pair.step
        return -q


@dataclass(frozen=True)
class Outcome(Generic[P]):
    """The end of a descent: point, curvature pairs, evaluations and success."""

    point: P
    memory: Memory
    used: int
    converged: bool
    stalled: bool = False  # the objective and its gradient stopped falling


def last_places(x: Tensor) -> Tensor:
    """Return a unit in the last place of each entry, with signs without a pattern."""
    count = torch.arange(1, x.numel() + 1, device=x.device, dtype=torch.float64)
    sign = ((count * GOLDEN) % 1.0 < 0.5).to(x.dtype).reshape(x.shape) * 2 - 1
    return torch.finfo(x.dtype).eps * x.abs() * sign


def beside(space: Space[P], point: P, most: int = 1) -> list[P]:
    """Return the points 1, ..., `most` units in the last place away, on either side.

    The objective and its gradient are not known better in the dtype than their
    differences at these points. A point where they are not finite is left out.
    """
    unit, found = space.unit(point), []
    for side in (k * sign for k in range(1, most + 1) for sign in (1.0, -1.0)):
        try:
            found.append(space.move(point, unit, side))
        except (Diverged, NonFinite):
            continue
    return found


def minimise(
    space: Space[P],
    start: P,
    memory: Memory,
    *,
    converged: Callable[[P], bool],
    budget: int,
    curved: bool = False,
) -> Outcome[P]:
    """Descend from `start` until `converged`, within a budget of evaluations.

    The objective rises at most by its round-off. The descent has stalled and ends in
    three cases: objective and gradient do not fall for `PATIENCE` evaluations, as at
    round-off; both hardly fall for a share of the budget; or, if the objective is
    `curved` like |u|^2 / 2 at the least, they hardly fall for `WINDOW` evaluations
    while the stiffness grows, as among kinks. The curvature bounds what is left to win
    by the gradient. The descent then ends at the point of least gradient among those
    of least objective.
    """
    point, used, done, stuck = start, 0, converged(start), False
    watch = _Watch(start, budget, curved=curved)
    while not done and used < budget:
        direction = memory.direction(space.inner, point.gradient)
        slope = float(space.inner(point.gradient, direction))
        # Round-off may turn the direction uphill; steepest descent never does.
        if not slope < 0:
            memory = memory.empty()
            direction = -point.gradient
            slope = -float(space.inner(direction, direction))
        found, trials = _search(space, point, direction, slope, budget - used, watch)
        used += trials
        if found is None:
            if not memory.pairs and watch.noise is None and used + 4 < budget:
                # Terms of F that cancel make the objective rougher than the round-off
                # of its size: neighbours measure how rough. At two of them it may be
                # equal by chance.
                near = beside(space, point, most=2)
                rough = [abs(p.objective - point.objective) for p in near]
                # Few places show about half of the range of such differences.
                watch.noise, used = 4 * max(rough, default=0.0), used + 4
            elif not memory.pairs:
                stuck = True
                break
            memory = memory.empty()
            continue
        done = converged(found)
        # A step that ends the descent confirms its model: its pair adds nothing.
        if not done:
            step = space.difference(point, found)
            longer = memory.add(space.inner, step, found.gradient - point.gradient)
            if longer is not memory:
                watch.stiffness.append((used, longer.pairs[-1].stiffness))
            memory = longer
        point = found
        if not done and watch.has_stalled(point, used):
            stuck = True
            break
    if stuck:
        point, done = watch.best, converged(watch.best)
    return Outcome(point, memory, used, done, stuck and used < budget and not done)


class _Watch(Generic[P]):
    """Remembers the least objective and gradient, and when each fell last."""

    def __init__(self, start: P, budget: int, *, curved: bool) -> None:
        self.curved = curved
        self.first = self.mark = self.least = start.objective
        self.best, self.half = start, start.size
        self.noise: float | None = None  # of the objective, once it is measured
        self.fell = self.smaller = self.halved = 0
        self.slow = max(PATIENCE, int(SLOW * budget))
        self.falls = [(0, start.objective)]
        self.least_size = start.size
        self.sizes = [(0, start.size)]
        self.stiffness: list[tuple[int, float]] = []  # of the pairs, as they are met

    def has_stalled(self, point: P, used: int) -> bool:
        """Note a point; return whether there was no progress for too long."""
        self.least = min(self.least, point.objective)
        self.falls.append((used, self.least))
        self.least_size = min(self.least_size, point.size)
        self.sizes.append((used, self.least_size))
        if self.mark - self.least > _noise(point):
            self.mark, self.fell = self.least, used
        if point.size < 0.9 * self.best.size:
            self.smaller = used
        if point.size <= 0.5 * self.half:
            self.half, self.halved = point.size, used
        high = self.best.objective > self.least + _noise(point)
        if point.size < self.best.size or high:
            self.best = point
        if used - max(self.fell, self.smaller) >= PATIENCE:
            return True
        if self.curved and self._is_among_kinks(used):
            return True
        # At a kink the gradient stays while the falls of the objective shrink.
        if used - self.halved < self.slow:
            return False
        before = _at(self.falls, used - self.slow)
        return before - self.least <= SHARE * (self.first - self.least)

    def _is_among_kinks(self, used: int) -> bool:
        """Return whether the stiffness grows where little is left to win."""
        then = used - WINDOW
        whole = self.first - self.least
        if not _at(self.falls, then) - self.least <= LITTLE * whole:
            return False
        if not 0.5 * self.least_size**2 <= PROMISED * whole:
            return False
        if self.least_size <= KEPT * _at(self.sizes, then):
            return False
        before = [stiff for k, stiff in self.stiffness if k <= then]
        within = sorted(stiff for k, stiff in self.stiffness if k > then)
        if not before or len(within) < 2:
            return False
        return within[len(within) // 2] >= GROWTH * max(1.0, *before)


def _at(record: list[tuple[int, float]], used: int) -> float:
    """Return what was recorded last at or before a number of evaluations."""
    return next((x for k, x in reversed(record) if k <= used), record[0][1])


def _noise(point: Point) -> float:
    """Return the round-off of the objective."""
    return 8 * torch.finfo(point.gradient.dtype).eps * abs(point.objective)


def _search(
    space: Space[P],
    point: P,
    direction: Tensor,
    slope: float,
    budget: int,
    watch: _Watch[P],
) -> tuple[P | None, int]:
    """Backtrack until the objective falls enough; None if it never does."""
    # Close to the minimum the decrease drowns in round-off. Then a smaller slope along
    # the direction, at an equal objective, is progress (the approximate Wolfe
    # conditions). The comparison with the least objective so far keeps the rises of
    # such steps from adding up.
    noise, least = max(_noise(point), watch.noise or 0.0), watch.least
    length, shortest = 1.0, 0.0
    for trial in range(1, min(MAX_HALVINGS, budget) + 1):
        if trial == 2:
            # A step within the round-off of the points does not move them.
            whole = space.norm(direction)
            shortest = 0.5 * space.norm(space.unit(point)) / max(whole, 1e-300)
        if length <= shortest:
            return None, trial - 1
        try:
            found = space.move(point, direction, length)
        except (Diverged, NonFinite):
            length *= 0.25
            continue
        if found.objective <= point.objective + DECREASE * length * slope:
            return found, trial
        if found.objective <= min(point.objective, least + noise) + noise:
            after = float(space.inner(found.gradient, direction))
            if abs(after) <= 0.9 * abs(slope):
                return found, trial
        # The minimiser of the parabola through both values and the slope, limited to
        # the range 0.1 to 0.5 of the trial.
        rise = found.objective - point.objective - length * slope
        guess = -0.5 * slope * length**2 / rise if rise > 0 else 0.5 * length
        length = min(max(guess, 0.1 * length), 0.5 * length)
    return None, min(MAX_HALVINGS, budget)
