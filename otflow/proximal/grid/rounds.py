"""Nonlocal terms on a grid: rounds of local steps, and the objective falls in each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson

__all__ = ["FIRST", "LocalStep", "Outcome", "Point", "Rounds", "minimise_nonlocal"]

# Differences of log densities that the extrapolation keeps. FLOOR times the largest
# density is added to the weights of their norm, so that far tails count.
MEMORY, FLOOR = 5, 1e-3
# Accuracy of a local step: SHARE of the residual of the round before, at most COARSEST,
# at least FINEST times the tolerance. STIFF makes a step with much entropy finer.
SHARE, COARSEST, FINEST, STIFF = 0.1, 3e-2, 0.2, 0.03
# SHARE in rounds without added entropy. Nothing damps the errors of these rounds, and
# the extrapolation sees them in its differences.
SHARP = 0.03
# An extrapolation within round-off of the objective must cut the residual to this.
SURE = 0.9
# Factor of the accuracy after a round that failed by the error of its local step alone.
FINER = 0.1
# Growth of L after a failed round, and its fall where the model was too steep by SLACK.
# L exceeds the ratio of the last step by ABOVE, since the next ratio differs a little.
GROWTH, SLACK, ABOVE = 2.0, 2.5, 1.1
# First L over the largest curvature, which few steps meet. L grows from LEAST at least,
# in units of the energy that changes a density by a factor of e.
FIRST, LEAST = 0.2, 0.05
# Most rounds, and most failures of one round.
ROUNDS, MOST_FAILURES = 400, 40
# Power iterations for the first L, and the relative change of masses that they try.
POWERS, SMALL = 6, 1e-3
# Above the residual FAR nothing is extrapolated, unless a round leaves more than SLOW
# of the residual: a clump that is almost free to move as a whole would go on for
# hundreds of rounds.
FAR, SLOW = 0.5, 0.8
# Largest root mean square change of a log density by an extrapolation. It moves a clump
# by its width at most; farther, logarithms are not linear in the displacement.
MOST, NEARER, HALVINGS = 0.7, 0.25, 60
# Factor of the local accuracy after an extrapolation failed: it works with small
# differences. Each success doubles the accuracy again, up to 1.
SHARPER = 0.3
# Round-off of an energy in units of that of its dtype: an energy is a long sum.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class LocalStep:
    r"""An approximate minimiser of :math:`E(\nu) + \int p\,d\nu + L\int\nu\log\nu`.

    E is the local part of F plus the cost of transport.

    Parameters
    ----------
    log_density : Tensor
        Logarithm of the density, in the box's shape. It is finite in free cells, also
        where the density underflows, and minus infinity in obstacles.
    objective : float
        :math:`E(\nu)` of exactly this density, without p and L, up to a constant. It
        must be right also if the local iteration did not converge.
    residual : float
        The number that the local solver compares with the tolerance.
    converged : bool
        Whether the residual met the tolerance.
    spent : int
        Evaluations of the local solver.
    state : object
        State that the solver takes back as `start`.

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


# Minimises E + int p dnu + L int nu log nu. The arguments are the potential p in the
# box's shape, the factor L >= 0, the `LocalStep.state` of an earlier step or None, the
# largest residual and the most evaluations.
LocalSolver = Callable[[Tensor, float, Any, float, int], LocalStep]


class Outcome(NamedTuple):
    """Result of the rounds."""

    step: LocalStep  # the last accepted step
    potential: Tensor  # p + L log nu: the first variation of G that the step assumes
    residual: float  # residual of the step plus error of that first variation
    converged: bool
    spent: int  # evaluations of the local solver
    rounds: int
    objectives: list[float]  # E + G after each accepted round


class Point(NamedTuple):
    """A density with the value and the first variation of G."""

    log: Tensor  # slope of the divergence: the log density for KL
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
    r"""Minimise E + G by rounds; each round solves a local problem.

    A round from the density y is

    .. math:: \nu^+ = \operatorname{argmin}_\nu \int G'[y]\,d\nu + L\,\mathrm{KL}(\nu|y)
        + E(\nu),

    which is the local problem with the potential :math:`G'[y] - L\log y` and with L
    times the entropy added. If

    .. math:: G(\nu^+) \le G(y) + \int G'[y]\,d(\nu^+ - y) + L\,\mathrm{KL}(\nu^+|y)

    the objective falls from y to :math:`\nu^+` :cite:p:`bauschke2017descent`. A large
    enough L exists if G is smooth relative to the entropy, as an interaction is. L is
    doubled until the objective falls. Between rounds the logarithm of y is
    extrapolated. If the objective then does not fall, the round is repeated from the
    last density.

    Parameters
    ----------
    G : Functional
        The terms that the local solver does not know.
    mu : GridDensity
        A measure on the grid.
    solve : LocalSolver
        The local solver.
    start : Tensor
        First log density, in the box's shape. It must be finite in all free cells,
        since a round puts no mass where y has none.
    scale : float
        Largest change of the log density per unit error of the potential. It converts
        errors of the potential to the residual.
    tolerance : float
        Largest residual.
    budget : int
        Most evaluations of the local solver in all rounds.

    Returns
    -------
    Outcome
        The last accepted step, its residual and the objectives of all accepted rounds.

    Notes
    -----
    The residual is that of the local step plus `scale` times the mean distance of
    :math:`G'[\nu^+]` from the potential of the step. The mean is taken over
    :math:`\nu^+`, and over the density that the next round would reach; the larger one
    counts.
    """
    rounds = _LogRounds(G, mu, scale)
    y, state, plain = rounds.point(start), None, True
    L = FIRST * max(rounds.curvature(y.mass, y.mass), 0.0)
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
        # A fall within round-off proves nothing. Then the model decides on a plain
        # round, and the residual on an extrapolated one.
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
            # A local step that did not converge measures no ratio.
            new = L if fits and not step.converged else rounds.adapted(L, ratio, fits)
            if new == L and fits and (residual <= FAR or slow):
                y, plain = beyond.point(y, nu, fall, plain=plain), False
                continue
            L = new
        elif spent >= budget or failures >= MOST_FAILURES:
            break
        # The model holds, so only the error of the local step can raise the objective.
        elif plain and fits:
            failures, finer = failures + 1, FINER * finer
        elif plain:
            failures += 1
            L = rounds.adapted(L, ratio, fits, LEAST / scale)
        else:
            beyond.failed(fall)
        # Another L is another map: its differences do not fit.
        beyond.anderson.forget()
        y, plain = last, True
    if best is None:
        effective = y.slope + L * _finite(nu.log - y.log)
        best = Outcome(step, effective, residual, False, spent, k, [objective])
    return best._replace(spent=spent, rounds=k)


class Rounds(ABC):
    """The evaluations of G that a round needs.

    Parameters
    ----------
    G : Functional
        The nonlocal terms.
    mu : GridDensity
        A measure on the grid.
    unit : float
        An energy whose round-off counts in any comparison.

    Attributes
    ----------
    by_log : bool
        Whether D is the divergence of the entropy, and not half the squared distance
        in L2.
    """

    by_log = True

    def __init__(self, G: Functional, mu: GridDensity, unit: float) -> None:
        self.G, self.mu, self.unit = G, mu, unit
        self.eps = torch.finfo(mu.dtype).eps

    @abstractmethod
    def slope(self, mass: Tensor) -> Tensor:
        """Return G' at masses of the cells."""

    def noise(self, *values: float) -> float:
        """Return the round-off of a sum of energies; the unit counts as one."""
        return ROUND_OFF * self.eps * max(self.unit, *map(abs, values))

    def compare(self, y: Point, nu: Point, L: float) -> tuple[float, bool]:
        r"""Return the L that a step from y to nu needs, and whether L suffices.

        The needed L is :math:`G(\nu) - G(y) - \int G'[y]\,d(\nu - y)` over
        :math:`D(\nu, y)`. Where this difference is within round-off, half of
        :math:`\int (G'[\nu] - G'[y])\,d(\nu - y)` replaces it: it is the same to
        leading order and does not cancel.
        """
        spread, change = _finite(nu.log - y.log), nu.mass - y.mass
        gap = nu.value - y.value - float((y.slope * change).sum())
        divergence = 0.5 * float((spread * change).sum())
        noise = self.noise(nu.value, y.value)
        # A gap of 100 times its error is right to a percent.
        if not abs(gap) > 100 * noise:
            gap, noise = 0.5 * float(((nu.slope - y.slope) * change).sum()), 0.0
        elif self.by_log:
            divergence = float((nu.mass * spread - change).sum())
        ratio = gap / max(divergence, torch.finfo(change.dtype).tiny)
        return ratio, gap <= L * divergence + noise

    @staticmethod
    def adapted(L: float, ratio: float, fits: bool, least: float = 0.0) -> float:
        """Return the L of the next round, after a step that needed `ratio`.

        Too small an L makes steps that raise the objective; too large an L makes short
        steps.
        """
        if not fits:
            return max(GROWTH * L, ABOVE * ratio, least)
        return max(L / SLACK, ratio, 0.0) if SLACK * ratio < L else L

    def curvature(self, mass: Tensor, weights: Tensor, least: float = 1.0) -> float:
        r"""Return an eigenvalue of :math:`w\,G''` of large size, by power iterations.

        Parameters
        ----------
        mass, weights : Tensor
            Masses of the cells, and the w.
        least : float
            Least ratio of `mass` to w. It keeps all trial masses positive.
        """
        flat, tiny = weights.reshape(-1), torch.finfo(mass.dtype).tiny
        start, total = self.slope(mass), flat.sum()
        x = self.mu.points.to(mass.dtype)
        x = x - (flat @ x) / total
        # The first trial is a shift plus a widening of the whole density.
        v = x.sum(-1) + x.square().sum(-1) / self.mu.box.spacing[0]
        v, value = v.reshape(mass.shape), 0.0
        for _ in range(POWERS):
            v = v - (weights * v).sum() / total
            v = v / (weights * v.square()).sum().sqrt().clamp_min(tiny)
            step = least * SMALL / float(v.abs().max().clamp_min(tiny))
            image = (self.slope(mass + step * weights * v) - start) / step
            value = float((weights * v * image).sum())
            v = image
        return value


class _LogRounds(Rounds):
    """Rounds whose densities are given by their logarithms, in the box's shape."""

    def __init__(self, G: Functional, mu: GridDensity, scale: float) -> None:
        super().__init__(G, mu, 1 / scale)
        self.scale, self.volume = scale, mu.box.cell_volume
        self.tiny = torch.finfo(mu.dtype).tiny

    def point(self, log: Tensor) -> Point:
        """Return value and first variation of G at a log density."""
        # G sees positive masses only: a first variation such as log(rho) needs them.
        mass = log.exp() * self.volume
        nu = self.mu.with_free_weights(mass.clamp_min(self.tiny).reshape(-1))
        slope = self.G.first_variation(nu).reshape(self.mu.shape)
        return Point(log, mass, float(self.G.value(nu)), slope)

    def normalised_point(self, log: Tensor) -> Point:
        """Return the point at a log density that is first normalised to mass 1."""
        total = log.logsumexp(tuple(range(log.ndim))) + math.log(self.volume)
        return self.point(log - total)

    def potential(self, y: Point, L: float) -> Tensor:
        """Return p such that L times the entropy plus p is G'[y] plus L KL(.|y)."""
        return y.slope - L * (_finite(y.log) + 1.0)

    def error(self, y: Point, nu: Point, L: float) -> float:
        """Return the error of the potential of a step, as an error of masses."""
        off = nu.slope - y.slope - L * _finite(nu.log - y.log)
        off = off - (nu.mass * off).sum()
        # A factor of e^50 is as good as any larger one, and does not overflow.
        wanted = _normalised(nu.log - (self.scale * off).clamp(-50.0, 50.0))
        first = self.scale * float((nu.mass * off.abs()).sum())
        return max(first, float((wanted - nu.mass).clamp_min(0).sum()))

    def slope(self, mass: Tensor) -> Tensor:
        nu = self.mu.with_free_weights(mass.reshape(-1))
        return self.G.first_variation(nu).reshape(mass.shape)


class _Extrapolation:
    """The start of the next round, beyond the end of the last round."""

    def __init__(self, rounds: _LogRounds, y: Point) -> None:
        self.rounds = rounds
        self.anderson = Anderson(MEMORY, y.mass + FLOOR * y.mass.max())
        self.near, self.sharper, self.fell = MOST, 1.0, 0.0

    def failed(self, fall: float) -> None:
        """Note that the objective did not fall after an extrapolation."""
        # A rise above the last fall shows that the point was too far; a smaller rise,
        # that the differences were too rough.
        if -fall > self.fell:
            self.near *= NEARER
        else:
            self.sharper *= SHARPER

    def point(self, y: Point, nu: Point, fall: float, *, plain: bool) -> Point:
        """Return the next start after a round from y to nu whose objective fell.

        The point lies on the way from nu to the point of Anderson acceleration, and
        near nu.
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
        # The change must also be small under the new masses: a far tail without mass in
        # nu may rise above all the rest.
        for _ in range(HALVINGS):
            mass = _normalised(nu.log + share * way)
            if share * float((mass * way.square()).sum().sqrt()) <= 2 * self.near:
                break
            share *= 0.5
        return self.rounds.normalised_point(nu.log + share * way)


def _finite(x: Tensor) -> Tensor:
    """Return x with 0 in obstacles, where log densities are minus infinity."""
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _normalised(z: Tensor) -> Tensor:
    """Return exp(z) over its sum: masses from log densities or log masses."""
    return (z - z.logsumexp(tuple(range(z.ndim)))).exp()
