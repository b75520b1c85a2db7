"""Distances of densities on the line, by their quantile functions in NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch

import otflow as of
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES", "step_w2"]


def step_w2(p: np.ndarray, a: np.ndarray, q: np.ndarray, b: np.ndarray) -> float:
    """Return W2 between densities constant between edges p and q, of masses a and b.

    The monotone coupling, cell by cell: between two levels at which either has an edge
    both quantile functions are linear, and the square integrates by Simpson's rule.
    """
    first, second = _pieces(p, a), _pieces(q, b)
    i = j = 0
    used_i = used_j = 0.0
    total = 0.0
    while i < len(first) and j < len(second):
        (x0, x1, m), (y0, y1, k) = first[i], second[j]
        mass = min(m - used_i, k - used_j)
        u0, u1 = (x0 + (x1 - x0) * t for t in (used_i / m, (used_i + mass) / m))
        v0, v1 = (y0 + (y1 - y0) * t for t in (used_j / k, (used_j + mass) / k))
        s, e = u0 - v0, u1 - v1
        total += mass * (s * s + s * e + e * e) / 3
        used_i, used_j = used_i + mass, used_j + mass
        if m - used_i <= k - used_j:
            i, used_i = i + 1, 0.0
            if k - used_j <= 1e-15 * k:
                j, used_j = j + 1, 0.0
        else:
            j, used_j = j + 1, 0.0
    return math.sqrt(total)


def _pieces(edges: np.ndarray, masses: np.ndarray) -> list[tuple[float, float, float]]:
    masses = masses / math.fsum(masses)
    return [
        (float(x), float(y), float(m))
        for x, y, m in zip(edges[:-1], edges[1:], masses, strict=True)
        if m > 0
    ]


def draw(
    trial: Trial, scale: float, offset: float, dtype: torch.dtype
) -> tuple[of.Quantiles | of.GridDensity, np.ndarray]:
    """Draw a density, and its edges in units of the scale as float64 has them."""
    rng = trial.rng
    n = int(rng.integers(2, 200))
    kind = trial.choice("bell", "narrow", "rough", "gaps", "quantiles")
    trial.says(kind=kind, n=n)
    if kind == "quantiles":
        gaps = 10 ** rng.uniform(-3, 0, n)
        edges = np.r_[0, np.cumsum(gaps)] / gaps.sum() * rng.uniform(0.1, 4)
        edges = edges + rng.normal()
        # A cell must be wider than the rounding of its ends.
        w = rng.dirichlet(np.ones(n)) + 1e-6
        q = torch.as_tensor(offset + scale * edges).to(dtype)
        law = of.Quantiles(q, torch.as_tensor(w).to(dtype), normalize=True)
        return law, (law.edges.double().numpy() - offset) / scale
    low = rng.normal()
    width = rng.uniform(0.5, 8)
    edges = low + width * np.linspace(0, 1, n + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    m, s = low + width * rng.random(), width * 10 ** rng.uniform(-2, 0)
    s = max(s, width / n) if kind == "narrow" else s
    rho = np.exp(-0.5 * ((centres - m) / s) ** 2)
    if kind == "rough":
        rho = 10 ** rng.uniform(-6, 0, n)
    if kind == "gaps":
        rho = rng.random(n) * (rng.random(n) < 0.4)
    if not rho.sum() > 0 or not np.isfinite(rho.sum()):
        rho = np.ones(n)
    rho = rho / rho.max()
    lower, upper = (float(offset + scale * e) for e in (edges[0], edges[-1]))
    density = torch.as_tensor(rho / (rho.sum() * (upper - lower) / n)).to(dtype)
    mu = of.GridDensity(density, lower, upper, walls=True, normalize=True)
    return mu, (np.linspace(lower, upper, n + 1) - offset) / scale


def distance(trial: Trial) -> None:
    """W2 between two densities, also to itself, and by displacement if it has one."""
    dtype = trial.dtype()
    most = 1e2 if dtype == torch.float32 else 1e6
    scale, offset = trial.scale_and_offset(most)
    (mu, p), (nu, q) = (draw(trial, scale, offset, dtype) for _ in range(2))
    a, b = (m.weights.double().numpy() for m in (mu, nu))
    right = step_w2(p, a, q, b)
    value = of.metrics.wasserstein2(mu, nu)
    if not trial.finite(w2=value):
        return
    eps = torch.finfo(dtype).eps
    width = max(p[-1], q[-1]) - min(p[0], q[0])
    # A rounded mass near the end moves a quantile by a cell; the rest is a rounding.
    rounding = eps * (abs(offset) / scale + width) * 16
    slack = rounding + width * math.sqrt(4 * len(a) * eps)
    own = float(value) / scale
    trial.false_if(
        abs(own - right) > 1e-4 * right + slack, f"W2 {own:.9g}, exact {right:.9g}"
    )
    trial.false_if(
        abs(float(of.metrics.wasserstein2(nu, mu)) / scale - own)
        > 1e-4 * right + slack,
        "W2 is not symmetric",
    )
    zero = float(of.metrics.wasserstein2(mu, mu)) / scale
    trial.false_if(zero > slack, f"W2 to itself {zero:.3g}")


FAMILIES = [Family("lines", distance, 300)]
