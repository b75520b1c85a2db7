"""A monotone map on the line as a broken line, and its Kantorovich potential."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Path"]


@dataclass(frozen=True)
class Path:
    r"""A broken line of nodes (x, y), both non-decreasing, and its potential.

    Let T be the map whose graph is the line; then :math:`\varphi'(x) = 2(x - T(x))`.
    Between two nodes T is linear, :math:`\varphi` rises by
    :math:`\Delta x\,(x + x' - y - y')`, and :math:`\varphi` is quadratic.

    Parameters
    ----------
    x, y : Tensor, shape (k,)
        Nodes.
    heights : Tensor, shape (k,)
        The potential at the nodes.
    """

    x: Tensor
    y: Tensor
    heights: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Path:
        """Return the path through both ends of each coupled interval, (k, 2) each.

        The path is extended to the first of `left` and the last of `right`.
        """
        x = torch.cat([left[:1], x.reshape(-1), right[-1:]])
        flat = y.reshape(-1)
        y = torch.cat([flat[:1], flat, flat[-1:]])
        steps, apart = x.diff(), x - y
        rises = steps * (apart[1:] + apart[:-1])
        heights = torch.cat([x.new_zeros(1), rises.cumsum(0)])
        return cls(x, y, heights)

    def means(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the mean of the potential over cells, its value if left is right.

        The cells are in order. The mean is that of parts without a node inside, so a
        short cell loses no digits, as it would to a difference of integrals.
        """
        breaks = torch.cat([self.x, left, right]).sort().values
        low, high = breaks[:-1], breaks[1:]
        cell = torch.searchsorted(left.detach(), low.detach(), right=True) - 1
        inside = (cell >= 0) & (high > low) & (low < right[cell.clamp_min(0)])
        low, high, cell = low[inside], high[inside], cell[inside]
        k, step, start, from_low = self._step(low)
        to_high = high - self._image(k, high)
        height = self.heights[k] + step * (start + from_low)
        # height + t (2 from_low + t (to_high - from_low) / w), integrated over t < w.
        parts = height + (high - low) * (2 * from_low + to_high) / 3.0
        width = right - left
        point = width <= 0
        shares = (high - low) / width.masked_fill(point, 1.0)[cell]
        means = torch.zeros_like(width).index_add(0, cell, shares * parts)
        if bool(point.any()):
            means = torch.where(point, self.potential(left), means)
        return means

    def values(self, at: Tensor) -> Tensor:
        """Return T at these places; it is constant beyond the first and last node."""
        return at - self._step(at)[3]

    def potential(self, at: Tensor) -> Tensor:
        """Return the potential at these places, 0 at the first node."""
        k, step, start, end = self._step(at)
        return self.heights[k] + step * (start + end)

    def _step(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the node before each place, the step from it, and x - T at both."""
        k = torch.searchsorted(self.x.detach(), at.detach(), right=True) - 1
        k = k.clamp(0, len(self.x) - 2)
        step = at - self.x[k]
        return k, step, self.x[k] - self.y[k], at - self._image(k, at)

    def _image(self, k: Tensor, at: Tensor) -> Tensor:
        """Return T at places between the nodes k and k + 1, or beyond the ends."""
        width = self.x[k + 1] - self.x[k]
        # Where the width is 0 the step is 0 too; this avoids 0 / 0.
        share = (at - self.x[k]) / width.masked_fill(width <= 0, 1.0)
        return self.y[k] + share.clamp(0.0, 1.0) * (self.y[k + 1] - self.y[k])
