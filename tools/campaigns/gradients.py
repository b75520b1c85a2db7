"""Gradients of metrics and functionals against central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

import otflow as of
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]

D = torch.float64


def gradient(trial: Trial) -> None:
    """One derivative along one random direction, in float64."""
    kind = trial.choice(*CASES)
    trial.says(kind=kind)
    value, x, direction = CASES[kind](trial)
    x = x.clone().requires_grad_()
    result = value(x)
    trial.finite(value=result)
    if not result.requires_grad:
        trial.false_if(True, "the graph was dropped without a word")
        return
    (slope,) = torch.autograd.grad(result, x, allow_unused=True)
    if slope is None:
        trial.false_if(True, "the graph does not reach its input")
        return
    if not trial.finite(gradient=slope):
        return
    own = float((slope * direction).sum())
    # Directions are in units of the problem; masses must stay positive.
    h = 1e-5 * float(x.min()) if "weights" in kind else 1e-5
    with torch.no_grad():
        f = [float(value(x.detach() + k * h * direction)) for k in (-2, -1, 1, 2)]
    near, far = (f[2] - f[1]) / (2 * h), (f[3] - f[0]) / (4 * h)
    # Where both quotients differ there is a kink in between, or round-off.
    doubt = 4 * abs(near - far) + 1e-9 * abs(f[1]) / h * 1e-4
    share = 0.01 if kind.startswith("sinkhorn") else 1e-5
    norm = float(slope.norm() * direction.norm())
    wrong = abs(own - near) > share * (abs(near) + 0.1 * norm) + doubt + 1e-10 * norm
    trial.false_if(wrong, f"derivative {own:.9g}, differences {near:.9g}")


Case = tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor]


def _cloud(trial: Trial, n: int | None = None) -> torch.Tensor:
    n = n or int(trial.rng.integers(2, 16))
    d = int(trial.rng.integers(1, 5))
    trial.says(n=n, d=d)
    scale, offset = trial.scale_and_offset(1e2)
    return offset + scale * torch.as_tensor(trial.rng.normal(size=(n, d)))


def _weights(trial: Trial, n: int) -> torch.Tensor:
    w = trial.rng.dirichlet(np.full(n, 2.0)) + 0.2 / n
    return torch.as_tensor(w / w.sum())


def _like(trial: Trial, x: torch.Tensor) -> torch.Tensor:
    u = torch.as_tensor(trial.rng.normal(size=tuple(x.shape)))
    return u / u.norm()


def _balanced(trial: Trial, x: torch.Tensor) -> torch.Tensor:
    u = _like(trial, x)
    u = u - u.mean()
    return u / u.norm()


def w2_points(trial: Trial, *, through: bool, metric: Callable) -> Case:
    """A distance in the points of a cloud, bare or as Particles of weights."""
    x = _cloud(trial)
    y = x.flip(0) + x.std() * torch.as_tensor(trial.rng.normal(size=tuple(x.shape)))
    a, b = (_weights(trial, len(x)) for _ in range(2))
    wrap = (lambda x: of.Particles(x, a)) if through else (lambda x: x)
    nu = of.Particles(y, b) if through else y
    return (lambda x: metric(wrap(x), nu)), x, x.std() * _like(trial, x)


def w2_weights(trial: Trial, metric: Callable) -> Case:
    """A distance in the weights of Particles; without degenerate plans."""
    x = _cloud(trial)
    y = x.flip(0) + x.std() * torch.as_tensor(trial.rng.normal(size=tuple(x.shape)))
    nu = of.Particles(y, _weights(trial, len(x)))
    a = _weights(trial, len(x))
    return (lambda w: metric(of.Particles(x, w), nu)), a, _balanced(trial, a)


def bures(trial: Trial) -> Case:
    """The distance of Gaussians in the covariance of one."""
    d = int(trial.rng.integers(1, 7))
    trial.says(d=d)
    R, Q = (torch.as_tensor(trial.rng.normal(size=(d, d))) for _ in range(2))
    S, P = (A @ A.T + 0.1 * torch.eye(d, dtype=D) for A in (R, Q))
    m = torch.as_tensor(trial.rng.normal(size=d))
    U = _like(trial, S)
    law = of.Gaussian(m, P)
    metric = of.metrics.wasserstein2_squared
    return (lambda C: metric(of.Gaussian(0 * m, 0.5 * (C + C.T)), law)), S, U + U.T


def quantile_edges(trial: Trial) -> Case:
    """The distance of quantiles in their edges."""
    n = int(trial.rng.integers(2, 20))
    q, p = (torch.as_tensor(trial.rng.gamma(2.0, size=n + 1)).cumsum(0) for _ in "ab")
    a, b = _weights(trial, n), _weights(trial, n)
    trial.says(n=n)
    nu = of.Quantiles(p, b)
    metric = of.metrics.wasserstein2_squared
    return (lambda q: metric(of.Quantiles(q, a), nu)), q, _like(trial, q)


def grid_weights(trial: Trial, *, energy: bool) -> Case:
    """The distance, or a functional, of grids in the masses of one."""
    n = int(trial.rng.integers(3, 40))
    trial.says(n=n)
    scale, offset = trial.scale_and_offset(1e2)
    a, b = _weights(trial, n), _weights(trial, n)
    ends = (offset - scale, offset + scale)
    mu, nu = (of.GridDensity(w * n / (2 * scale), *ends, walls=True) for w in (a, b))
    metric = of.metrics.wasserstein2_squared
    F = _functional(trial, scale, offset, density=True)
    if energy:
        return (lambda w: F.value(mu.with_weights(w))), a, _balanced(trial, a)
    return (lambda w: metric(mu.with_weights(w), nu)), a, _balanced(trial, a)


def _functional(trial: Trial, scale: float, offset: float, *, density: bool):
    def V(x: torch.Tensor) -> torch.Tensor:
        return ((x - offset) / scale).cos().sum(-1)

    kernel = trial.choice(
        of.kernels.Gaussian(0.7 * scale), of.kernels.Log(), of.kernels.Quadratic()
    )
    trial.says(kernel=kernel)
    F = of.Potential(V) + 0.5 * of.Interaction(kernel)
    return F + of.Entropy() if density else F


def functional_points(trial: Trial) -> Case:
    """A functional in the points of Particles."""
    x = _cloud(trial)
    w = _weights(trial, len(x))
    F = _functional(trial, float(x.std()), float(x.mean()), density=False)
    return (lambda x: F.value(of.Particles(x, w))), x, x.std() * _like(trial, x)


def quotient(trial: Trial) -> Case:
    """The distance up to order in the points of a cloud."""
    x = _cloud(trial)
    y = x + x.std() * torch.as_tensor(trial.rng.normal(size=tuple(x.shape)))
    value = of.metrics.quotient_distance
    return (lambda x: value(x, y)), x, x.std() * _like(trial, x)


def _sinkhorn(mu, nu):
    # The blur is a constant of the problem: it must not move with the points of mu.
    other = nu.points if isinstance(nu, of.Particles) else nu
    diameter = float((other.amax(0) - other.amin(0)).norm())
    return of.metrics.sinkhorn_divergence(mu, nu, blur=0.2 * diameter)


W2 = of.metrics.wasserstein2_squared
CASES: dict[str, Callable[[Trial], Case]] = {
    "w2-points": lambda t: w2_points(t, through=False, metric=W2),
    "w2-particles": lambda t: w2_points(t, through=True, metric=W2),
    "w2-weights": lambda t: w2_weights(t, W2),
    "sinkhorn-points": lambda t: w2_points(t, through=False, metric=_sinkhorn),
    "sinkhorn-particles": lambda t: w2_points(t, through=True, metric=_sinkhorn),
    "sinkhorn-weights": lambda t: w2_weights(t, _sinkhorn),
    "bures": bures,
    "quantiles": quantile_edges,
    "grid-weights": lambda t: grid_weights(t, energy=False),
    "grid-energy-weights": lambda t: grid_weights(t, energy=True),
    "functional": functional_points,
    "quotient": quotient,
}

FAMILIES = [Family("gradients", gradient, 300)]
