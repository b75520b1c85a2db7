"""What is known of a debiased entropic step on a grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from otflow.errors import BlurWarning
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.certificate import certify
from otflow.proximal.grid_distance import distance_on_a_line, trusted_distance
from otflow.proximal.grid_duality import distance_bound, dual_value
from otflow.proximal.grid_local import transport_cost
from otflow.proximal.scaling import Iterate, Scaling

__all__ = ["certificate", "warn_of_blur"]


def certificate(
    F: Functional,
    problem: Scaling,
    iterate: Iterate,
    nu: GridDensity,
    *,
    energy_before: float,
    converged: bool,
    duality: bool,
) -> dict[str, Any]:
    """Return the entries that `GridSinkhorn` documents, iterations apart."""
    mu, dt, eps = problem.source, problem.dt, problem.kernel.eps
    after = float(F.value(nu))
    bias = eps * eps / (16 * dt) * (_fisher(mu) + _fisher(nu))
    if mu.dim == 1:
        w2: float | None = distance_on_a_line(mu, nu)
    else:
        cost = 2 * transport_cost(problem, iterate, nu.weights, nu.grid.log())
        w2 = trusted_distance(mu, cost, 2 * dt * bias)
    upper = bound = None
    if duality:
        log_b = problem.log_source - iterate.image
        cost = problem.kernel.squared_distance(
            iterate.log_a, log_b, safely=problem.safely
        )
        upper = math.sqrt(cost)
        if converged:
            bound = _bound(F, problem, iterate, nu, after + cost / (2 * dt))
    convex = "optimal" if problem.terms.nonlocal_part is None else "stationary"
    return certify(
        energy_before=energy_before,
        energy_after=after,
        dt=dt,
        w2=w2,
        residual=iterate.residual,
        converged=converged,
        guarantee=convex if bound is None else "exact",
        bound=bound,
        # What an error in the marginal does to the cost, times a safe factor: at rest
        # the decrease is noise, of up to six times this size.
        noise=10 * iterate.residual * (abs(energy_before) + eps / dt),
        w2_upper=upper,
        log_domain=problem.safely,
        eps=eps,
        bias=bias,
    )


def warn_of_blur(known: Mapping[str, Any], dt: float, *, already: bool) -> bool:
    """Warn of a solved step that raised the energy; return whether it ever did.

    A flow is warned once: `already` is the answer of the step before.
    """
    before, after = known["energy_before"], known["energy_after"]
    rises = after - before > known["residual"] * abs(before)  # not noise at rest
    raised = known["converged"] and not known["certified"] and rises
    if raised and not already:
        msg = (
            f"eps = {known['eps']:.3g} is too large for dt = {dt:.3g}: the blur "
            f"outweighed the step, which raised the energy from {before:.6g} to "
            f"{after:.6g}; take a finer grid, a longer dt, or JKO(BackAndForth())"
        )
        warnings.warn(msg, BlurWarning, stacklevel=3)
    return raised or already


def _fisher(mu: GridDensity) -> float:
    r"""Return :math:`4\int|\nabla\sqrt\rho|^2` by differences across the faces."""
    slopes = mu.box.gradient(mu.density().sqrt()) * mu.open_faces(mu.dtype)
    return 4 * mu.box.cell_volume * float(slopes.square().sum(dtype=torch.float64))


def _bound(
    F: Functional, problem: Scaling, iterate: Iterate, nu: GridDensity, primal: float
) -> float | None:
    """Return a bound on the distance to the exact step, None if there is none."""
    terms, mu, dt = problem.terms, problem.source, problem.dt
    modulus = F.modulus_in(mu.dim)
    if terms.interactions or terms.others or modulus is None:
        return None
    # Minus the first variation at the new density, also where that underflows.
    phi = problem.kernel.eps * (iterate.log_a - 0.5 * iterate.log_density)
    if problem.correction is not None:
        phi = phi - problem.correction
    V = problem.potential
    if problem.is_free is not None:
        phi = phi.masked_fill(~problem.is_free, -math.inf)
    value = dual_value(mu.box, mu.weights.reshape(mu.shape), phi / dt, terms, V, dt)
    if value is None:
        return None
    if problem.is_free is not None:
        V = V.masked_fill(~problem.is_free, math.nan)
    return distance_bound(primal - value, nu.weights.reshape(mu.shape), V, modulus, dt)
