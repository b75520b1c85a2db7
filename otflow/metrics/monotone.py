"""Prove that the coupling by index is optimal, as between the ends of a JKO step."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._pairs import tiles
from otflow.metrics.bracket import NOISE

__all__ = ["round_off", "supporting_potential"]

# Near neighbours whose planes support the first potential of a point.
NEIGHBOURS = 10
# Most comparisons with the planes of all pairs, O(n^2 d) each. Each adds the highest
# plane of a point to those that support its potential.
SWEEPS = 8


def supporting_potential(x: Tensor, y: Tensor) -> Tensor | None:
    r"""Return a convex potential with subgradients x at y, or None.

    A :math:`\varphi` with :math:`\varphi_j \ge \varphi_i + x_i\cdot(y_j - y_i)` exists
    if and only if the coupling :math:`x_i \to y_i` is optimal for the cost
    :math:`|x-y|^2`: then :math:`x_i` is a subgradient at :math:`y_i` of a convex
    function :cite:p:`villani2003topics`.

    The search starts from the quadratic function whose gradient fits best. It raises
    each value to the highest supporting plane of near neighbours until nothing changes.
    Then it compares the values with the planes of all pairs. None means that the
    coupling is not optimal, or that the search reached its limit.

    Time O(n^2 d) if the coupling is a smooth monotone map; memory O(n (d + 256)).

    Parameters
    ----------
    x, y : Tensor, shape (n, d)
        Points, float64. Centred points have less round-off.

    Returns
    -------
    Tensor, shape (n,), or None
        The potential. The inequality holds up to `round_off`; the caller compares that
        with the cost.
    """
    slack = round_off(x, y)
    # A few pairs reject most couplings that are not optimal, before the O(n^2) search.
    if not _is_monotone(x, y, _shifted(len(x)), slack):
        return None
    phi = _best_quadratic(x, y)
    sources: Tensor | None = None
    for _ in range(SWEEPS):
        raised, source = _highest_planes(x, y, phi)
        if bool((raised - phi <= slack).all()):
            return phi
        if sources is None:
            # Far from optimal, most often two points are cheaper after an exchange.
            if not _is_monotone(x, y, source[:, None], slack):
                return None
            sources = _neighbours(y)
            if not _is_monotone(x, y, sources, slack):
                return None
        sources = torch.cat([sources, source[:, None]], dim=1)
        settled = _settle(x, y, phi, sources, slack)
        if settled is None:
            return None
        phi = settled
    return None


def round_off(x: Tensor, y: Tensor) -> float:
    """Return the round-off of products of these points."""
    norms = x.square().sum(1).max() * y.square().sum(1).max()
    return NOISE * float(norms.sqrt())


def _shifted(n: int) -> Tensor:
    """Return the indices of the next rows of each row, (n, k)."""
    return (torch.arange(n)[:, None] + torch.arange(1, NEIGHBOURS + 1)) % n


def _best_quadratic(x: Tensor, y: Tensor) -> Tensor:
    """Return y.Sy/2 for the symmetric S with the least sum of |x_i - S y_i|^2."""
    scales, axes = torch.linalg.eigh(y.T @ y)
    cross = axes.T @ (y.T @ x + x.T @ y) @ axes
    sums = scales[:, None] + scales
    good = sums > 1e-12 * scales[-1]  # an axis along which y is flat has no slope
    slopes = torch.where(good, cross / sums.masked_fill(~good, 1.0), 0.0)
    images: Tensor = y @ axes @ slopes @ axes.T
    return 0.5 * (images * y).sum(1)


def _highest_planes(x: Tensor, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over i of phi_i + x_i.(y_j - y_i), and its i, for every j."""
    heights = phi - (x * y).sum(1)
    parts = [torch.addmm(heights, y[j], x.T).max(dim=1) for j in tiles(len(y))]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _is_monotone(x: Tensor, y: Tensor, sources: Tensor, slack: float) -> bool:
    """Whether (x_i - x_j).(y_i - y_j) >= 0 for every j and its sources i."""
    products = ((x[:, None] - x[sources]) * (y[:, None] - y[sources])).sum(-1)
    return bool((products >= -slack).all())


def _neighbours(y: Tensor) -> Tensor:
    """Return the indices (n, k) of the nearest points of each."""
    spatial = lazy_import("scipy.spatial")
    k = min(NEIGHBOURS, len(y) - 1) + 1  # a point is its own nearest
    return torch.from_numpy(spatial.cKDTree(y.numpy()).query(y.numpy(), k)[1])


def _settle(
    x: Tensor, y: Tensor, phi: Tensor, sources: Tensor, slack: float
) -> Tensor | None:
    """Raise phi to the planes of the sources until nothing changes (Bellman-Ford)."""
    slopes = (x[sources] * (y[:, None] - y[sources])).sum(-1)
    # A change travels one edge a sweep, and the graph of neighbours is some n^(1/2)
    # edges wide in the plane. Around a cycle of negative cost a change never ends.
    for _ in range(50 + 10 * int(len(y) ** 0.5)):
        raised = (phi[sources] + slopes).amax(dim=1)
        if bool((raised - phi <= slack).all()):
            return phi
        phi = torch.maximum(phi, raised)
    return None
