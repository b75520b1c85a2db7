"""Interaction energy of a density that is constant on neighbouring intervals."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor

from otflow._autodiff import line_derivatives
from otflow._graphs import kept
from otflow._pairs import tiles
from otflow.errors import NonFinite
from otflow.kernels import Function, Gaussian, Kernel
from otflow.measures.quantiles.gaussian_kernel import narrow_cells, wide_interaction
from otflow.measures.sums import pair_energy, pair_potential, sum_at
from otflow.numerics.quadrature import gauss_legendre

__all__ = [
    "cell_interaction",
    "cell_potential",
    "far_hessian",
    "lump",
    "near_interaction",
]

# Cells fewer places apart than this interact by the exact average of the kernel.
BAND = 4
# Gauss-Legendre nodes in u, with z = g u^p: nodes crowd where W may be singular, as
# closely as squares of z stay above the least numbers.
NODES = 32
# Of the two-point Gauss rule, from the centre, in lengths of the cell.
REACH = 0.5 / math.sqrt(3.0)
# Places where a function is seen to be integrable at 0. Their squares do not underflow.
NEAR = {torch.float64: (1e-50, 1e-100), torch.float32: (1e-9, 1e-18)}
POWERS = {torch.float64: 8, torch.float32: 4}


@kept
def _rule(power: int) -> tuple[Tensor, Tensor]:
    """Return nodes t and weights of the integral of (1 - t) f(t) over (0, 1)."""
    u, a = gauss_legendre(NODES)
    t = u.pow(power)
    return t, a * power * u.pow(power - 1) * (1.0 - t)


def cell_interaction(edges: Tensor, weights: Tensor, W: Kernel) -> Tensor:
    r"""Return :math:`\tfrac12\iint W(x - y)\,d\mu\,d\mu` of a step density.

    A Gaussian, whose range is finite, is averaged over all cells exactly. Any other
    smooth kernel is summed over the quantiles with their lumped masses, as an
    expectation is. Under every other kernel, cells far apart interact through two Gauss
    nodes each, and cells less than `BAND` places apart by the exact average: for a
    logarithm the nodes alone would err by a share 1/n. Let :math:`I(g) = \int_0^g (g -
    z)\,W(z)\,dz` be the second primitive of W. The average of W over the cells i and j
    > i is the second difference

    .. math:: \frac{I(q_{j+1}-q_i) - I(q_j-q_i) - I(q_{j+1}-q_{i+1}) + I(q_j-q_{i+1})}
        {g_i g_j},

    and :math:`2 I(g_i)/g_i^2` over a cell and itself. It is finite for every integrable
    singularity.

    Parameters
    ----------
    edges : Tensor, shape (n + 1,)
        Increasing.
    weights : Tensor, shape (n,)
        Masses of the cells.
    W : callable
        Kernel of the difference.

    Returns
    -------
    Tensor
        0-d; differentiable to any order. Time O(n^2), memory O(n).
    """
    if _is_lumped(W):
        return pair_energy(W, edges[:, None], lump(weights))
    _check_integrable(W, edges)
    nodes, masses, *_ = _nodes(edges, weights, W)
    near = near_interaction(edges, weights, W)
    if len(nodes) == 0:  # all cells are wide
        return near
    # A kernel that is not known to be finite at 0 is not asked for its value there.
    at_nodes = W if W.is_radial or W.singular else Function(W, singular=True)
    return pair_energy(at_nodes, nodes[:, None], masses) + near


def cell_potential(edges: Tensor, weights: Tensor, W: Kernel, x: Tensor) -> Tensor:
    r"""Return :math:`\int \tfrac12(W(x - y) + W(y - x))\,d\mu(y)` of a step density.

    The rules are those of `cell_interaction`; for a Gaussian the primitive is exact.
    The average of W over a cell from a to b is :math:`(P(x - a) - P(x - b))/(b - a)`, P
    the primitive of its even part. It replaces the nodes of cells less than `BAND`
    places from that of x.

    Parameters
    ----------
    edges, weights, W
        As in `cell_interaction`.
    x : Tensor, shape (m,)
        Anywhere on the line.

    Returns
    -------
    Tensor, shape (m,)
        Differentiable to any order. Time O(n m), memory O(n + m).
    """
    if _is_gaussian(W):
        rho, none = weights / edges.diff(), weights.new_zeros(1)
        jumps = torch.cat([rho, none]) - torch.cat([none, rho])
        scale = math.sqrt(2.0) * W.sigma
        steps = sum_at(
            lambda z: torch.erf(z[..., 0] / scale), x[:, None], edges[:, None], jumps
        )
        return 0.5 * math.sqrt(math.pi) * scale * steps
    if _is_lumped(W):
        return pair_potential(W, x[:, None], edges[:, None], lump(weights))
    _check_integrable(W, edges)

    def at_node(z: Tensor) -> Tensor:
        """Return W, and 0 at a node itself: it is taken away again."""
        same = z == 0
        return W.even(z.masked_fill(same, 1.0)).masked_fill(same[..., 0], 0.0)

    nodes, halves, *_ = _nodes(edges, weights, W)
    closed = not W.has_graph(x[:, None])
    far = sum_at(at_node, x[:, None], nodes[:, None], halves, is_closed=closed)
    edges, weights, x = _wide(W, edges), _wide(W, weights), _wide(W, x)
    last = len(weights) - 1
    own = (torch.searchsorted(edges.detach(), x.detach()) - 1).clamp(0, last)
    near = []
    for place in (own + offset for offset in range(1 - BAND, BAND)):
        cell = place.clamp(0, last)
        a, b = edges[cell], edges[cell + 1]
        average = (_primitive(W, x - a) - _primitive(W, x - b)) / (b - a)
        middle, reach = x - 0.5 * (a + b), (b - a) * REACH
        through_nodes = at_node(
            torch.stack([middle - reach, middle + reach])[..., None]
        )
        part = weights[cell] * (average - through_nodes.mean(0))
        near.append(part.masked_fill(cell != place, 0.0))
    return far + torch.stack(near).sum(0).to(far)


def near_interaction(edges: Tensor, weights: Tensor, W: Kernel) -> Tensor:
    """Return what `cell_interaction` adds to the energy of its nodes."""
    if _is_gaussian(W):
        return wide_interaction(edges, weights, W)
    if _is_lumped(W):
        return edges.new_zeros(())
    dtype = edges.dtype
    edges, weights = _wide(W, edges), _wide(W, weights)
    gaps, centres = edges.diff(), 0.5 * (edges[1:] + edges[:-1])
    n, reach = len(gaps), gaps * REACH
    primitives = [
        _second_primitive(W, edges[k:] - edges[:-k]) for k in range(1, min(BAND, n) + 1)
    ]
    own = 2.0 * primitives[0] / (gaps * gaps) - 0.5 * _even(W, 2.0 * reach)
    if not W.singular and W.is_radial:
        own = own - 0.5 * _even(W, torch.zeros_like(gaps))
    near = 0.5 * (weights * weights) @ own
    for k in range(1, len(primitives)):
        second = primitives[k] - primitives[k - 1][:-1] - primitives[k - 1][1:]
        if k > 1:
            second = second + primitives[k - 2][1:-1]
        average = second / (gaps[:-k] * gaps[k:])
        apart = centres[k:] - centres[:-k]
        inner, outer = reach[k:] - reach[:-k], reach[k:] + reach[:-k]
        offsets = torch.stack([inner, -inner, outer, -outer])
        through_nodes = _even(W, apart + offsets).mean(0)
        near = near + (weights[:-k] * weights[k:]) @ (average - through_nodes)
    return near.to(dtype)


def far_hessian(edges: Tensor, weights: Tensor, W: Kernel) -> Tensor:
    """Return the Hessian of the energy of the nodes, (n + 1, n + 1), dense.

    For nodes x with masses a it is the Laplacian of the complete graph with weights
    :math:`a_i a_j W''(x_i - x_j)`; a node is a fixed mean of both ends of its cell.
    Time and memory O(n^2).
    """
    x, mass, own, share = _nodes(edges, weights, W)
    size = len(edges)

    def onto_edges(rows: Tensor, own: Tensor, share: Tensor) -> Tensor:
        out = rows.new_zeros(size, rows.shape[1])
        out.index_add_(0, own, (1.0 - share)[:, None] * rows)
        return out.index_add_(0, own + 1, share[:, None] * rows)

    hessian = edges.new_zeros(size, size)
    for i in tiles(len(x)):
        pull = mass[i, None] * _curvature(W, x[i, None] - x) * mass
        total = torch.diag(pull.sum(1))
        rows = onto_edges(total, own[i], share[i]) - onto_edges(pull.T, own, share)
        hessian += onto_edges(rows.T, own[i], share[i])
    return hessian


def _curvature(W: Kernel, z: Tensor) -> Tensor:
    """Return W''(z), with 0 for a node and itself unless W is a Gaussian."""
    if _is_gaussian(W):
        s = (z / W.sigma).square()
        return (s - 1.0) * (-0.5 * s).exp() / W.sigma**2
    same = z == 0
    apart = z.masked_fill(same, 1.0).reshape(-1, 1)
    curve = line_derivatives(lambda u: _even(W, u[:, 0]), apart)[2]
    return curve.reshape(z.shape).masked_fill(same, 0.0)


def lump(weights: Tensor) -> Tensor:
    """Return half of the mass on either side of each quantile, (n + 1,)."""
    nothing = weights.new_zeros(1)
    return 0.5 * (torch.cat([weights, nothing]) + torch.cat([nothing, weights]))


def _is_gaussian(W: Kernel) -> TypeGuard[Gaussian]:
    # A subclass may have another profile.
    return type(W) is Gaussian


def _is_lumped(W: Kernel) -> bool:
    return W.smooth and not W.singular and not _is_gaussian(W)


def _nodes(edges: Tensor, weights: Tensor, W: Kernel) -> tuple[Tensor, ...]:
    """Return the nodes of an energy, (m,): place, mass, cell, and share of the cell.

    These are the nodes of narrow cells for a Gaussian, the quantiles for a kernel that
    is lumped, and two Gauss nodes a cell for any other.
    """
    last = len(weights) - 1
    index = torch.arange(last + 2, device=edges.device)
    if _is_gaussian(W):
        own, share, mass = narrow_cells(edges, weights, W)
    elif _is_lumped(W):
        own, mass = index.clamp_max(last), lump(weights)
        share = (index > last).to(edges)
    else:
        own, mass = index[:-1].repeat(2), 0.5 * weights.repeat(2)
        lower = torch.full_like(weights, 0.5 - REACH)
        share = torch.cat([lower, 1.0 - lower])
    return torch.lerp(edges[own], edges[own + 1], share), mass, own, share


def _second_primitive(W: Kernel, length: Tensor) -> Tensor:
    t, w = (r.to(length) for r in _rule(POWERS[length.dtype]))
    return length * length * (_even(W, length[:, None] * t) @ w)


def _primitive(W: Kernel, z: Tensor) -> Tensor:
    """Return the integral of the even part of W from 0 to z, 0 at 0."""
    t, w = (r.to(z) for r in _rule(POWERS[z.dtype]))
    at = z.masked_fill(z == 0, 1.0)
    return z * (_even(W, at[:, None] * t) @ (w / (1.0 - t)))


def _wide(W: Kernel, x: Tensor) -> Tensor:
    """Return x in float64 if W is made of numbers, as the library's kernels are.

    Close to 0 the second derivatives of a singular kernel overflow in float32.
    """
    return x if W.key() is None else x.double()


def _even(W: Kernel, z: Tensor) -> Tensor:
    """Return the even part of W at differences z on the line."""
    return W.even(z[..., None])


def _check_integrable(W: Kernel, edges: Tensor) -> None:
    """Raise NonFinite if a singularity is not integrable: then two rules differ."""
    if W.is_radial and not W.singular:
        return
    with torch.no_grad():
        # |z W(z)| does not fall towards 0.
        z = edges.new_tensor(NEAR[edges.dtype])
        far, near = (_even(W, z) * z).abs().tolist()
        wrong = near > 0.5 * far > 0
        if W.singular:
            coarse, fine = (float(_even(W, t) @ w) for t, w in (_rule(8), _rule(16)))
            wrong = wrong or abs(fine - coarse) > 1e-3 * max(abs(fine), 1.0)
    if wrong:
        msg = (
            f"{W!r} is not integrable at 0 on the line: the energy of a density under "
            f"it is infinite; use Particles, which leave out the pairs i = j of a "
            f"singular kernel"
        )
        raise NonFinite(msg)
