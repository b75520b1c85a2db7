"""What is known of a debiased entropic step on a grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otflow.errors import BlurWarning
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.certificate import ROUND_OFF, Certificate, certify
from otflow.proximal.grid.duality import DualProblem, distance_bound, dual_value
from otflow.proximal.grid.push_forward import distance_along_axes
from otflow.proximal.grid.sinkhorn.blur import blur_of, self_potential
from otflow.proximal.grid.sinkhorn.eps import MARGIN, least_eps
from otflow.proximal.grid.sinkhorn.iteration import Told
from otflow.proximal.grid.sinkhorn.scaling import (
    Iterate,
    Scaling,
    measure_of,
    transport_cost,
)

__all__ = ["GridSinkhornDetails", "Solution", "warn_of_blur"]

# Error of an energy over its change by one more evaluation of the map: a stiff
# iteration is so much farther from its end.
SAFE = 10.0
# Above this ratio of lengths of cells, or of eps to the least one, a cure names it.
UNEVEN = 1.5
# Largest relative error of the estimate of a distance beyond a cell.
SHARE = 0.05


@dataclass(frozen=True)
class GridSinkhornDetails:
    """What `GridSinkhorn` reports besides the words of a certificate.

    Parameters
    ----------
    w2_upper : float or None
        The root of the plan's cost, no less than the distance; None if not asked for.
    log_domain : bool
        Whether numbers would have underflowed.
    eps : float
        The kernel's variance.
    bias : float
        What the debiased cost adds to F.
    blur : float
        How far the blur alone moves the density, in W2.
    blurred : bool
        Whether that is more than a twentieth of the step.

    Attributes
    ----------
    w2_upper, log_domain, eps, bias, blur, blurred
        As above.
    """

    w2_upper: float | None
    log_domain: bool
    eps: float
    bias: float
    blur: float
    blurred: bool


@dataclass(frozen=True)
class Solution:
    """A step that was solved, and what is known of it.

    Parameters
    ----------
    problem, iterate : Scaling, Iterate
        The plan.
    iterations : int
        Evaluations of the map.
    converged : bool
        Whether the residual met the tolerance.
    memory : int
        Of the acceleration, for the solves that measure the blur.
    """

    problem: Scaling
    iterate: Iterate
    iterations: int
    converged: bool
    memory: int

    @cached_property
    def measure(self) -> GridDensity:
        """The new density."""
        return measure_of(self.problem, self.iterate)

    @cached_property
    def own(self) -> Tensor:
        """The potential of the debiased cost of the new density and itself."""
        return self_potential(self.problem, self.iterate.log_density)

    @cached_property
    def blur(self) -> tuple[float, bool]:
        """How far the blur moves the density, and whether that is much."""
        return blur_of(self.problem, self.iterate, self.measure, self.own, self.memory)

    def certificate(
        self, F: Functional, before: float, *, duality: bool
    ) -> Certificate:
        """Return the entries that `GridSinkhorn` documents."""
        problem, iterate, nu = self.problem, self.iterate, self.measure
        mu, dt = problem.source, problem.dt
        after = float(F.value(nu))
        old = self_potential(problem, problem.log_source).reshape(-1)
        costs = self.own.reshape(-1) * nu.weights + old * mu.weights
        bias = float(costs.sum(dtype=torch.float64)) / dt
        if mu.dim == 1:
            w2: float | None = distance_along_axes(mu, nu)
        else:
            cost = 2 * transport_cost(problem, iterate, nu.weights, nu.grid.log())
            w2 = _trusted_distance(mu, cost, 2 * dt * bias)
        upper = bound = None
        if duality:
            log_b = problem.log_source - iterate.image
            cost = problem.kernel.squared_distance(
                iterate.log_a, log_b, safely=problem.safely
            )
            upper = math.sqrt(cost)
            if self.converged:
                bound = _bound(F, problem, iterate, nu, after + cost / (2 * dt))
        claim = "optimal" if problem.terms.nonlocal_part is None else "stationary"
        blur, blurred = self.blur
        claim = "none" if blurred else claim if bound is None else "exact"
        round_off = ROUND_OFF * torch.finfo(mu.dtype).eps
        return certify(
            energy_before=before,
            energy_after=after,
            dt=dt,
            w2=w2,
            residual=iterate.residual,
            converged=self.converged,
            guarantee=claim,
            bound=bound,
            noise=_noise(problem, iterate, nu)
            + round_off * max(abs(before), abs(after)),
            iterations=self.iterations,
            details=GridSinkhornDetails(
                upper, problem.safely, problem.kernel.eps, bias, blur, blurred
            ),
        )


def _trusted_distance(mu: GridDensity, cost: float, bias: float) -> float | None:
    r"""Return the root of cost - bias where that can be trusted, else None.

    The cost is that of debiased entropic transport, twice; its bias is known to leading
    order. What is left is taken to be no more than the bias itself: if that could move
    the distance by more than a cell and 5 %, the estimate is not given.
    """
    estimate = math.sqrt(max(0.0, cost - bias))
    most, least = math.sqrt(max(0.0, cost)), math.sqrt(max(0.0, cost - 2 * bias))
    off = max(most - estimate, estimate - least)
    known = off <= max(*mu.box.spacing, SHARE * estimate)
    return estimate if known else None


def warn_of_blur(
    known: Certificate, F: Functional, problem: Scaling, told: Told | None
) -> Told | None:
    """Warn of a solved step whose blur is not small; return what has been told.

    A flow is warned once: `told` is the answer of the step before.
    """
    if not known.converged:
        return told
    before, after, own = known["energy_before"], known["energy_after"], known.details
    dt, noise = problem.dt, known["residual"] * abs(before)  # at rest
    rises = after - before > noise and not known.certified
    if not (own.blurred or rises) or (told is not None and told.covers(F, dt)):
        return told
    rose = f", which raised the energy to {after:.6g}" if after > before else ""
    msg = (
        f"eps = {own.eps:.3g} is too large for dt = {dt:.3g}: the blur alone "
        f"moves the density by {own.blur:.3g}, which is not small beside the "
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
    phi = problem.potential_at(iterate.log_a, iterate.log_density)
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
    modulus = F.modulus(mu.dim)
    if terms.interactions or terms.others or modulus is None:
        return None
    phi = problem.potential_at(iterate.log_a, iterate.log_density).reshape(-1)
    posed = DualProblem.of(terms, mu, problem.potential.reshape(-1), dt)
    value, unseen = dual_value(posed, -phi.double() / dt - posed.V)
    if value is None:
        return None
    V = torch.where(mu.is_free, posed.V, math.nan).reshape(mu.shape)
    gap = primal - value + unseen
    return distance_bound(gap, nu.weights.reshape(mu.shape), V, modulus, dt)
