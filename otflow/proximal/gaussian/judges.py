"""What the nodes of a Gaussian leave out of a JKO step, as finer rules judge it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow.errors import OtflowError
from otflow.functionals import Functional, Interaction
from otflow.kernels import Gaussian as GaussianKernel
from otflow.measures import Gaussian
from otflow.measures.gaussian.narrow import hidden_energy
from otflow.measures.gaussian.quadrature import (
    PER_AXIS,
    TENSOR_DIM,
    finer_nodes,
    gaussian_nodes,
    scattered_nodes,
)
from otflow.proximal.gaussian.maps import norm
from otflow.proximal.gaussian.problem import Point, Problem, newton_step

__all__ = ["Missed", "finer", "missed_by", "refined", "round_off"]

# Nodes per axis of the next finer rule, over those of a rule. In d = 3 they are six
# times as many in all.
GROWTH = 1.8
# And of the rule that judges one. The first rule is of Gauss and Hermite, the finer
# ones are sums of equal steps: 22 of these miss as much as 12 nodes of the former, in
# one direction, so that their difference told a seventh of what either misses.
JUDGE = 2.0
FEWEST = 8
# Nodes of the second rule: per axis on the line, of all of them in more dimensions.
FINEST = 4096
SCATTERED = 1 << 14
# A rule of scattered nodes is itself wrong by about that much, relatively, where the
# others converge geometrically: what it finds is counted above it.
SCATTER = 1e-3
MOST_PER_AXIS = 100  # of Gauss and Hermite
# A gradient this much smaller than the tolerance needs no Hessian.
NEGLIGIBLE = 1e-3
# Coordinates of nodes that a finer rule may have; 32 MiB in float64.
MOST_NUMBERS = 1 << 22
# A Hessian is known where two rules agree on it to this part.
AGREE = 0.5
# Round-off of a sum of values, in units of their mean size.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class Missed:
    """What the nodes leave out of a step."""

    distance: float  # in W2 between the step and that of the integrals
    energy: float  # the larger of the two ends
    spread: float  # of the values that the integrals are of, to compare it with
    floor: float  # round-off of the energies


@dataclass(frozen=True)
class _Rule:
    """A finer rule: the problem on it, both ends, and what it does not see."""

    problem: Problem
    start: float  # energy
    point: Point
    missed: Tensor  # by the judged rule, of the gradient
    blur: float


def finer(mu: Gaussian) -> Gaussian:
    """Return the same law on the next finer rule."""
    return mu.refined(_next(mu, GROWTH))


def _next(mu: Gaussian, growth: float) -> int:
    per_axis = mu.dim <= TENSOR_DIM
    now = round(mu.n ** (1 / mu.dim)) if per_axis else mu.n
    growth = growth if per_axis else 2.0
    return max(2 * math.ceil(0.5 * growth * now), FEWEST)


def refined(problem: Problem, most: int) -> Problem | None:
    """Return the same step on the next finer rule, None if its nodes are too many.

    Evaluations go on being counted.
    """
    mu = finer(problem.mu)
    room = max(MOST_NUMBERS, problem.mu.nodes.numel())
    return None if mu.n > most or mu.nodes.numel() > room else problem.on(mu)


def _judges(mu: Gaussian) -> list[tuple[Gaussian, float]]:
    """Return two finer rules that do not alias alike, and what each does not see.

    The next one; and on the line equal steps that see features much narrower than the
    distance of its nodes, in more dimensions nodes that lie on no lines, where each
    rule of d axes has few different coordinates.
    """
    k = _next(mu, JUDGE)
    first = (mu.refined(k), 0.0)
    if mu.dim == 1:
        other, blur = finer_nodes(1, max(FINEST, 2 * math.ceil(0.75 * k))), 0.0
    elif mu.dim <= TENSOR_DIM:
        other, blur = scattered_nodes(mu.dim, SCATTERED, 1), SCATTER
    else:
        other, blur = scattered_nodes(mu.dim, k, 1), 0.0
    return [first, (mu._on(other), blur)]


def missed_by(
    problem: Problem, start: Point, point: Point, tolerance: float, budget: int
) -> Missed | None:
    r"""Return what the nodes leave out of a step; None if F is not finite elsewhere.

    With the gradient g of the objective by a finer rule, less that by the nodes, and
    that rule's Hessian H, the distance is :math:`|H^{-1}g|`. A rule that aliases has a
    Hessian that says nothing, often a huge one: where two finer rules do not agree on
    it, the gradient itself is taken if it is longer, as for H = I. So it is where the
    energies differ too much for the step to stand, and where the gradient is far below
    the tolerance.
    """
    F, rules = problem.functional, []
    try:
        for mu, blur in _judges(problem.mu):
            there = problem.on(mu)
            there.inside = False
            end = there.at(point.coordinates)
            missed = end.gradient - point.gradient
            rules.append(_Rule(there, float(F.value(mu)), end, missed, blur))
            problem.used += 2
        ends = [_values(F, end.measure) for end in (start, point)]
    except (OtflowError, ValueError):
        return None
    size = norm(point.coordinates) + norm(point.measure.factor)
    eps = torch.finfo(problem.mu.dtype).eps
    spread, level = (max(pair) for pair in zip(*ends, strict=True))
    floor = (start.noise + point.noise) / problem.dt + ROUND_OFF * eps * level
    energy = hidden = _hidden(F, point.measure)
    for rule in rules:
        off = abs(rule.start - start.energy)
        off = max(off, abs(rule.point.energy - point.energy))
        if off > rule.blur * spread:
            energy = max(energy, hidden + off)
    seen = max(rules, key=lambda rule: norm(rule.missed))
    distance = norm(seen.missed)
    stands = energy <= tolerance * spread + floor
    if stands and distance > NEGLIGIBLE * tolerance * size:
        distance = 0.0
        for rule, other in zip(rules, rules[::-1], strict=True):
            length = _length(problem, rule, other, budget)
            if length > rule.blur * size:
                distance = max(distance, length)
    inverse = torch.linalg.inv(point.measure.factor)
    distance += problem.dt * hidden * norm(inverse)
    return Missed(distance, energy, spread, floor)


def _length(problem: Problem, rule: _Rule, other: _Rule, budget: int) -> float:
    """Return how far a rule would move the step on."""
    if not bool(rule.missed.any()):  # a functional of the mean and covariance alone
        return 0.0
    before = rule.problem.used
    step = newton_step(rule.problem, rule.point, rule.missed, 0.1, budget)
    problem.used += rule.problem.used - before + 1
    product = other.problem.hessian(other.point, step)
    missed = norm(rule.missed)
    known = norm(product + rule.missed) <= AGREE * missed
    return norm(step) if known else max(norm(step), missed)


def _values(F: Functional, mu: Gaussian) -> tuple[float, float]:
    """Return mean deviation and mean size of what F integrates over the nodes.

    That is the derivative by the masses of the nodes: V for a potential, W / 2 for an
    interaction, the features times a gradient for a function of expectations.
    """

    def value(weights: Tensor) -> Tensor:
        nu = mu._at(mu.state.detach())
        object.__setattr__(nu, "weights", weights)
        return F.value(nu)

    w = mu.weights.detach()
    found = value_and_gradient(value, w, unused=True)[1]
    return float(w @ (found - w @ found).abs()), float(w @ found.abs())


def _hidden(F: Functional, mu: Gaussian) -> float:
    r"""Return a bound of the energy of kernels that no node sees.

    A kernel that is narrow about 0 has an energy E that is in inverse proportion to
    :math:`|\det L|`: its gradient is :math:`-E\,L^{-1}`.
    """
    energy, z = 0.0, mu.nodes @ (math.sqrt(2.0) * mu.factor.T)
    for c, term in F.terms():
        if isinstance(term, Interaction) and type(term.W) is not GaussianKernel:
            with torch.no_grad():
                values = term.W(z)
            found = hidden_energy(term.W, mu.nodes, mu.weights, mu.factor, values)
            energy += abs(c) * found
    return energy


def round_off(problem: Problem, point: Point) -> float:
    """Return the round-off of the gradient where the nodes integrate F exactly.

    Rules with more nodes do so too: they differ by the round-off of F's own arithmetic
    alone, which no formula tells, as where large terms cancel in V.
    """
    worst = 0.0
    for mu in _exact(problem.mu):
        there = problem.on(mu)
        there.inside = False
        try:
            found = there.at(point.coordinates).gradient
        except OtflowError:
            return math.inf
        problem.used += 1
        worst = max(worst, norm(found - point.gradient))
    return worst


def _exact(mu: Gaussian) -> list[Gaussian]:
    """Return the law on other rules that are exact to its degree at least."""
    if mu.dim > TENSOR_DIM:
        return [mu._on(scattered_nodes(mu.dim, mu.n, 1))]
    k = (mu.degree + 1) // 2  # nodes per axis of the rule of Gauss and Hermite
    counts = {min(max(k, PER_AXIS[mu.dim]) + more, MOST_PER_AXIS) for more in (1, 3)}
    return [mu._on(gaussian_nodes(mu.dim, c)) for c in sorted(counts)]
