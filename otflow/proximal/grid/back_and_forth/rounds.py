"""Interactions and other terms of a dual step, by rounds of local steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.functionals import Congestion, Functional, PowerEntropy
from otflow.measures import GridDensity
from otflow.proximal.grid.back_and_forth.ascent import ascend
from otflow.proximal.grid.back_and_forth.coupled import Coupled, Joint
from otflow.proximal.grid.back_and_forth.newton import maximise
from otflow.proximal.grid.duality import lowest_pressure
from otflow.proximal.grid.own_energy import wide
from otflow.proximal.grid.pressure import Iterate, PressureProblem
from otflow.proximal.grid.rounds import FIRST, Point, Rounds
from otflow.proximal.terms import Terms, combine

__all__ = ["SETTLED", "Settled", "settle"]

# Accuracy of a local step: SHARE of the least residual so far, at most COARSEST, at
# least FINEST times the tolerance.
SHARE, COARSEST, FINEST = 0.1, 1e-2, 0.2
# L grows from this share of the largest curvature at least.
LEAST = 1e-3
# The rounds have stalled if PATIENCE of them do not cut the least residual to PROGRESS.
PATIENCE, PROGRESS = 8, 0.5
# Local steps in succession that may miss their aim.
MOST_FAILURES = 2
# Most Newton steps in all, over the most of one start of a local step.
WORK = 1.25
# The density has settled if it changes by less than so many tolerances.
SETTLED = 10.0
# Newton's method tries the whole again after a round that cut its residual to this
# share of that at the last try.
AGAIN = 0.95
# Least density of the start in logarithms, as a share of the largest.
DUST = 1e-12
# Most Newton steps of the whole after each round.
NEWTON = 40


class Settled(NamedTuple):
    """The result of the rounds."""

    point: Iterate
    steps: int
    ending: str  # "converged", "stalled" or "limit"
    rounds: int
    problem: PressureProblem  # linearised at the masses of `point`


@dataclass(frozen=True)
class _Round:
    """A local step, and its joint state in the whole problem."""

    point: Iterate
    problem: PressureProblem
    phi: Tensor
    nu: Point
    solved: bool  # whether the local step met its aim
    used: int
    joint: Joint


def settle(
    terms: Terms,
    mu: GridDensity,
    problem: PressureProblem,
    start: Tensor,
    *,
    tolerance: float,
    limit: int,
    most: int,
) -> Settled:
    r"""Minimise E + G by rounds of local problems; E is the local part plus the cost.

    A round from the density y is

    .. math:: \nu^+ = \operatorname{argmin}_\nu E(\nu) + \int G'[y]\,d\nu +
        L\,D(\nu, y),

    where D is the divergence of the entropy, or half the squared distance in
    :math:`L^2` where vacuum may stay. This is the local problem with more of an
    internal energy and with the potential :math:`q = G'[y] - L\,h'(y)`. If

    .. math:: G(\nu^+) \le G(y) + \int G'[y]\,d(\nu^+ - y) + L\,D(\nu^+, y)

    the objective falls from y to :math:`\nu^+` :cite:p:`bauschke2017descent`. A concave
    G, such as an attraction, satisfies this with L = 0. L grows until a round satisfies
    it. Such rounds fall by construction and may be slow. Therefore Newton's method
    solves the whole from the end of a round. Its result counts if the objective did not
    rise by more than the residual explains. A bound alone has no curvature: under it G
    is only linearised, with L = 0.

    Parameters
    ----------
    terms : Terms
        The functional.
    mu : GridDensity
        The source.
    problem : PressureProblem
        The local part.
    start : Tensor, shape (n,)
        A first pressure, under the first variation of G at the source.
    tolerance : float
        Largest residual.
    limit : int
        Most Newton steps from each start of a local problem.
    most : int
        Most rounds.

    Returns
    -------
    Settled
        The best point. Its residual is the mass at the wrong density, plus the mass by
        which the density differs from that where the first variation was taken. With
        L = 0 it may be the residual of the last local step plus a tenth of the change
        of the masses.
    """
    G = terms.nonlocal_part
    assert G is not None
    rounds = _Rounds(G, terms, mu, problem)
    y = rounds.first()
    # A bound alone has no curvature to add to.
    is_hard = isinstance(problem.internal, Congestion)
    L = 0.0 if is_hard else FIRST * rounds.steepest(y)
    phi = -problem.V - start - y.slope
    best: tuple[float, Iterate | None, PressureProblem] = (math.inf, None, problem)
    steps, failures, since, goal, least = 0, 0, 0, math.inf, math.inf
    tried = math.inf
    work = math.inf if is_hard else math.ceil(WORK * limit)
    for k in range(1, most + 1):
        aim = min(max(SHARE * least, FINEST * tolerance), COARSEST)
        now = rounds.solve(y, L, phi, aim, int(min(limit, work - steps)))
        steps += now.used
        failures = 0 if now.solved else failures + 1
        ratio, fits = (0.0, True) if is_hard else rounds.compare(y, now.nu, L)
        found = [(now.joint.residual, now.joint.point, now.joint.problem)]
        # With L = 0 a local step is a step of the whole once the density settles.
        if L == 0:
            change = float((now.nu.mass - y.mass).abs().sum())
            residual = now.point.residual + change / SETTLED
            found.append((residual, now.point, now.problem))
        if fits:
            least = min(least, *(residual for residual, _, _ in found))
            # At the bound the pressure is kept: it changes less than the potential.
            kept = y.slope - now.nu.slope if is_hard else 0.0
            y, phi = now.nu, now.phi + kept
            new = now.joint.residual < AGAIN * tried and not is_hard
            if least > tolerance and new:
                tried = now.joint.residual
                left = min(NEWTON, max(int(work) - steps, 1))
                joint, used = ascend(rounds.coupled, now.joint, tolerance, left)
                steps += used
                if used and rounds.coupled.falls(now.joint, joint):
                    found.append((joint.residual, joint.point, joint.problem))
        if fits or best[1] is None:
            best = min(best, *found, key=lambda each: each[0])
        if best[0] <= goal:
            goal, since = PROGRESS * best[0], k
        stalled = failures == MOST_FAILURES or k - since > PATIENCE
        if best[0] <= tolerance or stalled or steps >= work:
            break
        L = rounds.adapted(L, ratio, fits, LEAST * rounds.scale)
    residual, point, problem = best
    ending = "stalled" if stalled else "limit"
    if residual <= tolerance:
        ending = "converged"
    # No residual was finite.
    if point is None:
        return Settled(now.point, steps, "stalled", k, now.problem)
    return Settled(replace(point, residual=residual), steps, ending, k, problem)


class _Rounds(Rounds):
    """Rounds whose densities are given by their masses."""

    def __init__(
        self, G: Functional, terms: Terms, mu: GridDensity, problem: PressureProblem
    ) -> None:
        # A user's term may hold tensors of the measure's own dtype.
        mu = mu if terms.others else mu.detach().map_tensors(wide)
        super().__init__(G, mu, 0.0)
        self.terms, self.problem = terms, problem
        self.is_free = problem.room > 0
        self.room = torch.where(self.is_free, problem.room, 1.0)
        # Where the energy fills the vacuum, densities are compared by logarithms.
        self.by_log = math.isinf(problem.lowest)
        self.tiny = torch.finfo(torch.float64).tiny
        self.scale = 0.0
        self.coupled = Coupled(G, self.mu, problem, is_linear=not terms.others)

    def first(self) -> Point:
        """Return the source; where logarithms are taken, vacuum is filled with dust."""
        masses = self.problem.masses
        if self.by_log:
            dust = DUST * float(masses.max())
            masses = torch.where(self.is_free, masses.clamp_min(dust), 0.0)
        return self.point(masses)

    def point(self, masses: Tensor) -> Point:
        """Return value and first variation of G at the masses."""
        r = masses / self.room
        h = r.clamp_min(self.tiny).log() if self.by_log else r
        h = torch.where(self.is_free, h, 0.0)
        nu = self.mu.with_free_weights(masses.to(self.mu.dtype))
        value = float(self.G.value(nu))
        return Point(h, masses, value, self.coupled.slope(masses))

    def slope(self, mass: Tensor) -> Tensor:
        return self.coupled.slope(mass)

    def energy(self, L: float) -> PressureProblem:
        """Return the local problem plus L times the internal energy of D."""
        if L == 0:
            return self.problem
        if self.by_log:
            more = replace(self.terms, temperature=self.terms.temperature + L)
            internal = more.energy
        else:
            parts = [(1.0, self.problem.internal), (0.5 * L, PowerEntropy(2.0))]
            internal = combine(parts)
        assert internal is not None
        lowest = lowest_pressure(internal, self.problem.masses)
        return replace(self.problem, internal=internal, lowest=lowest)

    def solve(self, y: Point, L: float, phi: Tensor, aim: float, limit: int) -> _Round:
        """Return the local step around y for L, from a potential."""
        local = self.energy(L)
        local = replace(local, V=local.V + y.slope - L * y.log)
        point, used, _ = maximise(local, -phi - local.V, aim, limit, separable=False)
        phi = -local.V - point.pressure
        masses = point.masses
        # The map brings no mass to vacuum, and a density 0 has no logarithm: the wanted
        # masses are positive.
        if self.by_log:
            masses = point.wanted * (masses.sum() / point.wanted.sum())
        nu = self.point(masses)
        joint = self.coupled.settled(phi, local, point)
        return _Round(point, local, phi, nu, point.residual <= aim, used, joint)

    def steepest(self, y: Point) -> float:
        """Return the largest eigenvalue of G'' relative to D'', by power iterations."""
        masses, weights, least = y.mass, y.mass, 1.0
        if not self.by_log:
            weights = self.problem.room
            masses = 0.5 * (masses + weights * (masses.sum() / weights.sum()))
            least = float((masses / self.room)[self.is_free].min())
        value = self.curvature(masses, weights, least)
        self.scale = abs(value)
        return max(value, 0.0)
