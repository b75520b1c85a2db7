"""The scaling iteration, accelerated where its dual value rises."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson
from otflow.proximal.grid.sinkhorn.eps import largest_blur
from otflow.proximal.grid.sinkhorn.kernel import GibbsKernel
from otflow.proximal.grid.sinkhorn.scaling import (
    SHARE,
    Iterate,
    Plan,
    Scaling,
    elasticity,
    obstacle_correction,
    potential_of,
)
from otflow.proximal.terms import Terms

__all__ = ["Solved", "iterate", "pose", "positive_start", "start_of"]

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
    if problem.correction is not None:
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


def pose(
    terms: Terms, mu: GridDensity, dt: float, eps: float, old: Scaling | None
) -> Scaling:
    """Return the problem of a step with its local terms; `old` may lend its kernel."""
    if old is not None and old.kernel.eps == eps:
        kernel, correction = old.kernel, old.correction
    else:
        kernel, correction = GibbsKernel(mu.box, eps, mu.weights), None
    is_free = None
    if not bool(mu.is_free.all()):
        is_free = mu.is_free.reshape(mu.shape)
        if correction is None:
            correction = obstacle_correction(kernel, is_free)
    return Scaling(
        kernel=kernel,
        source=mu,
        log_source=mu.grid.log(),
        terms=terms,
        dt=dt,
        potential=potential_of(mu, terms),
        correction=correction,
        is_free=is_free,
        safely=old is not None and old.safely,
    )


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
