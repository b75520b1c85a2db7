r"""A bound of a sum of kinks on a sphere of many dimensions, by convex relaxation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.meanfield.kinks import Kinks

__all__ = ["relaxed_bound"]

STEPS = 100
# Temperatures of the smooth maximum, as shares of the range of its entries.
TEMPERATURES = (0.1, 0.02, 0.004)


def relaxed_bound(g: Kinks) -> float:
    r"""Return an upper bound of the dual norm of g on the unit sphere of its norm.

    A kink that bends down lies below :math:`\alpha\,v\cdot z_k`, for any
    :math:`0\le\alpha_k\le1`. What is left is convex. On the ball of "l1" it is largest
    at a corner :math:`\pm e_j`, so the bound is the largest of 2 q numbers. On the ball
    of "l2" the kinks that bend up are :math:`(t + |t|)/2`, and

    .. math:: \sum_k b_k |v\cdot z_k| \le
        \Bigl(\sum_k b_k\;\lambda_{\max}(\sum_k b_k z_k z_k^\top)\Bigr)^{1/2} .

    Both are convex functions of :math:`\alpha` and made small by gradient steps; any
    :math:`\alpha` gives a true bound.

    Parameters
    ----------
    g : Kinks
        The function.

    Returns
    -------
    float
        The bound, with its round-off. Time O(n q m) for each of some hundred steps,
        and O(n q^2 m) for the norm "l2".
    """
    bound = _at_corners if g.norm == "l1" else _on_sphere
    sides = []
    for j in range(g.outputs):
        up, down = g.bent[:, j].clamp_min(0), -g.bent[:, j].clamp_max(0)
        over = bound(g.z, g.straight[j], up, down)
        under = bound(g.z, -g.straight[j], down, up)
        sides.append(max(over, under))
    return float(g.size_of(g.z.new_tensor([sides]))[0]) + 4 * g.noise


def _at_corners(z: Tensor, straight: Tensor, up: Tensor, down: Tensor) -> float:
    """Return a bound of s.v + sum up (v.z)^+ - sum down (v.z)^+ where |v|_1 <= 1."""
    plus = straight + up @ z.clamp_min(0)
    minus = -straight + up @ (-z).clamp_min(0)
    base = torch.cat([plus, minus])
    low = down[:, None] * z
    rows = torch.cat([low, -low], 1)  # (n, 2 q): base - alpha @ rows
    alpha = torch.full_like(down, 0.5)
    best = float((base - alpha @ rows).max())
    for share in TEMPERATURES:
        heights = base - alpha @ rows
        heat = share * max(float(heights.max() - heights.mean()), 1e-300)
        # The slope of the smooth maximum is Lipschitz with this constant.
        steep = float(rows.square().sum(0).max()) / heat
        if not steep > 0:
            break
        ahead, momentum = alpha, 1.0
        for _ in range(STEPS):
            heights = base - ahead @ rows
            best = min(best, float(heights.max()))
            slope = -(rows @ torch.softmax(heights / heat, 0))
            new = (ahead - slope / steep).clamp(0, 1)
            after = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
            ahead = (new + ((momentum - 1) / after) * (new - alpha)).clamp(0, 1)
            alpha, momentum = new, after
        best = min(best, float((base - alpha @ rows).max()))
    return best


def _on_sphere(z: Tensor, straight: Tensor, up: Tensor, down: Tensor) -> float:
    """Return a bound of s.v + sum up (v.z)^+ - sum down (v.z)^+ where |v|_2 <= 1."""
    spread = torch.einsum("k,kp,kq->pq", up, z, z)
    largest = torch.linalg.eigvalsh(spread)[-1].clamp_min(0)
    bent = 0.5 * float((up.sum() * largest).sqrt())
    base, low = straight + 0.5 * (up @ z), down[:, None] * z
    top = float(torch.linalg.eigvalsh(low.T @ low)[-1])
    alpha = torch.full_like(down, 0.5)
    best = float((base - alpha @ low).norm())
    if top > 0:
        ahead, momentum = alpha, 1.0
        for _ in range(STEPS):
            rest = base - ahead @ low
            best = min(best, float(rest.norm()))
            new = (ahead + (low @ rest) / top).clamp(0, 1)
            after = 0.5 * (1 + math.sqrt(1 + 4 * momentum**2))
            ahead = (new + ((momentum - 1) / after) * (new - alpha)).clamp(0, 1)
            alpha, momentum = new, after
        best = min(best, float((base - alpha @ low).norm()))
    return best + bent
