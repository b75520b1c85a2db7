r"""Means of :math:`\max_j (x\cdot y_j - w_j)` over the cells of a grid, exactly."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from otflow.metrics.bracket import NOISE
from otflow.metrics.columns import cheapest
from otflow.metrics.crossings import StepDensity

__all__ = ["means_of_maximum"]

# A simplex is split until one plane is the highest at all its corners, to this share of
# the largest value; most are after five rounds.
NEAR = 8 * NOISE
ROUNDS = 100


def means_of_maximum(y: Tensor, w: Tensor, density: StepDensity) -> Tensor:
    """Return the mean over each cell of the density, in C order.

    The maximum is convex. So where one plane is the highest at all corners of a cell,
    it is inside too. Other cells are cut into simplices, and these along the planes.

    Time O(log n) for a corner of a cell; memory O(cells).
    """
    shape, d = density.masses.shape, y.shape[1]
    axes = [
        density.lower[k] + density.spacing[k] * torch.arange(m + 1, dtype=y.dtype)
        for k, m in enumerate(shape)
    ]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
    index = torch.arange(len(nodes)).reshape([m + 1 for m in shape])
    steps = list(itertools.product((0, 1), repeat=d))
    corners = torch.stack(
        [
            index[tuple(slice(s, s + m) for s, m in zip(step, shape, strict=True))]
            for step in steps
        ],
        -1,
    ).reshape(-1, 2**d)
    heights, highest = _maximum(nodes, y, w)
    own = highest[corners]
    means = heights[corners].mean(1)
    mixed = (own != own[:, :1]).any(1).nonzero()[:, 0]
    # From the lowest corner to the highest, one axis after the other.
    ways = [
        [sum(2 ** (d - 1 - k) for k in way[:count]) for count in range(d + 1)]
        for way in itertools.permutations(range(d))
    ]
    simplices = corners[mixed][:, torch.tensor(ways)].reshape(-1, d + 1)
    cell = mixed.repeat_interleave(len(ways))
    sums = _split(nodes[simplices], heights[simplices], highest[simplices], y, w)
    return (
        means.index_copy(
            0, mixed, sums.reshape(-1, len(ways)).sum(1) / math.factorial(d)
        )
        if len(cell)
        else means
    )


def _maximum(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum at points, and where it is attained."""
    _, index = cheapest(x, y, y.square().sum(1) - 2 * w, 1)
    index = index[:, 0]
    return (x * y[index]).sum(1) - w[index], index


def _split(
    places: Tensor, heights: Tensor, highest: Tensor, y: Tensor, w: Tensor
) -> Tensor:
    """Return the mean over each simplex; the maximum is known at its corners."""
    d = places.shape[2]
    total = heights.new_zeros(len(places))
    near = NEAR * float(heights.abs().max() + w.abs().max()) if len(heights) else 0.0
    whose, share = torch.arange(len(places)), torch.ones_like(total)
    for _ in range(ROUNDS):
        # How far the plane of corner a lies below the maximum at corner b.
        planes = torch.einsum("kad,kbd->kab", y[highest], places)
        below = heights[:, None] - (planes - w[highest][:, :, None])
        done = (below <= near).all(2).any(1)
        total.index_add_(0, whose[done], (share * heights.mean(1))[done])
        places, heights, highest = places[~done], heights[~done], highest[~done]
        whose, share, below = whose[~done], share[~done], below[~done]
        if not len(places):
            break
        a, b, part = _edge(places, below, near)
        row = torch.arange(len(places))
        cut = places[row, a] + part[:, None] * (places[row, b] - places[row, a])
        height, plane = _maximum(cut, y, w)
        pieces = []
        for corner, size in ((b, part), (a, 1 - part)):
            pieces.append(
                (
                    places.index_put((row, corner), cut),
                    heights.index_put((row, corner), height),
                    highest.index_put((row, corner), plane),
                    whose,
                    share * size,
                )
            )
        places, heights, highest, whose, share = (
            torch.cat(both) for both in zip(*pieces, strict=True)
        )
        assert places.shape[1:] == (d + 1, d)
    total.index_add_(0, whose, share * heights.mean(1))
    return total


def _edge(places: Tensor, below: Tensor, near: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ends of the edge to cut, and where it is cut, in (0, 1).

    It is cut where the planes of its ends meet. If both planes are the highest along
    each edge, the longest edge is halved.
    """
    count = below.shape[1]
    both = torch.minimum(below, below.transpose(1, 2)).flatten(1)
    value, place = both.max(1)
    lengths = (places[:, :, None] - places[:, None]).square().sum(3).flatten(1)
    tied = value <= near
    place = torch.where(tied, lengths.argmax(1), place)
    a, b = place // count, place % count
    row = torch.arange(len(places))
    rise, fall = below[row, b, a], below[row, a, b]
    part = rise / (rise + fall).masked_fill(tied, 1.0)
    return a, b, part.masked_fill(tied, 0.5)
