"""The JKO step on a grid: debiased entropic transport by accelerated scalings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind, non_negative_int, positive
from otflow.errors import Diverged, Unsupported
from otflow.functionals import Functional, Sum
from otflow.measures import GridDensity
from otflow.proximal.anderson import Anderson
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.gibbs import GibbsKernel
from otflow.proximal.scaling import (
    LOST,
    Iterate,
    Scaling,
    nonlocal_part,
    obstacle_correction,
    potential_of,
)
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["GridSinkhorn"]

# Variance of the kernel by default and at least, in squares of the spacing.
DEFAULT_EPS, LEAST_EPS = 0.6, 0.2
# Fraction of the residual at which nonlocal first variations are computed anew.
REFRESH = 0.1


class GridSinkhorn(ProximalSolver[GridDensity]):
    r"""Todo."""

    def __init__(
        self,
        *,
        eps: float | None = None,
        tolerance: float = 1e-5,
        max_iterations: int = 1000,
        memory: int = 12,
        certify: bool = True,
    ) -> None:
        self.eps = None if eps is None else positive(eps, "eps")
        self.tolerance = positive(tolerance, "tolerance")
        self.max_iterations = non_negative_int(
            max_iterations, "max_iterations", minimum=1
        )
        self.memory = non_negative_int(memory, "memory")
        self.certify = certify

    def solve(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> ProxResult[GridDensity]:
        dt = positive(dt, "dt")
        eps = self.resolution(mu, dt)
        terms = sort_terms(F)
        before = float(F.value(mu))
        kept = warm if isinstance(warm, _Warm) and warm.fits(mu) else None
        problem = self._problem(terms, mu, dt, eps, kept)
        rest = nonlocal_part(terms)
        problem, iterate, iterations = self._iterate(problem, rest, kept)
        converged = iterate.residual <= self.tolerance
        nu = self._measure(problem, iterate)
        after = float(F.value(nu))
        certificate = {
            "energy_before": before,
            "energy_after": after,
            "residual": iterate.residual,
            "converged": converged,
            "eps": eps,
            "iterations": iterations,
            "log_domain": problem.safely,
        }
        return ProxResult(
            nu,
            _Warm(problem, iterate),
            iterations,
            iterate.residual,
            certificate,
        )

    def resolution(self, mu: GridDensity, dt: float) -> float:
        h = max(mu.box.spacing)
        if self.eps is None:
            return max(DEFAULT_EPS * h * h, min(0.02 * dt, 3 * h * h))
        return self.eps

    def _problem(self, terms, mu, dt, eps, warm) -> Scaling:
        old = None if warm is None else warm.problem
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

    def _iterate(self, problem: Scaling, rest: Sum | None, warm: _Warm | None):
        anderson = Anderson(self.memory, problem.source.grid)
        damping = 1.0
        if problem.terms.internal is None:
            damping = 2 / (1 + max(1.0, problem.kernel.eps / problem.entropic))
        own = problem.potential
        if rest is not None:
            phi = rest.first_variation(problem.source).reshape(own.shape)
            problem = replace(problem, potential=own + phi)
        x = self._start(problem, warm)
        z, level, fresh = None, math.inf, True
        for k in range(self.max_iterations):
            iterate = problem.evaluate(x, z)
            if not math.isfinite(iterate.residual):
                if problem.safely:
                    msg = "the scaling iteration left the finite numbers"
                    raise Diverged(msg, measure=problem.source)
                iterate = iterate._replace(lost=1.0)
            if iterate.lost > LOST:
                problem, z = replace(problem, safely=True), None
                anderson.forget()
                x = self._start(problem, warm)
                continue
            z = iterate.log_density
            if rest is not None and iterate.residual <= max(
                REFRESH * level, self.tolerance
            ):
                if fresh and iterate.residual <= self.tolerance:
                    break
                nu = self._measure(problem, iterate)
                phi = rest.first_variation(nu).reshape(own.shape)
                problem = replace(problem, potential=own + phi)
                level, fresh = iterate.residual, iterate.residual <= self.tolerance
                continue
            fresh = fresh and rest is None
            if iterate.residual <= self.tolerance:
                break
            x = anderson.advance(x, damping * iterate.change)
        return problem, iterate, k + 1

    def _start(self, problem: Scaling, warm: _Warm | None) -> Tensor:
        if warm is None:
            return torch.zeros_like(problem.log_source)
        return problem.start(warm.log_a(problem))

    def _measure(self, problem: Scaling, iterate: Iterate) -> GridDensity:
        mu = problem.source
        weights = problem.weights(iterate).reshape(-1)
        total = mu.weights.sum(dtype=torch.float64) / weights.sum(dtype=torch.float64)
        return mu.moved(weights * total.to(weights.dtype))


@dataclass(frozen=True)
class _Warm:
    """The last scaling, good for the same cells."""

    problem: Scaling
    iterate: Iterate

    def fits(self, mu: GridDensity) -> bool:
        old = self.problem.source
        return (old.box, old.dtype, old.device) == (mu.box, mu.dtype, mu.device)

    def log_a(self, problem: Scaling) -> Tensor:
        z = self.iterate.log_density
        factor = (problem.dt / problem.kernel.eps) / (
            self.problem.dt / self.problem.kernel.eps
        )
        if factor == 1:
            return self.iterate.log_a
        return 0.5 * z + factor * (self.iterate.log_a - 0.5 * z)
