"""Curves of measures: what tests of graphs and of writes share."""

from __future__ import annotations

from collections.abc import Callable

import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64


def bend(t, *shape, seed):
    """Return a generic curve in a space of tensors: a + t b + t^2 c."""
    a, b, c = (normal(*shape, seed=seed + k) for k in range(3))
    return a + t * b + t * t * c


def particles(t):
    return of.Particles(bend(t, 7, 2, seed=1))


def weighted(t):
    w = bend(t, 7, seed=5).softmax(0)  # a direction of sum 0
    return of.Particles(bend(t, 7, 2, seed=1), w)


def normalised(t):
    w = bend(t, 7, seed=5).exp()
    return of.Particles(normal(7, 2), w, normalize=True)


def even(t):
    """Return atoms that are equal now, and only now."""
    w = (t * normal(7, seed=5)).softmax(0)
    return of.Particles(normal(7, 2), w)


def quantiles(t):
    gaps = bend(t, 9, seed=2).mul(0.3).exp()
    w = bend(t, 8, seed=6).mul(0.3).softmax(0)
    return of.Quantiles(0.4 * gaps.cumsum(0) - 2, w)


def plain_quantiles(t):
    return of.Quantiles(0.4 * bend(t, 9, seed=2).mul(0.3).exp().cumsum(0) - 2)


def gaussian(t):
    A = 0.4 * bend(t, 2, 2, seed=3) + torch.eye(2, dtype=F64)
    return of.Gaussian(0.3 * bend(t, 2, seed=4), A @ A.T, nodes=10)


def round_gaussian(t):
    """Return a Gaussian whose covariance is the identity now, where axes are equal."""
    A = t * normal(2, 2, seed=3) + torch.eye(2, dtype=F64)
    return of.Gaussian(t * normal(2, seed=4), A @ A.T, nodes=10)


def grid(t):
    rho = bend(t, 5, 4, seed=7).mul(0.3).exp()
    return of.GridDensity(rho, (-1, -1), (1, 1), walls=True, normalize=True)


def line(t):
    rho = bend(t, 9, seed=8).mul(0.3).exp()
    return of.GridDensity(rho, -1, 1, walls=True, normalize=True)


def masses(t):
    w = bend(t, 9, seed=8).mul(0.3).softmax(0)
    return line(torch.zeros((), dtype=F64)).with_weights(w)


def room(t):
    """Return a density beside an obstacle."""
    wall = torch.zeros(5, 4, dtype=torch.bool)
    wall[2, :3] = True
    rho = bend(t, 5, 4, seed=7).mul(0.3).exp() * ~wall
    options = {"obstacles": wall, "walls": True, "normalize": True}
    return of.GridDensity(rho, (-1, -1), (1, 1), **options)


POINTS = {"particles": particles, "weighted": weighted, "normalised": normalised}
POINTS["even"] = even
LINE = {"quantiles": quantiles, "plain quantiles": plain_quantiles}
BELLS = {"gaussian": gaussian, "round gaussian": round_gaussian}
CELLS = {"grid": grid, "line": line, "masses": masses, "room": room}
ALL = {**POINTS, **LINE, **BELLS, **CELLS}
DENSITIES = {**LINE, **BELLS, **CELLS}


def state(mu):
    """Return the tensors that say what a measure is, as one."""
    tensors: dict[type, tuple[str, ...]] = {
        of.Particles: ("points", "weights"),
        of.Quantiles: ("edges", "weights"),
        of.Gaussian: ("mean", "covariance"),
        of.GridDensity: ("weights",),
    }
    return torch.cat([getattr(mu, name).reshape(-1) for name in tensors[type(mu)]])


def tangent(mu):
    """Return the shape of a tangent at a measure."""
    shapes: dict[type, Callable[[], tuple[int, ...]]] = {
        of.Particles: lambda: mu.points.shape,
        of.Quantiles: lambda: (mu.n + 1, 1),
        of.Gaussian: lambda: (1 + mu.dim, mu.dim),
        of.GridDensity: lambda: (mu.box.n_faces,),
    }
    return shapes[type(mu)]()


def tensors(mu):
    """Return all tensors that a measure holds."""
    return [value for value in vars(mu).values() if isinstance(value, torch.Tensor)]
