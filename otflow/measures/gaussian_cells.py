"""Energy of a step density under a Gaussian kernel: its exact averages over cells."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from otflow._autodiff import pair_sum
from otflow.kernels import Gaussian
from otflow.measures.sums import pair_energy

__all__ = ["gaussian_interaction", "is_narrow", "wide_interaction"]

# Gauss-Legendre nodes of a narrow cell. More than six would serve cells up to the
# standard deviation, at 64 pairs for two cells; closed forms cost less there.
ORDERS = (2, 3, 4, 5, 6)


@lru_cache
def _rules(dtype: torch.dtype) -> tuple[tuple[float, Tensor, Tensor], ...]:
    r"""Return the longest cell, nodes and weights of each rule, on (0, 1).

    For k nodes and a cell of g standard deviations the remainder of the average is at
    most :math:`\frac{(k!)^4}{(2k+1)\,(2k)!^3} \max|W^{(2k)}|\,g^{2k}`, with the maximum
    :math:`(2k)!/(2^k k!)` at 0. The longest cell has it at round-off.
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

    Narrow cells are integrated by so many Gauss nodes that the remainder is round-off;
    wide ones by the primitives of W, which cancel where cells are narrow. Both give the
    same function of the edges to round-off: which of them is taken does not show.

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


def is_narrow(edges: Tensor, W: Gaussian) -> Tensor:
    """Return which cells are integrated by nodes, (n,)."""
    return edges.detach().diff() <= _rules(edges.dtype)[-1][0] * W.sigma


def wide_interaction(edges: Tensor, weights: Tensor, W: Gaussian) -> Tensor:
    r"""Return the energy of wide cells with all cells.

    A wide cell is a density :math:`\rho` that jumps by b up at one edge and down at the
    other. With the primitives :math:`J' = W` and :math:`I' = J`, an atom of mass a at x
    has the energy :math:`a\,b\,J(x - q)` with a jump at q, and two jumps have
    :math:`-b\,b'\,I(q - q')`. The part :math:`\sigma\sqrt{\pi/2}\,|z|` of I grows for
    ever, and acts on no pair of cells but a cell and itself. It is taken out, so that
    far cells do not cancel.
    """
    narrow = is_narrow(edges, W)
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


def _nodes(edges: Tensor, weights: Tensor, W: Gaussian) -> tuple[Tensor, Tensor]:
    """Return nodes and masses of the narrow cells, (m,) each."""
    gaps, left, shorter = edges.diff(), edges[:-1], 0.0
    nodes, masses = [], []
    for longest, *rule in _rules(edges.dtype):
        own = (gaps > shorter) & (gaps <= longest * W.sigma)
        shorter = longest * W.sigma
        t, w = (r.to(edges.device) for r in rule)
        nodes.append((left[own][:, None] + gaps[own][:, None] * t).reshape(-1))
        masses.append((weights[own][:, None] * w).reshape(-1))
    return torch.cat(nodes), torch.cat(masses)
