"""Minimise over quantiles: Newton's method, with a barrier below least gaps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.numerics.tridiagonal import Springs
from otflow.proximal.quantiles.objective import Expansion, Objective
from otflow.proximal.quantiles.stall import Watch
from otflow.proximal.quantiles.step import Direction, Path, Room, direction, spread

__all__ = ["Solution", "minimise"]

# The gradient at a minimum carries the round-off of several evaluations: `floor` is
# that of one, times this number.
EVALUATIONS = 4.0
# Longest length that the round-off of the gradient may hide, in units of the width
# times the root of the dtype's round-off. It grows without end where quantiles merge.
HIDDEN = 100.0
# Most trials of one iteration. After MAX_CUTS cuts of a path, the masses of the model
# grow by DAMPEN; each full step divides them again, and below LEAST_DAMPING they
# vanish, so that Newton's method ends undamped.
MAX_TRIALS = 40
MAX_CUTS = 3
DAMPEN = 4.0
LEAST_DAMPING = 0.1
# A step ends the descent if it leaves this share of the decrement.
ENDS = 0.1
# Armijo's constant.
DECREASE = 1e-4
# Limits of the root of the complementarity gap, which bounds the distance to the
# minimum: over the displacement, and over the width where almost nothing moves.
COMPLEMENTARITY = 1e-6
REST = 1e-10
# The barrier shrinks by SHRINK once its squared decrement is below CENTRED times the
# barrier: its minimum is then near.
SHRINK = 0.03
CENTRED = 1.0
# Multipliers stay within this factor of those of the barrier, which keeps the springs
# z / slack of the model bounded.
SPREAD = 1e4


@dataclass(frozen=True)
class Solution:
    """Where the solver stopped, and how well the conditions of a minimum hold there."""

    point: Expansion
    residual: float  # Newton decrement of the Lagrangian, a length
    gap: float  # complementarity gap: forces of the bounds times distances to them
    bound: float | None  # on the lumped distance to the minimiser, where convex
    converged: bool
    stalled: bool  # the objective and its gradient stopped falling
    iterations: int


@dataclass
class _State:
    """Quantiles and the multipliers z of the least gaps, under a barrier."""

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
        # The local model alone: the nonlocal terms may be concave, and cost products.
        self.aim = self._local(self.rest)
        self.residual = _length(self.band, self.aim.step)
        self.lost = float(self.z @ self.slack) + self.aim.lost(
            self.room, self.point.edges
        )

    def _local(self, slope: Tensor) -> Direction:
        return direction(self.band, None, slope, self.point.edges, self.room)

    @property
    def slope(self) -> Tensor:
        """Gradient of objective plus barrier."""
        return self.point.gradient - spread(self.pull / self.slack)

    @property
    def pull(self) -> Tensor:
        """Strength of the barrier of each cell, proportional to the cell's mass."""
        return self.barrier * self.problem.weights

    @property
    def merit(self) -> float:
        """Objective plus barrier."""
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
        """Return the Newton decrement of objective plus barrier."""
        return _length(self.band, self._local(self.slope).step)

    @property
    def floor(self) -> float:
        """Length that the round-off of the gradient hides; 0 if it hides too much."""
        # A longer floor would hide whether there is a minimum at all; then no gradient
        # counts as round-off.
        eps: float = torch.finfo(self.problem.mu.dtype).eps
        moved = self.problem.norm(self.point.edges - self.problem.centre)
        width = float(self.point.edges[-1] - self.point.edges[0])
        most = HIDDEN * math.sqrt(eps) * max(width, moved)
        # The floor costs products with the Hessian; far from a minimum it says nothing.
        floor = (
            EVALUATIONS * self.point.floor(self.band) if self.residual <= most else 0
        )
        return floor if floor <= most else 0.0

    @property
    def drowned(self) -> bool:
        """Whether the gradient of the Lagrangian is round-off."""
        return self.residual <= self.floor

    def settled(self, tolerance: float) -> bool:
        """Whether the state is a minimum, up to the tolerance or to round-off."""
        edges = self.point.edges
        moved = self.problem.norm(edges - self.problem.centre)
        width = float(edges[-1] - edges[0])
        place = 8 * torch.finfo(torch.float64).eps * float(edges.abs().max())
        lost = (COMPLEMENTARITY * moved + REST * width) ** 2
        # Round-off of the ends of a gap enters the complementarity gap times its force.
        lost += 2 * place * float(self.z.sum())
        return self.residual <= tolerance * moved + self.floor and self.lost <= lost

    def shrink(self) -> None:
        """Shrink the barrier if the minimum under it is near."""
        if self.decrement() ** 2 <= CENTRED * self.barrier:
            self.barrier *= SHRINK

    def descend(self, budget: int, damping: float) -> tuple[_State | None, int, float]:
        """Backtrack along paths until the merit falls; None if it never does.

        A path that must be cut shows that the model is wrong at this distance. The next
        model has masses that are larger by `damping` times themselves, and its minimum
        is nearer.
        """
        slope, merit = self.slope, self.merit
        decrement, limit = self.decrement(), min(MAX_TRIALS, budget)
        path, fall = self._path(slope, damping)
        length, cuts = path.longest, 0
        # Cells without an energy may close: then a path is cut though the model is
        # right.
        sprung = bool((self.point.band.springs > 0).any())
        for trial in range(1, limit + 1):
            found = self._at(*path(length), path.step, length)
            # A longer step is infeasible, or F is not finite: no value guides the cut.
            if found is None:
                length *= 0.25
                continue
            if found.merit <= merit + DECREASE * length * fall:
                if trial == 1:
                    damping = damping / DAMPEN if damping > LEAST_DAMPING else 0.0
                return found, trial, damping
            # Close to the minimum the decrease drowns in round-off. Then a smaller
            # gradient is progress. Where the gradient drowns too, a smaller
            # complementarity gap is.
            level = found.merit <= merit + self.noise
            nearer = found.decrement() < 0.9 * decrement
            tighter = found.drowned and self.drowned and found.lost < 0.9 * self.lost
            if level and (nearer or tighter):
                return found, trial, damping
            # Large terms of F may cancel. A full step that all but ends the descent
            # does not rest on values.
            ends = trial == 1 and found.decrement() < ENDS * decrement
            if ends and found.merit <= merit + self.point.cancelled:
                self.problem.risen += max(0.0, found.merit - merit)
                return found, trial, damping
            length *= 0.5
            # A rise within round-off says nothing about the model.
            cuts += sprung and not level
            if cuts == MAX_CUTS:
                damping = max(1.0, DAMPEN * damping)
                path, fall = self._path(slope, damping)
                length, cuts = path.longest, 0
        return None, limit, damping

    def _path(self, slope: Tensor, damping: float) -> tuple[Path, float]:
        """Return a path that starts downhill, and its slope."""
        point, lumped = self.point, self.problem.lumped
        q, room = point.edges, self.room
        band = self.band
        if damping:
            band = Springs(band.rows + damping * lumped, band.springs)
        step = direction(band, point.product, slope, q, room).step
        fall = float(slope @ step)
        # The nonlocal terms may be concave; the band alone is positive definite.
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
        # The step of primal-dual Newton for the multipliers, then the safeguard.
        target = self.pull / self.slack
        z = self.z + length * (target - self.z - self.springs * step.diff())
        target = self.pull / slack
        z = torch.minimum(torch.maximum(z, target / SPREAD), target * SPREAD)
        return _State(self.problem, self.room, point, slack, z, self.barrier)


def minimise(problem: Objective, room: Room, tolerance: float, budget: int) -> Solution:
    r"""Descend by Newton's method with least gaps and walls.

    A bound on the density is a least length of each cell. A barrier
    :math:`-\theta\sum w_i\log s_i` of the slacks s keeps this length, with multipliers
    close to :math:`\theta w/s` :cite:p:`nocedal2006numerical`. :math:`\theta` shrinks
    each time that the minimum under the barrier is near. Each model is minimised
    between the walls. The sum of objective and barrier rises at most by its round-off.
    An iteration takes time O(n) plus that of the nonlocal terms.

    Parameters
    ----------
    problem : Objective
        The objective to minimise. The descent starts at its centre.
    room : Room
        The admissible quantiles.
    tolerance : float
        Stop when the Newton decrement is below `tolerance` times the displacement, or
        at round-off.
    budget : int
        Most expansions of the objective.

    Returns
    -------
    Solution
        The last point.
    """
    state, used, damping, stalled = _start(problem, room), 1, 0.0, False
    watch = Watch(state, budget)
    while True:
        settled = state.settled(tolerance)
        if settled or used >= budget:
            break
        # Near the minimum under this barrier a step towards it would be wasted.
        if state.barrier:
            state.shrink()
        found, trials, damping = state.descend(budget - used, damping)
        used += trials
        if found is None:
            stalled = used < budget
            break
        state = found
        # Under a bound each cell has a least length, so no cell becomes an atom.
        if not room.bounded:
            problem.refuse_atoms(state.point.edges)
        if watch.has_stalled(state, used):
            settled = state.settled(tolerance)
            stalled = not settled
            break
    return Solution(
        state.point, state.residual, state.lost, _bound(state), settled, stalled, used
    )


def _start(problem: Objective, room: Room) -> _State:
    """Return a state strictly inside: short cells take room from the others.

    The cells are blended with cells of equal density, which fit by assumption.
    """
    bounded, q = room.bounded, problem.centre
    slack = room.slacks(q)
    # A barrier needs slacks > 0, and small ones make it stiff from the start.
    if bounded and bool((slack < 0.05 * room.least).any()):
        width, full = float(q[-1] - q[0]), float(room.least.sum())
        wide = min(max(width, 1.5 * full), room.upper - room.lower)
        even = problem.weights * (wide - full)
        # A slack may be negative: a density may exceed its bound by a tolerance.
        lack = (-slack / even).clamp_min(0).max()
        share = max(0.1, 2 * float(lack / (1 + lack)))
        gaps = room.least + (1 - share) * slack + share * even
        shift = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        q = shift + problem.lumped @ (q - shift)
        slack = gaps - room.least
    q, slack = room.inside(q, slack)
    same = torch.equal(q, problem.centre)
    # The objective at the centre is known already.
    point = problem.start if same else problem.expand(q, room.least + slack)
    start = _State(problem, room, point, slack, torch.zeros_like(slack), 0.0)
    if not bounded:
        return start
    # The barrier is a squared length; it starts at the squared decrement without it.
    width = float(q[-1] - q[0])
    barrier = max(start.residual**2, (REST * width) ** 2)
    z = barrier * problem.weights / slack
    return _State(problem, room, point, slack, z, barrier)


def _length(band: Springs, step: Tensor) -> float:
    """Return the length of a step in the metric of a band."""
    return math.sqrt(max(0.0, float(step @ band.times(step))))


def _bound(state: _State) -> float | None:
    r"""Return a bound on the lumped distance to the minimiser; None if not convex.

    Let e be the displacement to the minimiser, g the gradient of the Lagrangian, c the
    complementarity gap and :math:`\tilde H` a symmetric matrix below the Hessians
    between both points. Then :math:`|e|_{\tilde H}^2 \le e \cdot g + c`, so

    .. math:: |e|_{\tilde H} \le \tfrac12\big(r + \sqrt{r^2 + 4c}\big), \qquad
        r = |g|_{\tilde H^{-1}}.

    :math:`\tilde H` is the modulus times the lumped masses, plus springs that are known
    while no gap grows by a half. The same bound must show that no gap grows so far; a
    spring for which it fails is left out. The argument is by continuity: the minimiser
    moves continuously with g from the present point to the true one, and would have to
    pass a growth by a half.
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
