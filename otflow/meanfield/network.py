"""The base of networks with one hidden layer: integrals over a measure of neurons."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._graphs import records
from otflow._pairs import tiles
from otflow._typing import ArrayLike
from otflow._validation import check_like, check_option
from otflow.meanfield.losses import Loss
from otflow.meanfield.model import PASSES, Model, finite
from otflow.measures import Measure, Particles

__all__ = ["Network", "block_rows"]

SCALINGS: Final = ("mean-field", "ntk", "sum")

# Size of a block of hidden values: on a CPU it fits the L2 cache of one core; on an
# accelerator it occupies the device and is small beside its memory. Several threads
# synchronise after each operation on a block, and wait there for a busy core. So their
# blocks are SHARED_BLOCKS times larger and fewer, and lie in the L3 cache.
CPU_BLOCK_BYTES: Final = 2**21
SHARED_BLOCKS: Final = 8
DEVICE_BLOCK_BYTES: Final = 2**27


def block_rows(neurons: int, like: Tensor, buffers: int = 1) -> int:
    """Return the number of rows of data in a block that fits the cache."""
    if like.device.type != "cpu":
        size = DEVICE_BLOCK_BYTES
    else:
        alone = torch.get_num_threads() == 1
        size = CPU_BLOCK_BYTES * (1 if alone else SHARED_BLOCKS)
    # A product with few rows reads all neurons for little work: for 1e5 neurons 4 rows
    # at a time take 1.6 times as long as 16.
    return max(64, size // (neurons * like.element_size() * buffers))


class Network(Model):
    r"""An output :math:`f(x) = s_N\sum_i w_i\,\sigma(x;\theta_i) + c` of a measure.

    One point :math:`\theta_i \in \mathbb R^p` of the measure is one neuron. The factor
    :math:`s_N` is 1 for the scaling "mean-field", :math:`\sqrt N` for "ntk" and N for
    "sum", where N is the number of atoms with mass. On N equal atoms the
    factor :math:`s_N w_i` is 1/N, :math:`1/\sqrt N` or 1.

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
    CustomLayer : User-defined neurons.

    Examples
    --------
    >>> import otflow as of
    >>> of.meanfield.TwoLayer("tanh", outputs=2, scaling="ntk").scaling
    'ntk'
    """

    stated = frozenset(("check_neurons", "encode", "hidden_blocks", *PASSES))

    def __init__(
        self,
        outputs: int | None,
        scaling: str,
        offset: float | Sequence[float] | ArrayLike | None,
    ) -> None:
        super().__init__(outputs, offset)
        self.scaling = check_option(scaling, "scaling", SCALINGS)

    def features(self, theta: ArrayLike, X: ArrayLike) -> Tensor:
        r"""Return the features :math:`\sigma(x_k;\theta_i)` of all neurons and inputs.

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

        Raises
        ------
        ValueError
            If the shapes do not fit each other.
        NonFinite
            If a feature is infinite or NaN.
        """
        theta, X = as_points(theta, "theta"), as_points(X, "X")
        check_like(X, theta, "X", "theta")
        self.check_neurons(theta, X.shape[1])
        return finite(self.sigma(self.encode(X), theta), self, "features")

    # What a subclass states ----------------------------------------------------------

    def check_neurons(self, theta: Tensor, d: int) -> None:
        """Raise `ValueError` for neurons whose dimension does not fit the inputs.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Neurons.
        d : int
            Dimension of the inputs.
        """

    @abstractmethod
    def hidden(self, inputs: Tensor, theta: Tensor) -> Tensor:
        """Return the part of the features that needs each pair of input and neuron.

        Parameters
        ----------
        inputs : Tensor, shape (n, q)
            Encoded inputs.
        theta : Tensor, shape (N, p)
            Neurons.

        Returns
        -------
        Tensor, shape (n, N, ...)
            Hidden values. `read_out` and `correlate` are linear in the hidden values.
        """

    @abstractmethod
    def sigma(self, inputs: Tensor, theta: Tensor) -> Tensor:
        r"""Return the features :math:`\sigma(x_k;\theta_i)` of encoded inputs.

        Parameters
        ----------
        inputs : Tensor, shape (n, q)
            Encoded inputs.
        theta : Tensor, shape (N, p)
            Neurons.

        Returns
        -------
        Tensor, shape (n, N) or (n, N, m)
            Features.
        """

    @abstractmethod
    def read_out(self, hidden: Tensor, theta: Tensor, masses: Tensor) -> Tensor:
        r"""Return :math:`\sum_i m_i\,\sigma(x_k;\theta_i)`.

        Parameters
        ----------
        hidden : Tensor, shape (n, N, ...)
            Hidden values.
        theta : Tensor, shape (N, p)
            Neurons.
        masses : Tensor, shape (N,)
            Masses :math:`m_i`, see `masses`.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Outputs without the offset.
        """

    @abstractmethod
    def correlate(self, hidden: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        r"""Return :math:`\sum_k g_k\cdot\sigma(x_k;\theta_i)`.

        Parameters
        ----------
        hidden : Tensor, shape (n, N, ...)
            Hidden values.
        theta : Tensor, shape (N, p)
            Neurons.
        slope : Tensor, shape (n,) or (n, m)
            Factors :math:`g_k` of the outputs.

        Returns
        -------
        Tensor, shape (N,)
            One sum for each neuron.
        """

    def hidden_blocks(
        self, inputs: Tensor, theta: Tensor, probes: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows of the data and the hidden values there, for sums.

        Parameters
        ----------
        inputs : Tensor, shape (n, q)
            Encoded inputs.
        theta : Tensor, shape (N, p)
            Neurons.
        probes : int
            Number of other neurons whose hidden values the caller asks for in each
            block.

        Yields
        ------
        tuple of slice and Tensor, shape (k, N, ...)
            The rows, and what `hidden` gives there. The next block may overwrite it.
        """
        for rows in tiles(len(inputs), block_rows(max(len(theta), probes), theta)):
            yield rows, self.hidden(inputs[rows], theta)

    # What follows --------------------------------------------------------------------

    def check_measure(self, mu: Measure, d: int) -> None:
        self.check_neurons(mu.points, d)

    def respond(self, inputs: Tensor, mu: Measure) -> Tensor:
        return self.evaluate(inputs, mu.points, self.masses(mu.weights))

    def value_and_first_variation(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure, x: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        theta = mu.points if x is None else x
        if not isinstance(mu, Particles) or records(mu.points, mu.weights, theta):
            return None
        # The hidden values of a block of rows serve both: one product (n, q) x (q, N),
        # and at probes one more.
        with torch.no_grad():
            masses, total = self.masses(mu.weights), theta.new_zeros(())
            correlations = theta.new_zeros(len(theta))
            for rows, hidden in self.hidden_blocks(inputs, mu.points, len(theta)):
                f = self.add_offset(self.read_out(hidden, mu.points, masses))
                part, slope = loss.total_and_slope(f, y[rows])
                total += part
                there = hidden if x is None else self.hidden(inputs[rows], x)
                correlations += self.correlate(there, theta, slope)
            n = len(y)
            return total / n, correlations * (self.scale(mu.weights) / n)

    def scale(self, weights: Tensor) -> Tensor:
        r"""Return the factor :math:`s_N`.

        Parameters
        ----------
        weights : Tensor, shape (N,)
            Weights of the measure; N counts those that are not 0. Those of a measure of
            free mass may be negative.

        Returns
        -------
        Tensor
            0-d.
        """
        if self.scaling == "mean-field":
            return weights.new_ones(())
        count = (weights.detach() != 0).sum().to(weights.dtype)
        return count.sqrt() if self.scaling == "ntk" else count

    def masses(self, weights: Tensor) -> Tensor:
        r"""Return the masses :math:`m_i = s_N w_i`.

        Parameters
        ----------
        weights : Tensor, shape (N,)
            Weights of the measure.

        Returns
        -------
        Tensor, shape (N,)
            Masses, with the graph of the weights.
        """
        return self.scale(weights) * weights

    def evaluate(self, inputs: Tensor, theta: Tensor, masses: Tensor) -> Tensor:
        """Return the outputs at encoded inputs, block by block of rows.

        Parameters
        ----------
        inputs : Tensor, shape (n, q)
            Encoded inputs.
        theta : Tensor, shape (N, p)
            Neurons.
        masses : Tensor, shape (N,)
            Masses, see `masses`.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Outputs with the offset.
        """
        blocks = [
            self.read_out(self.hidden(inputs[rows], theta), theta, masses)
            for rows in tiles(len(inputs), block_rows(len(theta), theta))
        ]
        return self.add_offset(torch.cat(blocks))

    def _options(self) -> str:
        named = {"outputs": self.outputs, "offset": self.offset}
        shown: dict[str, object] = {k: v for k, v in named.items() if v is not None}
        if self.scaling != "mean-field":
            shown["scaling"] = self.scaling
        return "".join(f", {key}={value!r}" for key, value in shown.items())
