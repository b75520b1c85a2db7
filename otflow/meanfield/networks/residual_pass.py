"""Risk of a residual network and its derivatives: one pass over blocks of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.meanfield.losses import Loss
from otflow.meanfield.networks.residual_layers import Layers
from otflow.meanfield.networks.residual_steps import Tableau
from otflow.meanfield.units import Elementwise, Unit, applied

__all__ = ["Blocks", "Ends", "sizes", "value_and_gradients"]

# Size of what a block of rows keeps on its way through the layers. 512 rows of 64
# layers of 64 neurons fit: with fewer rows torch uses one thread, and small products
# wait for each other.
CPU_STORE_BYTES: Final = 9 * 2**21
DEVICE_STORE_BYTES: Final = 2**29
LEAST_ROWS: Final = 64


@dataclass(frozen=True)
class Blocks:
    """The weights of the entries of a network, those of one layer together.

    A state is z with a last coordinate 1, which carries the biases.

    Parameters
    ----------
    unit : callable
        The activation, a `Unit` for `value_and_gradients`.
    tableau : Tableau
        The solver.
    layers : Layers
        Which entries make a layer.
    outer : Tensor, shape (E, q)
        Weights u, and a column of zeros.
    inner : Tensor, shape (E, q)
        Weights w, and the biases.
    masses : Tensor, shape (E,)
        Mass of each entry.
    """

    unit: Elementwise
    tableau: Tableau
    layers: Layers
    outer: Tensor
    inner: Tensor
    masses: Tensor

    def run(self, z: Tensor) -> Tensor:
        """Return the last states (k, q) of first ones, differentiable."""
        for part in self.layers.parts:
            z = self.advance(part, z)
        return z

    def advance(self, part: slice, z: Tensor) -> Tensor:
        """Return the states after a layer of some entries, differentiable."""
        pushes = self.masses[part, None] * self.outer[part]

        def field(z: Tensor) -> Tensor:
            return applied(self.unit, z @ self.inner[part].T) @ pushes

        return self.tableau.step(field, z)


@dataclass(frozen=True)
class Ends:
    """The way from inputs to states, and from states to outputs and back.

    Parameters
    ----------
    embedding : Tensor, shape (D, d), optional
        By default m zeros are appended to an input.
    readout : Tensor, shape (m, D), optional
        By default the outputs are the last m coordinates.
    outputs : int, optional
        The number m; None is one output without an axis of its own.
    offset : callable, optional
        Adds a constant to outputs.
    """

    embedding: Tensor | None
    readout: Tensor | None
    outputs: int | None
    offset: Callable[[Tensor], Tensor] | None

    def embed(self, x: Tensor) -> Tensor:
        """Return the first states (k, D + 1) of inputs (k, d), new tensors."""
        one = x.new_ones(len(x), 1)
        if self.embedding is None:
            return torch.cat([x, x.new_zeros(len(x), self.outputs or 1), one], 1)
        return torch.cat([x @ self.embedding.T, one], 1)

    def read_out(self, z: Tensor) -> Tensor:
        """Return the outputs (k,) or (k, m) of states (k, D + 1)."""
        z, m = z[:, :-1], self.outputs or 1
        f = z[:, -m:] if self.readout is None else z @ self.readout.T
        f = f[:, 0] if self.outputs is None else f
        return f if self.offset is None else self.offset(f)

    def pull_back(self, slope: Tensor, width: int) -> Tensor:
        """Return the slopes (k, D + 1) in the states for those in the outputs."""
        g = slope[:, None] if self.outputs is None else slope
        p = g.new_zeros(len(g), width)
        if self.readout is None:
            p[:, -1 - g.shape[1] : -1] = g
        else:
            torch.mm(g, self.readout, out=p[:, :-1])
        return p


def value_and_gradients(
    blocks: Blocks,
    ends: Ends,
    loss: Loss,
    inputs: Tensor,
    y: Tensor,
    *,
    inner: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the mean loss and the gradients of F' of each entry, without a graph.

    Rows of data are independent. So a block of rows goes forward through all layers and
    back, and its states are kept meanwhile, not those of all rows. If one block of few
    rows is too large still, as in a very deep network, it keeps every S-th state and
    computes S layers again on the way back.

    The adjoint :math:`p_l` of Euler's steps, p = slope of the loss at the end, is

    .. math:: p_l = p_{l+1} + \sum_i m_i\,(u_i\cdot p_{l+1})\,
        \varphi'(w_i\cdot z_l)\,w_i,

    and the gradients of :math:`F' = \frac1n\sum_k u\cdot p_{l+1}\,\varphi(w\cdot z_l)`
    in u and w follow from the same products. No mass divides them.

    Parameters
    ----------
    blocks : Blocks
        The weights.
    ends : Ends
        The first and the last map.
    loss : Loss
        The loss.
    inputs : Tensor, shape (n, d)
        Encoded inputs.
    y : Tensor
        Targets.
    inner : bool
        Whether the gradient in the inner weights is wanted.

    Returns
    -------
    value : Tensor
        0-d.
    outer_gradient : Tensor, shape (E, q)
        In the outer weights. F' is its product with these.
    inner_gradient : Tensor, shape (E, q)
        In the inner weights and the biases; zeros unless `inner`.
    """
    sweep = _Sweep(blocks, len(inputs), inner)
    total = inputs.new_zeros(())
    for rows in tiles(len(inputs), sweep.rows):
        end = sweep.forward(ends.embed(inputs[rows]))
        part, slope = loss.total_and_slope(ends.read_out(end), y[rows])
        total += part
        sweep.backward(ends.pull_back(slope, end.shape[1]))
    n = len(inputs)
    return total / n, sweep.outer_gradient.div_(n), sweep.inner_gradient.div_(n)


def sizes(room: int, n: int, depth: int, layer: int, state: int) -> tuple[int, int]:
    """Return the rows of a block, and the number S of layers that it keeps whole.

    Parameters
    ----------
    room : int
        Numbers that may be kept.
    n : int
        Rows of the data.
    depth : int
        Number of layers.
    layer : int
        Numbers that a row keeps of a layer, to go back through it.
    state : int
        Numbers of a state, of which one for S layers is kept beside.

    Returns
    -------
    tuple of int
        All layers are kept, S = `depth`, if there is room for `LEAST_ROWS` rows; else
        as many as there is room for, at least the number that needs the least memory.
    """
    rows = min(n, max(LEAST_ROWS, room // (layer * depth)))
    if rows * layer * depth <= room:
        return rows, depth
    least = math.ceil(math.sqrt(depth * state / layer))
    return rows, min(depth, max(least, room // (layer * rows)))


class _Sweep:
    """Forward and backward through the layers, for one block of rows after another."""

    def __init__(self, blocks: Blocks, n: int, inner: bool) -> None:
        assert isinstance(blocks.unit, Unit)
        self.unit, self.wants_inner = blocks.unit, inner
        self.parts, self.tableau = blocks.layers.parts, blocks.tableau
        self.masses = blocks.masses[:, None]
        self.outer, self.inner = blocks.outer, blocks.inner
        self.outer_gradient = torch.zeros_like(self.outer)
        self.inner_gradient = torch.zeros_like(self.inner)
        self._set_memory_aside(n, blocks.layers.most)
        self.layers, self.count = [_Layer(self, k) for k in range(len(self.parts))], 0

    def _set_memory_aside(self, n: int, most: int) -> None:
        """Take the memory that one block of rows after another uses."""
        like, q = self.outer, self.outer.shape[1]
        stages, depth = len(self.tableau.weights), len(self.parts)
        on_cpu = like.device.type == "cpu"
        store = CPU_STORE_BYTES if on_cpu else DEVICE_STORE_BYTES
        room = store // like.element_size()
        # A value takes the place of its argument if the slope is read off the value.
        hidden = 1 if self.unit.slope_from_value else 2
        layer = stages * (q + hidden * most)
        rows, self.length = sizes(room, n, depth, layer, q)
        self.rows = math.ceil(n / math.ceil(n / rows))  # blocks of one size, nearly
        segments = math.ceil(depth / self.length)
        self.starts = like.new_empty(segments, self.rows, q)
        self.states = like.new_empty(self.length + 1, stages, self.rows, q)
        self.hidden = like.new_empty(self.length, stages, hidden, self.rows * most)
        self.products = like.new_empty(self.rows * most)
        self.scaled = like.new_empty(most, q)

    def forward(self, z: Tensor) -> Tensor:
        """Return the last states; keep those of the last segment, and each first."""
        if len(z) != self.count:
            self.count = len(z)
            for layer in self.layers:
                layer.view_rows(self)
        for k, first in enumerate(self._segments()):
            self.starts[k, : self.count].copy_(z)
            z = self._run(first)
        return z

    def backward(self, p: Tensor) -> None:
        """Add the gradients for the slopes (k, q) of the loss in the last states."""
        segments = self._segments()
        for first in reversed(segments):
            if first != segments[-1]:
                self._run(first)
            for layer in reversed(self.layers[first : first + self.length]):
                self._back(layer, p)

    def _segments(self) -> range:
        """Return the first layer of each segment."""
        return range(0, len(self.layers), self.length)

    def _run(self, first: int) -> Tensor:
        """Run the layers of a segment from its start, and keep what they compute."""
        z = self.starts[first // self.length, : self.count]
        for layer in self.layers[first : first + self.length]:
            z = self._step(layer, z)
        return z

    def _step(self, layer: _Layer, z: Tensor) -> Tensor:
        slopes: list[Tensor] = []
        pushes = torch.mul(layer.masses, layer.outer, out=layer.scaled)
        for row, kept in zip(self.tableau.stages, layer.kept, strict=True):
            at, argument, value = kept
            # The layer before may have written its end there.
            if at.data_ptr() != z.data_ptr():
                at.copy_(z)
            for a, k in zip(row, slopes, strict=True):
                if a:
                    at.add_(k, alpha=a)
            torch.mm(at, layer.inner.T, out=argument)
            self.unit.evaluate(argument, value)
            if len(self.tableau.stages) == 1:
                return torch.addmm(at, value, pushes, out=layer.end)
            slopes.append(value @ pushes)
        z = z.clone()
        for b, k in zip(self.tableau.weights, slopes, strict=True):
            z.add_(k, alpha=b)
        return z

    def _back(self, layer: _Layer, p: Tensor) -> None:
        """Carry the slopes p through a layer in place, and add its gradients."""
        pulls = torch.mul(layer.masses, layer.inner, out=layer.scaled)
        tableau = self.tableau
        pulled: list[Tensor] = []  # from the last stage to the first
        for s in reversed(range(len(tableau.weights))):
            g = p if tableau.weights[s] == 1.0 else tableau.weights[s] * p
            after = reversed(tableau.stages[s + 1 :])
            for row, q in zip(after, pulled, strict=True):
                g = g + row[s] * q if row[s] else g
            at, argument, value = layer.kept[s]
            product = torch.mm(g, layer.outer.T, out=layer.product)
            layer.outer_gradient.addmm_(value.T, g)
            bent = self.unit.slope(argument, value, argument).mul_(product)
            if self.wants_inner:
                layer.inner_gradient.addmm_(bent.T, at)
            if len(tableau.weights) == 1:
                p.addmm_(bent, pulls)
                return
            pulled.append(bent @ pulls)
        for q in pulled:
            p.add_(q)


class _Layer:
    """What a layer reads and writes: views, made once for all blocks of one size."""

    kept: list[tuple[Tensor, Tensor, Tensor]]
    end: Tensor
    product: Tensor

    def __init__(self, sweep: _Sweep, number: int) -> None:
        part = sweep.parts[number]
        self.width, self.place = part.stop - part.start, number % sweep.length
        self.outer, self.inner = sweep.outer[part], sweep.inner[part]
        self.masses, self.scaled = sweep.masses[part], sweep.scaled[: self.width]
        self.outer_gradient = sweep.outer_gradient[part]
        self.inner_gradient = sweep.inner_gradient[part]

    def view_rows(self, sweep: _Sweep) -> None:
        """Take state, arguments and values of each stage, for a block of rows."""
        shape = sweep.count, self.width
        size, states = math.prod(shape), sweep.states[:, :, : sweep.count]
        hidden = sweep.hidden[self.place, :, :, :size]
        arguments, values = (hidden[:, k].view(-1, *shape) for k in (0, -1))
        self.kept = list(zip(states[self.place], arguments, values, strict=True))
        self.end = states[self.place + 1, 0]
        self.product = sweep.products[:size].view(shape)
