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
    :math:`\Delta x\,(x + x' - y - y')`, and Simpson's rule integrates :math:`\varphi`
    exactly.

    Parameters
    ----------
    x, y : Tensor, shape (k,)
        Nodes.
    heights : Tensor, shape (k,)
        The potential at the nodes.
    integrals : Tensor, shape (k,)
        The integral of the potential from the first node to each node.
    """

    x: Tensor
    y: Tensor
    heights: Tensor
    integrals: Tensor

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
        parts = _simpson(heights[:-1], steps, apart[:-1], apart[1:])
        return cls(x, y, heights, torch.cat([x.new_zeros(1), parts.cumsum(0)]))

    def means(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the mean of the potential over cells, its value if left is right."""
        rise = self._integral(right) - self._integral(left)
        width = right - left
        point = width <= 0
        if bool(point.any()):
            return torch.where(
                point, self.potential(left), rise / width.masked_fill(point, 1.0)
            )
        return rise / width

    def values(self, at: Tensor) -> Tensor:
        """Return T at these places; it is constant beyond the first and last node."""
        return at - self._step(at)[3]

    def potential(self, at: Tensor) -> Tensor:
        """Return the potential at these places, 0 at the first node."""
        k, step, start, end = self._step(at)
        return self.heights[k] + step * (start + end)

    def _integral(self, at: Tensor) -> Tensor:
        k, step, start, end = self._step(at)
        return self.integrals[k] + _simpson(self.heights[k], step, start, end)

    def _step(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the node before each place, the step from it, and x - T at both."""
        k = torch.searchsorted(self.x, at, right=True) - 1
        k = k.clamp(0, len(self.x) - 2)
        width = self.x[k + 1] - self.x[k]
        # Where the width is 0 the step is 0 too; this avoids 0 / 0.
        width = width.masked_fill(width <= 0, 1.0)
        step = at - self.x[k]
        y = self.y[k] + (step / width).clamp(0.0, 1.0) * (self.y[k + 1] - self.y[k])
        return k, step, self.x[k] - self.y[k], at - y


def _simpson(height: Tensor, step: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the integral over a step; x - T(x) is linear, from `start` to `end`."""
    # height + step t (2 start + t (end - start)), integrated over t and times step.
    return step * (height + step * (2 * start + end) / 3.0)
