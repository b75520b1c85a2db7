"""The variance eps of the kernel of an entropic step: its default and its limits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.measures import GridDensity
from otflow.proximal.grid.sinkhorn.scaling import SHARE, elasticity, potential_of
from otflow.proximal.terms import Terms

__all__ = [
    "MARGIN",
    "largest_blur",
    "least_eps",
    "variance_of",
]

# Default and least variance of the kernel, in squares of the spacing. A narrower kernel
# does not reach the next cell and pins the mass.
DEFAULT_EPS, LEAST_EPS = 0.6, 0.4
# On finer grids: eps over dt times an energy (the temperature, or the deviation of F'
# of the other terms), and the largest stiffness of the iteration.
SHARE_OF_DT, MAX_STIFFNESS = 0.02, 100.0
# Largest standard deviation of the kernel in sides of the box: given, and by default.
MAX_BLUR, DEFAULT_BLUR = 0.25, 1 / 12
# Default eps for an entropy of negative factor, in units of dt times the factor. The
# step has a minimiser above 2.
MARGIN = 4.0


def variance_of(mu: GridDensity, dt: float, terms: Terms, eps: float | None) -> float:
    """Return the given or the default eps; raise `ValueError` out of range."""
    least, side = least_eps(mu), _lengths(mu)[1]
    # In a box as narrow as a cell is long, the least eps exceeds the share of the side.
    most = max(least, (MAX_BLUR * side) ** 2)
    if eps is None:
        heat = SHARE_OF_DT * max(terms.temperature, 0.0)
        wanted = dt * max(heat, _stiffness(mu, terms) / MAX_STIFFNESS)
        wanted = max(wanted, _for_what_moves(mu, dt, terms))
        wanted = min(wanted, largest_blur(mu))
        wanted = min(max(wanted, -MARGIN * dt * terms.temperature, least), most)
        # eps is rounded to a power of root 2 times the least one, so that the kernel
        # seldom changes along a flow. The 1e-5 keeps round numbers off the jumps.
        steps = 2 * math.log2(wanted / least) + 1e-5
        eps = least * 2 ** (round(steps) / 2)
        if eps > most:
            eps = least * 2 ** (math.floor(steps) / 2)
    if eps < LEAST_EPS / DEFAULT_EPS * least:
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
    """Return the largest default eps that the sides of the box allow."""
    return (DEFAULT_BLUR * _lengths(mu)[1]) ** 2


def least_eps(mu: GridDensity) -> float:
    """Return the least default eps: its kernel reaches the next cell."""
    return DEFAULT_EPS * _lengths(mu)[0] ** 2


def _lengths(mu: GridDensity) -> tuple[float, float]:
    """Return the longest cell and the shortest side of the free cells, which are a box.

    An axis of one cell does not count: it has no next cell.
    """
    free, longest, shortest = mu.is_free.reshape(mu.shape), 0.0, math.inf
    for k, (n, h) in enumerate(zip(mu.shape, mu.box.spacing, strict=True)):
        count = int(free.movedim(k, 0).reshape(n, -1).any(1).sum())
        if count > 1:
            longest, shortest = max(longest, h), min(shortest, count * h)
    if not longest:
        longest = shortest = max(mu.box.spacing)
    return longest, shortest


def _for_what_moves(mu: GridDensity, dt: float, terms: Terms) -> float:
    r"""Return the variance for terms other than internal energies.

    The variance is a share of dt times the standard deviation of their F' under the
    density; constants in F' do not count. A kernel as wide as the density would blur
    it. So the variance is at most that of the density after the step, along the
    narrowest axis. The terms contract the density by the factor :math:`1 +
    dt\,\lambda`, where :math:`\lambda |x - m|^2/2` fits F' best. Nonlocal terms are
    differentiated at a density that is positive everywhere.
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
    f = f / unit  # the squares below must not overflow in any unit
    deviation = (mu.weights @ f.square()).sqrt()
    f = torch.where(deviation > 0, f / deviation, 0.0)
    return float(unit) * float(deviation), f


def _stiffness(mu: GridDensity, terms: Terms) -> float:
    r"""Return the mean of :math:`\rho\,U''(\rho)` without the entropy's part."""
    if terms.internal is None:
        return 0.0
    mean = mu.weights * elasticity(terms.internal, mu.density().log())
    return float(torch.where(mu.weights > 0, mean, 0.0).sum())
