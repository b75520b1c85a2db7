"""What a network of one hidden layer is: an integral over a measure of neurons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow._typing import ArrayLike
from otflow._validation import (
    as_points,
    check_like,
    check_option,
    non_negative_int,
    real,
)
from otflow.measures import Measure

__all__ = ["Network", "block_rows"]

SCALINGS: Final = ("mean-field", "ntk", "sum")

# A block of hidden values that the L2 cache of one core holds (CPU), or that fills an
# accelerator and is still small beside its memory. Several threads meet at the end of
# every operation on a block, and where another process holds a core they wait for it
# each time: their blocks are so many times larger and fewer, and lie in the L3 cache.
CPU_BLOCK_BYTES: Final = 2**21
SHARED_BLOCKS: Final = 8
DEVICE_BLOCK_BYTES: Final = 2**27


def block_rows(neurons: int, like: Tensor, buffers: int = 1) -> int:
    """Return how many rows of data to treat at once, so that their block is cached."""
    if like.device.type != "cpu":
        size = DEVICE_BLOCK_BYTES
    else:
        alone = torch.get_num_threads() == 1
        size = CPU_BLOCK_BYTES * (1 if alone else SHARED_BLOCKS)
    return max(64, size // (neurons * like.element_size() * buffers))


class Network(ABC):
    r"""An output :math:`f(x) = s_N\sum_i w_i\,\sigma(x;\theta_i) + c` of a measure.

    One point :math:`\theta_i \in \mathbb R^p` of the measure is one neuron. The factor
    :math:`s_N` is 1 for the scaling "mean-field", :math:`\sqrt N` for "ntk" and N for
    "sum"; N counts the atoms that carry mass, so on N equal atoms the sum over them has
    the factor 1/N, :math:`1/\sqrt N` or 1.

    Parameters
    ----------
    outputs : int, optional
        Number m of outputs; by default one output, without an axis of its own.
    scaling : str
        "mean-field", "ntk" or "sum".
    offset : float or sequence of float, optional
        The constant c, one number per output; it is not trained. Zero by default.

    Attributes
    ----------
    outputs, scaling, offset
        As above.

    See Also
    --------
    TwoLayer : Neurons a phi(w.x + b).
    CustomLayer : Neurons of one's own.

    Examples
    --------
    >>> import otflow as of
    >>> of.meanfield.TwoLayer("tanh", outputs=2, scaling="ntk").scaling
    'ntk'
    """

    def __init__(
        self, outputs: int | None, scaling: str, offset: float | Sequence[float] | None
    ) -> None:
        if outputs is not None:
            outputs = non_negative_int(outputs, "outputs", minimum=1)
        self.outputs = outputs
        self.scaling = check_option(scaling, "scaling", SCALINGS)
        self.offset = _as_offset(offset, outputs)

    def __call__(self, mu: Measure, X: ArrayLike) -> Tensor:
        r"""Return the outputs :math:`f(x_k)` at the rows of `X`.

        Parameters
        ----------
        mu : Measure
            Measure over neurons, points (N, p).
        X : Tensor or ndarray, shape (n, d)
            Inputs, of the dtype of `mu`.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Differentiable, to any order, in the points and weights of `mu` and in X.
        """
        X = as_points(X, "X")
        check_like(X, mu.points, "X", "the measure")
        self._check_neurons(mu.points, X.shape[1])
        return self._evaluate(self._inputs(X), mu.points, self._masses(mu.weights))

    def features(self, theta: ArrayLike, X: ArrayLike) -> Tensor:
        r"""Return what each neuron makes of each input, :math:`\sigma(x_k;\theta_i)`.

        Parameters
        ----------
        theta : Tensor or ndarray, shape (N, p)
            Neurons.
        X : Tensor or ndarray, shape (n, d)
            Inputs.

        Returns
        -------
        Tensor, shape (n, N) or (n, N, m)
            Differentiable, to any order, in `theta` and in `X`.
        """
        theta, X = as_points(theta, "theta"), as_points(X, "X")
        check_like(X, theta, "X", "theta")
        self._check_neurons(theta, X.shape[1])
        return self._sigma(self._inputs(X), theta)

    # What a child states -------------------------------------------------------------

    def _check_neurons(self, theta: Tensor, d: int) -> None:  # noqa: B027
        """Refuse neurons of a dimension that does not fit inputs of dimension `d`."""

    def _inputs(self, X: Tensor) -> Tensor:
        """Return a copy of the data in the form that the other methods take, (n, q)."""
        return X.clone()

    @abstractmethod
    def _hidden(self, inputs: Tensor, theta: Tensor) -> Tensor:
        """Return what there is to compute per input and neuron, (n, N, ...)."""

    @abstractmethod
    def _sigma(self, inputs: Tensor, theta: Tensor) -> Tensor:
        r"""Return :math:`\sigma(x_k;\theta_i)`, (n, N) or (n, N, m)."""

    @abstractmethod
    def _read_out(self, hidden: Tensor, theta: Tensor, masses: Tensor) -> Tensor:
        r"""Return :math:`\sum_i m_i\,\sigma(x_k;\theta_i)`, (n,) or (n, m)."""

    @abstractmethod
    def _correlate(self, hidden: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        r"""Return :math:`\sum_k g_k\cdot\sigma(x_k;\theta_i)`, (N,)."""

    # What follows --------------------------------------------------------------------

    def _scale(self, weights: Tensor) -> Tensor:
        r"""Return the factor :math:`s_N`, 0-d."""
        if self.scaling == "mean-field":
            return weights.new_ones(())
        count = (weights.detach() > 0).sum().to(weights.dtype)
        return count.sqrt() if self.scaling == "ntk" else count

    def _masses(self, weights: Tensor) -> Tensor:
        r"""Return :math:`s_N w_i`, (N,)."""
        if self.scaling == "mean-field":
            return weights
        return self._scale(weights) * weights

    def _add_offset(self, f: Tensor) -> Tensor:
        """Return the outputs with the constant added."""
        return f if self.offset is None else f + f.new_tensor(self.offset)

    def _evaluate(self, inputs: Tensor, theta: Tensor, masses: Tensor) -> Tensor:
        """Return the outputs at checked inputs, block by block of rows."""
        blocks = [
            self._read_out(self._hidden(inputs[rows], theta), theta, masses)
            for rows in tiles(len(inputs), block_rows(len(theta), theta))
        ]
        return self._add_offset(torch.cat(blocks))

    def _options(self) -> str:
        named = {"outputs": self.outputs, "offset": self.offset}
        shown: dict[str, object] = {k: v for k, v in named.items() if v is not None}
        if self.scaling != "mean-field":
            shown["scaling"] = self.scaling
        return "".join(f", {key}={value!r}" for key, value in shown.items())


def _as_offset(offset: Any, outputs: int | None) -> float | tuple[float, ...] | None:
    """Return the offset as plain numbers, which have neither dtype nor device."""
    if offset is None:
        return None
    if isinstance(offset, (Tensor, np.ndarray)):
        offset = offset.tolist()
    if outputs is None:
        return real(offset, "offset")
    if not isinstance(offset, Sequence) or len(offset) != outputs:
        msg = f"offset must hold {outputs} numbers, one per output, got {offset!r}"
        raise ValueError(msg)
    return tuple(real(value, f"offset[{k}]") for k, value in enumerate(offset))
