"""Exact solutions: the one home of the closed forms that tests compare with.

Everything is float64. A name ending in ``_euler`` or ``_jko`` is the exact solution of
that *scheme*, not of the flow, so it separates the error of a solver (machine
precision) from the error of a time step (order 1). Conventions as in
``docs/conventions.rst``: velocity -grad F', JKO step argmin F + W2^2 / 2 tau.

What has a density is in ``exact_gaussians.py`` and ``exact_densities.py``, and found
here by name.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from scipy.special import roots_hermite
from torch import Tensor

import otflow as of
from tests.exact_densities import *  # noqa: F403
from tests.exact_gaussians import *  # noqa: F403

# Shapes that only breathe -------------------------------------------------------------
#
# A confinement lam |x|^2/2 against a repulsion dilates certain shapes without changing
# them. The scale c solves c' = -lam c + kappa/c. The shapes, with the energy whose flow
# they follow, and their kappa at lam = 1:
#
#   N points at c * (zeros of the Hermite polynomial)   W = |z|^2/2 - log|z|, d = 1  1/N
#   semicircle law of radius c                          W = |z|^2/2 - log|z|, d = 1  2
#   uniform disk of radius c                            W = |z|^2/2 - log|z|, d = 2  1
#   Gaussian of standard deviation c       V = lam |x|^2/2, and T * Entropy          T


def breathing(c: float, t: float, kappa: float, lam: float = 1.0) -> float:
    """Return the scale at time t: c^2 - kappa/lam decays like exp(-2 lam t)."""
    if lam == 0:
        return math.sqrt(c * c + 2 * kappa * t)
    rest = kappa / lam
    return math.sqrt(rest + (c * c - rest) * math.exp(-2 * lam * t))


def breathing_euler(
    c: float, tau: float, k: int, kappa: float, lam: float = 1.0
) -> float:
    """Return the scale after k explicit Euler steps."""
    for _ in range(k):
        c = c + tau * (kappa / c - lam * c)
    return c


def breathing_jko(
    c: float, tau: float, k: int, kappa: float, lam: float = 1.0
) -> float:
    """Return the scale after k JKO steps, (c+ - c)/tau = -lam c+ + kappa/c+."""
    for _ in range(k):
        root = math.sqrt(c * c + 4 * tau * kappa * (1 + lam * tau))
        c = (c + root) / (2 * (1 + lam * tau))
    return c


# N points on the line under W = |z|^2/2 - log|z| (Dyson) ------------------------------


def dyson() -> of.Interaction:
    """Return the energy 1/2 sum w w (|z|^2/2 - log|z|), diagonal left out."""
    return of.Interaction(of.kernels.PowerLaw(2, 0))


def hermite(n: int, c: float = 1.0) -> of.Particles:
    """Return n equal atoms at c times the zeros of the Hermite polynomial H_n.

    sum_j 1/(h_i - h_j) = h_i, so under `dyson` the scale breathes with kappa = 1/n; at
    rest c = 1/sqrt(n).
    """
    return of.Particles(c * hermite_zeros(n)[:, None])


def hermite_zeros(n: int) -> Tensor:
    """Return the zeros of the Hermite polynomial H_n (the physicists'), ascending."""
    return torch.from_numpy(roots_hermite(n)[0])


def dyson_energy(n: int, c: float) -> float:
    """Return `dyson` at `hermite(n, c)`, from the discriminant of H_n.

    sum_i h_i^2 = n(n-1)/2 and prod_{i<j} (h_i - h_j)^2 = 2^(-n(n-1)/2) prod_k k^k.
    """
    pairs = n * (n - 1)
    logs = sum(k * math.log(k) for k in range(1, n + 1)) - 0.5 * pairs * math.log(2)
    logs += pairs * math.log(c)
    return (0.5 * n * pairs * c * c - logs) / (2 * n * n)


# Potentials ---------------------------------------------------------------------------


def quadratic(lam: float = 1.0, center: float | Tensor = 0.0) -> of.Potential:
    """Return the potential energy of lam |x - center|^2 / 2; it is lam-convex."""
    return of.Potential(
        lambda x: 0.5 * lam * (x - center).square().sum(-1), modulus=lam
    )


def decay(lam: float, t: float) -> float:
    """Return the factor on x - center at time t of the flow of `quadratic`.

    With lam = 1 it is also that of W2(mu_t, nu) under F = W2^2(., nu)/2, whose flow is
    the geodesic to nu.
    """
    return math.exp(-lam * t)


def decay_euler(lam: float, tau: float, k: int) -> float:
    """Return that factor after k explicit Euler steps."""
    return (1 - lam * tau) ** k


def decay_jko(lam: float, tau: float, k: int) -> float:
    """Return that factor after k JKO steps; F - min F falls by its square.

    For a lam-convex F it bounds W2(mu_k, minimiser) / W2(mu_0, minimiser). With lam = 1
    it is W2(mu_k, nu) / W2(mu_0, nu) under F = W2^2(., nu)/2, and mu_k is the point of
    the geodesic to nu at time 1 - decay_jko.
    """
    return (1 + lam * tau) ** -k


def tilted(weights: Tensor, potential: Tensor, t: float) -> Tensor:
    """Return the masses at time t of birth-death of rate 1 for int V dmu; any step."""
    masses = weights * (-t * (potential - potential.min())).exp()
    return masses / masses.sum()


def two_masses(w: float, t: float) -> float:
    """Return the mass at 1 of w delta_1 + (1 - w) delta_0 under birth-death of rate 1.

    The functional is (int x dmu)^2 / 2, so w' = -w^2 (1 - w), and its solution is
    -1/w + log(w / (1 - w)) = -t + constant.
    """

    def phase(w: float) -> float:
        return -1 / w + math.log(w / (1 - w))

    start = phase(w)
    return float(brentq(lambda v: phase(v) - start + t, 1e-6, w, xtol=1e-15))


# Minimisers ---------------------------------------------------------------------------

TWO_ATOMS = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
"""Minimiser of the interaction PowerLaw(4, 2) on the line, up to translation."""

TWO_ATOMS_ENERGY = -1 / 16
"""Its energy."""

DISK_ENERGY = 3 / 8
"""Least energy of the interaction PowerLaw(2, 0) in the plane: uniform unit disk."""


def disk_energy(radius: float) -> float:
    """Return the energy of a uniform disk under PowerLaw(2, 0) in the plane."""
    return radius**2 / 4 - 0.5 * math.log(radius) + 1 / 8


def disk(n: int, radius: float = 1.0) -> of.Particles:
    """Return n equal atoms spread evenly over a disk (sunflower points)."""
    k = torch.arange(n, dtype=torch.float64) + 0.5
    angle = math.pi * (3 - math.sqrt(5)) * k
    ring = radius * (k / n).sqrt()
    return of.Particles(torch.stack([ring * angle.cos(), ring * angle.sin()], -1))


# Diffusions ---------------------------------------------------------------------------


def langevin_moments(
    mean: float, variance: float, h: float, k: int, *, lam: float, temperature: float
) -> tuple[float, float]:
    """Return mean and variance per axis after k Euler-Maruyama steps of length h.

    The problem is V = lam |x|^2/2 at a temperature; the step is exact in these moments
    for any law of the start. At rest the variance is temperature/(lam (1 - lam h/2)).
    """
    a = 1 - lam * h
    for _ in range(k):
        mean, variance = a * mean, a * a * variance + 2 * temperature * h
    return mean, variance


def ornstein_uhlenbeck(
    mean: float, variance: float, t: float, *, lam: float, temperature: float
) -> tuple[float, float]:
    """Return mean and variance per axis at time t of the diffusion itself."""
    rest = temperature / lam
    return (
        mean * math.exp(-lam * t),
        rest + (variance - rest) * math.exp(-2 * lam * t),
    )


# Entropies ----------------------------------------------------------------------------


def uniform_entropy(length: float) -> float:
    """Return int rho log rho of the uniform density on an interval."""
    return -math.log(length)


def gaussian_entropy(sigma: float, dim: int = 1) -> float:
    """Return int rho log rho of N(0, sigma^2 I)."""
    return -0.5 * dim * math.log(2 * math.pi * math.e * sigma**2)
