"""Fits of one-layer networks that are solved exactly, as finite convex problems."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.optimize import minimize

import otflow as of

RELU = of.meanfield.TwoLayer("relu")


def rays(z):
    """Return the rays of the hyperplanes v.z_k = 0 and of the axes, of l1 norm 1.

    A sum of kinks is linear on each cone between these hyperplanes, and the l1 norm is
    too. So its largest value on the l1 sphere is attained at a ray.
    """
    q = z.shape[1]
    normals = np.concatenate([z, np.eye(q)])
    if q == 2:
        found = np.stack([-normals[:, 1], normals[:, 0]], 1)
    else:
        pairs = itertools.combinations(range(len(normals)), 2)
        found = np.array([np.cross(normals[i], normals[j]) for i, j in pairs])
    found = np.concatenate([found, -found])
    found = found[np.abs(found).sum(1) > 1e-12]
    return found / np.abs(found).sum(1, keepdims=True)


def features(X):
    """Return the rays of data and the values of relu neurons on them."""
    z = np.concatenate([X, np.ones((len(X), 1))], 1)
    v = rays(z)
    return v, np.maximum(z @ v.T, 0)


def fit(values, y, *, penalty=None, radius=None, loss="square"):
    """Return the least objective over coefficients c of given columns.

    It is the mean loss of ``values @ c`` plus penalty |c|_1, or under |c|_1 <= radius;
    c is split into its positive and its negative part.
    """
    n, p = values.shape
    both = np.concatenate([values, -values], 1)

    def objective(c):
        f = both @ c
        if loss == "square":
            value, slope = 0.5 * (f - y) ** 2, f - y
        else:
            value = np.logaddexp(0, -y * f)
            slope = -y / (1 + np.exp(y * f))
        extra = 0.0 if penalty is None else penalty
        return value.mean() + extra * c.sum(), both.T @ slope / n + extra

    limits = (
        []
        if radius is None
        else [
            {
                "type": "ineq",
                "fun": lambda c: radius - c.sum(),
                "jac": lambda c: -(c**0),
            }
        ]
    )
    start = np.full(2 * p, (radius or 1.0) / (4 * p))
    method = "L-BFGS-B" if radius is None else "SLSQP"
    options = (
        {"maxiter": 20000, "maxfun": 10**6, "ftol": 1e-16, "gtol": 1e-13}
        if radius is None
        else {"maxiter": 2000, "ftol": 1e-16}
    )
    found = minimize(
        objective,
        start,
        jac=True,
        bounds=[(0, None)] * (2 * p),
        constraints=limits,
        method=method,
        options=options,
    )
    return found.fun, found.x[:p] - found.x[p:]


def neurons(v, c):
    """Return the measure of neurons with the outer weights c at inner weights v."""
    held = np.abs(c) > 0
    rows = np.concatenate([(c[held] * held.sum())[:, None], v[held]], 1)
    return of.Particles(torch.from_numpy(rows))
