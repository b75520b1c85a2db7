"""Interactions and other terms of a dual step, by rounds of local steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.functionals import Functional, PowerEntropy
from otflow.functionals.combined import combine
from otflow.measures import GridDensity
from otflow.proximal.grid.back_and_forth.convex import ascend
from otflow.proximal.grid.back_and_forth.coupled import Coupled, Joint
from otflow.proximal.grid.back_and_forth.newton import maximise
from otflow.proximal.grid.pressure import Iterate, PressureProblem, lowest_pressure
from otflow.proximal.grid.rounds import Point, end_of_powers, steepness_asked
from otflow.proximal.terms import Terms

__all__ = ["SETTLED", "Settled", "settle"]

# A local step is solved to that share of the least residual so far, at most to the
# second, and at last to a share of the tolerance.
SHARE, COARSEST, FINEST = 0.1, 1e-2, 0.2
# First L beside the largest curvature, which few steps meet; the least L that grows.
FIRST, LEAST = 0.2, 1e-3
# Growth of L where a round fails, and its fall where the model was too steep by SLACK.
GROWTH, SLACK = 2.0, 2.5
# Round-off of an energy, in units of that of its dtype.
ROUND_OFF = 64.0
# Rounds that may pass before the least residual is this share of what it was.
PATIENCE, PROGRESS = 8, 0.5
# Local steps in succession that may miss their aim.
MOST_FAILURES = 2
# Newton steps in all, for each that one start of a local step may take.
WORK = 1.25
# The density has settled if it changes by less than so many tolerances.
SETTLED = 10.0
# The whole is tried again where a round is off by less than this share of before.
AGAIN = 0.95
# Densities below this share of the largest count as that in the logarithm at the start.
DUST = 1e-12
# Newton steps of the whole after each round.
NEWTON = 40


class Settled(NamedTuple):
    """What the rounds came to."""

    point: Iterate
    steps: int
    ending: str  # "converged", "stalled" or "limit"
    rounds: int
    problem: PressureProblem  # linearised at the masses of `point`


@dataclass(frozen=True)
class _Round:
    """A local step, and how far it is from a step of the whole."""

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
    r"""Minimise E + G, E the local part with the cost, by rounds of local problems.

    A round from the density y is

    .. math:: \nu^+ = \operatorname{argmin}_\nu E(\nu) + \int G'[y]\,d\nu +
        L\,D(\nu, y),

    D the divergence of the entropy, or half the square of the distance in
    :math:`L^2` where vacuum may stay: the local problem with more of an internal energy
    and another potential, :math:`q = G'[y] - L\,h'(y)`. If

    .. math:: G(\nu^+) \le G(y) + \int G'[y]\,d(\nu^+ - y) + L\,D(\nu^+, y)

    the objective falls from y to :math:`\nu^+` :cite:p:`bauschke2017descent`; a concave
    G, an attraction, meets it with L = 0. L grows until a round does. Such a round
    falls by construction, and may be slow: from its end Newton's method solves the
    whole, and what it finds counts if the objective did not rise by more than its
    residual explains.

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
        Of the residual.
    limit : int
        Most Newton steps from each start of a local problem.
    most : int
        Most rounds.

    Returns
    -------
    Settled
        The best point. Its residual is the mass at the wrong density under the first
        variation at its own masses, plus the mass by which these differ from those at
        which it was taken; or, with L = 0, that of the last local step plus a tenth of
        what it changed.
    """
    G = terms.nonlocal_part
    assert G is not None
    rounds = _Rounds(G, terms, mu, problem)
    y = rounds.first()
    L = FIRST * rounds.curvature(y)
    phi = -problem.V - start - y.slope
    best: tuple[float, Iterate | None, PressureProblem] = (math.inf, None, problem)
    steps, failures, since, goal, least = 0, 0, 0, math.inf, math.inf
    tried, ending, work = math.inf, "limit", math.ceil(WORK * limit)
    for k in range(1, most + 1):
        aim = min(max(SHARE * least, FINEST * tolerance), COARSEST)
        now = rounds.solve(y, L, phi, aim, min(limit, work - steps))
        steps += now.used
        failures = 0 if now.solved else failures + 1
        ratio, fits = rounds.compare(y, now.nu, L)
        found = [(now.joint.residual, now.joint.point, now.joint.problem)]
        if L == 0:  # a step of the whole once the density settles
            change = float((now.nu.mass - y.mass).abs().sum())
            residual = now.point.residual + change / SETTLED
            found.append((residual, now.point, now.problem))
        if fits:
            least = min(least, *(residual for residual, _, _ in found))
            y, phi = now.nu, now.phi
            if least > tolerance and now.joint.residual < AGAIN * tried:
                tried = now.joint.residual
                left = min(NEWTON, max(work - steps, 1))
                joint, used = rounds.whole(now.joint, tolerance, left)
                steps += used
                if used and rounds.coupled.falls(now.joint, joint):
                    found.append((joint.residual, joint.point, joint.problem))
        if fits or best[1] is None:
            best = min(best, *found, key=lambda each: each[0])
        if best[0] <= tolerance:
            ending = "converged"
            break
        if best[0] <= goal:
            goal, since = PROGRESS * best[0], k
        if failures == MOST_FAILURES or k - since > PATIENCE:
            ending = "stalled"
            break
        if steps >= work:
            break
        L = rounds.adapted(L, ratio, fits)
    residual, point, problem = best
    if point is None:  # no number was finite
        return Settled(now.point, steps, "stalled", k, now.problem)
    return Settled(replace(point, residual=residual), steps, ending, k, problem)


class _Rounds:
    """What a round needs of G."""

    def __init__(
        self, G: Functional, terms: Terms, mu: GridDensity, problem: PressureProblem
    ) -> None:
        self.G, self.terms, self.problem = G, terms, problem
        # A user's term may hold tensors of the measure's own dtype.
        self.mu = mu if terms.others else mu.detach().map_tensors(_wide)
        self.is_free = problem.room > 0
        self.room = torch.where(self.is_free, problem.room, 1.0)
        # Where the energy fills the vacuum, densities are compared by logarithms.
        self.by_log = math.isinf(problem.lowest)
        self.tiny = torch.finfo(torch.float64).tiny
        self.scale = 0.0
        self.coupled = Coupled(G, self.mu, problem)

    def first(self) -> Point:
        """Return the source, without vacuum where logarithms are taken."""
        masses = self.problem.masses
        if self.by_log:
            dust = DUST * float(masses.max())
            masses = torch.where(self.is_free, masses.clamp_min(dust), 0.0)
        return self.point(masses)

    def point(self, masses: Tensor) -> Point:
        """Differentiate G at the masses."""
        r = masses / self.room
        h = r.clamp_min(self.tiny).log() if self.by_log else r
        h = torch.where(self.is_free, h, 0.0)
        nu = self.mu.with_free_weights(masses.to(self.mu.dtype))
        value = float(self.G.value(nu))
        return Point(h, masses, value, self.coupled.slope(masses))

    def energy(self, L: float) -> PressureProblem:
        """Return the local problem with L more of the internal energy of D."""
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
        if self.by_log:  # in vacuum the map brings nothing, not even a logarithm
            masses = point.wanted * (masses.sum() / point.wanted.sum())
        nu = self.point(masses)
        joint = self.coupled.settled(phi, local, point)
        return _Round(point, local, phi, nu, point.residual <= aim, used, joint)

    def whole(self, joint: Joint, tolerance: float, limit: int) -> tuple[Joint, int]:
        """Return what Newton's method makes of the whole, and its steps.

        Interactions are quadratic; where they are convex the whole is a concave dual.
        """
        used = 0
        if not self.terms.others:
            joint, used = ascend(self.coupled, joint, tolerance, limit)
        if joint.residual > tolerance and used < limit:
            joint, more = self.coupled.climb(joint, tolerance, limit - used)
            used += more
        return joint, used

    def compare(self, y: Point, nu: Point, L: float) -> tuple[float, bool]:
        """Return the L that the step from y to nu asked for; whether L is enough."""
        change, spread = nu.mass - y.mass, nu.log - y.log
        if self.by_log:
            divergence = float(nu.mass @ spread - change.sum())
        else:
            divergence = 0.5 * float(spread @ change)
        noise = ROUND_OFF * torch.finfo(self.mu.dtype).eps
        noise = noise * (abs(nu.value) + abs(y.value))
        return steepness_asked(y, nu, spread, divergence, L, noise)

    def adapted(self, L: float, ratio: float, fits: bool) -> float:
        """Return the next L, given what the last round asked for."""
        if not fits:
            return max(GROWTH * L, 1.1 * ratio, LEAST * self.scale)
        if L > 0 and SLACK * ratio < L:
            return max(L / SLACK, ratio, 0.0)
        return L

    def curvature(self, y: Point) -> float:
        """Return the largest eigenvalue of G'' beside D'', by power iterations."""
        masses, weights, least = y.mass, y.mass, 1.0
        if not self.by_log:
            weights = self.problem.room
            masses = 0.5 * (masses + weights * (masses.sum() / weights.sum()))
            least = float((masses / self.room)[self.is_free].min())
        points, spacing = self.mu.points, self.problem.box.spacing[0]
        slope = self.coupled.slope
        value = end_of_powers(slope, masses, weights, points, spacing, least)
        self.scale = abs(value)
        return max(value, 0.0)


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
