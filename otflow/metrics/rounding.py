r"""The cost of a plan whose second marginal is corrected, from moments.

A plan P has the marginals a and :math:`b'` near b. The excess :math:`(b' - b)_+` is
moved on to the places of the deficit :math:`(b - b')_+`: in cells of two nodes a side
as far as both meet there, the rest in cells of four, and so on. Mass that comes from x
by way of y ends in z at the cost :math:`|x - z|^2`. In a cell excess and deficit are
coupled as a product, so sums over y and over z give the cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.metrics.lattices import Lattice, halved

__all__ = ["rounded_cost"]


def rounded_cost(
    nu: Lattice, reached: Tensor, means: Tensor, squares: Tensor
) -> tuple[float, float]:
    r"""Return the cost of the corrected plan, and the mass that was moved on.

    Parameters
    ----------
    nu : Lattice
        The second measure, b.
    reached : Tensor, shape (m_1, ..., m_d)
        The second marginal :math:`b'` of the plan, of the same sum.
    means : Tensor, shape (m_1, ..., m_d, d)
        The mean source :math:`E[x | y]`.
    squares : Tensor, shape (m_1, ..., m_d)
        The mean cost :math:`E[|x - y|^2 | y]`.

    Notes
    -----
    Time O(m d), memory O(m d).
    """
    excess = (reached - nu.masses).clamp_min(0.0)
    deficit = (nu.masses - reached).clamp_min(0.0)
    moved = float(excess.sum())
    d = nu.masses.ndim
    y = torch.stack([nu.on(k, x).expand_as(excess) for k, x in enumerate(nu.axes)], -1)
    # From y to z: |x - z|^2 - |x - y|^2 = |z|^2 - 2 z.x + (2 y.x - |y|^2).
    own = 2 * (y * means).sum(-1) - y.square().sum(-1)
    source = excess[..., None] * torch.cat([own[..., None], means], -1)
    goal = deficit[..., None] * torch.cat([y.square().sum(-1, keepdim=True), y], -1)
    source = torch.cat([excess[..., None], source], -1)
    goal = torch.cat([deficit[..., None], goal], -1)
    cost = float((reached * squares).sum())
    while True:
        met = torch.minimum(source[..., 0], goal[..., 0])
        leaves, enters = (
            (met / s[..., 0].masked_fill(s[..., 0] <= 0, 1.0))[..., None] * s
            for s in (source, goal)
        )
        products = (enters[..., 2:] * leaves[..., 2:]).sum(-1)
        products = products / met.masked_fill(met <= 0, 1.0)
        cost += float((enters[..., 1] + leaves[..., 1] - 2 * products).sum())
        source, goal = source - leaves, goal - enters
        if source[..., 0].numel() == 1:
            return cost, moved
        for k in range(d):
            source, goal = halved(source, k), halved(goal, k)
