"""Gauss quadrature: rules on an interval, and their products on cubes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otflow._graphs import kept

__all__ = ["gauss_legendre", "product_rule"]


@kept
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights on (0, 1), float64, on the CPU.

    The rule is exact for polynomials up to the degree ``2 * count - 1``. The tensors
    are shared: do not write into them.

    Examples
    --------
    >>> from otflow.numerics.quadrature import gauss_legendre
    >>> nodes, weights = gauss_legendre(2)
    >>> round(float(weights @ nodes**3), 12)
    0.25
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy(0.5 * (nodes + 1.0)), torch.from_numpy(0.5 * weights)


def product_rule(nodes: Tensor, weights: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the nodes (m, dim) and weights (m,) of one rule on each of `dim` axes."""
    points = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    return points, torch.cartesian_prod(*[weights] * dim).reshape(-1, dim).prod(-1)
