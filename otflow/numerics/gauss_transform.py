r"""Sums of Gaussians in low dimension by interpolation, with a bound of the error.

The kernel is a product over axes. In a box of side :math:`\sigma` each factor is
replaced, in both points, by the polynomial that has its values at p Chebyshev nodes. So
the masses are spread over the nodes of their boxes, the nodes act on each other axis by
axis, and the sums are interpolated at the targets.

Let g be a factor. By Cramér's inequality :math:`|g^{(p)}| \le 1.0865\,\sqrt{p!}\,
\sigma^{-p}`. On an interval of half length :math:`\sigma/2` the error of one
interpolation is then at most

.. math:: e_p = 1.0865\,\frac{2^{-p}}{2^{p-1}\sqrt{p!}},

and :math:`\sqrt{p+1}\,e_p / \sigma` for the slope of g. One interpolation in each of
the 2d variables multiplies earlier errors by at most the Lebesgue constant
:math:`\Lambda = \frac2\pi \log p + 1`. So the error of the kernel is at most
:math:`e_p (1 + \Lambda + \dots + \Lambda^{2d-1})`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["LEAST", "error_bound", "gauss_transform", "nodes_for"]

# Least tolerance: below it the round-off of the interpolation is no longer small.
LEAST = 1e-12
# Most nodes along an axis of a box; they reach LEAST in dimension 3.
MOST = 16
# Most entries of the arrays on all nodes: 128 MiB.
ROOM = 2**24
# Boxes further apart do not act on each other: e^(-9^2/2) = 3e-18.
FAR = 9
# Points of which the weights are held at a time.
CHUNK = 2**12


def error_bound(p: int, dim: int) -> float:
    """Return a bound of the error of the kernel, and of sigma times its gradient."""
    one = 1.0865 * math.sqrt((p + 1) / math.factorial(p)) * 2.0 ** (1 - 2 * p)
    factor = 2.0 / math.pi * math.log(p) + 1.0
    return one * sum(factor**k for k in range(2 * dim))


def nodes_for(tolerance: float, dim: int) -> int | None:
    """Return the least p whose error meets a tolerance, None if there is none."""
    if tolerance < LEAST:
        return None
    meets = (p for p in range(2, MOST + 1) if error_bound(p, dim) <= tolerance)
    return next(meets, None)


def gauss_transform(
    x: Tensor,
    points: Tensor,
    masses: Tensor,
    sigma: float,
    tolerance: float,
    *,
    gradients: bool,
) -> tuple[Tensor, Tensor] | None:
    r"""Return :math:`\sum_j a_{jl}\,e^{-|x_i-y_j|^2/2\sigma^2}`, and gradients in x.

    Parameters
    ----------
    x : Tensor, shape (m, d)
        Targets.
    points : Tensor, shape (n, d)
        Sources y.
    masses : Tensor, shape (n, k)
        Masses a of either sign.
    sigma : float
        The standard deviation.
    tolerance : float
        Bound of the error of a sum, over the sum of the absolute masses. The error of
        each component of a gradient is at most that over sigma. Round-off comes on top.
    gradients : bool
        Whether to compute the gradients too.

    Returns
    -------
    potentials : Tensor, shape (m, k)
        In the dtype of the points; computed in float64.
    gradients : Tensor, shape (m, k, d)
        Empty if not asked for.

    None if the sum over all pairs is expected to be as fast, or is needed: in dimension
    4 and above, for few points, for points spread over many sigma, or for a tolerance
    that is not met.
    """
    dim = x.shape[1]
    p = nodes_for(tolerance, dim) if dim <= 3 else None
    if p is None or not len(x) or not len(points):
        return None
    both = torch.stack([z.detach().aminmax(dim=0)[k] for k, z in _ends(x, points)])
    lower, upper = both[:2].amin(0).double(), both[2:].amax(0).double()
    counts = ((upper - lower) / sigma).floor() + 1.0
    if not bool(counts.isfinite().all()):
        return None
    boxes = [int(c) for c in counts.tolist()]
    fields = masses.shape[1] * (1 + dim if gradients else 1)
    nodes = math.prod(p * b for b in boxes)
    if nodes * fields > ROOM:
        return None
    # About nanoseconds on one core of a CPU, as measured; the pairs in float32.
    near = 2.0 * (len(x) + len(points)) * p**dim * (1 + fields)
    far = 0.2 * nodes * fields * dim * p * (2 * FAR + 1)
    if near + far > 0.8 * len(x) * len(points):
        return None
    grid = _Nodes(lower, sigma, p, tuple(boxes))
    held = grid.spread(points.detach(), masses.detach().double())
    sums = [grid.acted(held, None)]
    if gradients:
        sums += [grid.acted(held, axis) for axis in range(dim)]
    found = grid.read(x.detach(), torch.stack(sums, -1)).to(x.dtype)
    return found[..., 0], found[..., 1:] if gradients else x.new_zeros(0)


def _ends(x: Tensor, points: Tensor) -> list[tuple[int, Tensor]]:
    return [(0, x), (0, points), (1, x), (1, points)]


@dataclass(frozen=True)
class _Nodes:
    """Chebyshev nodes in boxes of side sigma, p along each axis of a box."""

    lower: Tensor
    sigma: float
    p: int
    boxes: tuple[int, ...]

    @property
    def places(self) -> Tensor:
        """The nodes of the interval (-1, 1)."""
        k = torch.arange(self.p, dtype=torch.float64, device=self.lower.device)
        return torch.cos(math.pi * (k + 0.5) / self.p)

    def spread(self, points: Tensor, masses: Tensor) -> Tensor:
        """Return masses on the nodes, (N_1, ..., N_d, k)."""
        cells, each = math.prod(self.boxes), self.p ** len(self.boxes)
        held = masses.new_zeros(cells, each, masses.shape[1])
        for chunk in range(0, len(points), CHUNK):
            part = slice(chunk, chunk + CHUNK)
            box, weights = self._weights(points[part])
            held.index_add_(0, box, weights[:, :, None] * masses[part, None])
        d = len(self.boxes)
        order = [i for axis in range(d) for i in (axis, d + axis)]
        held = held.reshape(*self.boxes, *([self.p] * d), -1).permute(*order, 2 * d)
        return held.reshape(*(self.p * b for b in self.boxes), -1)

    def acted(self, held: Tensor, slope: int | None) -> Tensor:
        """Return the sums at the nodes, or their derivative along an axis."""
        for axis, count in enumerate(self.boxes):
            cells = held.movedim(axis, 0)
            shape = cells.shape
            cells = cells.reshape(count, self.p, -1)
            total = torch.zeros_like(cells)
            apart = 0.5 * (self.places[:, None] - self.places)
            for shift in range(-min(FAR, count - 1), min(FAR, count - 1) + 1):
                z = apart + shift  # over sigma, from nodes of a box to those of another
                matrix = torch.exp(-0.5 * z.square())
                if axis == slope:
                    matrix = matrix * (-z / self.sigma)
                first, last = max(shift, 0), count + min(shift, 0)
                total[first:last] += matrix @ cells[first - shift : last - shift]
            held = total.reshape(shape).movedim(0, axis)
        return held

    def read(self, x: Tensor, sums: Tensor) -> Tensor:
        """Return sums (N_1, ..., N_d, k, f) interpolated at points, (m, k, f)."""
        d = len(self.boxes)
        ends = [size for b in self.boxes for size in (b, self.p)]
        order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2), 2 * d]
        table = sums.reshape(*ends, -1).permute(*order)
        table = table.reshape(math.prod(self.boxes), self.p**d, -1)
        found = table.new_empty(len(x), table.shape[2])
        for chunk in range(0, len(x), CHUNK):
            part = slice(chunk, chunk + CHUNK)
            box, weights = self._weights(x[part])
            found[part] = torch.bmm(weights[:, None], table[box])[:, 0]
        return found.reshape(len(x), *sums.shape[d:])

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box (n,) of each point, and the weights (n, p^d) of its nodes."""
        at = (x.double() - self.lower) / self.sigma
        sizes = at.new_tensor(self.boxes)
        cell = torch.minimum(at.floor(), sizes - 1.0)
        t = (2.0 * (at - cell) - 1.0).clamp(-1.0, 1.0)
        # The Lagrange polynomials are sums of T_k(t_j) T_k(t), k < p.
        k = torch.arange(self.p, dtype=torch.float64, device=x.device)
        values = torch.cos(k * torch.arccos(t)[..., None])
        own = torch.cos(k * torch.arccos(self.places)[:, None])
        own = own * torch.where(k == 0, 1.0, 2.0) / self.p
        each = values @ own.T  # (n, d, p)
        weights = each[:, 0]
        box = cell[:, 0].long()
        for axis, (_, count) in enumerate(pairwise(self.boxes), start=1):
            weights = (weights[:, :, None] * each[:, axis, None]).flatten(1)
            box = box * count + cell[:, axis].long()
        return box, weights
