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
from otflow.proximal.certificate import ROUND_OFF, Certificate, certify
from otflow.proximal.grid.gap import distance_bound, dual_value
from otflow.proximal.grid.sinkhorn.blur import blur_of, self_potential
from otflow.proximal.grid.sinkhorn.distance import distance_on_a_line, trusted_distance
from otflow.proximal.grid.sinkhorn.local import transport_cost
from otflow.proximal.grid.sinkhorn.problem import MARGIN, Told, least_eps
from otflow.proximal.grid.sinkhorn.scaling import Iterate, Scaling

__all__ = ["certificate", "warn_of_blur"]

# Errors of energies beside what one more evaluation of the map changes in them: a stiff
# iteration is that much further from its end.
SAFE = 10.0
# Ratios of lengths of cells, or of eps to the least one, that a cure speaks of.
UNEVEN = 1.5


def certificate(
    F: Functional,
    problem: Scaling,
    iterate: Iterate,
    nu: GridDensity,
    *,
    energy_before: float,
    converged: bool,
    duality: bool,
    memory: int,
) -> Certificate:
    """Return the entries that `GridSinkhorn` documents, iterations apart."""
    mu, dt, eps = problem.source, problem.dt, problem.kernel.eps
    after = float(F.value(nu))
    new, old = (
        self_potential(problem, log)
        for log in (iterate.log_density, problem.log_source)
    )
    shape = nu.shape
    costs = new * nu.weights.reshape(shape) + old * mu.weights.reshape(shape)
    bias = float(costs.sum(dtype=torch.float64)) / dt
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
    claim = "optimal" if problem.terms.nonlocal_part is None else "stationary"
    blur, blurred = blur_of(problem, iterate, nu, new, memory)
    claim = "none" if blurred else claim if bound is None else "exact"
    return certify(
        energy_before=energy_before,
        energy_after=after,
        dt=dt,
        w2=w2,
        residual=iterate.residual,
        converged=converged,
        guarantee=claim,
        bound=bound,
        noise=_noise(problem, iterate, nu)
        + ROUND_OFF * torch.finfo(mu.dtype).eps * max(abs(energy_before), abs(after)),
        w2_upper=upper,
        log_domain=problem.safely,
        eps=eps,
        bias=bias,
        blur=blur,
        blurred=blurred,
    )


def warn_of_blur(
    known: Mapping[str, Any], F: Functional, problem: Scaling, told: Told | None
) -> Told | None:
    """Warn of a solved step whose blur is not small; return what has been told.

    A flow is warned once: `told` is the answer of the step before.
    """
    before, after, dt = known["energy_before"], known["energy_after"], problem.dt
    noise = known["residual"] * abs(before)  # at rest
    rises = after - before > noise and not known["certified"]
    blurred = known["converged"] and (known["blurred"] or rises)
    if not blurred or (told is not None and told.covers(F, dt)):
        return told
    rose = f", which raised the energy to {after:.6g}" if after > before else ""
    msg = (
        f"eps = {known['eps']:.3g} is too large for dt = {dt:.3g}: the blur alone "
        f"moves the density by {known['blur']:.3g}, which is not small beside the "
        f"step{rose}; the step is not certified; {_cures_of_blur(problem)}"
    )
    warnings.warn(msg, BlurWarning, stacklevel=3)
    earlier = told.dts if told is not None and told.F is F else ()
    return Told(F, (*earlier, dt))


def _cures_of_blur(problem: Scaling) -> str:
    """Return what makes the blur small beside the step."""
    mu, terms, eps = problem.source, problem.terms, problem.kernel.eps
    cells = [(h, k) for k, h in enumerate(mu.box.spacing) if mu.shape[k] > 1]
    finer, (longest, axis) = "a finer grid", max(cells, default=(0.0, 0))
    if longest > UNEVEN * min(cells, default=(0.0, 0))[0]:
        finer += (
            f" along axis {axis}: one eps serves all axes, and must reach the next "
            f"cell along it"
        )
    least = max(least_eps(mu), -MARGIN * problem.dt * terms.temperature)
    if eps > UNEVEN * least:
        # The blur grows like the square of eps, which by default grows with dt.
        cures = [f"eps = {least:.2g}", f"{finer} with a smaller eps"]
    elif terms.temperature < 0 and least > least_eps(mu):
        cures = ["a shorter dt, which bears a smaller eps"]
    else:
        cures = [f"{finer} with a smaller eps", "a longer dt"]
    if terms.temperature >= 0:
        # The dual of a step that repels may have no maximum; fast diffusion has none.
        nonlocal_ = terms.nonlocal_part is not None
        volumes = nonlocal_ or terms.is_fast
        cures.append(f"JKO({'FiniteVolume' if volumes else 'BackAndForth'}())")
    if len(cures) > 1:
        cures[-1] = f"or {cures[-1]}"
    return f"take {', '.join(cures)}"


def _noise(problem: Scaling, iterate: Iterate, nu: GridDensity) -> float:
    r"""Return what the residual leaves open in the energies, as far as it is measured.

    The new density is known twice, as that of the iterate and as the second marginal of
    the plan; the first variation turns their difference into one of energies. The other
    part is what the dual value would still gain, by its slope.
    """
    volume = problem.kernel.box.cell_volume
    masses = nu.weights.reshape(nu.shape)
    off = (iterate.log_density.exp() * volume - masses).abs()
    phi = problem.kernel.eps * (iterate.log_a - 0.5 * iterate.log_density)
    phi = phi.nan_to_num(0.0, 0.0, 0.0)
    phi = (phi - (masses * phi).sum()).abs()
    left = problem.kernel.eps * (iterate.slope * iterate.change).abs()
    total = (off * phi + left + iterate.residual * masses * phi).sum(
        dtype=torch.float64
    )
    return SAFE * float(total) / problem.dt


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
