"""Distances of Gaussians, of clouds, and of networks, by closed forms and SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog

import otflow as of
from tools.campaigns.protocol import Family, Trial

__all__ = ["FAMILIES"]


def bures(trial: Trial) -> None:
    """Gaussians joined by a known optimal map T: W2^2 = |m - m'|^2 + |TL - L|^2."""
    rng = trial.rng
    d = int(trial.choice(*range(1, 41), 64, 128, 200))
    closeness = trial.choice(1.0, 1e-1, 1e-3)
    trial.says(d=d, closeness=closeness)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset(1e2 if dtype == torch.float32 else 1e6)
    spread = trial.choice(0.0, 1.0, 2.0)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    L = Q * 10 ** (-0.5 * spread * rng.random(d))
    R = np.linalg.qr(rng.normal(size=(d, d)))[0]
    T = (R * np.exp(closeness * rng.normal(size=d))) @ R.T
    shift = closeness * rng.normal(size=d)
    S, P = L @ L.T, T @ L @ L.T @ T
    laws = [
        of.Gaussian(
            torch.as_tensor(offset + scale * m).to(dtype),
            torch.as_tensor(scale**2 * 0.5 * (C + C.T)).to(dtype),
            nodes=None if 2 * d + 2 < 2048 else 2 * d + 2,
        )
        for m, C in ((np.zeros(d), S), (shift, P))
    ]
    right = math.sqrt(shift @ shift + ((T @ L - L) ** 2).sum())
    eps = torch.finfo(dtype).eps
    # Rounded entries move a root of the covariance by at most the root of the least
    # eigenvalue's relative change; each entry is rounded once.
    least = min(np.linalg.eigvalsh(S)[0], np.linalg.eigvalsh(P)[0])
    size = max(np.abs(S).max(), np.abs(P).max())
    root = size * eps * d / math.sqrt(least) if least > 0 else math.inf
    slack = 8 * root * math.sqrt(d) + 16 * eps * math.sqrt(d) * abs(offset) / scale
    slack = min(slack, math.sqrt(size * eps) * d + 16 * eps * abs(offset) / scale * d)
    for name, value in (
        ("wasserstein2", of.metrics.wasserstein2(*laws)),
        ("reversed", of.metrics.wasserstein2(laws[1], laws[0])),
        ("displacement", laws[0].norm(laws[0].displacement_to(laws[1]))),
    ):
        if trial.finite(**{name: value}):
            own = float(value) / scale
            trial.false_if(
                abs(own - right) > 1e-3 * right + slack,
                f"{name} {own:.8g}, exact {right:.8g}, slack {slack:.2g}",
            )


def cloud(trial: Trial, n: int, d: int) -> np.ndarray:
    """Draw points: plain, with outliers, on a lattice, or with doubles."""
    rng = trial.rng
    kind = trial.choice("plain", "outlier", "lattice", "doubles")
    trial.says(kind=kind)
    x = rng.normal(size=(n, d))
    if kind == "outlier":
        x[0] *= trial.log_uniform(1e1, 1e6)
    if kind == "lattice":
        x = np.round(2 * x)
    if kind == "doubles":
        x = x[rng.integers(0, n, n)]
    return x


def plans(trial: Trial) -> None:
    """Compare assignments, plans, potentials with the Hungarian method and HiGHS."""
    rng = trial.rng
    n = int(rng.integers(1, 41))
    d = int(trial.choice(1, 2, 2, 3, 5, 20))
    weighted = rng.random() < 0.5
    n = min(n, 15) if weighted else n
    m = int(rng.integers(1, 16)) if weighted else n
    near = m == n and rng.random() < 0.5
    trial.says(n=n, m=m, d=d, weighted=weighted, near=near)
    dtype = trial.dtype()
    scale, offset = trial.scale_and_offset()
    x = cloud(trial, n, d)
    y = x + trial.log_uniform(1e-6, 1.0) * rng.normal(size=(n, d)) if near else None
    y = cloud(trial, m, d) if y is None else y
    X, Y = (torch.as_tensor(offset + scale * z).to(dtype) for z in (x, y))
    # What otflow is given, exactly, in units of the scale.
    x, y = ((Z.double().numpy() - offset) / scale for Z in (X, Y))
    cost = ((x[:, None] - y) ** 2).sum(-1)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    if weighted:
        a, b = (rng.dirichlet(np.ones(k)) for k in (n, m))
        if n > 2 and rng.random() < 0.5:
            a[0] = 0.0
        A, B = (torch.as_tensor(w / w.sum()).to(dtype) for w in (a, b))
        mu = of.Particles(X, A, normalize=True)
        nu = of.Particles(Y, B, normalize=True)
        a, b = (p.weights.double().numpy() for p in (mu, nu))
        a, b = a / a.sum(), b / b.sum()
        right = _programme(cost, a, b)
    else:
        mu, nu = of.Particles(X), of.Particles(Y)
        right = float(cost[linear_sum_assignment(cost)].mean())
    value = of.metrics.wasserstein2_squared(mu, nu)
    plan = of.metrics.transport_plan(mu, nu)
    trial.finite(w2=value, cost=plan.cost, f=plan.f, g=plan.g, masses=plan.masses)
    eps = torch.finfo(dtype).eps
    # Costs are known to a rounding of the largest that is paid for, masses to one of 1.
    slack = 64 * eps * (right + (cost.max() * len(a) if weighted else 0.0))
    slack += 1e-12 * right + 1e-15 * cost.max()
    own = float(value) / scale**2
    trial.false_if(
        abs(own - right) > 1e-5 * right + slack, f"W2^2 {own:.9g}, SciPy {right:.9g}"
    )
    own = float(plan.cost) / scale**2
    trial.false_if(
        abs(own - right) > 1e-5 * right + slack, f"plan {own:.9g}, SciPy {right:.9g}"
    )
    f, g = (p.double().numpy() / scale**2 for p in (plan.f, plan.g))
    above = float((f[:, None] + g - cost).max())
    trial.false_if(
        above > 1e-7 * cost.max() + 64 * eps * (np.abs(f).max() + np.abs(g).max()),
        f"f + g exceeds the cost by {above:.3g}",
    )
    if not weighted:
        sigma = of.metrics.assignment(X, Y).numpy()
        own = float(cost[np.arange(n), sigma].mean())
        slack = 1e-12 * right + 1e-15 * cost.max()
        trial.false_if(
            own > right * (1 + 1e-9) + slack, f"assignment {own:.9g}, SciPy {right:.9g}"
        )


def _programme(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the cost of the optimal plan, by HiGHS.

    The least cost of each row, then of each column, is paid by every plan. What is left
    of the cost is smaller, so that the tolerances of HiGHS, which are shares of the
    largest cost, hold more digits: an outlier's squares would leave none.
    """
    n, m = cost.shape
    by_row = cost.min(1)
    cost = cost - by_row[:, None]
    by_column = cost.min(0)
    cost = cost - by_column
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    unit = cost.max() or 1.0
    plan = linprog(
        cost.ravel() / unit,
        A_eq=np.vstack([rows, columns])[:-1],
        b_eq=np.r_[a, b][:-1],
        options={
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    if not plan.success:
        msg = f"the reference failed: {plan.message}"
        raise RuntimeError(msg)
    return float(a @ by_row + b @ by_column + plan.fun * unit)


def quotients(trial: Trial) -> None:
    """Compare networks up to order and symmetry, by trying all of them."""
    rng = trial.rng
    n, d = int(rng.integers(1, 6)), int(rng.integers(2, 5))
    kind = trial.choice("trivial", "sign", "scale")
    trial.says(n=n, d=d, kind=kind)
    dtype = trial.dtype()
    scale = trial.log_uniform(1e-6, 1e6)
    trial.says(scale=scale)
    X = torch.as_tensor(scale * cloud(trial, n, d)).to(dtype)
    Y = torch.as_tensor(scale * cloud(trial, n, d)).to(dtype)
    if rng.random() < 0.3:
        Y = X[torch.as_tensor(rng.permutation(n))] * (-1 if kind == "sign" else 1)
    symmetries = of.metrics.symmetries
    symmetry = {
        "trivial": symmetries.Trivial,
        "sign": symmetries.Sign,
        "scale": symmetries.Scale,
    }[kind]()
    x, y = X.double().numpy() / scale, Y.double().numpy() / scale
    if kind == "scale":
        x, y = _balanced(x), _balanced(y)
    signs = (1.0, -1.0) if kind == "sign" else (1.0,)
    cost = np.min([((x[:, None] - s * y) ** 2).sum(-1) for s in signs], axis=0)
    right = math.sqrt(
        min(
            cost[np.arange(n), list(p)].mean() for p in itertools.permutations(range(n))
        )
    )
    value = of.metrics.quotient_distance(X, Y, symmetry=symmetry)
    if not trial.finite(distance=value):
        return
    own = float(value) / scale
    size = max(np.abs(x).max(), np.abs(y).max())
    slack = 32 * torch.finfo(dtype).eps * size
    trial.false_if(
        abs(own - right) > 1e-5 * right + slack, f"{own:.9g}, by trying all {right:.9g}"
    )
    sigma = of.metrics.best_matching(X, Y, symmetry=symmetry).numpy()
    trial.false_if(sorted(sigma) != list(range(n)), "the matching is no permutation")
    reached = math.sqrt(cost[np.arange(n), sigma].mean())
    trial.false_if(
        reached > right * (1 + 1e-5) + slack, f"the matching costs {reached:.9g}"
    )
    near = of.metrics.align(X, Y, symmetry=symmetry).double().numpy() / scale
    reached = math.sqrt(((x - near) ** 2).sum(1).mean())
    trial.false_if(abs(reached - right) > 1e-5 * right + slack, "aligned, not nearest")


def _balanced(theta: np.ndarray) -> np.ndarray:
    """Return neurons (a, w) with |a| = |w| and the same product."""
    a, w = theta[:, :1], theta[:, 1:]
    na, nw = np.abs(a), np.linalg.norm(w, axis=1, keepdims=True)
    dead = (na == 0) | (nw == 0)
    root = np.sqrt(np.where(dead, 1.0, nw) / np.where(dead, 1.0, na))
    return np.where(dead, 0.0, np.hstack([a * root, w / root]))


FAMILIES = [
    Family("bures", bures, 300),
    Family("plans", plans, 400),
    Family("quotients", quotients, 250),
]
