"""Levels of mass, and the quantiles of a density at them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._typing import Ground
from otflow._validation import non_negative_int, real
from otflow.errors import InvalidFunctional

__all__ = ["check_increasing", "graded_masses", "inverse_distribution"]

# Panels per quantile (and at least so many) of the integral of a density, and the
# Gauss-Legendre nodes in each.
PANELS_PER_CELL = 8
MIN_PANELS = 4096
NODES = 8


def check_increasing(edges: Tensor) -> None:
    """Refuse quantiles that cross or coincide, and name the first."""
    edges = edges.detach()
    wrong = edges.diff() <= 0
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        msg = (
            f"quantiles must increase strictly, but edges[{i}] = {float(edges[i]):.9g} "
            f">= edges[{i + 1}] = {float(edges[i + 1]):.9g}; sort them, and merge "
            f"cells whose edges coincide"
        )
        raise ValueError(msg)


def graded_masses(n: int, grading: float) -> tuple[Tensor, Tensor]:
    r"""Return masses (n,) and levels (n + 1,) with small cells at both ends.

    The levels are :math:`s(k/n)` with :math:`s(u) = u^\gamma/(u^\gamma+(1-u)^\gamma)`:
    equal masses for :math:`\gamma = 1`; for larger ones the mass of the k-th cell from
    an end grows like :math:`(k/n)^{\gamma-1}`. They are symmetric.

    Parameters
    ----------
    n : int
        Number of cells, >= 1.
    grading : float
        The exponent, >= 1.

    Returns
    -------
    masses, levels : Tensor
        float64.
    """
    n = non_negative_int(n, "n", minimum=1)
    gamma = real(grading, "grading")
    if gamma < 1:
        msg = f"grading must be at least 1 (equal masses), got {gamma:g}"
        raise ValueError(msg)
    u = torch.arange(n + 1, dtype=torch.float64) / n
    left, right = u.pow(gamma), (1.0 - u).pow(gamma)
    levels = left / (left + right)
    # The right half mirrors the left, where differences of small levels are exact.
    masses = levels.diff()
    half = n // 2
    if half:
        masses[n - half :] = masses[:half].flip(0)
    return masses / masses.sum(), levels


def inverse_distribution(
    f: Ground, lower: float, upper: float, levels: Tensor, like: Tensor
) -> Tensor:
    """Return the quantiles of the density f / int f at `levels`, float64 on the CPU.

    The ends of the support are found to a panel, then by bisection. Within the panel
    that holds a level, Newton's method kept inside it solves for the quantile.

    Parameters
    ----------
    f : callable
        Batched (m, 1) -> (m,), non-negative.
    lower, upper : float
        The interval outside of which f counts as 0.
    levels : Tensor
        Increasing, from 0 to 1, symmetric about 1/2.
    like : Tensor
        Whose dtype and device `f` is called with.

    Returns
    -------
    Tensor
        Of the shape of `levels`.
    """
    # Levels close to 1 are found from above: 1 - level is exact for small masses.
    n = len(levels) - 1
    half = levels[: n // 2 + 1]
    low = _from_below(f, lower, upper, half, like)
    mirrored = levels[: n - n // 2]
    high = -_from_below(lambda x: f(-x), -upper, -lower, mirrored, like).flip(0)
    return torch.cat([low, high])


def _from_below(
    f: Ground, lower: float, upper: float, levels: Tensor, like: Tensor
) -> Tensor:
    lower, upper = real(lower, "lower"), real(upper, "upper")
    if not lower < upper:
        msg = f"lower must be below upper, got {lower:g} and {upper:g}"
        raise ValueError(msg)

    def density(x: Tensor) -> Tensor:
        at = x.reshape(-1, 1).to(like)
        values = f(at)
        if not isinstance(values, Tensor) or values.shape != at.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
            msg = (
                f"f must map points (m, 1) = {tuple(at.shape)} to ({len(at)},), got "
                f"{got}; reduce over the last axis, e.g. .sum(-1)"
            )
            raise InvalidFunctional(msg)
        refuse_graph(
            "quantiles of a density",
            "levels are found by iteration, without a derivative in its parameters",
            values,
            cure="Quantiles(edges, weights), or from_quantile, which keep it",
        )
        values = values.detach().to("cpu", torch.float64)
        bad = ~(values >= 0) | torch.isinf(values)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            msg = (
                f"f must be finite and non-negative, got {float(values[i]):g} at "
                f"x = {float(at[i, 0]):g}"
            )
            raise ValueError(msg)
        return values.reshape(x.shape)

    nodes, masses = np.polynomial.legendre.leggauss(NODES)
    t = torch.from_numpy(0.5 * (nodes + 1.0))
    a = torch.from_numpy(0.5 * masses)
    panels = max(MIN_PANELS, PANELS_PER_CELL * len(levels))
    ends = torch.linspace(lower, upper, panels + 1, dtype=torch.float64)

    def integral(start: Tensor, stop: Tensor) -> Tensor:
        width = stop - start
        return width * (density(start[:, None] + width[:, None] * t) @ a)

    parts = integral(ends[:-1], ends[1:])
    total = float(parts.sum())
    if total == 0.0:
        msg = f"f integrates to 0 over [{lower:g}, {upper:g}]: widen the interval"
        raise ValueError(msg)
    below = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    filled = (parts > 0).nonzero()[:, 0]
    first, last = int(filled[0]), int(filled[-1])
    targets = levels * total
    k = (torch.searchsorted(below, targets, right=True) - 1).clamp(first, last)
    low, high = ends[k].clone(), ends[k + 1].clone()
    wanted = targets - below[k]
    x = low + (high - low) * (wanted / parts[k].clamp_min(1e-300)).clamp(0.0, 1.0)
    for _ in range(60):
        excess = integral(ends[k], x) - wanted
        low, high = torch.where(excess < 0, x, low), torch.where(excess < 0, high, x)
        step = x - excess / density(x).clamp_min(1e-300)
        inside = (step > low) & (step < high)
        new = torch.where(inside, step, 0.5 * (low + high))
        settled = (new - x).abs() <= 1e-15 * (upper - lower)
        x = new
        if bool(settled.all()):
            break
    x[0] = _support_end(density, float(ends[first]), float(ends[first + 1]))
    return x


def _support_end(density: Ground, outside: float, inside: float) -> float:
    """Return the point from which on, towards `inside`, the density is positive."""
    one = torch.ones(1, dtype=torch.float64)
    if float(density(outside * one)[0]) > 0:
        return outside
    for _ in range(60):
        middle = 0.5 * (outside + inside)
        if float(density(middle * one)[0]) > 0:
            inside = middle
        else:
            outside = middle
    return outside
