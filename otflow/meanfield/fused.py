"""Value and gradient of a risk in one pass over cache-sized blocks of data."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.losses import Loss
from otflow.meanfield.network import Network, block_rows
from otflow.meanfield.units import Unit
from otflow.measures import Particles

__all__ = ["value_and_gradient", "value_and_variation"]


def value_and_gradient(
    network: TwoLayer,
    unit: Unit,
    loss: Loss,
    inputs: Tensor,
    y: Tensor,
    theta: Tensor,
    masses: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\frac1n\sum_k\ell(f_k, y_k)` and :math:`\nabla F'(\theta_i)/s_N`.

    Let g be the slope of the loss at :math:`f = \sum_i m_i\sigma(\cdot;\theta_i)`. The
    gradient is :math:`\frac1n\sum_k g_k\cdot\nabla_\theta\sigma(x_k;\theta_i)`. For
    rows :math:`\tilde x` of `inputs`, inner weights :math:`\tilde w` of a neuron, and
    :math:`z_{ki} = \tilde w_i\cdot\tilde x_k`, its parts are

    .. math:: \partial_a : \frac1n\sum_k g_k\,\varphi(z_{ki}), \qquad
        \partial_{\tilde w} :
        \frac1n\sum_k (g_k\cdot a_i)\,\varphi'(z_{ki})\,\tilde x_k.

    No mass divides the gradient, so a mass may be zero. The hidden values of a block of
    rows are computed once and used for f and for the gradient while they are in the
    cache. Time: two products (n, q) x (q, N); memory O(N q) and two blocks.
    """
    n, count = len(inputs), len(theta)
    a, w = network.split(theta)
    transposed = w.T.contiguous()
    outer = masses[:, None] * a
    scalar = network.outputs is None
    # relu: phi(z) = z phi'(z), so that the first part follows from the second,
    # sum_k g_k phi(z_ki) = w_i . sum_k g_k phi'(z_ki) x_k.
    short = scalar and unit.homogeneous

    rows = min(n, block_rows(count, theta, 1 if short else 2))
    z_block = theta.new_empty(rows, count)
    h_block = z_block if short else torch.empty_like(z_block)
    total, gradient = theta.new_zeros(()), torch.zeros_like(theta)
    grad_a, grad_w = network.split(gradient)  # views
    for block in tiles(n, rows):
        x = inputs[block]
        z = torch.mm(x, transposed, out=z_block[: len(x)])
        h = unit.evaluate(z, h_block[: len(x)])
        f = h @ outer[:, 0] if scalar else h @ outer
        part, slope = loss.total_and_slope(network.add_offset(f), y[block])
        total += part
        g = slope[:, None] if scalar else slope
        if not short:
            grad_a.addmm_(h.T, g)
        bent = unit.slope(z, h, z)  # in place: z is not used again, nor is h below
        if scalar:
            # g_k a_i is a product: g scales rows of x, and a the sum after the loop.
            x = x * g
        else:
            bent.mul_(torch.mm(g, a.T, out=h))
        grad_w.addmm_(bent.T, x)
    if short:
        torch.sum(w * grad_w, dim=1, keepdim=True, out=grad_a)
    if scalar:
        grad_w.mul_(a)
    return total / n, gradient.div_(n)


def value_and_variation(
    network: Network,
    loss: Loss,
    inputs: Tensor,
    y: Tensor,
    mu: Particles,
    probes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\frac1n\sum_k\ell(f_k, y_k)` and F' at probes, or at the atoms.

    The hidden values of a block of rows are computed once for both. At the atoms that
    takes one product (n, q) x (q, N); at m probes one more, with m.
    """
    theta, n = mu.points, len(y)
    at = theta if probes is None else probes
    masses, correlations = network.masses(mu.weights), at.new_zeros(len(at))
    total = at.new_zeros(())
    for rows in tiles(n, block_rows(max(mu.n, len(at)), theta)):
        x = inputs[rows]
        hidden = network.hidden(x, theta)
        f = network.add_offset(network.read_out(hidden, theta, masses))
        part, slope = loss.total_and_slope(f, y[rows])
        total += part
        if probes is not None:
            hidden = network.hidden(x, probes)
        correlations += network.correlate(hidden, at, slope)
    return total / n, correlations * (network.scale(mu.weights) / n)
