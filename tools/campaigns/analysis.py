"""Bounds on the error in time, and convexity along geodesics, where both are known."""

from __future__ import annotations

import math

import numpy as np
import torch

import otflow as of
from tools.campaigns.gaussians import w2
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]


def time_error(trial: Trial) -> None:
    """Flow by JKO and compare the bound with the distance to the exact flow."""
    rng = trial.rng
    kind = trial.choice("particles", "gaussian")
    dt, steps = trial.log_uniform(1e-3, 3.0), int(rng.integers(1, 8))
    d = int(rng.integers(1, 5))
    trial.says(kind=kind, d=d, dt=dt, steps=steps)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset(1e2 if dtype == torch.float32 else 1e6)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    eigenvalues = 10 ** rng.uniform(-2, 1, d)
    if rng.random() < 0.3:
        # Concave directions, while steps are short enough to be unique.
        eigenvalues = eigenvalues - 0.5
    A, least = (Q * eigenvalues) @ Q.T, float(eigenvalues.min())
    if 1 + dt * least <= 0.2:
        dt = 0.5 / abs(least)

    def V(x: torch.Tensor) -> torch.Tensor:
        z = (x - offset) / scale
        return 0.5 * scale**2 * ((z @ torch.as_tensor(A).to(x)) * z).sum(-1)

    modulus = least - 1e-6 * (1 + abs(least))
    F = of.Potential(V, modulus=modulus)
    T = dt * steps
    fade = (Q * np.exp(-T * eigenvalues)) @ Q.T
    eps = torch.finfo(dtype).eps
    if kind == "particles":
        n = int(rng.integers(1, 30))
        x = torch.as_tensor(offset + scale * rng.normal(size=(n, d))).to(dtype)
        run: of.Trajectory = of.flow(F, of.Particles(x), of.JKO(), dt=dt, steps=steps)
        z, y = ((p.double().numpy() - offset) / scale for p in (x, run.final.points))
        # Linear maps near the identity keep the pairing; it bounds W2 from above.
        off = math.sqrt(((z @ fade - y) ** 2).sum(1).mean())
        noise = eps * (abs(offset) / scale + np.abs(z).max() * (1 + 1 / fade.max()))
        exact = np.abs(A - np.eye(d) * A[0, 0]).max() == 0 or _paired(z @ fade, y)
        off = off if exact else 0.0
    else:
        heat = trial.choice(0.0, 0.5)
        F = F + heat * scale**2 * of.Entropy() if heat else F
        m, L = rng.normal(size=d), rng.normal(size=(d, d)) + np.eye(d)
        S = L @ L.T + 0.1 * np.eye(d)
        mu = of.Gaussian(
            torch.as_tensor(offset + scale * m).to(dtype),
            torch.as_tensor(scale**2 * S).to(dtype),
        )
        run = of.flow(F, mu, of.JKO(), dt=dt, steps=steps)
        grown = (1 - np.exp(-2 * T * eigenvalues)) / eigenvalues
        P = fade @ S @ fade + heat * (Q * grown) @ Q.T
        final = run.final
        factor = final.factor.double().numpy() / scale
        mean = (final.mean.double().numpy() - offset) / scale
        off = w2(fade @ m, P, mean, factor @ factor.T)
        noise = eps * (abs(offset) / scale + 1) + 1e-7
    trial.converged = all(info["converged"] for info in run.info)
    bound = run.time_error()
    if trial.finite(bound=bound, final=run.final.points):
        own = float(bound[-1]) / scale
        trial.false_if(
            off > own * (1 + 1e-6) + 64 * steps * noise * (1 + math.exp(min(T, 3))),
            f"off {off:.6g}, bound {own:.6g}",
        )


def _paired(x: np.ndarray, y: np.ndarray) -> bool:
    from scipy.optimize import linear_sum_assignment

    cost = ((x[:, None] - y) ** 2).sum(-1)
    best = cost[linear_sum_assignment(cost)].sum()
    return bool(cost.trace() <= best * (1 + 1e-9) + 1e-15)


def convexity(trial: Trial) -> None:
    """True moduli are not refuted; false ones are, where the curvature is known."""
    rng = trial.rng
    n, d = int(rng.integers(1, 30)), int(rng.integers(1, 6))
    kind = trial.choice("quadratic", "cosine", "well", "quadratic-kernel", "gaussian")
    trial.says(kind=kind, n=n, d=d)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset(1e8)
    x, y = rng.normal(size=(2, n, d))
    a, b = (of.Particles(torch.as_tensor(offset + scale * z).to(dtype)) for z in (x, y))
    k = trial.log_uniform(0.1, 10.0)

    def units(x: torch.Tensor) -> torch.Tensor:
        return (x - offset) / scale

    square = scale**2
    F, curvature = {
        "quadratic": lambda: (
            of.Potential(
                lambda x: 0.5 * k * square * units(x).square().sum(-1), modulus=k
            ),
            k,
        ),
        "cosine": lambda: (
            of.Potential(
                lambda x: square * (k**0.5 * units(x)).cos().sum(-1), modulus=-k
            ),
            None,
        ),
        "well": lambda: (
            of.Potential(
                lambda x: 0.25 * square * (units(x).square() - 1).square().sum(-1),
                modulus=-1.0,
            ),
            None,
        ),
        "quadratic-kernel": lambda: (
            of.Interaction(of.kernels.Quadratic()),
            None,
        ),
        "gaussian": lambda: (
            square * of.Interaction(of.kernels.Gaussian(scale)),
            None,
        ),
    }[kind]()
    report = of.analysis.displacement_convexity(F, a, b)
    trial.finite(curvature=report.curvature, values=report.values, w2=report.w2)
    trial.false_if(
        report.violates_declared,
        f"{report.minimum:.6g} refutes the true {report.declared_modulus:.6g}",
    )
    if curvature is None or not math.isfinite(report.roundoff):
        return
    trial.false_if(
        abs(report.minimum - curvature) > 1e-3 * curvature + report.roundoff,
        f"curvature {report.minimum:.9g}, exact {curvature:.9g}",
    )
    assert isinstance(F, of.Potential)
    lying = of.Potential(F.V, modulus=curvature * 1.1)
    report = of.analysis.displacement_convexity(lying, a, b)
    trial.false_if(
        not report.violates_declared, "a modulus 10 % too large was not refuted"
    )


def falsifier(trial: Trial) -> None:
    """A search refutes no true modulus, and finds that of a cosine by its least."""
    rng = trial.rng
    n, d = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    kind = trial.choice("parabola", "norm", "smooth-norm", "cosine", "kinks", "entropy")
    trial.says(kind=kind, n=n, d=d)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset(1e8)
    k = trial.log_uniform(0.1, 10.0)
    like: of.Measure = of.Particles(
        torch.as_tensor(offset + scale * rng.normal(size=(n, d))).to(dtype)
    )
    if kind == "entropy":
        spread = torch.eye(d, dtype=torch.float64) * scale**2
        like = of.Gaussian(torch.full((d,), offset, dtype=torch.float64), spread)

    def square(x: torch.Tensor) -> torch.Tensor:
        return (x - offset).square().sum(-1)

    F = {
        "parabola": of.Potential(lambda x: 0.5 * k * square(x) + 1e6, modulus=k),
        "norm": of.Potential(lambda x: square(x).sqrt(), modulus=0.0),
        "smooth-norm": of.Potential(
            lambda x: (square(x) + scale**2).sqrt(), modulus=0.0
        ),
        "cosine": of.Potential(
            lambda x: scale**2 * (k**0.5 * (x - offset) / scale).cos().sum(-1),
            modulus=-k,
        ),
        "kinks": of.Interaction(lambda z: z.norm(dim=-1), modulus=0.0),
        "entropy": of.Entropy() + of.PowerEntropy(2.0),
    }[kind]
    found = of.analysis.falsify(F, like, evaluations=150, seconds=60.0)
    trial.false_if(found.refuted, str(found))
    if kind != "cosine" or float(like.points.abs().max()) > 1e5 * scale:
        return
    found = of.analysis.falsify(
        F, like, modulus=-0.9 * k, evaluations=150, seconds=60.0
    )
    # The cosine may not reach its top within the region if its period is long.
    top = float((like.points - offset).abs().max()) < scale * k**-0.5
    trial.false_if(top and not found.refuted, "a modulus 10 % too high stands")


FAMILIES = [
    Family("time-error", time_error, 200),
    Family("convexity", convexity, 250),
    Family("falsifier", falsifier, 60),
]
