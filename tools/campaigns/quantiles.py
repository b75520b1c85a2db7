"""Proximal steps of quantiles, against a barrier method of NumPy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

import otflow as of
from tools.campaigns.line_reference import LineProblem
from tools.campaigns.potentials import draw_potential
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]

KINDS = (
    "potential",
    "entropy",
    "power",
    "congestion",
    "variance",
    "congestion+entropy",
    "bells",
)


def step(trial: Trial) -> None:
    """One step of QuantileProximal."""
    rng = trial.rng
    kind = trial.choice(*KINDS)
    n = int(rng.integers(1, 121))
    grading = trial.choice(1.0, 2.0, 4.0)
    walls = trial.choice("none", "none", "far", "near", "lower")
    dt = trial.log_uniform(1e-3, 1e2)
    trial.says(kind=kind, n=n, grading=grading, walls=walls, dt=dt)
    dtype = trial.dtype()
    eps = torch.finfo(dtype).eps
    scale, offset = trial.scale_and_offset(1e2 if dtype == torch.float32 else 1e6)
    # Graded masses must not be finer than what the dtype tells apart.
    fine = grading > 1 and dtype == torch.float32
    n, offset = (min(n, 10), 0.0) if fine else (n, offset)
    mu = _start(trial, n, grading, dtype, scale, offset)
    p = (mu.edges.double().numpy() - offset) / scale
    w = mu.weights.double().numpy()
    w = w / w.sum()
    lower, upper = _walls(walls, p)
    ends = [offset + scale * v if math.isfinite(v) else None for v in (lower, upper)]
    F, reference = _problem(trial, kind, p, w, dt, scale, offset)
    reference = replace(reference, lower=lower, upper=upper)
    solver = of.proximal.QuantileProximal(lower=ends[0], upper=ends[1])
    result = solver.solve(F, mu, dt)
    q = (result.measure.edges.double().numpy() - offset) / scale
    if not trial.finite(edges=q):
        return
    _judge(trial, reference, q, result.certificate, scale, offset, eps, kind)
    if kind == "bells" and walls == "none" and result.certificate["converged"]:
        _stationary(trial, F, mu, result.measure, dt, eps, offset, scale)


def _problem(trial, kind, p, w, dt, scale, offset):
    """Draw a functional, and the same in NumPy, in units of the scale."""
    V, square = draw_potential(trial), scale**2
    strength = trial.log_uniform(0.03, 3.0)
    trial.says(strength=strength)
    reference = LineProblem(p, w, dt, V.V, V.slope, V.curvature)
    F = square * of.Potential(
        lambda x: V.torch_V((x[..., 0] - offset) / scale), modulus=V.modulus / square
    )
    if kind in ("entropy", "congestion+entropy"):
        F = F + strength * square * of.Entropy()
        reference = replace(reference, strength=strength)
    if kind == "power":
        m = trial.choice(1.5, 2.0, 3.0, 5.0)
        trial.says(power=m)
        F = F + strength * square * scale ** (m - 1) * of.PowerEntropy(m)
        reference = replace(reference, strength=strength, power=m)
    if kind.startswith("congestion"):
        most = 1.01 * float((w / np.diff(p)).max()) * trial.log_uniform(1.0, 10.0)
        trial.says(most=most)
        F = F + of.Congestion(most / scale)
        reference = replace(reference, most=most)
    if kind == "variance":
        F = F + strength * of.Interaction(of.kernels.Quadratic())
        reference = replace(reference, attraction=strength)
    if kind == "bells":
        width = trial.log_uniform(0.3, 3.0)
        trial.says(width=width)
        attract = of.Interaction(of.kernels.Gaussian(width * scale))
        F = F + (-strength * square) * attract + 0.1 * square * of.Entropy()
    return F, reference


def _start(trial, n, grading, dtype, scale, offset) -> of.Quantiles:
    width, middle = trial.log_uniform(0.05, 2.0), float(trial.rng.normal())
    trial.says(spread=width)

    def quantile(levels: torch.Tensor) -> torch.Tensor:
        z = math.sqrt(2) * torch.erfinv(2 * levels - 1)
        return offset + scale * (middle + width * z)

    return of.Quantiles.from_quantile(quantile, n, grading=grading, dtype=dtype)


def _walls(kind: str, p: np.ndarray) -> tuple[float, float]:
    width = p[-1] - p[0]
    if kind == "near":
        return p[0] - 1e-3 * width, p[-1] + 1e-3 * width
    if kind == "far":
        return p[0] - 3 * width - 3, p[-1] + 3 * width + 3
    return (p[0] - 0.1 * width if kind == "lower" else -math.inf), math.inf


def _judge(trial, reference, q, c, scale, offset, eps, kind) -> None:
    p, dt = reference.p, reference.dt
    moved = reference.norm(q - p)
    rounding = eps * (abs(offset) / scale + np.abs(p).max() + np.abs(q).max())
    gaps = min(np.diff(p).min(), np.diff(q).min())
    # An energy is known to the rounding of its quantiles, through its steepest slope.
    steep = max(np.abs(reference.slope(x)).max() for x in (p, q))
    before, after = reference.energy(p), reference.energy(q)
    relative = min(4 * rounding / gaps, 1.0)
    energies = abs(before) + abs(after) + reference.strength
    size = energies + 1.0 + abs(c["energy_before"]) / scale**2
    noise = 64 * eps * size + 4 * rounding * steep
    noise += relative * energies + rounding * moved / dt
    trial.obeys(c, dt, noise * scale**2)
    certified = bool(c["certified"])
    if kind != "bells":
        trial.false_if(
            certified and after > before + noise,
            f"certified, and NumPy's energy rose from {before:.9g} to {after:.9g}",
        )
    if c["w2"] is not None:
        own = c["w2"] / scale
        trial.false_if(
            abs(own - moved) > 1e-4 * moved + 8 * rounding, f"w2 {own:.6g}, {moved:.6g}"
        )
    excess = float((reference.w / np.diff(q)).max() / reference.most) - 1
    trial.false_if(
        c["converged"] and excess > 1e-3 + 8 * rounding / gaps, f"excess {excess:.3g}"
    )
    outside = max(reference.lower - q[0], q[-1] - reference.upper)
    trial.false_if(outside > 8 * rounding + 1e-9, f"outside of the walls {outside:.3g}")
    curvature = min(float(reference.curvature(np.r_[x]).min()) for x in (p, q))
    if kind == "bells" or curvature + 1 / dt <= 0 or not c["converged"]:
        return
    if trial.problem.find("double-well") >= 0 and dt * 10 > 0.9:
        return
    try:
        exact = reference.solve()
    except ArithmeticError:
        return
    off = reference.norm(q - exact)
    # Rounded quantiles change thin cells, and with them the forces on all others.
    slack = 64 * rounding * (1 + dt) + 2e-6 * (moved + 0.1 * (p[-1] - p[0]))
    if c["bound"] is not None:
        bound = c["bound"] / scale
        trial.false_if(off > 1.01 * bound + slack, f"off {off:.3g}, bound {bound:.3g}")
    allowed = 1e-4 * moved + 10 * slack
    trial.false_if(off > allowed, f"converged, off the exact step by {off:.3g}")


def _stationary(trial, F, mu, nu, dt, eps, offset, scale) -> None:
    """Hold the gradient of the objective, by automatic differentiation, to zero."""
    force = F.velocity(nu)[:, 0].double()
    move = nu.edges.double() - mu.edges.double()
    off = float(nu.norm((move - dt * force)[:, None].to(nu.dtype)))
    moved = float(nu.norm(move[:, None].to(nu.dtype)))
    gaps = float(nu.edges.diff().min()) / scale
    rounding = eps * (abs(offset) / scale + float(nu.edges.abs().max()) / scale)
    allowed = 1e-6 * moved + scale * rounding * (64 + 64 * dt * (1 + 0.1 / gaps**2))
    trial.false_if(off > allowed, f"converged, gradient {off:.3g} of move {moved:.3g}")


FAMILIES = [Family("quantiles", step, 420)]
