"""Dense layers on tensors: outputs, and value and gradients in one pass over blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.meanfield.losses import Loss
from otflow.meanfield.network import block_rows
from otflow.meanfield.units import Elementwise, Unit, applied

__all__ = ["Gradients", "Weights", "outputs_of", "value_and_gradients"]


@dataclass(frozen=True)
class Weights:
    r"""The numbers of a network of L hidden layers.

    .. math:: z^1 = \theta\,\tilde x,\qquad
        z^{l+1}_k = \sum_j m^l_j W^l_{kj}\,\varphi_l(z^l_j) + b^{l+1}_k,\qquad
        f = \sum_k m^L_k a_k\,\varphi_L(z^L_k)

    Attributes
    ----------
    inner : Tensor, shape (N_1, q)
        Inner weights, a column for each column of the encoded inputs.
    middle : tuple of Tensor, shapes (N_{l+1}, N_l)
        Middle weights.
    biases : tuple of Tensor, shapes (N_{l+1},)
        Biases of the layers 2, ..., L; empty if there are none.
    outer : Tensor, shape (N_L, m)
        Outer weights.
    masses : tuple of Tensor, shapes (N_l,)
        Masses of the units, of sum 1 in each of the L layers.
    """

    inner: Tensor
    middle: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    outer: Tensor
    masses: tuple[Tensor, ...]

    @property
    def width(self) -> int:
        """Number of all hidden units."""
        return sum(len(m) for m in self.masses)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all weights, in the order of the parts; no masses."""
        return (self.inner, *self.middle, *self.biases, self.outer)

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """Return the network of other weights, each a function of one; same masses."""
        return Weights(
            inner=function(self.inner),
            middle=tuple(map(function, self.middle)),
            biases=tuple(map(function, self.biases)),
            outer=function(self.outer),
            masses=self.masses,
        )

    def products(self) -> list[Tensor]:
        r"""Return the factors :math:`W^l_{kj} m^l_j` of the forward pass."""
        both = zip(self.middle, self.masses[:-1], strict=True)
        return [W * m for W, m in both]


@dataclass(frozen=True)
class Gradients:
    r"""Derivatives of a risk in `Weights`, those of its laws per unit of mass.

    Attributes
    ----------
    inner, outer : Tensor
        The gradients :math:`\frac1{m_j}\partial_{\theta_j} F` and
        :math:`\frac1{m_k}\partial_{a_k} F`. No mass divides them, so it may be zero.
    middle, biases : tuple of Tensor
        The partial derivatives.
    """

    inner: Tensor
    middle: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    outer: Tensor


def outputs_of(
    units: Sequence[Elementwise], weights: Weights, inputs: Tensor, *, scalar: bool
) -> Tensor:
    """Return the outputs at encoded inputs, block by block of rows.

    Parameters
    ----------
    units : sequence of callable
        The activation of each hidden layer.
    weights : Weights
        The network.
    inputs : Tensor, shape (n, q)
        Encoded inputs.
    scalar : bool
        Whether the one output has no axis of its own.

    Returns
    -------
    Tensor, shape (n,) or (n, m)
        Differentiable in the weights and the inputs.
    """
    factors, outer = weights.products(), weights.masses[-1][:, None] * weights.outer
    blocks = []
    for rows in tiles(len(inputs), block_rows(weights.width, weights.inner)):
        h = applied(units[0], inputs[rows] @ weights.inner.T)
        for layer, W in enumerate(factors):
            z = h @ W.T
            z = z + weights.biases[layer] if weights.biases else z
            h = applied(units[layer + 1], z)
        blocks.append(h @ (outer[:, 0] if scalar else outer))
    return torch.cat(blocks)


def value_and_gradients(
    units: Sequence[Unit],
    loss: Loss,
    add_offset: Callable[[Tensor], Tensor],
    weights: Weights,
    inputs: Tensor,
    y: Tensor,
    *,
    scalar: bool,
) -> tuple[Tensor, Gradients]:
    r"""Return :math:`\frac1n\sum_k\ell(f_k, y_k)` and its derivatives, without a graph.

    Let g be the slope of the loss. With the errors per unit of mass
    :math:`e^L_k = (g\cdot a_k)\,\varphi_L'(z^L_k)` and
    :math:`e^l_j = \varphi_l'(z^l_j)\sum_k m^{l+1}_k e^{l+1}_k W^l_{kj}`,

    .. math:: \partial_{W^l_{kj}} F = m^{l+1}_k m^l_j\,\overline{e^{l+1}_k h^l_j},\qquad
        \tfrac1{m_j}\partial_{\theta_j} F = \overline{e^1_j\,\tilde x},\qquad
        \tfrac1{m_k}\partial_{a_k} F = \overline{g\,h^L_k} ,

    where a bar is the mean over the data. The hidden values of a block of rows stay in
    the cache from the forward to the backward half. Time: three products for each
    middle layer, n N N' each; memory: that of the weights, three times, and a block.

    Parameters
    ----------
    units : sequence of Unit
        The activation of each hidden layer.
    loss : Loss
        The loss of an output.
    add_offset : callable
        Adds the constant of the network to outputs.
    weights : Weights
        The network.
    inputs : Tensor, shape (n, q)
        Encoded inputs.
    y : Tensor
        Targets, n rows.
    scalar : bool
        Whether the one output has no axis of its own.

    Returns
    -------
    value : Tensor
        The mean loss, 0-d.
    gradients : Gradients
        Its derivatives.
    """
    n, depth, like = len(inputs), len(units), weights.inner
    forward = [like, *weights.products()]
    backward = [
        m[:, None] * W for W, m in zip(weights.middle, weights.masses[1:], strict=True)
    ]
    mean_outer = weights.masses[-1][:, None] * weights.outer
    total = like.new_zeros(())
    sums = Gradients(
        inner=torch.zeros_like(like),
        middle=tuple(map(torch.zeros_like, weights.middle)),
        biases=tuple(map(torch.zeros_like, weights.biases)),
        outer=torch.zeros_like(weights.outer),
    )
    # Two buffers for each layer, arguments z and values h, which the backward half
    # turns into slopes and errors. All blocks share them.
    count = min(n, block_rows(weights.width, like, 2))
    whole = [
        (like.new_empty(count, len(m)), like.new_empty(count, len(m)))
        for m in weights.masses
    ]
    for rows in tiles(n, count):
        x = inputs[rows]
        buffers = [(z[: len(x)], h[: len(x)]) for z, h in whole]
        value = error = x
        for layer, (z, h) in enumerate(buffers):
            torch.mm(value, forward[layer].T, out=z)
            if layer and weights.biases:
                z.add_(weights.biases[layer - 1])
            value = units[layer].evaluate(z, h)
        f = value @ mean_outer
        part, slope = loss.total_and_slope(
            add_offset(f[:, 0] if scalar else f), y[rows]
        )
        total += part
        g = slope[:, None] if scalar else slope
        sums.outer.addmm_(value.T, g)
        for layer in reversed(range(depth)):
            z, h = buffers[layer]
            bent = units[layer].slope(z, h, z)
            if layer == depth - 1:
                error = torch.mm(g, weights.outer.T, out=h).mul_(bent)
            else:
                sums.middle[layer].addmm_(error.T, h)
                error = torch.mm(error, backward[layer], out=h).mul_(bent)
            if layer and weights.biases:
                sums.biases[layer - 1].add_(error.sum(0))
        sums.inner.addmm_(error.T, x)
    return total / n, _means(sums, weights, n)


def _means(sums: Gradients, weights: Weights, n: int) -> Gradients:
    """Return the derivatives from sums over the data; the sums are overwritten."""
    pairs = zip(sums.middle, weights.masses[1:], weights.masses[:-1], strict=True)
    for W, after, before in pairs:
        W.mul_(after[:, None]).mul_(before / n)
    for b, after in zip(sums.biases, weights.masses[1:], strict=False):
        b.mul_(after / n)
    sums.inner.div_(n)
    sums.outer.div_(n)
    return sums
