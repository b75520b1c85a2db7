"""Exact solutions that are a radial profile of one scale; see ``tests/exact.py``.

Porous medium and fast diffusion (Barenblatt), log gas (semicircle, disk), crowds. The
profile keeps its form under the flow *and* under the JKO step, as the velocity that
it makes is linear in x; the scale solves a scalar equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import beta, betainc, betaincinv, gammaln
from torch import Tensor

# Profiles -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """A radial density of unit mass: a ball's (m > 1, and uniform) or a bell's (m < 1).

    Ball: proportional to (1 - |x|^2/R^2)_+^p, p >= 0. Bell: proportional to
    (1 + |x|^2/R^2)^-p, p > d/2. R is `scale` and p is `power`.
    """

    dim: int
    scale: float
    power: float
    bell: bool = False
    center: tuple[float, ...] | None = None

    def at(self, scale: float) -> Profile:
        """Return the same profile at another scale."""
        return Profile(self.dim, scale, self.power, self.bell, self.center)

    @property
    def height(self) -> float:
        """Density at the centre."""
        d, p = self.dim, self.power
        if self.bell:
            log = gammaln(p) - gammaln(p - d / 2)
        else:
            log = gammaln(p + 1 + d / 2) - gammaln(p + 1)
        return math.exp(log - 0.5 * d * math.log(math.pi)) / self.scale**d

    @property
    def second_moment(self) -> float:
        """The integral of |x - center|^2; infinite for heavy tails."""
        d, p = self.dim, self.power
        if not self.bell:
            return self.scale**2 * d / (d + 2 * p + 2)
        return self.scale**2 * d / (2 * p - d - 2) if 2 * p > d + 2 else math.inf

    @property
    def variance(self) -> float:
        """The variance along each axis."""
        return self.second_moment / self.dim

    def w2(self, scale: float) -> float:
        """Return W2 to the same profile at another scale; the map is a dilation."""
        return math.sqrt(self.at(1.0).second_moment) * abs(self.scale - scale)

    def density(self, x: Tensor) -> Tensor:
        """Return the density at points (..., d)."""
        square = (x - self._center()).square().sum(-1) / self.scale**2
        if self.bell:
            return self.height * (1 + square).pow(-self.power)
        inside = self.height * (1 - square).clamp_min(0).pow(self.power)
        return torch.where(square < 1, inside, 0.0)

    def cdf(self, x: Tensor) -> Tensor:
        """Return the mass to the left of x, d = 1."""
        y = np.asarray(x, float) - self._center().numpy()
        return torch.from_numpy(self._share(y, np.full_like(y, self.scale)))

    def quantile(self, level: Tensor) -> Tensor:
        """Return the point with mass `level` to its left, d = 1."""
        s = np.asarray(level, float)
        middle = np.abs(2 * s - 1)
        # Two forms of one number, u = 1 - v: each is exact where it is small.
        u = betaincinv(0.5, self._shape, middle)
        v = betaincinv(self._shape, 0.5, 2 * np.minimum(s, 1 - s))
        u, v = np.where(middle < 0.5, u, 1 - v), np.where(middle < 0.5, 1 - u, v)
        with np.errstate(divide="ignore"):
            y = np.sqrt(u / v if self.bell else u)
        return self._center() + torch.from_numpy(self.scale * np.sign(2 * s - 1) * y)

    def cells(
        self,
        lower: float | Sequence[float],
        upper: float | Sequence[float],
        shape: Sequence[int],
        *,
        order: int = 8,
    ) -> Tensor:
        """Return the mean density in each cell of a grid, of `shape`.

        The last axis is integrated in closed form, the others by Gauss's rule of this
        order in the part of each cell that the support reaches.
        """
        d, center = self.dim, self._center().numpy()
        low = np.broadcast_to(lower, d) - center
        high = np.broadcast_to(upper, d) - center
        nodes, gauss = np.polynomial.legendre.leggauss(order)
        square, share = np.zeros(()), np.ones(())  # (n_0, order, n_1, order, ...)
        for axis in range(d - 1):
            edges = np.linspace(low[axis], high[axis], shape[axis] + 1)
            reach = np.sqrt(self._left(square))[..., None, None]
            # x = reach * sin(angle) is smooth up to the border of a support.
            safe = np.where((reach > 0) & np.isfinite(reach), reach, 1.0)
            ends = edges[:, None]
            ends = ends if self.bell else np.arcsin(np.clip(ends / safe, -1, 1))
            length = np.diff(ends, axis=-2)
            y = ends[..., :-1, :] + length * 0.5 * (1 + nodes)
            x, speed = (y, 1.0) if self.bell else (reach * np.sin(y), reach * np.cos(y))
            square = square[..., None, None] + x**2
            weight = speed * length * gauss / (2 * (edges[1] - edges[0]))
            share = share[..., None, None] * weight
        width = np.sqrt(self.scale**2 + square if self.bell else self._left(square))
        power = -self.power if self.bell else self.power
        line = share * width ** (2 * power + 1) / self.scale ** (2 * power)
        line = line * self.height * beta(0.5, self._shape)
        edges = np.linspace(low[-1], high[-1], shape[-1] + 1)
        below = np.stack([line * self._share(edge, width) for edge in edges], -1)
        mean = np.diff(below, axis=-1) / (edges[1] - edges[0])
        mean = mean.sum(tuple(range(1, 2 * d - 2, 2)))
        return torch.from_numpy(mean)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n independent points, (n, d)."""
        direction = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        direction = direction / direction.norm(dim=-1, keepdim=True)
        level = torch.rand(n, generator=generator, dtype=torch.float64)
        b = self.power - self.dim / 2 if self.bell else self.power + 1
        u = torch.from_numpy(betaincinv(self.dim / 2, b, level.numpy()))
        radius = self.scale * (u / (1 - u) if self.bell else u).sqrt()
        return self._center() + radius[:, None] * direction

    @property
    def _shape(self) -> float:
        """The second parameter of the beta law along a line."""
        return self.power - 0.5 if self.bell else self.power + 1

    def _left(self, square: np.ndarray) -> np.ndarray:
        """Return how far |x|^2 may still grow inside of the support."""
        if self.bell:
            return np.full_like(square, np.inf)
        return np.maximum(self.scale**2 - square, 0)

    def _share(self, y: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Return the share of the mass of a line below y; `width` is its scale."""
        y, width = np.broadcast_arrays(y, width)
        ratio = y / np.where(width > 0, width, 1.0)
        square = ratio**2
        u = square / (1 + square) if self.bell else np.minimum(square, 1)
        return 0.5 * (1 + np.sign(y) * betainc(0.5, self._shape, u))

    def _center(self) -> Tensor:
        zero = torch.zeros(self.dim, dtype=torch.float64)
        return zero if self.center is None else torch.tensor(self.center).double()


def uniform_ball(
    dim: int, radius: float, center: tuple[float, ...] | None = None
) -> Profile:
    """Return the uniform density on a ball; the disk of `exact.disk_energy` in 2-D."""
    return Profile(dim, radius, 0.0, center=center)


def semicircle(radius: float = math.sqrt(2)) -> Profile:
    """Return Wigner's law; under W = |z|^2/2 - log|z| it breathes with kappa = 2."""
    return Profile(1, radius, 0.5)


def breathing_ball(radius: float, t: float, dim: int) -> float:
    """Return a uniform ball's radius under W = |z|^2/2 + |z|^{2-d}/(d-2), d >= 3.

    R' = -R + R^{1-d}; d = 2 is the disk under W = |z|^2/2 - log|z|.
    """
    return (1 + (radius**dim - 1) * math.exp(-dim * t)) ** (1 / dim)


def breathing_ball_jko(radius: float, tau: float, k: int, dim: int) -> float:
    """Return it after k JKO steps, (R+ - R)/tau = -R+ + R+^{1-d}."""
    return _implicit(radius, tau, k, rate=1.0, exponent=1 - dim, lam=1.0)


# Porous medium and fast diffusion -----------------------------------------------------
#
# F = int rho^m / (m-1) + lam |x|^2/2. A Barenblatt profile of scale R has the velocity
# (A R^{-1/b} - lam) x with 1/b = d (m-1) + 2 and A = 2 m/|m-1| * height(R=1)^{m-1}.


def barenblatt(
    m: float, dim: int, scale: float, center: tuple[float, ...] | None = None
) -> Profile:
    """Return Barenblatt's profile; for m > 1 its scale is the radius of its support."""
    return Profile(dim, scale, 1 / abs(m - 1), bell=m < 1, center=center)


def barenblatt_rate(m: float, dim: int) -> float:
    """Return A, with R' = A R^{1-1/b} - lam R."""
    return 2 * m / abs(m - 1) * barenblatt(m, dim, 1.0).height ** (m - 1)


def barenblatt_scale(
    m: float, dim: int, scale: float, t: float, lam: float = 0.0
) -> float:
    """Return the scale at time t: R^{1/b} solves a linear equation."""
    power, A = dim * (m - 1) + 2, barenblatt_rate(m, dim)
    if lam == 0:
        return (scale**power + A * power * t) ** (1 / power)
    rest = A / lam
    return (rest + (scale**power - rest) * math.exp(-lam * power * t)) ** (1 / power)


def barenblatt_time(m: float, dim: int, end: float, start: float = 0.0) -> float:
    """Return the time from one scale to another, lam = 0; from a Dirac by default."""
    power = dim * (m - 1) + 2
    return (end**power - start**power) / (barenblatt_rate(m, dim) * power)


def barenblatt_scale_jko(
    m: float, dim: int, scale: float, tau: float, k: int, lam: float = 0.0
) -> float:
    """Return the scale after k JKO steps, (R+ - R)/tau = A R+^{1-1/b} - lam R+.

    For m < 1 the second moment must be finite, m > d/(d+2).
    """
    exponent = -dim * (m - 1) - 1
    return _implicit(scale, tau, k, barenblatt_rate(m, dim), exponent, lam)


def barenblatt_rest(m: float, dim: int, lam: float) -> float:
    """Return the scale at rest in lam |x|^2/2."""
    return (barenblatt_rate(m, dim) / lam) ** (1 / (dim * (m - 1) + 2))


def barenblatt_energy(m: float, dim: int, scale: float, lam: float = 0.0) -> float:
    """Return F; dF/dR = -M (A R^{1-1/b} - lam R), M the second moment at R = 1."""
    M = barenblatt(m, dim, 1.0).second_moment
    spread = barenblatt_rate(m, dim) * scale ** (-dim * (m - 1)) / (dim * (m - 1))
    return M * (spread + 0.5 * lam * scale**2)


def _implicit(
    scale: float, tau: float, k: int, rate: float, exponent: float, lam: float
) -> float:
    """Return R after k steps of (R+ - R)/tau = rate R+^exponent - lam R+."""
    for _ in range(k):
        R = scale

        def gap(z: float, R: float = R) -> float:
            r = math.exp(z)
            return r - R - tau * (rate * r**exponent - lam * r)

        low, high = math.log(R) - 1, math.log(R) + 1
        while gap(low) > 0:
            low -= 1
        while gap(high) < 0:
            high += 1
        scale = math.exp(brentq(gap, low, high, xtol=1e-15, rtol=1e-15))
    return scale


# Crowds: rho <= 1 ---------------------------------------------------------------------


def column(c: float, t: float) -> tuple[float, float]:
    """Return the ends of the full part [0, a] and of the part of density c, [a, b].

    V = x, a wall at 0, at first density c < 1 on [0, 1/c]: a = c t/(1-c), b = 1/c - t
    until all is full at t = (1-c)/c. The quantile is s + (s (1/c - 1) - t)_+, and k JKO
    steps of length tau give it exactly, at t = k tau.
    """
    t = min(t, (1 - c) / c)
    return c * t / (1 - c), 1 / c - t


def column_quantile(c: float, t: float, level: Tensor) -> Tensor:
    """Return the quantile function of `column`."""
    return level + (level * (1 / c - 1) - t).clamp_min(0)


def column_cells(c: float, t: float, upper: float, n: int) -> Tensor:
    """Return the mean density of `column` in n cells of [0, upper]."""
    full, end = column(c, t)
    edges = torch.linspace(0, upper, n + 1, dtype=torch.float64)
    mass = edges.clamp_max(full) + c * (edges.clamp(full, end) - full)
    return mass.diff() * (n / upper)


def crowded_ball(c: float, dim: int, t: float) -> Profile:
    """Return the uniform ball of first density c < 1 at time t in V = |x|^2/2.

    It shrinks by e^{-t} until it is full at t = -log(c)/d, then rests.
    """
    return _crowd(c, dim, math.exp(-t))


def crowded_ball_jko(c: float, dim: int, tau: float, k: int) -> Profile:
    """Return it after k JKO steps: it shrinks by (1 + tau)^-k until it is full."""
    return _crowd(c, dim, (1 + tau) ** -k)


def _crowd(c: float, dim: int, shrink: float) -> Profile:
    full = uniform_ball(dim, 1.0).height ** (1 / dim)  # the radius at density 1
    return uniform_ball(dim, max(full * c ** (-1 / dim) * shrink, full))


# Moments where there is no profile ----------------------------------------------------


def log_moment(
    second: float, t: float, dim: int, strength: float, temperature: float = 1.0
) -> float:
    """Return int |x|^2 dmu at time t under T * Entropy + Interaction(a log|z|).

    Its rate is 2 d T - a: Keller-Segel. In 2-D a mass M is a = M/(2 pi), critical at
    M = 8 pi; in 1-D the modified model is a = 2 chi, critical at chi = 1. True for any
    start, before a blow-up.
    """
    return second + (2 * dim * temperature - strength) * t


def log_moment_jko(
    second: float,
    tau: float,
    w2: float,
    dim: int,
    strength: float,
    temperature: float = 1.0,
) -> float:
    """Return it after one JKO step that went the distance `w2`: W2^2 less."""
    return log_moment(second, tau, dim, strength, temperature) - w2**2
