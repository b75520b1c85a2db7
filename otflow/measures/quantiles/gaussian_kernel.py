"""Energy of a step density under a Gaussian kernel, by exact averages over cells.

Narrow cells are integrated by Gauss nodes, as many as make the remainder round-off.
Wide cells are integrated by the primitives of the kernel, which cancel where cells are
narrow. Both methods give the same function of the edges to round-off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._graphs import kept
from otflow._pairs import pair_sum
from otflow.kernels import Gaussian
from otflow.numerics.quadrature import gauss_legendre

__all__ = ["narrow_cells", "wide_interaction"]

# Gauss-Legendre nodes of a narrow cell. More than six would serve cells up to the
# standard deviation, at 64 pairs for two cells; closed forms cost less there.
ORDERS = (2, 3, 4, 5, 6)


@kept
def rules(dtype: torch.dtype) -> tuple[tuple[float, Tensor, Tensor], ...]:
    r"""Return the longest cell, nodes and weights of each rule, on (0, 1).

    For k nodes and a cell of g standard deviations the remainder of the average is at
    most :math:`\frac{(k!)^4}{(2k+1)\,(2k)!^3} \max|W^{(2k)}|\,g^{2k}`, with the maximum
    :math:`(2k)!/(2^k k!)` at 0. For the longest cell the remainder is round-off.
    """
    rules = []
    for k in ORDERS:
        share = math.factorial(k) ** 3 / ((2 * k + 1) * math.factorial(2 * k) ** 2)
        longest = (torch.finfo(dtype).eps * 2.0**k / share) ** (0.5 / k)
        nodes, weights = (r.to(dtype) for r in gauss_legendre(k))
        rules.append((longest, nodes, weights))
    return tuple(rules)


def wide_interaction(edges: Tensor, weights: Tensor, W: Gaussian) -> Tensor:
    r"""Return the energy of wide cells with all cells.

    A wide cell is a density :math:`\rho` that jumps by b up at one edge and down at the
    other. With the primitives :math:`J' = W` and :math:`I' = J`, an atom of mass a at x
    and a jump at q have the energy :math:`a\,b\,J(x - q)`; two jumps have
    :math:`-b\,b'\,I(q - q')`. The part :math:`\sigma\sqrt{\pi/2}\,|z|` of I grows
    without bound, but sums to zero over every pair of different cells. It is removed,
    so that far cells do not cancel, and is added again for a cell with itself.
    """
    longest = rules(edges.dtype)[-1][0] * W.sigma
    narrow = edges.detach().diff() <= longest
    if bool(narrow.all()):
        return edges.new_zeros(())
    own, share, masses = narrow_cells(edges, weights, W)
    nodes = torch.lerp(edges[own], edges[own + 1], share)
    scale = math.sqrt(2.0) * W.sigma
    slope = 0.5 * math.sqrt(math.pi) * scale
    density = (weights / edges.diff()).masked_fill(narrow, 0.0)
    none, no = density.new_zeros(1), narrow.new_zeros(1)
    beside = torch.cat([~narrow, no]) | torch.cat([no, ~narrow])
    jumps = (torch.cat([density, none]) - torch.cat([none, density]))[beside]
    x = torch.cat([nodes, edges[beside]])
    a = torch.cat([masses, torch.zeros_like(jumps)])
    b = torch.cat([torch.zeros_like(masses), jumps])

    def energy(
        x: Tensor, a: Tensor, b: Tensor, y: Tensor, c: Tensor, d: Tensor, _: bool
    ) -> Tensor:
        if not bool(b.any()) and not bool(d.any()):  # nodes alone: not counted here
            return x.new_zeros(())
        t = (x[:, None] - y) / scale
        first = slope * torch.erf(t)
        length = t.abs()
        second = (-t * t).exp() - math.sqrt(math.pi) * length * torch.erfc(length)
        second = W.sigma**2 * second
        return 0.5 * (a @ first @ d - b @ first @ c - b @ second @ d)

    return pair_sum(energy, x, a, b) + slope * (weights @ density)


def narrow_cells(
    edges: Tensor, weights: Tensor, W: Gaussian
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nodes of narrow cells: cell, place in it from 0 to 1, mass, (m,)."""
    gaps, shorter = edges.detach().diff(), 0.0
    cells, shares, masses = [], [], []
    for longest, *rule in rules(edges.dtype):
        t, w = (r.to(edges.device) for r in rule)
        own = ((gaps > shorter) & (gaps <= longest * W.sigma)).nonzero()[:, 0]
        shorter = longest * W.sigma
        cells.append(own.repeat_interleave(len(t)))
        shares.append(t.repeat(len(own)))
        masses.append((weights[own][:, None] * w).reshape(-1))
    return torch.cat(cells), torch.cat(shares), torch.cat(masses)
