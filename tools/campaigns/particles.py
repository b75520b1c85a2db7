"""Proximal steps of particles, against closed forms and assignments of SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, linear_sum_assignment, linprog

import otflow as of
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]

# Relative tolerance of the solver, with room for what the reference adds.
TOLERANCE = 2e-4


@dataclass(frozen=True)
class Problem:
    """A functional of z = (x - offset) / scale, times scale^2, so that dt has no unit.

    `energy` and `slope` are those of all atoms, by NumPy: z (n, d), w (n,) -> number
    and (n, d), the slope without the mass. `prox` gives the exact step where it is
    unique and known.
    """

    functional: of.Functional
    energy: Callable[[np.ndarray, np.ndarray], float]
    slope: Callable[[np.ndarray, np.ndarray], np.ndarray]
    prox: Callable[[np.ndarray, float], np.ndarray] | None = None
    curvature: float = 1.0


def quadratic(trial: Trial, d: int, units: Units) -> Problem:
    """V = (z - m)^T A (z - m) / 2, isotropic or not."""
    rng = trial.rng
    if rng.random() < 0.3:
        A = trial.log_uniform(0.1, 10.0) * np.eye(d)
    else:
        Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        A = (Q * 10 ** rng.uniform(-2, 1, d)) @ Q.T
    m = rng.normal(size=d)
    eigenvalues = np.linalg.eigvalsh(A)

    def V(x: torch.Tensor) -> torch.Tensor:
        z, H = units(x) - torch.as_tensor(m).to(x), torch.as_tensor(A).to(x)
        return 0.5 * units.square * ((z @ H) * z).sum(-1)

    return Problem(
        of.Potential(V, modulus=float(eigenvalues[0]) * (1 - 1e-6)),
        lambda z, w: 0.5 * float(w @ (((z - m) @ A) * (z - m)).sum(1)),
        lambda z, w: (z - m) @ A,
        lambda z, dt: m + np.linalg.solve(np.eye(d) + dt * A, (z - m).T).T,
        float(eigenvalues[-1]),
    )


def double_well(trial: Trial, d: int, units: Units) -> Problem:
    """V = sum (z_k^2 - 1)^2 / 4; its step is unique where dt < 1."""

    def V(x: torch.Tensor) -> torch.Tensor:
        return 0.25 * units.square * (units(x).square() - 1).square().sum(-1)

    def prox(z: np.ndarray, dt: float) -> np.ndarray:
        def root(a: float) -> float:
            return brentq(
                lambda y: y + dt * (y**3 - y) - a, -9 - abs(a), 9 + abs(a), xtol=1e-14
            )

        return np.vectorize(root)(z)

    return Problem(
        of.Potential(V, modulus=trial.choice(-1.0, None)),
        lambda z, w: 0.25 * float(w @ ((z**2 - 1) ** 2).sum(1)),
        lambda z, w: z**3 - z,
        prox,
        30.0,
    )


def logarithm(trial: Trial, d: int, units: Units) -> Problem:
    """V = log(1 + |z|^2), whose curvature is at least -1/4."""

    def V(x: torch.Tensor) -> torch.Tensor:
        return units.square * torch.log1p(units(x).square().sum(-1))

    return Problem(
        of.Potential(V, modulus=trial.choice(-0.25, None)),
        lambda z, w: float(w @ np.log1p((z**2).sum(1))),
        lambda z, w: 2 * z / (1 + (z**2).sum(1, keepdims=True)),
        curvature=2.0,
    )


def repulsion(trial: Trial, d: int, units: Units) -> Problem:
    """|z|^2 / 2 and a singular repulsion, logarithm or Riesz; a pair has no self."""
    p = trial.choice(0.0, 0.5, 1.0)
    trial.says(p=p)
    strength = trial.log_uniform(0.1, 3.0)
    kernel = of.kernels.Riesz(p) if p else of.kernels.Log()
    unit = units.square * units.scale**p

    def pairs(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        difference = z[:, None] - z
        square = (difference**2).sum(-1)
        np.fill_diagonal(square, 1.0)
        return difference, square

    def energy(z: np.ndarray, w: np.ndarray) -> float:
        square = pairs(z)[1]
        W = square ** (-p / 2) / p if p else -0.5 * np.log(square)
        np.fill_diagonal(W, 0.0)
        # The logarithm of a length in other units: a constant.
        constant = -math.log(units.scale) * (1 - (w**2).sum()) if p == 0 else 0.0
        both = strength * 0.5 * (w @ W @ w + constant)
        return float(0.5 * w @ (z**2).sum(1) + both)

    def slope(z: np.ndarray, w: np.ndarray) -> np.ndarray:
        difference, square = pairs(z)
        # Of atom i on atom j, at [i, j]: the mass is that of i.
        force = w[:, None, None] * square[..., None] ** (-p / 2 - 1) * difference
        return z + strength * force.sum(0)

    def V(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * units.square * units(x).square().sum(-1)

    F = of.Potential(V, modulus=1.0) + strength * unit * of.Interaction(kernel)
    return Problem(F, energy, slope, curvature=100.0)


@dataclass(frozen=True)
class Units:
    """Positions in units of the scale, from the offset."""

    scale: float
    offset: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return z of x."""
        return (x - self.offset) / self.scale

    @property
    def square(self) -> float:
        """The square of the scale."""
        return self.scale**2


KINDS = {
    "quadratic": quadratic,
    "double-well": double_well,
    "logarithm": logarithm,
    "repulsion": repulsion,
}


def step(trial: Trial) -> None:
    """One step of ParticleProximal from a random cloud."""
    kind = trial.choice(*KINDS)
    n, d = int(trial.rng.integers(1, 61)), int(trial.rng.integers(1, 21))
    if trial.rng.random() < 0.4:
        d = int(trial.rng.integers(1, 3))
    weighted = n > 1 and trial.rng.random() < 0.3
    dt = trial.log_uniform(1e-3, 1e2)
    trial.says(kind=kind, n=n, d=d, weighted=weighted, dt=dt)
    dtype = trial.dtype()
    eps = torch.finfo(dtype).eps
    # Atoms that rounding would put on top of each other have no repulsion.
    most = 1e2 if kind == "repulsion" and dtype == torch.float32 else 1e6
    units = Units(*trial.scale_and_offset(most))
    problem = KINDS[kind](trial, d, units)
    x = units.offset + units.scale * torch.as_tensor(trial.rng.normal(size=(n, d)))
    w = trial.rng.dirichlet(np.ones(n)) if weighted else np.full(n, 1 / n)
    weights = torch.as_tensor(w).to(dtype) if weighted else None
    mu = of.Particles(x.to(dtype), weights, normalize=weighted)
    result = of.proximal.ParticleProximal().solve(problem.functional, mu, dt)
    nu, c = result.measure, result.certificate
    if trial.finite(points=nu.points):
        judge(trial, problem, units, mu, nu, c, dt, eps)


def judge(trial, problem, units, mu, nu, c, dt, eps) -> None:
    """Compare with the closed form, the assignment, and the gradient in NumPy."""
    w = mu.weights.double().numpy()
    w = w / w.sum()
    z, y = (units(m.points.double()).numpy() for m in (mu, nu))
    square = units.square
    # Positions are known to a rounding of their size, in units of the scale.
    rounding = eps * (abs(units.offset) / units.scale + np.abs(z).max() + 1)
    slope = problem.slope(y, w)
    size = math.sqrt(float(w @ (slope**2).sum(1)))
    before, after = problem.energy(z, w), problem.energy(y, w)
    start = math.sqrt(float(w @ (problem.slope(z, w) ** 2).sum(1)))
    lipschitz = problem.curvature * (1 + np.abs(z).max() ** 2)
    noise = 64 * eps * (abs(before) + abs(after) + 1) + 8 * rounding * (
        size + start + lipschitz * rounding
    )
    # The unit of a logarithm is a constant that float32 must hold beside the energy.
    noise += 64 * eps * abs(c["energy_before"]) / square
    moved = math.sqrt(float(w @ ((y - z) ** 2).sum(1)))
    noise += 4 * rounding * (moved + rounding) / dt
    trial.obeys(c, dt, noise * square)
    certified = bool(c["certified"])
    trial.false_if(
        certified and after > before + noise,
        f"certified, and NumPy's energy rose from {before:.9g} to {after:.9g}",
    )
    distance = wasserstein(z, y, w)
    if c["w2"] is not None and distance is not None:
        own = c["w2"] / units.scale
        wrong = abs(own - distance) > 0.05 * distance + 8 * rounding
        trial.false_if(wrong and certified, f"w2 {own:.6g}, SciPy {distance:.6g}")
    if not c["converged"]:
        return
    residual = math.sqrt(float(w @ ((y - z + dt * slope) ** 2).sum(1)))
    allowed = TOLERANCE * moved + 32 * rounding * (1 + dt * lipschitz)
    # Of unequal weights the solver may keep a plan that is no pairing by index.
    if distance is not None and distance >= moved * (1 - 1e-6):
        trial.false_if(
            residual > allowed, f"converged, residual {residual:.3g} > {allowed:.3g}"
        )
    unique = problem.prox is not None and (trial.problem.find("double") < 0 or dt < 0.9)
    if unique:
        exact = problem.prox(z, dt)
        off = math.sqrt(float(w @ ((y - exact) ** 2).sum(1)))
        slack = 8 * rounding * (1 + dt * lipschitz) + 1e-12
        if c["bound"] is not None:
            bound = c["bound"] / units.scale
            trial.false_if(
                off > 1.001 * bound + slack, f"off {off:.3g}, bound {bound:.3g}"
            )
        allowed = (TOLERANCE * moved) / (
            1 if dt * problem.curvature < 1 else 0.1
        ) + slack
        trial.false_if(off > allowed, f"converged, off the exact step by {off:.3g}")


def wasserstein(z: np.ndarray, y: np.ndarray, w: np.ndarray) -> float | None:
    """Return W2 by SciPy; None where the linear programme would take long."""
    cost = ((z[:, None] - y) ** 2).sum(-1)
    n = len(w)
    if np.ptp(w) == 0:
        return math.sqrt(cost[linear_sum_assignment(cost)].mean())
    if n > 15:
        return None
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    unit = cost.max() or 1.0
    plan = linprog(
        cost.ravel() / unit, A_eq=np.vstack([rows, columns])[:-1], b_eq=np.r_[w, w][:-1]
    )
    return math.sqrt(max(plan.fun, 0.0) * unit) if plan.success else None


FAMILIES = [Family("particles", step, 420)]
