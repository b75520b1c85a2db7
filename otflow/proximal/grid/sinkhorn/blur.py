"""The distance by which the blur of an entropic step on a grid moves its result."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._bounds import at_least
from otflow._warn import warn
from otflow.errors import BlurWarning, Diverged
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.certificate import Certificate
from otflow.proximal.grid.push_forward import distance_along_axes
from otflow.proximal.grid.sinkhorn.iteration import Plan, iterate, start_of
from otflow.proximal.grid.sinkhorn.problem import MARGIN, Scaling, least_eps

__all__ = ["MOST_BLUR", "Told", "response_to_blur", "warn_of_blur"]

# Largest distance by the blur in a certified step, as a share of the step.
MOST_BLUR = 0.05
# Tolerance of the further solves, as a share of the mass: at most UNSURE, and PART of
# the length that is to be decided. FLOOR eps of the dtype is what the iteration
# reaches.
UNSURE, PART = 1e-5, 0.2
FLOOR = 1e3
# Ratio of the variances of successive wider kernels, and most evaluations of each
# solve. A first distance below CLEAR of the limit decides without a second.
WIDER, BUDGET = math.sqrt(2.0), 100
CLEAR = 0.1
# Least ratio of the second distance to the first: a ratio near 1 would make the
# extrapolation meaningless.
LEAST_RATIO = 1.1
# A dt within this factor is the same one to a warning: a flow whose dt varies would
# warn at each step otherwise.
OTHER_DT = 1.5
# Above this ratio of lengths of cells, or of eps to the least one, a cure names it.
UNEVEN = 1.5


def response_to_blur(
    plan: Plan, own: Tensor, blur: float, pull: float, memory: int
) -> tuple[float, bool]:
    r"""Return the distance by which the blur moves a step, and whether it is too large.

    The same step with :math:`\sqrt2\,\varepsilon` measures the response to the blur.
    The debiased cost is wrong by :math:`O(\varepsilon^2)`. So the distance a of the two
    steps is that of this step to the step without blur.

    Where the kernel is as wide as the density, a underestimates this distance. A third
    step with :math:`2\varepsilon`, at a distance b from the second, shows by which
    power the distance grows: this step is wrong by :math:`a^2/(b - a)`. Where the parts
    of F cancel to the share `MOST_BLUR`, the density is at rest, and the blur is
    compared with a cell.

    Parameters
    ----------
    plan : Plan
        The solved step.
    own : Tensor
        The potential of the debiased cost of the new density to itself.
    blur, pull : float
        The pull of the blur, and that of the strongest part of F.
    memory : int
        Differences that the acceleration keeps.

    Returns
    -------
    tuple of float and bool
        The distance, or `blur` if no distance was found, and whether this exceeds
        `MOST_BLUR` of the step.
    """
    source, nu = plan.problem.source, plan.measure
    cell = max(nu.box.spacing)
    step = _distance(nu, source, plan.potential - own)
    # At rest the errors of steps do not add up.
    rests = step <= MOST_BLUR * pull
    most = MOST_BLUR * (max(step, cell) if rests else step)
    # Each density is known up to a share of its mass, moved by about the spread. This
    # error must be small beside the length that is to be decided.
    x = nu.points - nu.weights @ nu.points
    spread = float((nu.weights @ x.square().sum(-1)).sqrt())
    least = FLOOR * torch.finfo(nu.dtype).eps
    share = min(max(PART * most / spread, least), UNSURE) if spread > 0 else UNSURE
    tolerance = max(share, least)
    unsure = tolerance * spread

    def solved(posed: Scaling, start: Plan) -> Plan | None:
        """Return the plan of a problem, None if the solve fails."""
        try:
            x = start_of(posed, start)
            found = iterate(posed, x, memory, tolerance, BUDGET, widen=False)
        except Diverged:
            return None
        return found if found.iterate.residual <= tolerance else None

    here: Plan | None = plan
    if plan.iterate.residual > tolerance:
        here = solved(plan.problem, plan)
    second = None if here is None else solved(here.problem.wider(WIDER), here)
    if here is None or second is None or unsure > most:
        return blur, blur > most and not rests
    first = _distance(here.measure, second.measure, own)
    if max(CLEAR * most, unsure) < first <= most:
        third = solved(second.problem.wider(WIDER), second)
        if third is None:
            return blur, blur > most and not rests
        growth = _distance(second.measure, third.measure, own) / first
        first /= max(growth, LEAST_RATIO) - 1.0
    return first, first > most + unsure


def _distance(nu: GridDensity, other: GridDensity, psi: Tensor) -> float:
    """Return a lower bound of W2 from the marginals and from a potential.

    Different densities may have equal marginals; the potential tells them apart.
    """
    gain = abs(float(((other.weights - nu.weights) * psi.reshape(-1)).sum()))
    slope = max(float(at.norm(at.box.gradient(psi))) for at in (nu, other))
    along = gain / slope if slope > 0 else 0.0
    return max(along, distance_along_axes(nu, other))


# Warnings -----------------------------------------------------------------------------


class Told(NamedTuple):
    """What the warnings of a flow were about."""

    F: Functional
    dts: tuple[float, ...]


def warn_of_blur(
    known: Certificate, F: Functional, problem: Scaling, told: Told | None
) -> Told | None:
    """Warn of a solved step whose blur is not small; return what the flow was told.

    `told` is what the step before returned. A flow warns once.
    """
    if not known.converged:
        return told
    before, after, own = known["energy_before"], known["energy_after"], known.details
    dt, noise = problem.dt, known["residual"] * abs(before)  # at rest
    rises = after - before > noise and not known.certified
    dts = told.dts if told is not None and told.F is F else ()
    is_known = any(dt <= OTHER_DT * old and old <= OTHER_DT * dt for old in dts)
    if is_known or not (own.blurred or rises):
        return told
    rose = f", which raised the energy to {after:.6g}" if after > before else ""
    msg = (
        f"eps = {own.eps:.3g} is too large for dt = {dt:.3g}: the blur alone "
        f"moves the density by {own.blur:.3g}, which is not small beside the "
        f"step{rose}; the step is not certified; {_cures_of_blur(problem)}"
    )
    warn(msg, BlurWarning)
    return Told(F, (*dts, dt))


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
        cures = [f"eps = {at_least(least, 2)}", f"{finer} with a smaller eps"]
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
