"""Energy of a step density under a Gaussian kernel, by exact averages over cells."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from otflow._pairs import pair_sum, tiles
from otflow.kernels import Gaussian
from otflow.measures.sums import pair_energy

__all__ = ["gaussian_interaction", "narrow_hessian", "wide_interaction"]

# Gauss-Legendre nodes of a narrow cell. More than six would serve cells up to the
# standard deviation, at 64 pairs for two cells; closed forms cost less there.
ORDERS = (2, 3, 4, 5, 6)


@lru_cache
def rules(dtype: torch.dtype) -> tuple[tuple[float, Tensor, Tensor], ...]:
    r"""Return the longest cell, nodes and weights of each rule, on (0, 1).

    For k nodes and a cell of g standard deviations the remainder of the average is at
    most :math:`\frac{(k!)^4}{(2k+1)\,(2k)!^3} \max|W^{(2k)}|\,g^{2k}`, with the maximum
    :math:`(2k)!/(2^k k!)` at 0. For the longest cell the remainder is round-off.
    """
    rules = []
    for k in ORDERS:
        x, a = np.polynomial.legendre.leggauss(k)
        share = math.factorial(k) ** 3 / ((2 * k + 1) * math.factorial(2 * k) ** 2)
        longest = (torch.finfo(dtype).eps * 2.0**k / share) ** (0.5 / k)
        nodes, weights = torch.from_numpy(0.5 * (x + 1.0)), torch.from_numpy(0.5 * a)
        rules.append((longest, nodes.to(dtype), weights.to(dtype)))
    return tuple(rules)


def gaussian_interaction(edges: Tensor, weights: Tensor, W: Gaussian) -> Tensor:
    r"""Return :math:`\tfrac12\iint W(x - y)\,d\mu\,d\mu` of a step density, exactly.

    Narrow cells are integrated by Gauss nodes, as many as make the remainder round-off.
    Wide cells are integrated by the primitives of W, which cancel where cells are
    narrow. Both methods give the same function of the edges to round-off.

    Parameters
    ----------
    edges : Tensor, shape (n + 1,)
        Increasing.
    weights : Tensor, shape (n,)
        Masses of the cells.
    W : Gaussian
        Kernel.

    Returns
    -------
    Tensor
        0-d; differentiable to any order. Time O(n^2), memory O(n).
    """
    energy = wide_interaction(edges, weights, W)
    nodes, masses = _nodes(edges, weights, W)
    if len(nodes) > 0:
        energy = energy + pair_energy(W, nodes[:, None], masses)
    return energy


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
    nodes, masses = _nodes(edges, weights, W)
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


def narrow_hessian(edges: Tensor, weights: Tensor, W: Gaussian) -> Tensor:
    """Return the Hessian of the energy of narrow cells, (n + 1, n + 1), dense.

    For nodes x with masses a it is the Laplacian of the complete graph with weights
    :math:`a_i a_j W''(x_i - x_j)`; a node is a fixed mean of both ends of its cell.
    """
    own, share, mass = _rule_of_cells(edges, weights, W)
    x, size = torch.lerp(edges[own], edges[own + 1], share), len(edges)

    def onto_edges(rows: Tensor, own: Tensor, share: Tensor) -> Tensor:
        out = rows.new_zeros(size, rows.shape[1])
        out.index_add_(0, own, (1.0 - share)[:, None] * rows)
        return out.index_add_(0, own + 1, share[:, None] * rows)

    hessian = edges.new_zeros(size, size)
    for i in tiles(len(x)):
        s = ((x[i, None] - x) / W.sigma).square()
        curve = (s - 1.0) * (-0.5 * s).exp() / W.sigma**2
        pull = mass[i, None] * curve * mass
        total = torch.diag(pull.sum(1))
        rows = onto_edges(total, own[i], share[i]) - onto_edges(pull.T, own, share)
        hessian += onto_edges(rows.T, own[i], share[i])
    return hessian


def _nodes(edges: Tensor, weights: Tensor, W: Gaussian) -> tuple[Tensor, Tensor]:
    """Return nodes and masses of the narrow cells, (m,) each."""
    own, share, mass = _rule_of_cells(edges, weights, W)
    return torch.lerp(edges[own], edges[own + 1], share), mass


def _rule_of_cells(
    edges: Tensor, weights: Tensor, W: Gaussian
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cell of each node, its place in it, 0 to 1, and its mass, (m,)."""
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
