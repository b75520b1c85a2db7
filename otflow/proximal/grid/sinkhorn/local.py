"""The debiased entropic step for local terms, as the local solver of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.proximal.grid.rounds import LocalStep, Outcome
from otflow.proximal.grid.sinkhorn.iteration import Solved, Warm, iterate
from otflow.proximal.grid.sinkhorn.scaling import (
    Iterate,
    Scaling,
    marginal_of,
    transport_cost,
)

__all__ = ["Local"]


@dataclass(frozen=True)
class Local:
    """Solves the local part of a problem with added entropy and potential.

    Parameters
    ----------
    problem : Scaling
        The problem. Only its local terms count.
    warm : Warm or None
        Start of the first solve.
    memory : int
        Differences that the acceleration keeps.
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
            # Another temperature is another map: its differences do not fit.
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
        log = marginal_of(problem, now)
        nu = problem.source.with_free_weights(log.exp().reshape(-1))
        V = self.problem.potential.reshape(-1)
        objective = float((nu.weights * V).sum(dtype=torch.float64))
        if local.energy is not None:
            objective += float(local.energy.value(nu))
        log = log - math.log(problem.kernel.box.cell_volume)
        objective += transport_cost(problem, now, nu.weights, log) / problem.dt
        return LocalStep(
            log_density=log,
            objective=objective,
            residual=now.residual,
            converged=now.residual <= tolerance,
            spent=solved.used,
            state=solved,
        )

    def finish(self, outcome: Outcome) -> tuple[Scaling, Iterate]:
        """Return the problem in the potential of the last round, and its iterate."""
        solved: Solved = outcome.step.state
        problem, now = solved.problem, solved.iterate
        # The added entropy becomes a potential, with the same density, plan and
        # residual.
        terms = self.problem.terms
        more = problem.terms.temperature - terms.temperature
        slope = (more * (now.log_density + 1.0)).nan_to_num(0.0, 0.0, 0.0)
        problem = replace(problem, terms=terms, potential=problem.potential + slope)
        return problem, now._replace(residual=outcome.residual)
