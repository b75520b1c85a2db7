"""The quadrature error of a JKO step on Gaussians, estimated by finer rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow.errors import OtflowError
from otflow.functionals import Functional, Interaction
from otflow.kernels import Function, Kernel, PairKernel
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
from otflow.proximal.gaussian.values import LINES, Gap, gap_by_nodes, gap_on_lines

__all__ = ["Missed", "finer", "missed_by", "refined", "round_off"]

# Growth of the nodes per axis from one rule to the next finer one. In d = 3 a rule then
# has six times as many nodes.
GROWTH = 1.8
# Growth of the nodes per axis from a rule to the rule that judges it. The first rule is
# of Gauss and Hermite; the finer rules are sums of equal steps. In one direction 22
# equal steps err as much as 12 nodes of Gauss and Hermite: their difference is a
# seventh of the error of either, and judges neither.
JUDGE = 2.0
FEWEST = 8
# Nodes of the second judge: per axis on the line, in all in more dimensions.
FINEST = 4096
SCATTERED = 1 << 14
# Relative error of a rule of scattered nodes, which does not converge geometrically.
# Its findings count only above this error.
SCATTER = 1e-3
MOST_PER_AXIS = 100  # of Gauss and Hermite
# A gradient below this share of the tolerance needs no Hessian: the step that it
# foretells is far within the tolerance.
NEGLIGIBLE = 1e-3
# Most coordinates of the nodes of a finer rule; 32 MiB in float64.
MOST_NUMBERS = 1 << 22
# The Hessian of a rule is trusted if another rule agrees with it to this share.
AGREE = 0.5
# Round-off of a sum of values, in units of eps times their mean size.
ROUND_OFF = 64.0
PER_LINE = 256  # fewest nodes on a line
# Nodes of the rule that separates a jump from a feature that more nodes resolve.
SEEING = 1 << 16
# Derivatives and values contradict each other if they differ by more than this share
# of the mean length of the derivatives.
CONTRADICTION = 0.05


Look = Callable[[Gaussian], Gap]
"""Returns the gap between derivatives and values, by nodes or on lines."""


@dataclass(frozen=True)
class Missed:
    """The quadrature error of a step."""

    distance: float  # W2 between this step and the step of the exact integrals
    energy: float  # error of the energies, the larger of both ends
    spread: float  # mean deviation of the values that F integrates: scale of `energy`
    floor: float  # round-off of the energies
    contradicted: bool = False  # values and derivatives differ on the finest rule too


@dataclass(frozen=True)
class _Rule:
    """A finer rule: the problem on it, both ends of the step, and its own error."""

    problem: Problem
    start: float  # energy
    point: Point
    missed: Tensor  # gradient by this rule minus gradient by the judged rule
    blur: float  # relative error of this rule


def finer(mu: Gaussian) -> Gaussian:
    """Return the same law on the next finer rule."""
    return mu.refined(_next(mu, GROWTH))


def _next(mu: Gaussian, growth: float) -> int:
    # Rules of few dimensions are products of axes; the others are scattered nodes.
    per_axis = mu.dim <= TENSOR_DIM
    now = round(mu.n ** (1 / mu.dim)) if per_axis else mu.n
    growth = growth if per_axis else 2.0
    return max(2 * math.ceil(0.5 * growth * now), FEWEST)


def refined(problem: Problem, most: int) -> Problem | None:
    """Return the same step on the next finer rule, None if its nodes are too many.

    The count of evaluations goes on.
    """
    mu = finer(problem.mu)
    # A law whose own nodes are above the limit may keep that many.
    room = max(MOST_NUMBERS, problem.mu.nodes.numel())
    return None if mu.n > most or mu.nodes.numel() > room else problem.on(mu)


def _judges(mu: Gaussian) -> list[tuple[Gaussian, float]]:
    """Return two finer rules that do not alias alike, each with its relative error.

    The first is the next finer rule. On the line the second has equal steps, much
    finer than the distance of the nodes. In more dimensions its nodes are scattered: a
    product of d axes has few different coordinates.
    """
    k = _next(mu, JUDGE)
    first = (mu.refined(k), 0.0)
    if mu.dim == 1:
        other, blur = finer_nodes(1, max(FINEST, 2 * math.ceil(0.75 * k))), 0.0
    elif mu.dim <= TENSOR_DIM:
        other, blur = scattered_nodes(mu.dim, SCATTERED, 1), SCATTER
    else:
        other, blur = scattered_nodes(mu.dim, k, 1), 0.0
    return [first, (mu.with_nodes(other), blur)]


def missed_by(
    problem: Problem, start: Point, point: Point, tolerance: float, budget: int
) -> Missed | None:
    r"""Return the quadrature error of a step; None if F is not finite at other nodes.

    Let g be the gradient of the objective by a finer rule minus the gradient by the
    nodes, and H the Hessian by the finer rule. The distance is :math:`|H^{-1}g|`.

    A rule that aliases has a wrong Hessian, often a huge one. If two finer rules
    disagree on the Hessian, the distance is at least :math:`|g|`, as for H = I. The
    distance is :math:`|g|` also if the energies differ too much for the step to stand,
    and if g is far below the tolerance.

    The gradient by values is judged in the same way: it contains the part of a jump
    that derivatives leave out.
    """
    F, rules = problem.functional, []
    try:
        for mu, blur in _judges(problem.mu):
            there = problem.on(mu)
            # The map is judged as it is, optimal or not.
            there.inside = False
            end = there.at(point.coordinates)
            missed = end.gradient - point.gradient
            rules.append(_Rule(there, float(F.value(mu)), end, missed, blur))
            # One for the gradient at the end, one for the value at the start.
            problem.used += 2
        ends = [_values(F, end.measure) for end in (start, point)]
        looks = _looks(problem, rules)
        pairs = zip(looks, rules, strict=False)  # a rule for each look
        gaps = [look(rule.point.measure) for look, rule in pairs]
        problem.used += len(gaps)
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
    allowed = tolerance * size
    # Where the energies differ by more, the step is repeated anyhow: |g| suffices.
    stands = energy <= tolerance * spread + floor
    distance = 0.0
    for rule, other in zip(rules, rules[::-1], strict=True):
        length = norm(rule.missed)
        if stands and length > NEGLIGIBLE * allowed:
            length = _length(problem, rule, other, rule.missed, budget)
            # Scattered nodes find a length of this size where nothing is missed.
            length = length if length > rule.blur * size else 0.0
        distance = max(distance, length)
    excess = 0.0
    for k, (look, gap) in enumerate(zip(looks, gaps, strict=True)):
        own = problem.dt * problem.maps.project(gap.tangent)
        if norm(own) <= NEGLIGIBLE * allowed:
            continue
        # Lines are no rule of their own: the gap there is added to the first rule's.
        rule = rules[k if problem.mu.dim == 1 else 0]
        missed = rule.missed + own
        length = norm(missed)
        if stands and length > NEGLIGIBLE * allowed:
            length = _length_by_values(problem, rule, look, gap, missed, budget)
        distance = max(distance, length)
        # Only the share that values add speaks for a contradiction. A missed gradient
        # alone says that the nodes are too few.
        part = min(norm(own) / norm(missed), 1.0) if bool(missed.any()) else 1.0
        excess = max(excess, part * length / allowed)
    # No rule sees the hidden energy, so its gradient is added without a Hessian.
    inverse = torch.linalg.inv(point.measure.factor)
    distance += problem.dt * hidden * norm(inverse)
    contradicted = _contradicted(problem, point, gaps, excess)
    return Missed(distance, energy, spread, floor, contradicted)


def _looks(problem: Problem, rules: list[_Rule]) -> list[Look]:
    """Return the comparisons of values with derivatives, by rules without scatter."""
    dim, rest = problem.mu.dim, problem.rest
    if dim == 1:
        return [partial(gap_by_nodes, rest)] * len(rules)
    per_line = PER_LINE
    looks: list[Look] = []
    if dim <= TENSOR_DIM:  # lines as fine as the rule, which grows
        per_line = max(per_line, 2 * round(rules[0].problem.mu.n ** (1 / dim)))
        looks = [partial(gap_by_nodes, rest)]
    return [*looks, partial(gap_on_lines, rest, per_line=per_line)]


def _contradicted(
    problem: Problem, point: Point, gaps: list[Gap], excess: float
) -> bool:
    """Whether values and derivatives differ by too much on the finest rule too.

    The gap is too large if it exceeds a share of the derivatives, however short the
    step, or if it moves the step by `excess` > 1 times the allowed length. A finer rule
    resolves a narrow feature, and the gap closes. No rule closes the gap of a jump.
    """
    # The rule, or the lines, on which values and derivatives differ most.
    worst = max(gaps, key=lambda gap: gap.share)
    part = worst.share > CONTRADICTION
    if not part and excess <= 1:
        return False
    mu, dim = point.measure, problem.mu.dim
    if worst is gaps[-1] and dim > 1:
        seen = gap_on_lines(problem.rest, mu, SEEING // LINES)
    else:
        per_axis = 2 * int(0.5 * SEEING ** (1 / dim))
        seen = gap_by_nodes(problem.rest, mu.refined(per_axis))
    problem.used += 1
    # The excess scales with the gap: what is left of it on many nodes must still be
    # above 1.
    long = excess * norm(seen.tangent) > norm(worst.tangent) and excess > 1
    return long or (part and seen.share > CONTRADICTION)


def _length(
    problem: Problem, rule: _Rule, other: _Rule, missed: Tensor, budget: int
) -> float:
    """Return the length of the step that the missed gradient adds."""
    before = rule.problem.used
    step = newton_step(rule.problem, rule.point, missed, 0.1, budget)
    problem.used += rule.problem.used - before + 1
    product = other.problem.hessian(other.point, step)
    # The other rule's Hessian must take the step to the same gradient.
    known = norm(product + missed) <= AGREE * norm(missed)
    return norm(step) if known else max(norm(step), norm(missed))


def _length_by_values(
    problem: Problem, rule: _Rule, look: Look, gap: Gap, missed: Tensor, budget: int
) -> float:
    """Return the length of the step that the gradient by values adds.

    The Hessian comes from derivatives and may be as wrong as they are: a spike at a
    node makes it huge. Therefore the step must be seen to cut the gradient by values.
    """
    before, there = rule.problem.used, rule.problem
    step = newton_step(there, rule.point, missed, 0.1, budget)
    problem.used += there.used - before + 2
    try:
        end = there.at(rule.point.coordinates + step)
        tangent = look(end.measure).tangent - gap.tangent
    except (OtflowError, ValueError):
        return max(norm(step), norm(missed))
    change = end.gradient - rule.point.gradient
    change = change + problem.dt * problem.maps.project(tangent)
    known = norm(change + missed) <= AGREE * norm(missed)
    return norm(step) if known else max(norm(step), norm(missed))


def _values(F: Functional, mu: Gaussian) -> tuple[float, float]:
    """Return mean deviation and mean size of the values that F integrates.

    The values are the derivatives by the masses of the nodes: V for a potential, the
    convolution with W for an interaction, the features times a gradient for a function
    of expectations.
    """

    def value(weights: Tensor) -> Tensor:
        return F.value(mu.detach().with_free_nodes(mu.nodes, weights))

    w = mu.weights.detach()
    found = value_and_gradient(value, w, unused=True)[1]
    return float(w @ (found - w @ found).abs()), float(w @ found.abs())


def _hidden(F: Functional, mu: Gaussian) -> float:
    r"""Return a bound on the energy of kernels that no node sees.

    The energy E of a kernel that is narrow about 0 is in inverse proportion to
    :math:`|\det L|`, with gradient :math:`-E\,L^{-1}`.
    """
    # The difference of two independent points has the covariance 2 L L^T.
    nodes, weights = mu.difference_rule()
    energy, z = 0.0, nodes @ (math.sqrt(2.0) * mu.factor.T)
    for c, term in F.terms():
        if isinstance(term, Interaction) and type(term.kernel) is not GaussianKernel:
            with torch.no_grad():
                W = _of_differences(term.kernel, mu)
                values = W.even(z)
            found = hidden_energy(W, nodes, weights, mu.factor, values)
            energy += abs(c) * found
    return energy


def _of_differences(K: PairKernel, mu: Gaussian) -> Kernel:
    """Return a kernel as one of differences: of two points about the mean."""
    if isinstance(K, Kernel):
        return K
    mean = mu.mean.detach()

    def about_the_mean(z: Tensor) -> Tensor:
        return K.even_pairs(K.rows(mean + 0.5 * z), K.rows(mean - 0.5 * z))

    return Function(about_the_mean)


def round_off(problem: Problem, point: Point) -> float:
    """Return the round-off of the gradient where the nodes integrate F exactly.

    Rules with more nodes integrate F exactly too. The gradients of two such rules
    differ by the round-off of F's own arithmetic alone. No formula gives this
    round-off, for example where large terms cancel in V.
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
    """Return the law on other rules that are exact to the degree of its rule."""
    if mu.dim > TENSOR_DIM:
        return [mu.with_nodes(scattered_nodes(mu.dim, mu.n, 1))]
    k = (mu.degree + 1) // 2  # nodes per axis of the rule of Gauss and Hermite
    counts = {min(max(k, PER_AXIS[mu.dim]) + more, MOST_PER_AXIS) for more in (1, 3)}
    return [mu.with_nodes(gaussian_nodes(mu.dim, c)) for c in sorted(counts)]
