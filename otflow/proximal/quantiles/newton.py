"""Minimise over quantiles: Newton's method, with a barrier below least gaps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite
from otflow.numerics.tridiagonal import Springs
from otflow.proximal.quantiles.objective import Expansion, Objective
from otflow.proximal.quantiles.step import Direction, Path, Room, direction, spread

__all__ = ["Solution", "minimise"]

# Evaluations whose round-off the gradient of a minimum may carry.
EVALUATIONS = 4.0
# Lengths, in widths and roots of the dtype's round-off, that it may hide at most: where
# quantiles merge it grows without end.
HIDDEN = 100.0
# Trials of one iteration; after so many cuts of a path the next one is damped more, by
# so large a factor, of which next to nothing is left in the end.
MAX_TRIALS = 40
MAX_CUTS = 3
DAMPEN = 4.0
LEAST_DAMPING = 0.1
# Share of the budget for which neither the gradient nor what the bounds lack may halve,
# nor the objective fall by a share of its whole fall, as at a kink.
SLOW = 0.5
SHARE = 1e-2
DECREASE = 1e-4
# A gap below so many units in the last place of its ends is an atom.
ATOM = 8
# Root of the complementarity gap, over the displacement: what bounds the distance; and
# over the width of the measure, where next to nothing moves.
COMPLEMENTARITY = 1e-6
REST = 1e-10
# The barrier shrinks by SHRINK once its decrement is below CENTRED times its size.
SHRINK = 0.03
CENTRED = 1.0
# Multipliers stay within this factor of those of the barrier.
SPREAD = 1e4


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped, and how well it meets the conditions of a minimum."""

    point: Expansion
    residual: float  # Newton decrement of the Lagrangian, the length of a displacement
    gap: float  # forces of the bounds times what is left to them
    bound: float | None  # on the lumped distance to the minimiser, where convex
    converged: bool
    stalled: bool  # neither the objective nor its gradient fell any more
    iterations: int


@dataclass
class _State:
    """Quantiles with the multipliers z of the least gaps, under a barrier."""

    problem: Objective
    room: Room
    point: Expansion
    slack: Tensor
    z: Tensor
    barrier: float

    def __post_init__(self) -> None:
        self.springs = self.z / self.slack
        self.band = self.point.chain(self.problem.lumped, self.springs)
        self.rest = self.point.gradient - spread(self.z)  # of the Lagrangian
        self.aim = self._local(self.rest)
        self.residual = _length(self.band, self.aim.step)
        self.lost = float(self.z @ self.slack) + self.aim.lost(
            self.room, self.point.edges
        )

    def _local(self, slope: Tensor) -> Direction:
        return direction(self.band, None, slope, self.point.edges, self.room)

    @property
    def slope(self) -> Tensor:
        """Gradient of objective and barrier."""
        return self.point.gradient - spread(self.pull / self.slack)

    @property
    def pull(self) -> Tensor:
        """Strength of the barrier of each cell, in proportion to its mass."""
        return self.barrier * self.problem.weights

    @property
    def merit(self) -> float:
        """Objective and barrier."""
        value = self.point.objective
        if self.barrier:
            value -= float(self.pull @ self.slack.log())
        return value

    @property
    def noise(self) -> float:
        """Round-off of the merit."""
        eps = torch.finfo(torch.float64).eps
        return self.point.noise + 16 * eps * abs(self.merit - self.point.objective)

    def decrement(self) -> float:
        """Return that of objective and barrier together."""
        return _length(self.band, self._local(self.slope).step)

    @property
    def floor(self) -> float:
        """Length that round-off may hide in the gradient; 0 if it may hide all."""
        # The floor is that of one evaluation; the iteration has met several.
        floor = EVALUATIONS * self.point.floor(self.band)
        # Round-off that hides more than that hides whether there is a minimum at all.
        eps = torch.finfo(self.problem.mu.dtype).eps
        moved = self.problem.norm(self.point.edges - self.problem.centre)
        width = float(self.point.edges[-1] - self.point.edges[0])
        return floor if floor <= HIDDEN * eps**0.5 * max(width, moved) else 0.0

    @property
    def drowned(self) -> bool:
        """Whether the gradient of the Lagrangian is but round-off."""
        return self.residual <= self.floor

    def settled(self, tolerance: float) -> bool:
        """Whether it is a minimum, to the tolerance or to round-off."""
        edges = self.point.edges
        moved = self.problem.norm(edges - self.problem.centre)
        width = float(edges[-1] - edges[0])
        place = 8 * torch.finfo(torch.float64).eps * float(edges.abs().max())
        lost = (COMPLEMENTARITY * moved + REST * width) ** 2
        lost += 2 * place * float(self.z.sum())
        return self.residual <= tolerance * moved + self.floor and self.lost <= lost

    def shrink(self) -> None:
        """Take a smaller barrier once this one's minimum is near."""
        if self.decrement() ** 2 <= CENTRED * self.barrier:
            self.barrier *= SHRINK

    def descend(self, budget: int, damping: float) -> tuple[_State | None, int, float]:
        """Backtrack along paths till the merit falls; None if it never does.

        Where a path must be cut short the model is wrong so far out: the next one has
        masses that weigh more, by `damping` times themselves, and is nearer.
        """
        slope, merit = self.slope, self.merit
        decrement, limit = self.decrement(), min(MAX_TRIALS, budget)
        path, fall = self._path(slope, damping)
        length, cuts = path.longest, 0
        # Cells that no energy keeps apart meet; there the path is cut, not the model
        # wrong.
        sprung = bool((self.point.band.springs > 0).any())
        for trial in range(1, limit + 1):
            found = self._at(*path(length), path.step, length)
            if found is None:
                length *= 0.25
                continue
            if found.merit <= merit + DECREASE * length * fall:
                if trial == 1:
                    damping = damping / DAMPEN if damping > LEAST_DAMPING else 0.0
                return found, trial, damping
            # Close to the minimum a decrease drowns in round-off; there a smaller
            # gradient is progress, and where that drowns too, a smaller gap of the
            # bounds.
            level = found.merit <= merit + self.noise
            nearer = found.decrement() < 0.9 * decrement
            tighter = found.drowned and self.drowned and found.lost < 0.9 * self.lost
            if level and (nearer or tighter):
                return found, trial, damping
            length *= 0.5
            cuts += sprung and not level  # round-off tells nothing of the model
            if cuts == MAX_CUTS:
                damping = max(1.0, DAMPEN * damping)
                path, fall = self._path(slope, damping)
                length, cuts = path.longest, 0
        return None, limit, damping

    def _path(self, slope: Tensor, damping: float) -> tuple[Path, float]:
        """Return a path that starts downhill, and how steep it is."""
        point, lumped = self.point, self.problem.lumped
        q, room = point.edges, self.room
        band = self.band
        if damping:
            band = Springs(band.rows + damping * lumped, band.springs)
        step = direction(band, point.product, slope, q, room).step
        fall = float(slope @ step)
        if not fall < 0:
            step = direction(band, None, slope, q, room).step
            fall = float(slope @ step)
        springs = point.band.springs
        path = Path(
            q, step, point.pressure, springs, self.springs, self.slack, room, lumped
        )
        return path, fall

    def _at(
        self, q: Tensor, slack: Tensor, step: Tensor, length: float
    ) -> _State | None:
        if not bool((slack > 0).all()):
            return None
        try:
            point = self.problem.expand(q, self.room.least + slack)
        except NonFinite:
            return None
        target = self.pull / self.slack
        z = self.z + length * (target - self.z - self.springs * step.diff())
        target = self.pull / slack
        z = torch.minimum(torch.maximum(z, target / SPREAD), target * SPREAD)
        return _State(self.problem, self.room, point, slack, z, self.barrier)


class _Watch:
    """Keeps when the descent last made progress."""

    def __init__(self, start: _State, budget: int) -> None:
        self.first = self.objective = start.point.objective
        self.residual, self.lost = start.residual, start.lost
        self.slow, self.last = max(25.0, SLOW * budget), 0

    def has_stalled(self, state: _State, used: int) -> bool:
        """Take note of a state; say whether there was no progress for too long."""
        objective = state.point.objective
        enough = SHARE * (self.first - objective) + state.noise
        better = objective < self.objective - enough
        if better or state.residual <= 0.5 * self.residual:
            self.last = used
        if self.last == used or state.lost < 0.5 * self.lost:
            self.objective = min(self.objective, objective)
            self.residual = min(self.residual, state.residual)
            self.lost, self.last = min(self.lost, state.lost), used
        return used - self.last >= self.slow


def minimise(problem: Objective, room: Room, tolerance: float, budget: int) -> Solution:
    r"""Descend by Newton's method, the gaps kept above their least values.

    A bound on the density is a least length of each cell, kept by a barrier
    :math:`-\theta\sum w_i\log s_i` of the gaps beyond it, with multipliers close to
    :math:`\theta w/s` :cite:p:`nocedal2006numerical`; :math:`\theta` shrinks each time
    that the minimum under it is near. Walls hold the two ends: each model is minimised
    between them. Objective and barrier together never increase but by round-off. Each
    iteration takes time O(n) plus that of the nonlocal terms.

    Parameters
    ----------
    problem : Objective
        What to minimise; the start is its centre.
    room : Room
        Where quantiles may be.
    tolerance : float
        Stop where the Newton decrement is below it times the displacement, or at
        round-off.
    budget : int
        Expansions to spend.

    Returns
    -------
    Solution
        The last point.
    """
    state, used, damping, stalled = _start(problem, room), 1, 0.0, False
    watch = _Watch(state, budget)
    while True:
        settled = state.settled(tolerance)
        if settled or used >= budget:
            break
        if state.barrier:
            state.shrink()
        found, trials, damping = state.descend(budget - used, damping)
        used += trials
        if found is None:
            stalled = used < budget
            break
        state = found
        if not room.bounded:
            _refuse_atoms(problem, state.point.edges)
        if watch.has_stalled(state, used):
            settled = state.settled(tolerance)
            stalled = not settled
            break
    return Solution(
        state.point, state.residual, state.lost, _bound(state), settled, stalled, used
    )


def _start(problem: Objective, room: Room) -> _State:
    """Return a state strictly inside: cells that are too short take room from others.

    They are blended with cells of equal density, which fit by assumption.
    """
    bounded, q = room.bounded, problem.centre
    slack = room.slacks(q)
    if bounded and bool((slack < 0.05 * room.least).any()):
        width, full = float(q[-1] - q[0]), float(room.least.sum())
        wide = min(max(width, 1.5 * full), room.upper - room.lower)
        even = problem.weights * (wide - full)
        # A density may exceed its bound by a tolerance.
        lack = (-slack / even).clamp_min(0).max()
        share = max(0.1, 2 * float(lack / (1 + lack)))
        gaps = room.least + (1 - share) * slack + share * even
        shift = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        q = shift + problem.lumped @ (q - shift)
        slack = gaps - room.least
    q, slack = room.inside(q, slack)
    same = torch.equal(q, problem.centre)
    point = problem.start if same else problem.expand(q, room.least + slack)
    start = _State(problem, room, point, slack, torch.zeros_like(slack), 0.0)
    if not bounded:
        return start
    width = float(q[-1] - q[0])
    barrier = max(start.residual**2, (REST * width) ** 2)
    z = barrier * problem.weights / slack
    return _State(problem, room, point, slack, z, barrier)


def _length(band: Springs, step: Tensor) -> float:
    """Return the length of a step in the metric of a band."""
    return math.sqrt(max(0.0, float(step @ band.times(step))))


def _bound(state: _State) -> float | None:
    r"""Return a bound on the lumped distance to the minimiser; None if not convex.

    For the displacement e to the minimiser, the Lagrangian's gradient g, the gap c and
    a symmetric :math:`\tilde H` below the Hessians between both,
    :math:`|e|_{\tilde H}^2 \le e \cdot g + c`, so that with :math:`r =
    |g|_{\tilde H^{-1}}` it is :math:`|e|_{\tilde H} \le (r + \sqrt{r^2 + 4c})/2`. Here
    :math:`\tilde H` is the modulus times the lumped masses, and such springs as are
    known while no gap grows by a half. That none does, the same bound must show; a
    spring of which it does not is left out. (The minimiser moves continuously with g,
    from the point at hand to the true one, and would have to pass a growth by a half.)
    """
    problem, point, room = state.problem, state.point, state.room
    if problem.modulus is None or not 1 + problem.dt * problem.modulus > 0:
        return None
    convexity = 1 + problem.dt * problem.modulus
    gaps = room.least + state.slack
    sure = problem.sure_stiffness(gaps)
    while True:
        band = Springs(convexity * problem.lumped, sure)
        aim = direction(band, None, state.rest, point.edges, room)
        r = _length(band, aim.step) + point.floor(band)
        c = float(state.z @ state.slack) + aim.lost(room, point.edges)
        length = 0.5 * (r + math.sqrt(r * r + 4 * c))
        loose = (sure > 0) & (length > 0.5 * gaps * sure.sqrt())
        if not bool(loose.any()):
            return length / math.sqrt(convexity)
        sure = torch.where(loose, 0.0, sure)


def _refuse_atoms(problem: Objective, q: Tensor) -> None:
    # Of the ends of the cell, and of where they came from: a kink at 0 has no place.
    gaps, reach = q.diff(), torch.maximum(q.abs(), problem.centre.abs())
    place = torch.finfo(torch.float64).eps * torch.maximum(reach[1:], reach[:-1])
    if bool((gaps <= ATOM * place).any()):
        i = int((gaps - ATOM * place).argmin())
        cure = "add Entropy() or another internal energy, take a smaller dt, or flow "
        cure += "Particles"
        if problem.terms.others:
            cure += (
                "; a functional of the distance to other quantiles is to be written "
                "with displacement_to and inner, as the step itself measures"
            )
        msg = (
            f"the JKO step shrinks the cell between quantiles {i} and {i + 1} to an "
            f"atom, which a density cannot represent; {cure}"
        )
        raise Diverged(msg, measure=problem.mu)
