"""Proximal steps of Gaussians, against closed forms and Newton's method in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import otflow as of
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]

# Nodes and weights of a rule that knows nothing of Hermite: a trapezoidal sum.
NODES = np.linspace(-12.0, 12.0, 4801)
WEIGHTS = np.exp(-0.5 * NODES**2)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def law(trial: Trial, d: int, *, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mean and a factor of a covariance."""
    rng = trial.rng
    spread = trial.choice(0.0, 0.5, 1.5)
    values = 10 ** (-spread * rng.random(d)) * trial.log_uniform(0.1, 3.0)
    Q = np.eye(d) if diagonal else np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rng.normal(size=d), Q * values


def w2(m: np.ndarray, S: np.ndarray, n: np.ndarray, P: np.ndarray) -> float:
    """Return the Bures distance: two roots of S and P, turned as near as they can be.

    The sum of traces minus the cross term would cancel: of a distance below the root of
    round-off it keeps no digit.
    """
    roots = []
    for matrix in (S, P):
        values, vectors = np.linalg.eigh(matrix)
        roots.append(vectors * np.sqrt(np.maximum(values, 0)))
    U, _, Vt = np.linalg.svd(roots[1].T @ roots[0])
    return float(
        np.hypot(np.linalg.norm(m - n), np.linalg.norm(roots[0] - roots[1] @ U @ Vt))
    )


def step(trial: Trial) -> None:
    """One step of GaussianProximal, in units of the scale from the offset."""
    rng = trial.rng
    kind = trial.choice("quadratic", "quadratic", "separable", "radial")
    d = int(rng.integers(1, 41)) if kind == "quadratic" else int(rng.integers(1, 4))
    d = int(rng.integers(1, 11)) if kind == "radial" else d
    dt = trial.log_uniform(1e-3, 1e2)
    trial.says(kind=kind, d=d, dt=dt)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset(1e2 if dtype == torch.float32 else 1e6)
    heat = trial.choice(0.0, 1.0) * trial.log_uniform(0.01, 3.0)
    trial.says(heat=heat)
    m, L = law(trial, d, diagonal=kind == "separable")
    mu = of.Gaussian(
        torch.as_tensor(offset + scale * m).to(dtype),
        torch.as_tensor(scale**2 * (L @ L.T)).to(dtype),
    )
    F, solve = {"quadratic": _quadratic, "separable": _separable, "radial": _radial}[
        kind
    ](trial, d, dt, heat, scale, offset, m, L)
    if heat:
        F = F + heat * scale**2 * of.Entropy()
    result = of.proximal.GaussianProximal().solve(F, mu, dt)
    nu, c = result.measure, result.certificate
    if not trial.finite(mean=nu.mean, factor=nu.factor):
        return
    _judge(trial, F, mu, nu, c, dt, scale, offset, heat, solve)


def _quadratic(trial, d, dt, heat, scale, offset, m, L):
    """Return V = (z - c)^T A (z - c) / 2 and its step, whatever commutes."""
    rng = trial.rng
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    A = (Q * 10 ** rng.uniform(-2, 1, d)) @ Q.T
    A, c = 0.5 * (A + A.T), rng.normal(size=d)

    def V(x: torch.Tensor) -> torch.Tensor:
        z = (x - offset) / scale - torch.as_tensor(c).to(x)
        return 0.5 * scale**2 * ((z @ torch.as_tensor(A).to(x)) * z).sum(-1)

    def solve() -> tuple[np.ndarray, np.ndarray]:
        R = np.linalg.cholesky(np.eye(d) + dt * A)
        U, s, Vt = np.linalg.svd(np.linalg.solve(R, L))
        grown = 0.5 * (s + np.sqrt(s**2 + 4 * dt * heat))
        factor = np.linalg.solve(R.T, (U * grown) @ Vt)
        P = factor @ factor.T
        if heat:
            # What makes it the step: S = C P C with C = I + dt (A - heat / P) >= 0.
            C = np.eye(d) + dt * (A - heat * np.linalg.inv(P))
            size = np.abs(L @ L.T).max() * np.linalg.cond(P)
            assert np.abs(C @ P @ C - L @ L.T).max() < 1e-9 * size, "the reference"
        return c + np.linalg.solve(np.eye(d) + dt * A, m - c), P

    modulus = float(np.linalg.eigvalsh(A)[0]) * (1 - 1e-6)
    return of.Potential(V, modulus=modulus), solve


def _separable(trial, d, dt, heat, scale, offset, m, L):
    """Return V = sum phi(z_k) and its step, axis by axis by Newton's method."""
    name = trial.choice("quartic", "logcosh", "kink")
    trial.says(phi=name)
    table: dict[str, tuple[Callable[[Any], Any], ...]] = {
        "quartic": (
            lambda z: 0.25 * z**4,
            lambda z: z**3,
            lambda z: 3 * z**2,
            lambda z: 0.25 * z.pow(4),
        ),
        "logcosh": (
            lambda z: np.abs(z) + np.log1p(np.exp(-2 * np.abs(z))),
            np.tanh,
            lambda z: 1 - np.tanh(z) ** 2,
            lambda z: z.abs() + torch.log1p((-2 * z.abs()).exp()),
        ),
        "kink": (
            lambda z: np.sqrt(z**2 + 0.01),
            lambda z: z / np.sqrt(z**2 + 0.01),
            lambda z: 0.01 / (z**2 + 0.01) ** 1.5,
            lambda z: (z.square() + 0.01).sqrt(),
        ),
    }
    phi, slope, curvature, torch_phi = table[name]

    def V(x: torch.Tensor) -> torch.Tensor:
        return scale**2 * torch_phi((x - offset) / scale).sum(-1)

    def axis(a: float, s: float) -> tuple[float, float]:
        def objective(u: float, t: float) -> float:
            x = u + t * NODES
            value = WEIGHTS @ phi(x) - (heat * math.log(t) if heat else 0.0)
            return float(value + ((u - a) ** 2 + (t - s) ** 2) / (2 * dt))

        u, t = a, s
        value = objective(u, t)
        for _ in range(200):
            x = u + t * NODES
            g, h = slope(x), WEIGHTS * curvature(x)
            gradient = np.array(
                [
                    WEIGHTS @ g + (u - a) / dt,
                    WEIGHTS @ (g * NODES) - heat / t + (t - s) / dt,
                ]
            )
            cross = h @ NODES
            H = np.array(
                [
                    [h.sum() + 1 / dt, cross],
                    [cross, h @ NODES**2 + heat / t**2 + 1 / dt],
                ]
            )
            move = -np.linalg.solve(H, gradient)
            length = 1.0
            while length > 1e-12:
                trial_t = t + length * move[1]
                if trial_t > 0:
                    new = objective(u + length * move[0], trial_t)
                    if new <= value + 1e-14 * abs(value):
                        break
                length *= 0.5
            u, t, value = u + length * move[0], t + length * move[1], new
            if abs(move).max() < 1e-11 * (1 + abs(u) + t):
                break
        return u, t

    def solve() -> tuple[np.ndarray, np.ndarray]:
        ends = np.array([axis(a, s) for a, s in zip(m, np.diag(L), strict=True)])
        return ends[:, 0], np.diag(ends[:, 1] ** 2)

    return of.Potential(V, modulus=0.0), solve


def _radial(trial, d, dt, heat, scale, offset, m, L):
    """Return sqrt(1 + |z|^2) or a double well, without a closed form."""
    well = trial.choice(False, True)
    trial.says(well=well)

    def V(x: torch.Tensor) -> torch.Tensor:
        square = ((x - offset) / scale).square().sum(-1)
        f = 0.25 * (square - 1).square() if well else (1 + square).sqrt()
        return scale**2 * f

    return of.Potential(V, modulus=-1.0 if well else 0.0), None


def _judge(trial, F, mu, nu, c, dt, scale, offset, heat, solve) -> None:
    eps = torch.finfo(mu.dtype).eps
    d = mu.dim
    ends = []
    for law_ in (mu, nu):
        L = law_.factor.double().numpy() / scale
        ends += [(law_.mean.double().numpy() - offset) / scale, L @ L.T]
    moved = w2(*ends)
    size = 1 + abs(offset) / scale + max(math.sqrt(np.trace(S)) for S in ends[1::2])
    rounding = eps * size
    energies = abs(c["energy_before"]) + abs(c["energy_after"])
    noise = 256 * eps * (energies / scale**2 + 1 + d * heat) + 64 * rounding * size
    noise += 16 * rounding * moved / dt
    trial.obeys(c, dt, noise * scale**2)
    slack = 64 * d * rounding + 4 * math.sqrt(2e-16 * d) * size
    if c["w2"] is not None and c["certified"]:
        own = c["w2"] / scale
        trial.false_if(
            abs(own - moved) > 0.01 * moved + slack, f"w2 {own:.6g}, Bures {moved:.6g}"
        )
    if not c["converged"]:
        return
    if solve is None:
        _stationary(trial, F, mu, nu, dt, scale, moved, slack, c)
        return
    off = w2(*solve(), *ends[2:])
    if c["guarantee"] == "exact":
        bound = c["bound"] / scale
        trial.false_if(off > 1.01 * bound + slack, f"off {off:.3g}, bound {bound:.3g}")
    polynomial = "quadratic" in trial.problem or "quartic" in trial.problem
    if polynomial and c["guarantee"] in ("exact", "stationary"):
        trial.false_if(
            off > 1e-6 * moved + 4 * slack,
            f"converged, off the exact step by {off:.3g}",
        )
    # `quadrature_tolerance` is a thousandth; the estimate held to it proves nothing.
    allowed = 5e-3 * (moved + math.sqrt(np.trace(ends[3]))) + 4 * slack
    trial.false_if(
        off > allowed, f"off the integrals' step by {off:.3g} > {allowed:.3g}"
    )


def _stationary(trial, F, mu, nu, dt, scale, moved, slack, c) -> None:
    """Hold the gradient over optimal maps, by automatic differentiation, to zero."""
    if c["guarantee"] not in ("exact", "stationary"):
        return
    if nu.n != mu.n:  # a finer rule was called for
        mu = mu.refined(round(nu.n ** (1 / nu.dim)) if nu.dim <= 3 else nu.n)
    move = mu.displacement_to(nu)
    force = F.velocity(mu.push(move, 1.0))
    rest = ((move - dt * force) / scale).double().numpy()
    L = mu.factor.double().numpy() / scale
    turned = rest[1:].T @ L.T
    symmetric = np.abs(turned + turned.T).max() / np.abs(L).max()
    off = max(np.abs(rest[0]).max(), symmetric)
    allowed = 1e-5 * moved + slack * (1 + dt) * 10
    trial.false_if(off > allowed, f"converged, gradient {off:.3g} > {allowed:.3g}")


FAMILIES = [Family("gaussians", step, 360)]
