"""A step on a grid made ready for its iteration, cold or warm, and read off it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.grid.sinkhorn.kernel import GibbsKernel
from otflow.proximal.grid.sinkhorn.scaling import (
    Iterate,
    Scaling,
    elasticity,
    obstacle_correction,
    potential_of,
)
from otflow.proximal.terms import Terms

# Variance of the kernel in squares of the spacing: by default, and at least.
DEFAULT_EPS, LEAST_EPS = 0.6, 0.4
# On finer grids: its share of dt times an energy, which is the temperature or what the
# terms without density vary by, and how stiff the iteration may be.
SHARE_OF_DT, MAX_STIFFNESS = 0.02, 100.0
# Standard deviation of the kernel in sides of the box, at most: if given, by default.
MAX_BLUR, DEFAULT_BLUR = 0.25, 1 / 12
# Share of the uniform density in the density where the first round begins.
SHARE = 1e-6
# Of an entropy of negative factor: eps over dt times that factor, 2 is the limit.
MARGIN = 4.0
# A dt that is longer or shorter by more than that is another one to a warning: else a
# flow whose dt varies would warn at each step.
OTHER_DT = 1.5

__all__ = [
    "Told",
    "Warm",
    "damping_of",
    "largest_blur",
    "least_eps",
    "pose",
    "positive_start",
    "start_of",
    "stiffness",
    "variance_of",
]


@dataclass(frozen=True)
class Told:
    """What a warning of a blur was about."""

    F: Functional
    dts: tuple[float, ...]

    def covers(self, F: Functional, dt: float) -> bool:
        """Whether it was about this functional and about this dt."""
        return F is self.F and any(
            dt <= OTHER_DT * old and old <= OTHER_DT * dt for old in self.dts
        )


@dataclass(frozen=True)
class Warm:
    """The last scalings, good for the same cells and any dt."""

    problem: Scaling
    iterate: Iterate
    told: Told | None = None  # of a blur, in this flow

    def fits(self, mu: GridDensity) -> bool:
        """Whether they are arrays on the same cells."""
        old = self.problem.source
        return (
            (old.box, old.dtype, old.device) == (mu.box, mu.dtype, mu.device)
        ) and torch.equal(old.is_free, mu.is_free)

    def log_a(self, problem: Scaling) -> Tensor:
        """Return log a: half the log density minus dt/eps times F'."""
        own = self.problem
        scale = (problem.dt / problem.kernel.eps) / (own.dt / own.kernel.eps)
        if scale == 1:
            return self.iterate.log_a
        half = 0.5 * self.iterate.log_density
        slope = torch.where(half > -math.inf, self.iterate.log_a - half, 0.0)
        return half + scale * slope


def pose(
    terms: Terms, mu: GridDensity, dt: float, eps: float, warm: Warm | None
) -> Scaling:
    """Return the problem of a step, with its local terms."""
    old = None if warm is None else warm.problem
    if old is not None and old.kernel.eps == eps:
        kernel, correction = old.kernel, old.correction
    else:
        kernel, correction = GibbsKernel(mu.box, eps, mu.weights), None
    is_free = None
    if not bool(mu.is_free.all()):
        is_free = mu.is_free.reshape(mu.shape)
        if correction is None:
            correction = obstacle_correction(kernel, is_free)
    return Scaling(
        kernel=kernel,
        source=mu,
        log_source=mu.grid.log(),
        terms=terms,
        dt=dt,
        potential=potential_of(mu, terms),
        correction=correction,
        is_free=is_free,
        safely=old is not None and old.safely,
    )


def start_of(problem: Scaling, warm: Tensor | Warm | None) -> Tensor:
    r"""Return where the iteration starts.

    At the fixed point :math:`a = \sqrt\rho\,e^{-(dt/\varepsilon)\,F'}`. Without a step
    before it is that of the old density, blurred.
    """
    if isinstance(warm, Tensor):
        return warm
    if warm is not None:
        return problem.convolve(warm.log_a(problem))
    log, terms = positive_start(problem), problem.terms
    slope = problem.potential + terms.temperature * log
    if terms.internal is not None:
        inside = log.exp().clamp_max(terms.max_density)
        slope = slope + terms.internal.slope(torch.where(inside > 0, inside, 1.0))
    log_a = 0.5 * log - (problem.dt / problem.kernel.eps) * slope
    return problem.convolve(log_a.masked_fill(log == -math.inf, -math.inf))


def positive_start(problem: Scaling) -> Tensor:
    """Return the log density of the blurred old density and a little everywhere."""
    mu, kernel = problem.source, problem.kernel
    free = mu.is_free.reshape(mu.shape)
    rho = kernel.apply(mu.grid).clamp_min(0.0) * free
    volume = kernel.box.cell_volume
    rho = (1 - SHARE) * rho / (rho.sum() * volume)
    rho = rho + SHARE / (free.sum() * volume)
    return rho.log().masked_fill(~free, -math.inf)


def damping_of(problem: Scaling) -> float:
    """Return a factor on steps: without curvature of F the plain map oscillates."""
    mu, internal = problem.source, problem.terms.internal
    slope = torch.full_like(mu.weights, problem.entropic)
    if internal is not None:
        slope = slope + problem.dt * elasticity(internal, mu.density().log())
    response = float((mu.weights * (problem.kernel.eps / slope)).sum())
    return 1 / max(1.0, response)


def variance_of(mu: GridDensity, dt: float, terms: Terms, eps: float | None) -> float:
    """Return eps, by default or given; refused where it cannot be borne."""
    cell, side = _longest_cell_and_shortest_side(mu)
    square = cell**2
    least = DEFAULT_EPS * square
    # Where a box is as narrow as a cell is long, the least eps is beyond that part.
    most = max(least, (MAX_BLUR * side) ** 2)
    if eps is None:
        heat = SHARE_OF_DT * max(terms.temperature, 0.0)
        wanted = dt * max(heat, stiffness(mu, terms) / MAX_STIFFNESS)
        wanted = max(wanted, _for_what_moves(mu, dt, terms))
        wanted = min(wanted, (DEFAULT_BLUR * side) ** 2)
        wanted = min(max(wanted, -MARGIN * dt * terms.temperature, least), most)
        # The nearest of factors of root 2, so that the kernel seldom changes along a
        # flow; round numbers are kept off the jumps.
        steps = 2 * math.log2(wanted / least) + 1e-5
        eps = least * 2 ** (round(steps) / 2)
        if eps > most:
            eps = least * 2 ** (math.floor(steps) / 2)
    if eps < LEAST_EPS * square:
        msg = (
            f"eps = {eps:.3g} is too small for the grid: a kernel so narrow does "
            f"not reach the next cell and pins the mass; take at least "
            f"{DEFAULT_EPS:g} squares of the spacing, {least:.3g}, "
            f"or a finer grid"
        )
        raise ValueError(msg)
    if eps > most:
        msg = (
            f"eps = {eps:.3g} is too large for the box: its kernel spans more than "
            f"{MAX_BLUR:g} of the shortest side, {side:g}; take at most {most:.3g}"
        )
        raise ValueError(msg)
    if 0.5 * eps + dt * terms.temperature <= 0:
        msg = (
            f"the entropy's total factor is negative: temperature "
            f"{terms.temperature:g} + eps/(2 dt) = {0.5 * eps / dt:.3g}; the step "
            f"has no minimiser; take a smaller dt or a larger eps, above "
            f"{-2 * dt * terms.temperature:.3g} if the box bears it: at most {most:.3g}"
        )
        raise ValueError(msg)
    return eps


def largest_blur(mu: GridDensity) -> float:
    """Return the largest eps that is chosen by default for its length."""
    return (DEFAULT_BLUR * _longest_cell_and_shortest_side(mu)[1]) ** 2


def least_eps(mu: GridDensity) -> float:
    """Return the least eps that is chosen by default: it reaches the next cell."""
    return DEFAULT_EPS * _longest_cell_and_shortest_side(mu)[0] ** 2


def _longest_cell_and_shortest_side(mu: GridDensity) -> tuple[float, float]:
    # Of the room that is free, a box. Along an axis of one cell there is no next one.
    free = mu.is_free.reshape(mu.shape)
    counts = [
        int(free.movedim(k, 0).reshape(n, -1).any(1).sum())
        for k, n in enumerate(mu.shape)
    ]
    spacing = mu.box.spacing
    axes = [(n, h) for n, h in zip(counts, spacing, strict=True) if n > 1]
    axes = axes or [(1, max(spacing))]
    return max(h for _, h in axes), min(n * h for n, h in axes)


def _for_what_moves(mu: GridDensity, dt: float, terms: Terms) -> float:
    r"""Return the variance for terms other than internal energies.

    It is a share of dt times the standard deviation of their F' under the density, in
    units of F, so that no constant counts. A kernel as wide as the density blurs it; so
    it is no more than the variance after the step, along the narrowest axis: they
    contract the density by the factor :math:`1 + dt\,\lambda`, where
    :math:`\lambda |x - m|^2/2` fits F' best. Terms that are not local are
    differentiated in a density that is positive everywhere.
    """
    f, rest = potential_of(mu, terms).reshape(-1), terms.nonlocal_part
    if rest is not None:
        free = mu.is_free.to(mu.dtype)
        masses = (1 - SHARE) * mu.weights + SHARE * free / free.sum()
        f = f + rest.first_variation(mu.with_free_weights(masses))
    squares = (mu.points - mu.weights @ mu.points).square()
    variances = (mu.weights @ squares).tolist()
    least = min(
        (v for v, n in zip(variances, mu.shape, strict=True) if n > 1), default=0.0
    )
    energy, f = _standardised(mu, f)
    length, q = _standardised(mu, 0.5 * squares.sum(-1))
    fit = float(mu.weights @ (f * q)) * (energy / length) if length > 0 else 0.0
    contraction = 1.0 + dt * max(fit, 0.0)
    return min(SHARE_OF_DT * dt * energy, least / contraction / contraction)


def _standardised(mu: GridDensity, f: Tensor) -> tuple[float, Tensor]:
    """Return the standard deviation under a density, and f of mean 0, deviation 1."""
    f = torch.where(mu.weights > 0, f, 0.0)
    f = f - mu.weights @ f
    f = torch.where(mu.weights > 0, f, 0.0)
    unit = f.abs().max().clamp_min(torch.finfo(f.dtype).tiny)
    f = f / unit  # squares of any unit
    deviation = (mu.weights @ f.square()).sqrt()
    f = torch.where(deviation > 0, f / deviation, 0.0)
    return float(unit) * float(deviation), f


def stiffness(mu: GridDensity, terms: Terms) -> float:
    r"""Return the mean of :math:`\rho\,U''(\rho)` without the entropy's part."""
    if terms.internal is None:
        return 0.0
    mean = mu.weights * elasticity(terms.internal, mu.density().log())
    return float(torch.where(mu.weights > 0, mean, 0.0).sum())
