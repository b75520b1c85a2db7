"""The distance between both ends of a step on a grid, as far as it is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.measures import GridDensity

__all__ = ["distance_along_axes", "distance_on_a_line", "trusted_distance"]

# Share of a distance that its estimate may be off by, where that is more than a cell.
SHARE = 0.05


def distance_along_axes(mu: GridDensity, nu: GridDensity) -> float:
    r"""Return the root of the sum of the squared W2 of the marginals on the axes.

    It is at most W2, as each axis is a projection; and W2 on a line, for products, and
    where one density is the other one moved.
    """
    square = 0.0
    for axis in range(mu.dim):
        square += _on_axis(mu, nu, axis) ** 2
    return math.sqrt(square)


def distance_on_a_line(mu: GridDensity, nu: GridDensity) -> float:
    r"""Return W2 between two densities that are constant on the same cells of a line.

    .. math:: W_2^2 = \int_0^1 (Q_\mu - Q_\nu)^2\,du

    with the quantiles Q, linear between the cumulated masses of both. Levels that
    round-off cannot tell apart weigh nothing.
    """
    return _on_axis(mu, nu, 0)


def _on_axis(mu: GridDensity, nu: GridDensity, axis: int) -> float:
    n, h = mu.shape[axis], mu.box.spacing[axis]
    edges = h * torch.arange(n, dtype=torch.float64, device=mu.weights.device)
    others = tuple(k for k in range(mu.dim) if k != axis)
    masses = []
    for measure in (mu, nu):
        w = measure.weights.detach().to(torch.float64).reshape(measure.shape)
        masses.append(w.sum(others) if others else w)
    masses = [w / w.sum() for w in masses]
    tops = [w.cumsum(0) for w in masses]
    levels = torch.cat([tops[0].new_zeros(1), *tops]).clamp_max(1.0).sort().values
    low, high = levels[:-1], levels[1:]
    gaps: list[Tensor] = []
    for u in (low, high):
        places = []
        for w, top in zip(masses, tops, strict=True):
            cell = torch.searchsorted(top, 0.5 * (low + high)).clamp_max(n - 1)
            inside = (u - (top[cell] - w[cell])) / w[cell].clamp_min(1e-300)
            places.append(edges[cell] + h * inside.clamp(0.0, 1.0))
        gaps.append(places[0] - places[1])
    left, right = gaps
    square = (high - low) * (left.square() + left * right + right.square()) / 3
    return math.sqrt(float(square.sum()))


def trusted_distance(mu: GridDensity, cost: float, bias: float) -> float | None:
    r"""Return the root of cost - bias where that can be trusted, else None.

    The cost is that of debiased entropic transport, twice; its bias is known to leading
    order. What is left is taken to be no more than the bias itself: if that could move
    the distance by more than a cell and 5 %, the estimate is not given.
    """
    estimate = math.sqrt(max(0.0, cost - bias))
    most, least = math.sqrt(max(0.0, cost)), math.sqrt(max(0.0, cost - 2 * bias))
    off = max(most - estimate, estimate - least)
    known = off <= max(*mu.box.spacing, SHARE * estimate)
    return estimate if known else None
