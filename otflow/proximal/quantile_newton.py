"""Minimise over quantiles: damped Newton, and an interior-point method with bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite
from otflow.proximal.quantile_objective import Expansion, Objective
from otflow.proximal.springs import Springs

__all__ = ["Bounds", "Solution", "interior_point", "newton"]

# A step goes at most this share of the way to where a gap or a slack would vanish.
REACH = 0.9
MAX_HALVINGS = 40
# A gap below so many units in the last place of its ends is an atom.
ATOM = 32
# Root of the complementarity gap, over the displacement: what bounds the distance.
COMPLEMENTARITY = 1e-6


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped: the optimality condition's residual there."""

    point: Expansion
    residual: float  # norm of the (Lagrangian's) gradient, a displacement
    gap: float  # bound on what is lost by inexact complementarity; 0 without bounds
    converged: bool
    iterations: int


def _residual(problem: Objective, gradient: Tensor) -> float:
    return math.sqrt(float((gradient.square() / problem.lumped).sum()))


def _longest(values: Tensor, step: Tensor, reach: float = REACH) -> float:
    """Return the longest step, at most 1, that keeps `values` positive."""
    ratio = float((-step / values).max())
    return min(1.0, reach / ratio) if ratio > 0 else 1.0


def _refuse_atoms(problem: Objective, q: Tensor) -> None:
    smallest = ATOM * torch.finfo(torch.float64).eps * float(q.abs().max())
    gaps = q.diff()
    if bool((gaps <= smallest).any()):
        i = int(gaps.argmin())
        msg = (
            f"the JKO step shrinks the cell between quantiles {i} and {i + 1} to an "
            f"atom, which a density cannot represent; add Entropy() or another "
            f"internal energy, take a smaller dt, or flow Particles"
        )
        raise Diverged(msg, measure=problem.mu)


def newton(problem: Objective, tolerance: float, budget: int) -> Solution:
    """Descend by Newton's method with gaps kept positive.

    The objective never increases but by round-off. Each iteration takes time O(n) plus
    that of the nonlocal terms.

    Parameters
    ----------
    problem : Objective
        What to minimise; the start is its centre.
    tolerance : float
        Stop where the residual is below it times the displacement.
    budget : int
        Expansions to spend.

    Returns
    -------
    Solution
        The last point.
    """
    point, used = problem.start, 1
    while True:
        residual = _residual(problem, point.gradient)
        moved = problem.norm(point.edges - problem.centre)
        settled = residual <= tolerance * moved + point.floor
        if settled or used >= budget:
            return Solution(point, residual, 0.0, settled, used)
        step = point.solve(-point.gradient, problem.lumped)
        found, trials = _search(problem, point, step, residual, budget - used)
        used += trials
        if found is None:
            return Solution(point, residual, 0.0, False, used)
        point = found


def _search(
    problem: Objective, point: Expansion, step: Tensor, residual: float, budget: int
) -> tuple[Expansion | None, int]:
    """Backtrack until the objective falls enough; None if it never does."""
    slope = float(point.gradient @ step)
    length = _longest(point.edges.diff(), step.diff())
    for trial in range(1, min(MAX_HALVINGS, budget) + 1):
        q = point.edges + length * step
        _refuse_atoms(problem, q)
        try:
            found = problem.expand(q)
        except NonFinite:
            length *= 0.25
            continue
        if found.objective <= point.objective + 1e-4 * length * slope:
            return found, trial
        # Close to the minimum a decrease drowns in round-off; there a smaller gradient
        # is progress.
        is_level = found.objective <= point.objective + point.noise
        if is_level and _residual(problem, found.gradient) < 0.9 * residual:
            return found, trial
        length *= 0.5
    return None, min(MAX_HALVINGS, budget)


@dataclass(frozen=True)
class Bounds:
    """Least gaps (n,), or None, and walls: linear constraints on the quantiles.

    Each row of A q >= b is a gap or an end; `slacks` is A q - b.
    """

    gaps: Tensor | None
    lower: float | None
    upper: float | None

    def rows(self, q: Tensor) -> Tensor:
        """Return A q, the gaps and the ends that are bounded."""
        parts = [] if self.gaps is None else [q.diff()]
        if self.lower is not None:
            parts.append(q[:1])
        if self.upper is not None:
            parts.append(-q[-1:])
        return torch.cat(parts)

    def slacks(self, q: Tensor) -> Tensor:
        """Return A q - b."""
        parts = [] if self.gaps is None else [self.gaps]
        ends = [] if self.lower is None else [self.lower]
        ends += [] if self.upper is None else [-self.upper]
        return self.rows(q) - torch.cat([*parts, q.new_tensor(ends)])

    def transpose(self, z: Tensor, n: int) -> Tensor:
        """Return A^T z for multipliers z, (n + 1,)."""
        result = z.new_zeros(n + 1)
        if self.gaps is not None:
            result[1:] += z[:n]
            result[:-1] -= z[:n]
            z = z[n:]
        if self.lower is not None:
            result[0] += z[0]
        if self.upper is not None:
            result[-1] -= z[-1]
        return result

    def springs(self, weight: Tensor, n: int) -> Springs:
        """Return A^T diag(weight) A, tridiagonal."""
        rows, springs = weight.new_zeros(n + 1), weight.new_zeros(n)
        if self.gaps is not None:
            springs, weight = weight[:n], weight[n:]
        if self.lower is not None:
            rows[0] = weight[0]
        if self.upper is not None:
            rows[-1] = weight[-1]
        return Springs(rows, springs)


@dataclass(frozen=True)
class _State:
    """Quantiles, slacks and multipliers, with what the conditions leave over."""

    point: Expansion
    s: Tensor
    z: Tensor
    dual: Tensor  # gradient of the Lagrangian
    primal: Tensor  # A q - b - s

    def merit(self, problem: Objective, target: float, stiffness: Tensor) -> float:
        """Return the squares of all residuals, each as an energy."""
        dual = (self.dual.square() / problem.lumped).sum()
        excess = (self.s * self.z - target).square().sum() / target
        return float(dual + excess + stiffness @ self.primal.square())

    def lost(self) -> float:
        """Return a bound on what the objective loses by s z > 0 and A q - b != s."""
        return float((self.z * (self.s + self.primal.abs())).sum())

    def dual_floor(self, problem: Objective) -> float:
        """Return the residual that the last place of the multipliers brings about."""
        spread = math.sqrt(float(problem.lumped.reciprocal().sum()))
        return 8 * torch.finfo(torch.float64).eps * float(self.z.max()) * spread

    def noise(self) -> float:
        """Return the share of `lost` that the last place of the quantiles makes up."""
        return 2 * self.last_place() * float(self.z.sum())

    def last_place(self) -> float:
        """Return a few units in the last place of the quantiles."""
        largest = float(self.point.edges.abs().max())
        return 8 * torch.finfo(torch.float64).eps * largest


def interior_point(
    problem: Objective, bounds: Bounds, tolerance: float, budget: int
) -> Solution:
    r"""Minimise under A q >= b by a primal-dual interior-point method.

    Slacks s and multipliers z > 0 solve :math:`\nabla\Phi = A^T z`, :math:`Aq - b = s`,
    :math:`s z = \mu`, with :math:`\mu \to 0` :cite:p:`nocedal2006numerical`. Each
    Newton step is one banded solve, and the norm of all residuals decreases.

    Parameters
    ----------
    problem, tolerance, budget
        As for `newton`.
    bounds : Bounds
        The constraints.

    Returns
    -------
    Solution
        The last point; its gap is the sum of s z.
    """
    n = len(problem.weights)

    def at(point: Expansion, s: Tensor, z: Tensor) -> _State:
        dual = point.gradient - bounds.transpose(z, n)
        return _State(point, s, z, dual, bounds.slacks(point.edges) - s)

    # Slacks of a tenth of a cell, or of a mean cell at a wall, keep the start inside.
    point, used = problem.start, 1
    width = float(problem.centre[-1] - problem.centre[0])
    slacks = bounds.slacks(problem.centre)
    roomy = torch.full_like(slacks, width / n)
    if bounds.gaps is not None:
        roomy[:n] = 0.1 * bounds.gaps
    s = torch.maximum(slacks, roomy)
    scale = float(point.gradient.cumsum(0).abs().max())
    scale = max(scale, 1e-3 * width * float(problem.lumped.mean()))
    state = at(point, s, scale * roomy / s)
    target = 0.1 * float(state.s @ state.z) / len(s)
    while True:
        residual = _residual(problem, state.dual)
        moved = problem.norm(state.point.edges - problem.centre)
        lost = state.lost()
        small = state.point.floor + state.dual_floor(problem)
        rest = small + 1e-4 * COMPLEMENTARITY * width
        settled = (
            residual <= max(tolerance, 1e-9) * moved + small
            and lost <= (COMPLEMENTARITY * moved + rest) ** 2 + state.noise()
            and bool((state.primal.abs() <= 1e-9 * roomy + state.last_place()).all())
        )
        if settled or used >= budget:
            return Solution(state.point, residual, lost, settled, used)
        # Newton's step on the conditions with s z = target.
        excess = state.s * state.z - target
        correction = (excess + state.z * state.primal) / state.s
        springs = bounds.springs(state.z / state.s, n)
        rhs = -state.dual - bounds.transpose(correction, n)
        dq = state.point.solve(rhs, problem.lumped, springs)
        ds = bounds.rows(dq) + state.primal
        dz = -(excess + state.z * ds) / state.s
        length = min(_longest(state.s, ds, 0.99), _longest(state.z, dz, 0.99))
        if bounds.gaps is None:
            length = min(length, _longest(state.point.edges.diff(), dq.diff()))
        stiffness = state.z / roomy
        before, found = state.merit(problem, target, stiffness), None
        for _ in range(min(MAX_HALVINGS, budget - used)):
            used += 1
            q = state.point.edges + length * dq
            if bool((q.diff() > 0).all()):
                _refuse_atoms(problem, q)
                trial = at(
                    problem.expand(q), state.s + length * ds, state.z + length * dz
                )
                after = trial.merit(problem, target, stiffness)
                if after <= (1 - 0.02 * length) * before + 4 * small**2:
                    found = trial
                    break
            length *= 0.5
        if found is None:
            return Solution(state.point, residual, lost, False, used)
        state = found
        share = 0.02 if length > 0.9 else 0.2 if length > 0.5 else 0.7
        target = share * float(state.s @ state.z) / len(s)
