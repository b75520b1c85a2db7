"""Terms that are not local, by rounds of local steps whose objective falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson

__all__ = ["LocalSolver", "LocalStep", "Outcome", "Point", "minimise_nonlocal"]

# Differences of log densities kept, and the share of the largest density that is added
# to the weights of their norm: far tails must not be lost sight of.
MEMORY, FLOOR = 5, 1e-3
# A local step is solved to that share of the residual of the round before, at most to
# the second, and at last to a share of the tolerance.
SHARE, COARSEST, FINEST, STIFF = 0.1, 3e-2, 0.2, 0.03
# The share in rounds without more entropy: nothing damps what they are off by, and the
# extrapolation sees their differences.
SHARP = 0.03
# An extrapolation whose objective is within round-off must cut the residual to that.
SURE = 0.9
# Its change where that error was all that let a round fail.
FINER = 0.1
# Growth of L where a round fails, and its fall where the model was too steep by SLACK.
GROWTH, SLACK = 2.0, 2.5
# First L beside the largest curvature, which few steps meet; the least L that grows, in
# units of the energy that changes a density by a factor of e.
FIRST, LEAST = 0.2, 0.05
# Rounds, and failures of one round, at most.
ROUNDS, MOST_FAILURES = 400, 40
# Power iterations for the first L, and the relative change of masses that they try.
POWERS, SMALL = 6, 1e-3
# Residual above which nothing is extrapolated, unless a round leaves that share of it:
# a clump that is nearly free to move as a whole goes on for hundreds of rounds.
FAR, SLOW = 0.5, 0.8
# Root mean square by which an extrapolation may change a log density: a clump is moved
# by its width at most, where logarithms are no longer linear in the way.
MOST, NEARER, HALVINGS = 0.7, 0.25, 60
# What is gained in sharpness where an extrapolation fails, as it sees small
# differences; it is lost again where they succeed.
SHARPER = 0.3
# Round-off of an energy, in units of that of its dtype.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class LocalStep:
    r"""A minimiser of :math:`E(\nu) + \int p\,d\nu + L\int\nu\log\nu`, or nearly.

    E is the local part of F plus the cost of transport.

    Parameters
    ----------
    log_density : Tensor
        Logarithm of the density found, in the box's shape, also where the density
        underflows; minus infinity in obstacles only.
    objective : float
        :math:`E(\nu)` of this very density, without p and L, up to a constant, even
        where the local iteration did not converge.
    residual : float
        What the local solver compares with the tolerance.
    converged : bool
        Whether it met it.
    spent : int
        Evaluations.
    state : object
        What the solver wants back as `start`.

    Attributes
    ----------
    log_density, objective, residual, converged, spent, state
        As above.
    """

    log_density: Tensor
    objective: float
    residual: float
    converged: bool
    spent: int
    state: Any


class LocalSolver(Protocol):
    r"""Minimises :math:`E(\nu) + \int p\,d\nu + L\int\nu\log\nu`."""

    def __call__(
        self,
        potential: Tensor,
        entropy: float,
        start: Any,
        tolerance: float,
        budget: int,
    ) -> LocalStep:
        """Return the minimiser for p, in the box's shape, and L >= 0.

        From `start` (None, or the state of a step before), to a tolerance, with at most
        so many evaluations.
        """


class Outcome(NamedTuple):
    """What the rounds came to."""

    step: LocalStep  # the last that was accepted
    potential: Tensor  # p + L log nu of that step: the first variation of G it obeys
    residual: float  # that of the step plus that of the first variation
    converged: bool
    spent: int  # evaluations of the local solver
    rounds: int
    objectives: list[float]  # E + G after each accepted round


class Point(NamedTuple):
    """A density where G has been differentiated."""

    log: Tensor  # log density, or what else the slope of the divergence is
    mass: Tensor  # of the cells, in the box's shape
    value: float  # G
    slope: Tensor  # G', in the box's shape


def minimise_nonlocal(
    G: Functional,
    mu: GridDensity,
    solve: LocalSolver,
    *,
    start: Tensor,
    scale: float,
    tolerance: float,
    budget: int,
) -> Outcome:
    r"""Minimise E + G by rounds that each solve a local problem.

    A round from the density y is

    .. math:: \nu^+ = \operatorname{argmin}_\nu \int G'[y]\,d\nu + L\,\mathrm{KL}(\nu|y)
        + E(\nu),

    the local problem with L more entropy and the potential :math:`G'[y] - L\log y`. If

    .. math:: G(\nu^+) \le G(y) + \int G'[y]\,d(\nu^+ - y) + L\,\mathrm{KL}(\nu^+|y)

    the objective falls from y to :math:`\nu^+` :cite:p:`bauschke2017descent`; an L
    for which this always holds exists if G is smooth relative to the entropy, as an
    interaction is. L is doubled until the objective falls. Between rounds y is
    extrapolated, in logarithms; where the objective then does not fall, the round is
    done again from the last density.

    Parameters
    ----------
    G : Functional
        The terms that the local solver does not know.
    mu : GridDensity
        Gives the grid.
    solve : LocalSolver
        The local step.
    start : Tensor
        Log density in the box's shape to begin at; finite in all free cells, as a round
        puts no mass where y has none.
    scale : float
        What an error of 1 in the potential does to the logarithm of the density, at
        most; the residual counts in it.
    tolerance : float
        Of the residual.
    budget : int
        Evaluations in all.

    Returns
    -------
    Outcome
        The last accepted step, its residual and the objectives on the way.

    Notes
    -----
    The residual is that of the local step plus `scale` times the mean distance of
    :math:`G'[\nu^+]` from the potential that the step was taken in, the mean over
    :math:`\nu^+` and over where the next round would put mass.
    """
    rounds = _Rounds(G, mu, scale)
    y, state, plain = rounds.point(start), None, True
    L = FIRST * rounds.curvature(y)
    beyond = _Extrapolation(rounds, y)
    best: Outcome | None = None
    last = y
    spent, failures, finer, least = 0, 0, 1.0, math.inf
    objectives: list[float] = []
    for k in range(1, ROUNDS + 1):
        coarse = min((SHARE if L > 0 else SHARP) * least, COARSEST)
        aim = finer * max(beyond.sharper * coarse, FINEST * tolerance)
        step = solve(
            rounds.potential(y, L),
            L,
            state,
            aim / (1 + STIFF * scale * L),
            budget - spent,
        )
        spent += step.spent
        nu = rounds.point(step.log_density)
        objective = step.objective + nu.value
        ratio, fits = rounds.compare(y, nu, L)
        residual = step.residual + rounds.error(y, nu, L)
        fall = math.inf if best is None else objectives[-1] - objective
        noise = rounds.noise(objective, nu.value)
        # What is within round-off is judged by the model, or by the residual.
        sure = fits if plain else best is not None and residual <= SURE * best.residual
        if fall > noise or (fall >= -noise and sure):
            slow = best is not None and residual > SLOW * best.residual
            objectives.append(objective)
            least = min(least, residual)
            effective = y.slope + L * _finite(nu.log - y.log)
            best = Outcome(
                step, effective, residual, residual <= tolerance, spent, k, objectives
            )
            if best.converged or spent >= budget:
                break
            last, state, failures, finer = nu, step.state, 0, 1.0
            steep = L > 0 and SLACK * ratio < L and step.converged
            if fits and not steep and (residual <= FAR or slow):
                y, plain = beyond.point(y, nu, fall, plain=plain), False
                continue
            if not fits:
                L = max(GROWTH * L, 1.1 * ratio)
            elif steep:
                L = max(L / SLACK, ratio, 0.0)
        elif spent >= budget or failures >= MOST_FAILURES:
            break
        elif plain and fits:  # only the error of the local step can be to blame
            failures, finer = failures + 1, FINER * finer
        elif plain:
            failures, L = failures + 1, max(GROWTH * L, 1.1 * ratio, LEAST / scale)
        else:
            beyond.failed(fall)
        beyond.anderson.forget()
        y, plain = last, True
    if best is None:
        effective = y.slope + L * _finite(nu.log - y.log)
        best = Outcome(step, effective, residual, False, spent, k, [objective])
    return best._replace(spent=spent, rounds=k)


class _Rounds:
    """What a round needs of G."""

    def __init__(self, G: Functional, mu: GridDensity, scale: float) -> None:
        self.G, self.mu, self.scale = G, mu, scale
        self.volume = mu.box.cell_volume
        self.tiny = torch.finfo(mu.dtype).tiny
        self.eps = torch.finfo(mu.dtype).eps

    def point(self, log: Tensor) -> Point:
        """Differentiate G at a log density; it is given a positive one."""
        mass = log.exp() * self.volume
        nu = self.mu.with_free_weights(mass.clamp_min(self.tiny).reshape(-1))
        slope = self.G.first_variation(nu).reshape(self.mu.shape)
        return Point(log, mass, float(self.G.value(nu)), slope)

    def normalised_point(self, log: Tensor) -> Point:
        """Return the point at a log density that need not be of mass 1."""
        total = log.logsumexp(tuple(range(log.ndim))) + math.log(self.volume)
        return self.point(log - total)

    def potential(self, y: Point, L: float) -> Tensor:
        """Return what makes of L times the entropy L KL(.|y), and G'[y]."""
        return y.slope - L * (_finite(y.log) + 1.0)

    def noise(self, *values: float) -> float:
        """Return the round-off of a sum of these, and of what changes a density."""
        return ROUND_OFF * self.eps * max(1 / self.scale, *map(abs, values))

    def compare(self, y: Point, nu: Point, L: float) -> tuple[float, bool]:
        """Return the L that the step from y to nu asked for; whether L is enough."""
        spread = _finite(nu.log - y.log)
        divergence = float((nu.mass * spread - (nu.mass - y.mass)).sum())
        noise = self.noise(nu.value, y.value)
        return steepness_asked(y, nu, spread, divergence, L, noise)

    def error(self, y: Point, nu: Point, L: float) -> float:
        """Return what the potential was off by, as an error of masses."""
        off = nu.slope - y.slope - L * _finite(nu.log - y.log)
        off = off - (nu.mass * off).sum()
        wanted = nu.log - (self.scale * off).clamp(-50.0, 50.0)
        wanted = (wanted - wanted.logsumexp(tuple(range(wanted.ndim)))).exp()
        first = self.scale * float((nu.mass * off.abs()).sum())
        return max(first, float((wanted - nu.mass).clamp_min(0).sum()))

    def slope(self, mass: Tensor) -> Tensor:
        """Return G' at masses of the cells."""
        nu = self.mu.with_free_weights(mass.reshape(-1))
        return self.G.first_variation(nu).reshape(mass.shape)

    def curvature(self, y: Point) -> float:
        """Return the largest eigenvalue of G'' in L2(y)."""
        spacing = self.mu.box.spacing[0]
        value = end_of_powers(self.slope, y.mass, y.mass, self.mu.points, spacing)
        return max(value, 0.0)


def steepness_asked(
    y: Point, nu: Point, spread: Tensor, divergence: float, L: float, noise: float
) -> tuple[float, bool]:
    r"""Return the L that a step from y to nu asks for, and whether L is enough.

    It is :math:`G(\nu) - G(y) - \int G'[y]\,d(\nu - y)` over the divergence of
    :math:`\nu` and y. Where that difference is within round-off, that of the slopes,
    which is twice as large and does not cancel, is asked instead.

    Parameters
    ----------
    y, nu : Point
        Both ends.
    spread : Tensor
        The difference of the slopes of the divergence.
    divergence : float
        The divergence.
    L : float
        Its factor.
    noise : float
        Round-off of the values.
    """
    change = nu.mass - y.mass
    gap = nu.value - y.value - float((y.slope * change).sum())
    if not abs(gap) > 100 * noise:
        gap = 0.5 * float(((nu.slope - y.slope) * change).sum())
        divergence = 0.5 * float((spread * change).sum())
        noise = 0.0
    ratio = gap / max(divergence, torch.finfo(change.dtype).tiny)
    return ratio, gap <= L * divergence + noise


def end_of_powers(
    slope: Callable[[Tensor], Tensor],
    mass: Tensor,
    weights: Tensor,
    points: Tensor,
    spacing: float,
    least: float = 1.0,
) -> float:
    r"""Return an eigenvalue of :math:`w\,G''` of large size, by power iterations.

    Parameters
    ----------
    slope : callable
        G' at masses.
    mass : Tensor
        Where.
    weights : Tensor
        The w, of the shape of `mass`.
    points : Tensor, shape (n, d)
        The centres of the cells.
    spacing : float
        Of them.
    least : float
        The least of `mass` over w, so that all masses stay positive.
    """
    flat, tiny = weights.reshape(-1), torch.finfo(mass.dtype).tiny
    start, total = slope(mass), flat.sum()
    x = points.to(mass.dtype)
    x = x - (flat @ x) / total
    v = (x.sum(-1) + x.square().sum(-1) / spacing).reshape(mass.shape)
    value = 0.0
    for _ in range(POWERS):
        v = v - (weights * v).sum() / total
        v = v / (weights * v.square()).sum().sqrt().clamp_min(tiny)
        step = least * SMALL / float(v.abs().max().clamp_min(tiny))
        image = (slope(mass + step * weights * v) - start) / step
        value = float((weights * v * image).sum())
        v = image
    return value


class _Extrapolation:
    """Where a round begins beyond the end of the one before, and what it learns."""

    def __init__(self, rounds: _Rounds, y: Point) -> None:
        self.rounds = rounds
        self.anderson = Anderson(MEMORY, y.mass + FLOOR * y.mass.max())
        self.near, self.sharper, self.fell = MOST, 1.0, 0.0

    def failed(self, fall: float) -> None:
        """Take note that the objective did not fall: too far, or seen too dimly."""
        if -fall > self.fell:
            self.near *= NEARER
        else:
            self.sharper *= SHARPER

    def point(self, y: Point, nu: Point, fall: float, *, plain: bool) -> Point:
        """Return the next point after a round from y to nu, whose objective fell.

        It is on the way from nu to the one that the acceleration wants, and near nu.
        """
        self.fell = fall if 0 < fall < math.inf else 0.0
        if not plain:
            self.sharper = min(1.0, 2 * self.sharper)
            self.near = min(MOST, 2 * self.near)
        wanted = self.anderson.advance(y.log, _finite(nu.log - y.log))
        way = _finite(wanted - nu.log)
        way = way - (nu.mass * way).sum()
        length = float((nu.mass * way.square()).sum().sqrt())
        share = min(1.0, self.near / max(length, self.rounds.tiny))
        # Also where it would put mass: a far tail may rise above all the rest.
        for _ in range(HALVINGS):
            mass = _normalised(nu.log + share * way)
            if share * float((mass * way.square()).sum().sqrt()) <= 2 * self.near:
                break
            share *= 0.5
        return self.rounds.normalised_point(nu.log + share * way)


def _finite(x: Tensor) -> Tensor:
    """Return x with 0 in obstacles, where a log density is minus infinity."""
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _normalised(z: Tensor) -> Tensor:
    """Return exp(z) over its sum: the masses of a log density, or of log masses."""
    return (z - z.logsumexp(tuple(range(z.ndim)))).exp()
