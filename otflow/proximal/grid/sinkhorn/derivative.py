"""Implicit derivatives of the debiased entropic step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from otflow._autodiff import differentiable_gradient, implicit
from otflow.errors import NotConverged
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson
from otflow.proximal.grid.sinkhorn.iteration import Plan
from otflow.proximal.grid.sinkhorn.problem import Scaling, elasticity, potential_of

__all__ = ["attach"]

# The adjoint equation: differences that the acceleration keeps, and most evaluations.
MEMORY, MAX_ADJOINT = 40, 2000


def attach(plan: Plan, mu: GridDensity, *, tolerance: float) -> GridDensity:
    """Return the step of a plan; its weights carry the graph of the data.

    The state is x, followed by the first variation of the nonlocal terms if there are
    any. The state is a fixed point of one evaluation of the map, whose graph leads to
    the data.

    Raises
    ------
    NotConverged
        If the residual of the plan exceeds `tolerance`, or if the adjoint equation does
        not converge in the backward pass.
    """
    problem, iterate = plan.problem, plan.iterate
    if iterate.residual > tolerance:
        msg = (
            f"the step stopped at residual {iterate.residual:.2e}, above the tolerance "
            f"{tolerance:.2e}: the derivative of what is not a fixed point means "
            f"nothing; raise max_iterations"
        )
        raise NotConverged(msg, info={"residual": iterate.residual})
    rest = problem.terms.nonlocal_part
    tiny = torch.finfo(mu.dtype).tiny ** 0.7
    # In vacuum the derivative in the mass is finite, that of its logarithm is not.
    problem = replace(problem, log_source=(mu.grid + tiny).log())
    own = potential_of(mu, problem.terms)
    n = mu.n

    def densities(state: Tensor) -> tuple[Tensor, Tensor]:
        x = state[:n].reshape(mu.shape)
        potential = own if rest is None else own + state[n:].reshape(mu.shape)
        now = replace(problem, potential=potential)
        log_q = now.convolve(now.log_source - x)
        z = _implicit_log_density(now, log_q)
        return z, z - log_q

    def step(state: Tensor) -> Tensor:
        z, log_a = densities(state)
        image = problem.convolve(log_a).reshape(-1)
        if rest is None:
            return image
        weights = z.exp().reshape(-1) * mu.box.cell_volume
        slope = differentiable_gradient(
            lambda w: rest.value(mu.with_free_weights(w)), weights
        )
        return torch.cat([image, slope])

    state = iterate.image.reshape(-1)
    scale: Tensor = mu.weights.detach() + tiny
    if rest is not None:
        slope = problem.potential - own.detach()
        state = torch.cat([state, slope.reshape(-1)])
        scale = torch.cat([scale, scale])

    def adjoint(transposed: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
        """Solve y = right + J^T y; J is symmetric for the unknown y / scale."""
        right = right / scale
        size = float((scale * right.square()).sum().sqrt())
        tolerance = 1e-10 if right.dtype == torch.float64 else 1e-5
        anderson = Anderson(MEMORY, scale)
        y = right
        for _ in range(MAX_ADJOINT):
            g = right + transposed(scale * y) / scale - y
            if float((scale * g.square()).sum().sqrt()) <= tolerance * size:
                return scale * y
            # Half a step damps eigenvalues near -1, as of a map that oscillates.
            y = anderson.advance(y, 0.5 * g)
        msg = (
            f"the adjoint equation of the step did not converge in {MAX_ADJOINT} "
            f"iterations; take a smaller dt or a larger eps"
        )
        raise NotConverged(msg)

    state = implicit(step, state, adjoint)
    _, log_a = densities(state)
    log_weights = problem.log_weights(state[:n].reshape(mu.shape), log_a)
    return mu.with_free_weights(log_weights.exp().reshape(-1))


def _implicit_log_density(problem: Scaling, log_q: Tensor) -> Tensor:
    """Return the log density, with the graphs of log q and of the potential."""
    internal, right = problem.terms.internal, problem.right_side(log_q)
    if internal is None:
        return problem.log_density(right, None)[0]
    with torch.no_grad():
        z = problem.log_density(right, None)[0]
    slope = problem.entropic + problem.dt * elasticity(internal, z)
    inside = z < math.log(internal.max_density)
    # A density at its bound or in an obstacle does not move with the data.
    if problem.kernel.is_free is not None:
        inside &= problem.kernel.is_free
    return z + torch.where(inside, (right - right.detach()) / slope, 0.0)
