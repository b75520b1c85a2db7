"""The result of a dual step on cells: measure, certificate, bounds of the objective."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from otflow._bounds import at_least
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.base import ProxResult
from otflow.proximal.certificate import certify
from otflow.proximal.grid.back_and_forth.coupled import local_objective
from otflow.proximal.grid.back_and_forth.rounds import SETTLED, Settled
from otflow.proximal.grid.duality import below_bound, distance_bound, dual_value
from otflow.proximal.grid.pressure import PressureProblem
from otflow.proximal.grid.push_forward import squared_diagonal, transport_cost

__all__ = ["BackAndForthDetails", "is_full", "result_of"]


# Round-off of an energy, in units of that of the dtype: an energy is a long sum.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class BackAndForthDetails:
    """What `BackAndForth` reports besides the words of a certificate.

    Parameters
    ----------
    primal : float
        Objective at the result.
    dual, gap : float or None
        A lower bound of the least objective, and ``primal`` minus this bound.
    relocated : float
        Mass that was moved to meet the bound on the density exactly.
    stayed : bool
        Whether the measure is returned unchanged.
    linearisations : int
        Number of linearisations of interactions and other terms.
    stalled : bool
        Whether the solve ended above its tolerance because it did not improve.

    Attributes
    ----------
    primal, dual, gap, relocated, stayed, linearisations, stalled
        As above.
    """

    primal: float
    dual: float | None
    gap: float | None
    relocated: float
    stayed: bool
    linearisations: int
    stalled: bool


def result_of(
    F: Functional,
    mu: GridDensity,
    before: float,
    settled: Settled,
    tolerance: float,
    *,
    within: float | None = None,
    stay: bool = False,
) -> ProxResult[GridDensity]:
    """Return the step of an iterate, or the measure itself if F would not fall.

    The energies have two errors: the round-off of the measure's dtype, and the most
    that the residual, the mass at the wrong density, can gain in the potential. ``w2``
    counts relocated mass as moved through the whole box, which may be too far.

    Parameters
    ----------
    F : Functional
        The functional.
    mu : GridDensity
        The source.
    before : float
        F at the source.
    settled : Settled
        The solution.
    tolerance : float
        Tolerance of the residual.
    within : float, optional
        A bound on the distance to the exact step, if one is known beforehand.
    stay : bool
        Whether to return the measure unchanged.
    """
    point, problem, rounds = settled.point, settled.problem, settled.rounds
    internal, box, dt = problem.internal, mu.box, problem.dt
    masses, relocated = below_bound(point.masses, problem.room, internal.max_density)
    measure = mu.moved(masses.to(mu.dtype))
    after, square = (
        float(F.value(measure)),
        transport_cost(point.sweeps, box, relocated),
    )
    # A step that does not lower F is shorter than the cells resolve.
    stayed = stay or not after < before
    if stayed:
        masses, measure, after = problem.masses, mu, before
        square, relocated = 0.0, 0.0
    primal = local_objective(problem, masses, square)
    dual, unseen = dual_value(problem, point.pressure, point.masses)
    gap = None if dual is None else max(primal - dual, 0.0)
    guarantee, bound = "optimal", within
    # The gap of a linearisation is no gap of F.
    if within is None and (gap is None or rounds):
        guarantee = "stationary"
        change = float((masses - point.masses).abs().sum())
        if rounds and stayed and change > SETTLED * tolerance:
            # The step of the linearisation raised F: it is no critical point of F.
            guarantee = "none"
    elif within is None and not problem.is_summed:
        assert gap is not None
        V = torch.where(mu.is_free, problem.V, math.nan).reshape(mu.shape)
        on_grid, modulus = masses.reshape(mu.shape), F.modulus(mu.dim)
        bound = distance_bound(gap + unseen, on_grid, V, modulus, dt)
    if bound is not None and math.isfinite(bound):
        guarantee = "exact"
    phi = (problem.V + point.pressure)[(problem.room > 0) & (point.masses > 0)]
    size = float((problem.masses + masses) @ problem.V.abs()) + abs(before) + abs(after)
    # Mass at the wrong density gains at most the range of the potential, and relocated
    # mass pays at most for a move through the whole box.
    noise = point.residual * float(phi.max() - phi.min())
    noise += relocated * squared_diagonal(box) / (2 * dt)
    known = certify(
        energy_before=before,
        energy_after=after,
        dt=dt,
        w2=math.sqrt(square),
        residual=point.residual,
        converged=settled.ending == "converged",
        guarantee=guarantee,
        bound=bound if guarantee == "exact" else None,
        noise=noise + ROUND_OFF * torch.finfo(mu.dtype).eps * size,
        iterations=settled.steps,
        details=BackAndForthDetails(
            primal, dual, gap, relocated, stayed, rounds, settled.ending == "stalled"
        ),
    )
    return ProxResult(measure, point.pressure, certificate=known)


def is_full(problem: PressureProblem, tolerance: float, slack: float) -> bool:
    """Return whether no more mass fits below the bound, up to a share `tolerance`.

    A share `slack` of mass too much counts as round-off.

    Raises
    ------
    ValueError
        If the mass does not fit.
    """
    bound, room = problem.internal.max_density, float(problem.room.sum())
    mass = float(problem.masses.sum())
    if mass > bound * room * (1 + slack):
        least = mass / room
        msg = (
            f"max_density = {bound:g} is below the mean density {least:.6g}: mass 1 "
            f"does not fit in the free volume {room:.6g}; raise the bound to "
            f"{at_least(least, 6)} or more, or enlarge the box"
        )
        raise ValueError(msg)
    return mass >= bound * room * (1 - tolerance)
