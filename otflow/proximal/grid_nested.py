"""The entropic step with nonlocal terms linearised in an outer iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from otflow.proximal.anderson import Anderson
from otflow.proximal.scaling import Iterate, Scaling, normalised

__all__ = ["nest"]

# Differences of first variations that are kept, linearisations at most, and how many
# may pass without a new least residual.
MEMORY, ROUNDS, PATIENCE = 6, 60, 12
# Evaluations that a linearised problem may take.
BUDGET = 150

Local = Callable[[Scaling, torch.Tensor | None, int], tuple[Scaling, Iterate, int]]


def nest(
    problem: Scaling, solve: Local, tolerance: float, budget: int
) -> tuple[Scaling, Iterate, int]:
    r"""Find the first variation g of the nonlocal terms that the step for g brings.

    Slower than one iteration for both where that converges, but each step answers to g
    as transport does: :math:`g \mapsto F'[\nu_g]` has slopes of :math:`dt` times the
    displacement Hessian, however stiff F'' is in the masses.

    Parameters
    ----------
    problem : Scaling
        The problem, with the potential of its local terms.
    solve : callable
        Solves a problem without nonlocal terms from x, within a budget; to a part of
        the tolerance.
    tolerance : float
        Of the residual: that of the marginal plus what the change of g would do.
    budget : int
        Evaluations of the map in all.

    Returns
    -------
    problem : Scaling
        With the first variation in its potential.
    iterate : Iterate
        The best, the change of g counted in its residual.
    used : int
        Evaluations.
    """
    rest = problem.terms.nonlocal_part
    assert rest is not None
    mu, scale = problem.source, problem.dt / problem.kernel.eps
    local = replace(problem.terms, interactions=(), others=())
    g = rest.first_variation(mu).reshape(mu.shape)
    anderson = Anderson(MEMORY, mu.grid)
    x: torch.Tensor | None = None
    used, since = 0, 0
    best: tuple[Scaling, Iterate] | None = None
    for _ in range(ROUNDS):
        now = replace(problem, potential=problem.potential + g, terms=local)
        now, iterate, spent = solve(now, x, min(BUDGET, budget - used))
        used += spent
        mass = normalised(iterate.log_density)
        nu = mu.with_weights(mass.reshape(-1))
        move = rest.first_variation(nu).reshape(mu.shape) - g
        error = scale * float((mass * (move - (mass * move).sum()).abs()).sum())
        iterate = iterate._replace(residual=iterate.residual + error)
        since += 1
        if best is None or iterate.residual < best[1].residual:
            now = replace(now, terms=problem.terms)
            best, since = (now, iterate), 0
        done = iterate.residual <= tolerance or not math.isfinite(iterate.residual)
        if done or used >= budget or since >= PATIENCE:
            break
        x = iterate.image if spent < BUDGET else None
        g = anderson.advance(g, move)
    assert best is not None
    return (*best, used)
