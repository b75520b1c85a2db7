"""Gaussians where derivatives are not those of the values: jumps, spikes, kinks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special

import otflow as of
from otflow.proximal import GaussianProximal
from otflow.proximal.gaussian_quadrature import polynomial_degree
from otflow.proximal.gaussian_values import gap_by_nodes, gap_on_lines

KINDS = ("smooth", "jump", "spike", "kink")


def bump(m, s, a, w):
    """Return the mean of exp(-(x - a)^2 / 2 w^2)."""
    r = w * w + s * s
    return w / math.sqrt(r) * math.exp(-0.5 * (m - a) ** 2 / r)


def feature(kind, rng):
    """Return f on tensors and its mean by the mean and the deviation, closed."""
    a, c = float(rng.normal()), float(rng.choice([-1, 1]) * 10 ** rng.uniform(-1.5, 1))
    if kind == "jump":
        return (
            lambda t: c * (t > a).to(t),
            lambda m, s: c * special.ndtr((m - a) / s),
        )
    if kind == "spike":
        w = float(10 ** rng.uniform(-6, -1))
        return (
            lambda t: c * (-0.5 * ((t - a) / w).square()).exp(),
            lambda m, s: c * bump(m, s, a, w),
        )
    if kind == "kink":
        c = 0.3 * abs(c)

        def mean(m, s):
            z = (m - a) / s
            height = math.sqrt(2 / math.pi) * math.exp(-0.5 * z * z)
            return c * (s * height + (m - a) * math.erf(z / math.sqrt(2)))

        return lambda t: c * (t - a).abs(), mean
    k, w = float(rng.uniform(0.5, 3)), float(rng.uniform(0.5, 2))
    return (
        lambda t: c * (0.3 * (k * t).sin() - (-0.5 * ((t - a) / w).square()).exp()),
        lambda m, s: (
            c * (0.3 * math.sin(k * m) * math.exp(-0.5 * (k * s) ** 2))
            - c * bump(m, s, a, w)
        ),
    )


def judged(kind, d, seed, **options):
    """Return a step's certificate, its W2 distance to the integrals' and its size.

    V = |x|^2 / 2 + f(u x) from an isotropic law: across u the step is in closed form,
    along u it is found from closed integrals.
    """
    rng = np.random.default_rng([seed, d, KINDS.index(kind)])
    f, mean = feature(kind, rng)
    u = rng.normal(size=d)
    u = u / np.linalg.norm(u)
    m0, s0 = rng.normal(size=d), float(10 ** rng.uniform(-0.7, 0.5))
    dt, kappa = float(10 ** rng.uniform(-2, 0.5)), float(rng.uniform(0.1, 1))
    along = torch.from_numpy(u)
    F = of.Potential(lambda x: 0.5 * x.square().sum(-1) + f(x @ along))
    mu = of.Gaussian(m0, s0**2 * np.eye(d))
    result = GaussianProximal(**options).solve(F + kappa * of.Entropy(), mu, dt)
    report, nu = result.certificate, result.measure

    def energy(m, s):
        return 0.5 * (m * m + s * s) + mean(m, s) - kappa * math.log(s)

    def objective(p):
        s = abs(p[1]) + 1e-300
        return energy(p[0], s) + ((p[0] - u @ m0) ** 2 + (s - s0) ** 2) / (2 * dt)

    here = np.array([u @ nu.mean.numpy(), math.sqrt(u @ nu.covariance.numpy() @ u)])
    best = optimize.minimize(
        objective,
        here,
        method="Nelder-Mead",
        options={
            "xatol": 1e-10,
            "fatol": 1e-15,
            "maxiter": 2000,
            "initial_simplex": here + 1e-3 * np.array([[0, 0], [1, 0.3], [-0.2, 1]]),
        },
    ).x
    spread = (s0 + math.sqrt(s0**2 + 4 * dt * (1 + dt) * kappa)) / (2 * (1 + dt))
    centre = m0 / (1 + dt)
    goal = of.Gaussian(
        centre + u * (best[0] - u @ centre),
        spread**2 * np.eye(d) + (best[1] ** 2 - spread**2) * np.outer(u, u),
    )
    size = report["w2"] + float(nu.factor.norm())
    return report, float(of.metrics.wasserstein2(nu, goal)), size
