"""Value and gradient of a risk in one pass over cache-sized blocks of data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.losses import Loss
from otflow.meanfield.network import Network, block_rows
from otflow.meanfield.units import UNITS, Unit
from otflow.measures import Particles

__all__ = [
    "hidden_blocks",
    "outputs_at",
    "value_and_gradient",
    "value_and_outer_gradient",
    "value_and_variation",
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
    network: TwoLayer, unit: Unit, inputs: Tensor, theta: Tensor, masses: Tensor
) -> Tensor:
    """Return the outputs (n,) or (n, m) at encoded inputs, without a graph."""
    inner = network.split(theta)[1]
    return torch.cat(
        [
            network.read_out(hidden, theta, masses)
            for _, hidden in hidden_blocks(unit, inputs, inner)
        ]
    )


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

    # The slope of relu follows from its value, so that z is not kept. That of another
    # homogeneous unit may need the sign of z.
    one_buffer = short and type(unit) is type(UNITS["relu"])

    rows = min(n, block_rows(count, theta, 1 if one_buffer else 2))
    z_block = theta.new_empty(rows, count)
    h_block = z_block if one_buffer else torch.empty_like(z_block)
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


def value_and_outer_gradient(
    network: TwoLayer,
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
    for rows, hidden in _blocks(network, inputs, theta, 0):
        f = network.add_offset(network.read_out(hidden, theta, masses))
        part, slope = loss.total_and_slope(f, y[rows])
        total += part
        g = slope[:, None] if network.outputs is None else slope
        gradient.addmm_(hidden.T, g)
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

    The hidden values of a block of rows serve both. At the atoms that
    takes one product (n, q) x (q, N); at m probes one more, with m.
    """
    theta, n = mu.points, len(y)
    at = theta if probes is None else probes
    masses, correlations = network.masses(mu.weights), at.new_zeros(len(at))
    total = at.new_zeros(())
    for rows, hidden in _blocks(network, inputs, theta, len(at)):
        f = network.add_offset(network.read_out(hidden, theta, masses))
        part, slope = loss.total_and_slope(f, y[rows])
        total += part
        there = hidden if probes is None else network.hidden(inputs[rows], probes)
        correlations += network.correlate(there, at, slope)
    return total / n, correlations * (network.scale(mu.weights) / n)


def _blocks(
    network: Network, inputs: Tensor, theta: Tensor, probes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of the data and the hidden values there, without a graph."""
    if isinstance(network, TwoLayer) and isinstance(network.activation, Unit):
        yield from hidden_blocks(network.activation, inputs, network.split(theta)[1])
        return
    for rows in tiles(len(inputs), block_rows(max(len(theta), probes), theta)):
        yield rows, network.hidden(inputs[rows], theta)
