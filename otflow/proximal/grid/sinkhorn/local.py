"""The debiased entropic step for local terms, as a round of a nonlocal one asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.measures import GridDensity
from otflow.proximal.grid.rounds import LocalStep, Outcome
from otflow.proximal.grid.sinkhorn.iteration import Solved, iterate
from otflow.proximal.grid.sinkhorn.problem import Warm, positive_start
from otflow.proximal.grid.sinkhorn.scaling import Iterate, Scaling

__all__ = ["Local", "measure_of", "positive_start", "transport_cost"]

# Halvings that find how much of a mass goes below the bound on the density.
BISECTIONS = 60


@dataclass(frozen=True)
class Local:
    """Solves the local part of a problem with more entropy and another potential.

    Parameters
    ----------
    problem : Scaling
        With all terms; only the local ones count.
    warm : Warm or None
        Where the first solve starts.
    memory : int
        Of the acceleration.
    """

    problem: Scaling
    warm: Warm | None
    memory: int

    def __call__(
        self,
        potential: Tensor,
        entropy: float,
        start: Solved | None,
        tolerance: float,
        budget: int,
    ) -> LocalStep:
        """Return the minimiser, as `LocalSolver` says."""
        terms = self.problem.terms
        local = replace(terms, interactions=(), others=())
        more = replace(local, temperature=terms.temperature + entropy)
        problem = replace(
            self.problem, terms=more, potential=self.problem.potential + potential
        )
        x: Tensor | Warm | None = self.warm
        learnt = None
        if start is not None:
            old = start.problem
            problem, x = replace(problem, safely=old.safely), start.x
            if old.terms.temperature == more.temperature:
                learnt = start.learnt
        solved = iterate(
            problem,
            x,
            memory=self.memory,
            tolerance=tolerance,
            budget=budget,
            learnt=learnt,
        )
        problem, now = solved.problem, solved.iterate
        log = _below(problem, problem.log_weights(now.image, now.log_a))
        nu = problem.source.with_free_weights(log.exp().reshape(-1))
        V = self.problem.potential.reshape(-1)
        objective = float((nu.weights * V).sum(dtype=torch.float64))
        if local.energy is not None:
            objective += float(local.energy.value(nu))
        log = log - math.log(problem.kernel.box.cell_volume)
        objective += transport_cost(problem, now, nu.weights, log) / problem.dt
        return LocalStep(
            measure=nu,
            log_density=log,
            objective=objective,
            residual=now.residual,
            converged=now.residual <= tolerance,
            spent=solved.used,
            state=solved,
        )

    def finish(self, outcome: Outcome) -> tuple[Scaling, Iterate]:
        """Return the problem in the potential that was found, and its iterate."""
        solved: Solved = outcome.step.state
        problem, now = solved.problem, solved.iterate
        # The additional entropy as a potential: the same density, plan and residual.
        terms = self.problem.terms
        more = problem.terms.temperature - terms.temperature
        slope = (more * (now.log_density + 1.0)).nan_to_num(0.0, 0.0, 0.0)
        problem = replace(problem, terms=terms, potential=problem.potential + slope)
        return problem, now._replace(residual=outcome.residual)


def measure_of(problem: Scaling, iterate: Iterate) -> GridDensity:
    """Return the plan's second marginal, its mass that of the first to the last bit."""
    mu = problem.source
    log = _below(problem, problem.log_weights(iterate.image, iterate.log_a))
    weights = log.exp().reshape(-1)
    total = mu.weights.sum(dtype=torch.float64) / weights.sum(dtype=torch.float64)
    return mu.with_free_weights(weights * total.to(weights.dtype))


def _below(problem: Scaling, log: Tensor) -> Tensor:
    """Return log masses of sum 1 that respect the bound on the density, if any.

    The plan's second marginal is off the density of the iterate, which is below the
    bound, by no more than the residual; so what is above it is no more either. It goes
    to the cells below, in proportion to what they hold.
    """
    axes = tuple(range(log.ndim))
    log = log - log.logsumexp(axes)
    most = problem.terms.max_density * problem.kernel.box.cell_volume
    if not bool((log > math.log(most)).any()):
        return log
    low, high = 0.0, 1.0
    # There is room in the box, so this ends: no cell holds exactly nothing.
    while float((log + high).clamp_max(math.log(most)).logsumexp(axes)) < 0:
        low, high = high, 2 * high
        if not math.isfinite(high):
            return log
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        short = (log + middle).clamp_max(math.log(most)).logsumexp(axes) < 0
        low, high = (middle, high) if bool(short) else (low, middle)
    return (log + high).clamp_max(math.log(most))


def transport_cost(
    problem: Scaling, iterate: Iterate, new: Tensor, log_new: Tensor
) -> float:
    r"""Return :math:`\mathrm{OT}_\varepsilon - \tfrac\varepsilon2(H(\mu) + H(\nu))`.

    From the dual potentials; K has mass 1, so the constant is right too.

    Parameters
    ----------
    problem, iterate : Scaling, Iterate
        The plan, of first marginal :math:`\mu`.
    new, log_new : Tensor
        Its second marginal: masses, and the log density in the box's shape.
    """
    mu, new = problem.source, new.reshape(log_new.shape)
    log_b = problem.log_source - iterate.image
    old = mu.weights.reshape(new.shape)
    total = _integral(new, iterate.log_a - 0.5 * log_new)
    total += _integral(old, log_b - 0.5 * problem.log_source)
    if problem.correction is not None:
        # The potential that holds the uniform density at rest costs nothing.
        at_rest = problem.correction / problem.kernel.eps
        total -= _integral(new, at_rest) + _integral(old, at_rest)
    return problem.kernel.eps * total


def _integral(mass: Tensor, f: Tensor) -> float:
    return float(torch.where(mass > 0, mass * f, 0.0).sum(dtype=torch.float64))
