"""Steps of every representation, with references that share no code with solvers.

What the words mean is in ``docs/conventions.rst``, "Words of a certificate".
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

import otflow as of
from otflow.testing import Problem
from otflow.testing.clouds import normal
from tests.exact_gaussians import fokker_planck_jko, gaussian_cells, gaussian_w2

F64 = torch.float64


# Problems, by a seed ------------------------------------------------------------------


def _numbers(seed: int) -> tuple[float, float, float]:
    """Return a modulus, a centre and a dt that depend on the seed alone."""
    a, b, c = torch.rand(
        3, generator=torch.Generator().manual_seed(seed), dtype=F64
    ).tolist()
    return 0.2 + 3 * a, 2 * b - 1, 10 ** (2 * c - 2)


def _spring(modulus: float, centre: float) -> of.Potential:
    return of.Potential(
        lambda x: 0.5 * modulus * (x - centre).square().sum(-1), modulus=modulus
    )


def particles(seed: int, *, convex: bool = True) -> Problem:
    """Atoms in a bowl, whose step is known, or in a double well that interacts."""
    modulus, centre, dt = _numbers(seed)
    n, d = 3 + 4 * (seed % 5), 1 + seed % 3
    x, masses = normal(n, d, seed=seed), normal(n, seed=seed + 9).exp()
    mu = of.Particles(x, masses if seed % 2 else None, normalize=seed % 2 == 1)

    def distance(a: of.Particles, b: of.Particles) -> float:
        return math.sqrt(float(of.metrics.wasserstein2_squared(a, b)))

    if not convex:
        F: of.Functional = of.Potential(
            lambda x: modulus * (x.square() - 1).square().sum(-1)
        )
        F = F + of.Interaction(of.kernels.Gaussian(0.7))
        return Problem(F, mu, 10 * dt, distance)
    goal = (x + dt * modulus * centre) / (1 + dt * modulus)

    def exact(nu: of.Particles) -> float:
        return distance(nu, of.Particles(goal, mu.weights))

    return Problem(_spring(modulus, centre), mu, dt, distance, exact, 1e-8)


def mapped(seed: int) -> Problem:
    """Atoms drawn to the planes through a centre, where the potential has kinks."""
    slope, centre, dt = _numbers(seed)
    like = particles(seed)
    x = like.start.points - centre
    goal = of.Particles(
        x - x.clamp(-slope * dt, slope * dt) + centre, like.start.weights
    )

    def prox(y: torch.Tensor, tau: float) -> torch.Tensor:
        reach = slope * tau
        return y - (y - centre).clamp(-reach, reach)

    F = of.Potential(
        lambda y: slope * (y - centre).abs().sum(-1), modulus=0.0, prox=prox
    )
    return replace(like, functional=F, exact=lambda nu: like.distance(nu, goal))


def gaussians(seed: int) -> Problem:
    """A Gaussian in a quadratic bowl with entropy: Fokker-Planck."""
    modulus, centre, dt = _numbers(seed)
    d = 1 + seed % 3
    factor = normal(d, d, seed=seed) / d
    S = factor @ factor.T + 0.3 * torch.eye(d, dtype=F64)
    m = normal(1, d, seed=seed + 5)[0]
    A, b = modulus * torch.eye(d, dtype=F64), torch.full((d,), centre, dtype=F64)
    goal = fokker_planck_jko(m, S, dt, A=A, b=b, temperature=0.5)

    def distance(a: of.Gaussian, c: of.Gaussian) -> float:
        return gaussian_w2(a.mean, a.covariance, c.mean, c.covariance)

    def exact(nu: of.Gaussian) -> float:
        return gaussian_w2(nu.mean, nu.covariance, *goal)

    F = _spring(modulus, centre) + 0.5 * of.Entropy()
    return Problem(F, of.Gaussian(m, S), dt, distance, exact, 1e-6)


def bent(seed: int) -> Problem:
    """A Gaussian on a fine rule, across a kink that no rule integrates exactly."""
    modulus, centre, dt = _numbers(seed)
    mu = of.Gaussian(normal(1, seed=seed), 0.5 + normal(1, 1, seed=seed + 5).square())
    F: of.Functional = of.Potential(
        lambda x: modulus * ((x[..., 0] - centre).square() + 0.01).sqrt(), modulus=0.0
    )
    F = F + 0.5 * of.Entropy()

    def distance(a: of.Gaussian, c: of.Gaussian) -> float:
        return gaussian_w2(a.mean, a.covariance, c.mean, c.covariance)

    return Problem(F, mu.refined(512), dt, distance, slack=1e-6)


def quantiles(seed: int) -> Problem:
    """Quantiles in a bowl, where each moves by itself."""
    modulus, centre, dt = _numbers(seed)
    edges = (normal(9 + seed, seed=seed).exp() + 0.1).cumsum(0)
    edges = (edges - edges.mean()) / edges.std()
    mu = of.Quantiles(edges)
    goal = (edges + dt * modulus * centre) / (1 + dt * modulus)

    def distance(a: of.Quantiles, b: of.Quantiles) -> float:
        return line_distance(a.edges.flatten(), a.weights, b.edges.flatten(), b.weights)

    def exact(nu: of.Quantiles) -> float:
        return distance(nu, of.Quantiles(goal))

    return Problem(_spring(modulus, centre), mu, dt, distance, exact, 1e-8)


def cells(seed: int, *, walls: bool = False) -> Problem:
    """A bell on cells in a quadratic bowl with entropy."""
    modulus, centre, dt = _numbers(seed)
    n, width = 60 + 10 * (seed % 4), 0.6 + 0.1 * (seed % 3)
    one = torch.ones(1, dtype=F64)
    m, S = 0.3 * one, width * one[:, None]
    masses = gaussian_cells(m, S.diagonal(), -5, 5, (n,))
    mu = of.GridDensity(masses, -5, 5, normalize=True, walls=walls)
    m, S = fokker_planck_jko(m, S, dt, A=modulus * one[:, None], b=centre * one)
    goal = gaussian_cells(m, S.diagonal(), -5, 5, (n,))
    faces = torch.linspace(-5, 5, n + 1, dtype=F64)
    h = 10 / n

    def distance(a: of.GridDensity, b: of.GridDensity) -> float:
        return line_distance(faces, a.weights, faces, b.weights)

    def exact(nu: of.GridDensity) -> float:
        return line_distance(faces, nu.weights, faces, goal / goal.sum())

    # A certificate on cells counts from their centres: up to a share of the spacing.
    F = _spring(modulus, centre) + of.Entropy()
    return Problem(F, mu, dt, distance, exact, 0.25 * h)


def line_distance(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> float:
    """Return the distance of step densities with masses a, b between edges x, y.

    Between the levels of both the quantile functions are linear: Simpson is exact.
    """
    heights = [torch.cat([m.new_zeros(1), (m / m.sum()).cumsum(0)]) for m in (a, b)]
    levels = torch.cat(heights).clamp(0, 1).sort().values
    low, high = levels[:-1], levels[1:]
    keep = high - low > 1e-13
    low, high = low[keep], high[keep]

    def gap(level: Tensor) -> Tensor:
        return _quantile(x, heights[0], level) - _quantile(y, heights[1], level)

    inner = 1e-3 * (high - low)  # jumps of the quantiles are at the levels themselves
    one, two = gap(low + inner), gap(high - inner)
    square = (one * one + one * two + two * two) / 3
    return math.sqrt(float((square * (high - low)).sum()))


def _quantile(edges: Tensor, heights: Tensor, level: Tensor) -> Tensor:
    k = torch.searchsorted(heights, level, right=True).clamp(1, len(heights) - 1)
    low, high = heights[k - 1], heights[k]
    share = ((level - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return edges[k - 1] + share * (edges[k] - edges[k - 1])
