"""The debiased entropic step for local terms, as the local solver of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.proximal.grid.rounds import LocalStep, Outcome
from otflow.proximal.grid.sinkhorn.iteration import Plan, Solved, iterate
from otflow.proximal.grid.sinkhorn.problem import Scaling

__all__ = ["Local"]


@dataclass(frozen=True)
class Local:
    """Solves the local part of a problem with added entropy and potential.

    Parameters
    ----------
    problem : Scaling
        The problem, of which the local terms count.
    warm : Plan or None
        The start of the first solve.
    memory : int
        Differences that the acceleration keeps.
    """

    problem: Scaling
    warm: Plan | None
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
        x: Tensor | Plan | None = self.warm
        learnt = None
        if start is not None:
            old = start.problem
            problem, x = replace(problem, safely=old.safely), start.x
            # Another temperature is another map: its differences do not fit.
            if old.terms.temperature == more.temperature:
                learnt = start.learnt
        solved = iterate(problem, x, self.memory, tolerance, budget, learnt=learnt)
        nu, now = solved.measure, solved.iterate
        V = self.problem.potential.reshape(-1)
        objective = float((nu.weights * V).sum(dtype=torch.float64))
        if local.energy is not None:
            objective += float(local.energy.value(nu))
        objective += solved.cost() / problem.dt
        return LocalStep(
            log_density=solved.log_masses - math.log(problem.kernel.box.cell_volume),
            objective=objective,
            residual=now.residual,
            converged=now.residual <= tolerance,
            spent=solved.used,
            state=solved,
        )

    def finish(self, outcome: Outcome) -> Plan:
        """Return the plan of the problem in the potential of the last round."""
        solved: Solved = outcome.step.state
        problem, now = solved.problem, solved.iterate
        # The added entropy becomes a potential, with the same density, plan and
        # residual.
        terms = self.problem.terms
        more = problem.terms.temperature - terms.temperature
        slope = (more * (now.log_density + 1.0)).nan_to_num(0.0, 0.0, 0.0)
        problem = replace(problem, terms=terms, potential=problem.potential + slope)
        return Plan(problem, now._replace(residual=outcome.residual))
