"""Nodes for the difference of two points of a Gaussian law, in polar coordinates.

Kernels are seldom smooth at 0. Along a ray from 0 they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._graphs import kept
from otflow.numerics.quadrature import gauss_legendre

__all__ = ["MOST_DEGREE", "polar_nodes"]

# Most radii of one Gauss rule. Its least weight is 1e-66 there; panels follow.
MOST_RADII = 64
MOST_DEGREE = 2 * MOST_RADII - 1  # of polynomials that a rule integrates exactly
# Nodes of a panel, and the radius where the panels end: what r^126 gathers beyond is
# below round-off. A rule of panels reaches twice as far as the nodes that it replaces,
# and has twice as many radii.
PER_PANEL = 16
LAST_RADIUS = 18.0


@kept
def polar_nodes(dim: int, per_axis: int) -> tuple[Tensor, Tensor]:
    r"""Return nodes on a half-space with :math:`\sum_k w_k f(z_k) \approx E f(z)`.

    Here z is white. The nodes serve even functions f. Let k = `per_axis` be 2 to 64.
    Then the rule is exact for :math:`|z|^j` times a polynomial of even degree i in z,
    if :math:`i + j < 2k`. The exponent j may be odd. Rules of larger k are exact to
    round-off up to the degree of k = 64.

    Parameters
    ----------
    dim : int
        Dimension, 1 to 3.
    per_axis : int
        Number of radii. There are :math:`2k` directions in the plane, about
        :math:`k^2` in space.

    Returns
    -------
    points : Tensor, shape (m, dim)
        Float64, on the CPU; of second moment the identity.
    weights : Tensor, shape (m,)
        Of sum 1. Do not write into either.
    """
    if per_axis <= MOST_RADII:
        r, mass = _gauss(dim, per_axis)
    else:
        r, mass = _panels(dim, 2 * per_axis, LAST_RADIUS)
    mass = mass / mass.sum()
    r = r * (dim / (mass @ r.square())).sqrt()
    u, share = _directions(dim, per_axis)
    points = (u[:, None, :] * r[:, None]).reshape(-1, dim)
    return points, torch.outer(share, mass).reshape(-1)


def _gauss(dim: int, count: int) -> tuple[Tensor, Tensor]:
    r"""Return the Gauss rule of the weight :math:`r^{d-1}e^{-r^2/2}` on r > 0."""
    # The weight on a fine grid has the same orthogonal polynomials to round-off.
    # Lanczos' method finds their recurrence (Golub and Welsch).
    r, w = _panels(dim, PER_PANEL * (count + 10), math.sqrt(8.0 * count) + 8.0)
    basis = (w / w.sum()).sqrt()[None]
    diagonal, beside = [], []
    for _ in range(count):
        new = r * basis[-1]
        diagonal.append(new @ basis[-1])
        for _ in range(2):  # once would lose orthogonality to round-off
            new = new - basis.T @ (basis @ new)
        beside.append(new.norm())
        basis = torch.cat([basis, (new / beside[-1])[None]])
    a, b = torch.stack(diagonal), torch.stack(beside)[:-1]
    x = torch.linalg.eigvalsh(torch.diag(a) + torch.diag(b, 1) + torch.diag(b, -1))
    # Christoffel's formula gives the least weights with all their digits.
    before, now, total = torch.zeros_like(x), torch.ones_like(x), torch.ones_like(x)
    for j in range(count - 1):
        last = b[j - 1] if j else 0.0
        before, now = now, ((x - a[j]) * now - last * before) / b[j]
        total = total + now.square()
    return x, total.reciprocal()


def _panels(dim: int, count: int, last: float) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes on panels that shorten towards 0."""
    panels = math.ceil(count / PER_PANEL)
    ends = last * torch.linspace(0, 1, panels + 1, dtype=torch.float64).square()
    t, w = gauss_legendre(PER_PANEL)
    r = torch.lerp(ends[:-1, None], ends[1:, None], t).reshape(-1)
    w = (ends.diff()[:, None] * w).reshape(-1)
    return r, w * (-0.5 * r * r).exp() * r.pow(dim - 1)


def _directions(dim: int, count: int) -> tuple[Tensor, Tensor]:
    """Return unit vectors of a half-space, (m, dim), and their shares."""
    whole = torch.ones(1, dtype=torch.float64)
    if dim == 1:
        return whole[:, None], whole
    angles = 2 * count
    places = torch.arange(angles, dtype=torch.float64) + 0.5
    if dim == 2:
        turn = places * (math.pi / angles)
        u = torch.stack([turn.cos(), turn.sin()], dim=1)
        return u, torch.full_like(turn, 1.0 / angles)
    # The heights of the upper half of a rule on (-1, 1), with all longitudes.
    even = count + count % 2
    height, share = (x[even // 2 :] for x in gauss_legendre(even))
    turn = places * (2 * math.pi / angles)
    h, turn = torch.cartesian_prod(2.0 * height - 1.0, turn).T
    side = (1.0 - h.square()).sqrt()
    u = torch.stack([side * turn.cos(), side * turn.sin(), h], dim=1)
    return u, (2.0 * share / angles).repeat_interleave(angles)
