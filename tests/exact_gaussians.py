"""Exact solutions that stay Gaussian, or separate into cosines; see ``tests/exact.py``.

The problem is F = int V dmu + T * Entropy with V = (x - b)' A (x - b) / 2, A symmetric:
Fokker-Planck, and the heat equation for A = 0, T = 1. Means are (d,), matrices (d, d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import otflow as of


def spd(
    d: int, *, seed: int = 0, lower: float = 0.5, upper: float = 2.0
) -> torch.Tensor:
    """Return a positive definite matrix of random axes, its eigenvalues in a range."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(d, d, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(noise)[0]
    share = torch.rand(d, generator=generator, dtype=torch.float64)
    matrix = axes * (lower + (upper - lower) * share) @ axes.T
    return 0.5 * (matrix + matrix.T)


def quadratic_form(A: Tensor, b: Tensor) -> of.Potential:
    """Return the potential energy of (x - b)' A (x - b) / 2."""
    modulus = float(torch.linalg.eigvalsh(A)[0])
    return of.Potential(
        lambda x: 0.5 * ((x - b) @ A.to(x) * (x - b)).sum(-1), modulus=modulus
    )


# The flow and its schemes -------------------------------------------------------------


def fokker_planck(
    mean: Tensor,
    covariance: Tensor,
    t: float,
    *,
    A: Tensor,
    b: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance at time t.

    m = b + e^{-At} (m0 - b), S = e^{-At} S0 e^{-At} + 2 T int_0^t e^{-2As} ds.
    """
    a, axes = torch.linalg.eigh(A)
    decay = (-a * t).exp()
    safe = torch.where(a == 0, 1.0, a)
    noise = torch.where(a == 0, 2 * t, -torch.expm1(-2 * safe * t) / safe)
    shrink = axes * decay @ axes.T
    S = shrink @ covariance @ shrink + axes * (temperature * noise) @ axes.T
    return b + shrink @ (mean - b), 0.5 * (S + S.T)


def fokker_planck_jko(
    mean: Tensor,
    covariance: Tensor,
    tau: float,
    k: int = 1,
    *,
    A: Tensor,
    b: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance after k JKO steps; A and S need not commute.

    The step solves S = C S+ C with C = B - c S+^{-1}, where B = I + tau A, c = tau T
    and C > 0 is the map back. Written out, B S+ B + c^2 S+^{-1} = S + 2 c B. With
    X = B^{1/2} S+ B^{1/2} and H = B^{-1/2} S B^{-1/2} that is X + c^2 X^{-1} = H + 2 c,
    so X is a function of H: sqrt(x) = (sqrt(h) + sqrt(h + 4 c)) / 2.
    """
    B, c = torch.eye(len(A), dtype=A.dtype) + tau * A, tau * temperature
    beta, axes = torch.linalg.eigh(B)
    inverse_root = axes * beta.rsqrt() @ axes.T
    S = covariance
    for _ in range(k):
        h, vectors = torch.linalg.eigh(inverse_root @ S @ inverse_root)
        x = (0.5 * (h.sqrt() + (h + 4 * c).sqrt())).square()
        half = inverse_root @ vectors
        S = half * x @ half.T
        S = 0.5 * (S + S.T)
        mean = b + torch.linalg.solve(B, mean - b)
    return mean, S


def fokker_planck_euler(
    mean: Tensor,
    covariance: Tensor,
    tau: float,
    k: int = 1,
    *,
    A: Tensor,
    b: Tensor,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance after k explicit Euler steps of the affine maps."""
    S, eye = covariance, torch.eye(len(A), dtype=A.dtype)
    for _ in range(k):
        step = eye - tau * (A - temperature * torch.linalg.inv(S))
        mean, S = mean - tau * A @ (mean - b), step @ S @ step.T
    return mean, S


def fokker_planck_rest(
    A: Tensor, b: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance at rest, N(b, T A^{-1}); A > 0."""
    return b, temperature * torch.linalg.inv(A)


def fokker_planck_energy(
    mean: Tensor,
    covariance: Tensor,
    *,
    A: Tensor,
    b: Tensor,
    temperature: float = 1.0,
) -> float:
    """Return int V dmu + T int rho log rho of N(mean, covariance)."""
    shift = mean - b
    potential = 0.5 * ((A * covariance).sum() + shift @ A @ shift)
    entropy = -0.5 * (torch.logdet(covariance) + len(A) * (1 + math.log(2 * math.pi)))
    return float(potential + temperature * entropy)


# Gaussians beside each other ----------------------------------------------------------


def gaussian_w2(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor) -> float:
    """Return W2 of two Gaussians, by the eigenvalues of S0^{1/2} S1 S0^{1/2}.

    It is a difference of traces: between close laws its error is about 1e-8.
    """
    values, axes = torch.linalg.eigh(S0)
    root = axes * values.clamp_min(0).sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ S1 @ root).clamp_min(0).sqrt().sum()
    square = (m0 - m1).square().sum() + S0.trace() + S1.trace() - 2 * cross
    return float(square.clamp_min(0).sqrt())


def gaussian_kl(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor) -> float:
    """Return KL(N(m0, S0) | N(m1, S1))."""
    shift = m1 - m0
    solved = torch.linalg.solve(S1, torch.cat([S0, shift[:, None]], 1))
    logs = torch.logdet(S1) - torch.logdet(S0)
    return float(
        0.5 * (solved[:, :-1].trace() - len(S0) + shift @ solved[:, -1] + logs)
    )


def symmetric_kl(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor) -> float:
    """Return KL(0 | 1) + KL(1 | 0), the SymKL of Mokrov et al. (2021)."""
    return gaussian_kl(m0, S0, m1, S1) + gaussian_kl(m1, S1, m0, S0)


def gaussian_density(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the density of N(mean, covariance) at points (..., d)."""
    law = torch.distributions.MultivariateNormal(mean, covariance)
    return law.log_prob(x).exp()


# Boxes with walls ---------------------------------------------------------------------


def cosine_cells(n: int, t: float, *, k: int = 1, height: float = 0.5) -> Tensor:
    """Return the averages over n cells of 1 + a cos(pi k x) exp(-pi^2 k^2 t) on [0, 1].

    It solves the heat equation with no flux through the walls; a <= 1.
    """
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    rate = math.pi * k
    wave = (rate * edges).sin().diff() * (n / rate)
    return 1 + height * math.exp(-(rate**2) * t) * wave


def gaussian_cells(
    mean: Tensor,
    variance: Tensor,
    lower: float,
    upper: float,
    shape: tuple[int, ...],
) -> Tensor:
    """Return the mean density in each cell of a box of N(mean, diag(variance))."""
    cells = torch.ones((), dtype=torch.float64)
    for axis, n in enumerate(shape):
        edges = torch.linspace(lower, upper, n + 1, dtype=torch.float64)
        z = (edges - mean[axis]) / variance[axis].sqrt()
        share = torch.special.ndtr(z).diff() * (n / (upper - lower))
        cells = cells[..., None] * share
    return cells
