"""Value and gradient of a risk in one pass over cache-sized blocks of data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.meanfield.losses import Loss
from otflow.meanfield.network import Network, block_rows
from otflow.meanfield.units import Unit

__all__ = [
    "hidden_blocks",
    "outputs_at",
    "value_and_gradient",
    "value_and_outer_gradient",
]


def hidden_blocks(
    unit: Unit, inputs: Tensor, inner: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of data and the hidden values there, without a graph.

    All blocks share one piece of memory: each is overwritten by the next. Fresh memory
    for each would cost several times as much as the products.

    Parameters
    ----------
    unit : Unit
        The unit.
    inputs : Tensor, shape (n, q)
        Encoded inputs.
    inner : Tensor, shape (N, q)
        Inner weights.

    Yields
    ------
    tuple of slice and Tensor, shape (k, N)
        The rows, and the hidden values.
    """
    n, count = len(inputs), len(inner)
    transposed = inner.detach().T.contiguous()
    size = min(n, block_rows(count, inner))
    block = inner.new_empty(size, count)
    for rows in tiles(n, size):
        x = inputs[rows]
        z = torch.mm(x, transposed, out=block[: len(x)])
        yield rows, unit.evaluate(z, z)


def outputs_at(
    network: Network, inputs: Tensor, theta: Tensor, masses: Tensor
) -> Tensor:
    """Return the outputs (n,) or (n, m) at encoded inputs, without the offset."""
    return torch.cat(
        [
            network.read_out(hidden, theta, masses)
            for _, hidden in network.hidden_blocks(inputs, theta)
        ]
    )


def value_and_gradient(
    network: Network,
    unit: Unit,
    loss: Loss,
    inputs: Tensor,
    y: Tensor,
    theta: Tensor,
    masses: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\frac1n\sum_k\ell(f_k, y_k)` and :math:`\nabla F'(\theta_i)/s_N`.

    A neuron is :math:`\theta = (a, \tilde w)`. Let g be the slope of the loss at
    :math:`f = \sum_i m_i\sigma(\cdot;\theta_i)`. The
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
    parts = (network.outputs or 1,)
    a, w = theta.tensor_split(parts, 1)
    transposed = w.T.contiguous()
    outer = masses[:, None] * a
    scalar = network.outputs is None
    # relu: phi(z) = z phi'(z), so that the first part follows from the second,
    # sum_k g_k phi(z_ki) = w_i . sum_k g_k phi'(z_ki) x_k.
    short = scalar and unit.homogeneous

    # Then z is not kept, and blocks are twice as long. Several outputs need both.
    one_buffer = scalar and unit.slope_from_value
    rows = min(n, block_rows(count, theta, 1 if one_buffer else 2))
    z_block = theta.new_empty(rows, count)
    h_block = z_block if one_buffer else torch.empty_like(z_block)
    total, gradient = theta.new_zeros(()), torch.zeros_like(theta)
    grad_a, grad_w = gradient.tensor_split(parts, 1)  # views
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


def value_and_outer_gradient(
    network: Network,
    loss: Loss,
    inputs: Tensor,
    y: Tensor,
    theta: Tensor,
    masses: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Return the risk, and :math:`\nabla_a F'(\theta_i)/s_N` in the outer weights.

    The gradient (N, m) is :math:`\frac1n\sum_k g_k\,\varphi(z_{ki})`: the activation
    needs no slope, and there is one product (n, q) x (q, N) in place of two.
    """
    n, total = len(y), theta.new_zeros(())
    gradient = theta.new_zeros(len(theta), network.outputs or 1)
    for rows, hidden in network.hidden_blocks(inputs, theta):
        f = network.add_offset(network.read_out(hidden, theta, masses))
        part, slope = loss.total_and_slope(f, y[rows])
        total += part
        g = slope[:, None] if network.outputs is None else slope
        gradient.addmm_(hidden.T, g)
    return total / n, gradient.div_(n)
