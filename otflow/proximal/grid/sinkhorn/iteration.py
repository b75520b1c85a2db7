"""The scaling iteration, accelerated where its dual value rises."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson
from otflow.numerics.roots import bisect
from otflow.proximal.grid.sinkhorn.problem import (
    SHARE,
    Iterate,
    Scaling,
    elasticity,
    largest_blur,
)

__all__ = ["Plan", "Solved", "iterate", "positive_start", "start_of"]

# Share of the largest density that is added to the weights of the acceleration's norm.
# The plain map is slow in far tails, and with a norm that is blind there the
# acceleration diverges.
FLOOR = 1e-6
# A first step starts from solutions with larger eps, in units of eps, solved to the
# residual COARSE by at most so many evaluations.
WIDER, COARSE, MOST_COARSE = (16.0, 4.0), 0.1, 60
# A warm start of a larger residual may be worse than none.
FAR = 0.5
# Most mass that may be lost to underflow, in units of round-off.
MOST_LOST = 64.0
# Halvings of the search for the mass that fits below the bound on the density: more
# than the digits of a float64.
HALVINGS = 60


@dataclass(frozen=True)
class Plan:
    r"""The plan :math:`a(y) K(x, y) b(x)` of an iterate, its first marginal exact."""

    problem: Scaling
    iterate: Iterate

    @cached_property
    def potential(self) -> Tensor:
        """The `Scaling.potential_at` of the iterate."""
        return self.problem.potential_at(self.iterate.log_a, self.iterate.log_density)

    @cached_property
    def log_masses(self) -> Tensor:
        """The second marginal: log masses of sum 1 below the bound on the density.

        The density of the iterate is below the bound. The second marginal differs from
        this density by the residual at most, and so does the mass above the bound. This
        mass goes to the cells below the bound, in proportion to what they hold.
        """
        problem, bound = self.problem, self.problem.terms.max_density
        log = problem.log_weights(self.iterate.image, self.iterate.log_a)
        axes = tuple(range(log.ndim))
        log = log - log.logsumexp(axes)
        most = math.log(bound) + math.log(problem.kernel.box.cell_volume)
        if math.isinf(bound) or not bool((log > most).any()):
            return log

        def is_all(raised: Tensor) -> Tensor:
            return (log + raised).clamp_max(most).logsumexp(axes) >= 0

        low, high = log.new_tensor(0.0), log.new_tensor(1.0)
        # There is room in the box, so this ends: no cell holds exactly nothing.
        while not bool(is_all(high)):
            low, high = high, 2 * high
            if not math.isfinite(high):
                return log
        return (log + bisect(is_all, high, low, HALVINGS)[0]).clamp_max(most)

    @cached_property
    def measure(self) -> GridDensity:
        """The second marginal, its mass that of the first to the last bit."""
        mu, weights = self.problem.source, self.log_masses.exp().reshape(-1)
        total = mu.weights.sum(dtype=torch.float64) / weights.sum(dtype=torch.float64)
        return mu.with_free_weights(weights * total.to(weights.dtype))

    def cost(self) -> float:
        r"""Return the debiased cost, up to the costs of both marginals to themselves.

        .. math:: \mathrm{OT}_\varepsilon - \tfrac\varepsilon2(H(\mu) + H(\nu))

        The dual potentials give the cost. K has mass 1, so the constant is right.
        """
        problem, iterate, mu = self.problem, self.iterate, self.problem.source
        old, new = mu.grid, self.measure.grid
        log_new = self.log_masses - math.log(problem.kernel.box.cell_volume)
        phi = iterate.log_a - 0.5 * log_new
        psi = 0.5 * problem.log_source - iterate.image
        if problem.kernel.correction is not None:
            # The potential that holds the uniform density at rest costs nothing.
            at_rest = problem.kernel.correction / problem.kernel.eps
            phi, psi = phi - at_rest, psi - at_rest
        total = torch.where(new > 0, new * phi, 0.0) + torch.where(
            old > 0, old * psi, 0.0
        )
        volume = problem.kernel.box.cell_volume
        return problem.kernel.eps * volume * float(total.sum(dtype=torch.float64))


@dataclass(frozen=True)
class Solved(Plan):
    """The plan where an iteration stopped."""

    x: Tensor  # the last accepted variable
    used: int  # evaluations of the map
    learnt: Anderson  # differences of the map


def iterate(
    problem: Scaling,
    start: Tensor | Plan | None,
    memory: int,
    tolerance: float,
    budget: int,
    *,
    learnt: Anderson | None = None,
    widen: bool = True,
) -> Solved:
    r"""Return the fixed point of the map, the maximum of the concave dual.

    An accelerated point is kept if the dual value rises. Else the plain step is taken
    from the last point that was kept, and the differences are forgotten. If the dual
    value does not rise either, the step is damped by the factor that is proved to raise
    it: see `Scaling`.

    Parameters
    ----------
    problem : Scaling
        The problem. Its potential holds the first variation of nonlocal terms.
    start : Tensor, Plan or None
        The variable x, or an earlier plan. None starts from the blurred source.
    memory : int
        Differences that the acceleration keeps.
    tolerance : float
        Largest residual.
    budget : int
        Most evaluations; one is always made.
    learnt : Anderson, optional
        Differences of a map of about the same slopes. The iteration adds to them.
    widen : bool
        Whether to solve with larger eps first, without a start or from a bad one.

    Returns
    -------
    Solved
        The plan of the last point that was kept.

    Raises
    ------
    Diverged
        If the iteration leaves the finite numbers in the log domain too.
    """
    mu = problem.source.grid
    most_lost = MOST_LOST * torch.finfo(mu.dtype).eps
    anderson = learnt or Anderson(memory, mu + FLOOR * mu.max())
    anderson.pause()
    usual, proved = damping_of(problem), problem.proved_damping
    used, unseen = 0, start is not None and widen
    if start is None and widen:
        start, problem, used = _from_wider_kernels(problem, memory, budget)
    x, guess = start_of(problem, start), None
    kept: tuple[Tensor, Iterate] | None = None
    wide: Plan | None = None
    steps: list[float] = []  # plain steps to fall back on
    while used < budget or kept is None:
        now = problem.evaluate(x, guess)
        used += 1
        sound = math.isfinite(now.residual) and now.lost <= most_lost
        solved = sound and now.residual <= tolerance
        if sound and (
            solved or not steps or kept is None or now.rises_from(kept[1], x - kept[0])
        ):
            kept, guess, wide = (x, now), now.log_density, None
            if solved:
                break
            damped = [proved] if proved < usual else []
            steps = [usual, *damped] if anderson.has_learnt else damped
            if unseen and now.residual > FAR and used < budget:
                warm, problem, more = _from_wider_kernels(
                    problem, memory, budget - used
                )
                steps = [usual, *damped]
                used, x, guess = used + more, start_of(problem, warm), None
                wide = warm
                anderson.forget()
            else:
                x = anderson.advance(x, usual * now.change)
            unseen = False
        elif wide is not None and not sound and not problem.safely:
            # In the log domain the start from larger eps may be sound.
            problem = replace(problem, safely=True)
            x, guess, wide = start_of(problem, wide), None, None
        elif steps and kept is not None:
            anderson.forget()
            x, guess = kept[0] + steps.pop(0) * kept[1].change, None
        elif not problem.safely:
            problem, guess = replace(problem, safely=True), None
            x = start_of(problem, start) if kept is None else kept[0]
        else:
            msg = (
                f"the scaling iteration left the finite numbers after {used} "
                f"evaluations; take a smaller dt or a larger eps"
            )
            raise Diverged(msg, measure=problem.source)
    x, now = kept
    return Solved(problem, now, x, used, anderson)


def _from_wider_kernels(
    problem: Scaling, memory: int, budget: int
) -> tuple[Plan | None, Scaling, int]:
    """Return a plan with a larger eps as a start, the problem, and the evaluations.

    The number of iterations grows with dt F' / eps, the possible error of a start, and
    with the root of the stiffness over eps. Both fall as eps grows. The problem is
    returned in the log domain if a solve had to go on there.
    """
    warm: Plan | None = None
    used, limit = 0, largest_blur(problem.source) / problem.kernel.eps
    # Beside obstacles each kernel would need a correction of its own.
    if problem.kernel.is_free is not None:
        return warm, problem, used
    for wider in WIDER:
        if wider > limit or used >= budget - 1:
            continue
        coarse = problem.wider(wider)
        try:
            x, most = start_of(coarse, warm), min(MOST_COARSE, budget - used - 1)
            solved = iterate(coarse, x, memory, COARSE, most, widen=False)
        except Diverged:
            continue
        warm, used = solved, used + solved.used
        problem = replace(problem, safely=solved.problem.safely)
    return warm, problem, used


def start_of(problem: Scaling, warm: Tensor | Plan | None) -> Tensor:
    r"""Return the start of the iteration.

    At the fixed point :math:`a = \sqrt\rho\,e^{-(dt/\varepsilon)\,F'}`. From an earlier
    plan the start takes this a, with the present dt and eps. Else it takes the a of the
    blurred old density.
    """
    if isinstance(warm, Tensor):
        return warm
    if warm is not None:
        own, log_a = warm.problem, warm.iterate.log_a
        scale = (problem.dt / problem.kernel.eps) / (own.dt / own.kernel.eps)
        if scale != 1:
            half = 0.5 * warm.iterate.log_density
            slope = torch.where(half > -math.inf, log_a - half, 0.0)
            log_a = half + scale * slope
        return problem.convolve(log_a)
    log, terms = positive_start(problem), problem.terms
    slope = problem.potential + terms.temperature * log
    if terms.internal is not None:
        inside = log.exp().clamp_max(terms.max_density)
        slope = slope + terms.internal.slope(torch.where(inside > 0, inside, 1.0))
    log_a = 0.5 * log - (problem.dt / problem.kernel.eps) * slope
    return problem.convolve(log_a.masked_fill(log == -math.inf, -math.inf))


def positive_start(problem: Scaling) -> Tensor:
    """Return the log of the blurred old density plus a small uniform density."""
    mu, kernel = problem.source, problem.kernel
    free = mu.is_free.reshape(mu.shape)
    rho = kernel.apply(mu.grid).clamp_min(0.0) * free
    volume = kernel.box.cell_volume
    rho = (1 - SHARE) * rho / (rho.sum() * volume)
    rho = rho + SHARE / (free.sum() * volume)
    return rho.log().masked_fill(~free, -math.inf)


def damping_of(problem: Scaling) -> float:
    """Return the factor on plain steps: one over the mean response of the density.

    Without damping the steps oscillate if F has no curvature.
    """
    mu, internal = problem.source, problem.terms.internal
    slope = torch.full_like(mu.weights, problem.entropic)
    if internal is not None:
        slope = slope + problem.dt * elasticity(internal, mu.density().log())
    response = float((mu.weights * (problem.kernel.eps / slope)).sum())
    return 1 / max(1.0, response)
