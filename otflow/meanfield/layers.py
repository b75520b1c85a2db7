"""Two-layer networks of built-in neurons and of user-defined neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from otflow._graphs import records
from otflow._typing import ArrayLike
from otflow._validation import (
    check_dtype,
    check_function,
    check_tensor,
    non_negative_int,
    positive,
    true_or_false,
)
from otflow.errors import InvalidFunctional
from otflow.meanfield.fused import hidden_blocks, value_and_gradient
from otflow.meanfield.losses import Loss
from otflow.meanfield.network import Network
from otflow.meanfield.units import UNITS, Elementwise, Unit, applied, as_activation
from otflow.measures import Measure, Particles

__all__ = ["CustomLayer", "TwoLayer", "mobilities", "shown"]


class TwoLayer(Network):
    r"""Two-layer network, neurons :math:`\sigma(x;\theta) = a\,\varphi(w\cdot x + b)`.

    A neuron is one row :math:`\theta = (a_1, \dots, a_m, w_1, \dots, w_d, b)`. On N
    equal atoms the output in the three scalings is

    .. math:: f(x) = \frac1N\sum_i \sigma(x;\theta_i),\qquad
        \frac1{\sqrt N}\sum_i \sigma(x;\theta_i),\qquad \sum_i \sigma(x;\theta_i) :

    the mean field :cite:p:`mei2018mean,rotskoff2018parameters,chizat2018global`, the
    scaling of the neural tangent kernel :cite:p:`jacot2018neural`, the plain sum.

    Parameters
    ----------
    activation : str or callable
        "relu", "tanh", "erf", "sigmoid"; an elementwise function of torch tensors; or a
        `Unit` of your own, which states its slope and so needs no autodiff.
    outputs : int, optional
        Number m of outputs; by default one output (m = 1), and f has shape (n,).
    bias : bool
        Whether a neuron has a bias b. With a bias p = m + d + 1, without p = m + d.
    scaling : str
        "mean-field", "ntk" or "sum".
    offset : float or sequence of float, optional
        A constant added to f, one number per output; it is not trained.

    Attributes
    ----------
    activation : callable
        The function :math:`\varphi`.
    outputs, bias, scaling, offset
        As above.

    Raises
    ------
    ValueError
        If a name is unknown; at the evaluation, if the dimension of the particles is
        not p.

    Notes
    -----
    In the mean field the Wasserstein flow moves each neuron at a speed that does not
    depend on N. In the scaling "ntk" the velocity is :math:`\sqrt N` times larger. A
    gradient step of rate :math:`\eta` on the usual parameters is then an Euler step of
    dt = :math:`\eta/N`, in which neurons move by :math:`O(1/\sqrt N)`
    :cite:p:`chizat2019lazy`.

    Time O(n N d), memory O(n N) with gradients and O(n + N) without.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu", bias=False)
    >>> mu = of.Particles(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))  # rows (a, w)
    >>> network(mu, torch.tensor([[3.0], [-3.0]]))  # (relu(2 x) - relu(x)) / 2
    tensor([1.5000, 0.0000])
    """

    def __init__(
        self,
        activation: str | Elementwise,
        *,
        outputs: int | None = None,
        bias: bool = True,
        scaling: str = "mean-field",
        offset: float | Sequence[float] | ArrayLike | None = None,
    ) -> None:
        super().__init__(outputs, scaling, offset)
        self.activation = as_activation(activation)
        self.bias = true_or_false(bias, "bias")

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outer and the inner weights of neurons.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Neurons.

        Returns
        -------
        outer : Tensor, shape (N, m)
            The weights a, a view.
        inner : Tensor, shape (N, q)
            The weights (w, b), a view.
        """
        m = self.outputs or 1
        return theta[:, :m], theta[:, m:]

    def mobility(
        self, inputs: int, *, outer: float = 1.0, inner: float = 1.0
    ) -> tuple[float, ...]:
        """Return the mobility of each parameter of a neuron, by layers.

        Parameters
        ----------
        inputs : int
            Number d of inputs.
        outer : float
            Mobility of the outer weights a.
        inner : float
            Mobility of the inner weights w and the bias b. With 0 they are fixed, as
            in random features.

        Returns
        -------
        tuple of float
            p numbers, for `otflow.schemes.Mobility`.

        Raises
        ------
        ValueError
            If a mobility is negative or not finite.

        Examples
        --------
        >>> import otflow as of
        >>> of.meanfield.TwoLayer("tanh").mobility(2, inner=0.0)
        (1.0, 0.0, 0.0, 0.0)
        """
        d = non_negative_int(inputs, "inputs", minimum=1)
        return mobilities(
            ("outer", outer, self.outputs or 1), ("inner", inner, d + int(self.bias))
        )

    def check_neurons(self, theta: Tensor, d: int) -> None:
        m, b = self.outputs or 1, int(self.bias)
        if theta.shape[1] != m + d + b:
            name = "(a, w, b)" if self.bias else "(a, w)"
            sizes = "m + d + 1" if self.bias else "m + d"
            msg = (
                f"a neuron {name} has p = {sizes} = {m + d + b} numbers, for m = {m} "
                f"output{'s' * (m > 1)} and inputs of dimension d = {d}; the particles "
                f"have dimension {theta.shape[1]}"
            )
            raise ValueError(msg)

    def encode(self, X: Tensor) -> Tensor:
        if not self.bias:
            return super().encode(X)
        return torch.cat([X, X.new_ones(len(X), 1)], dim=1)

    def hidden(self, inputs: Tensor, theta: Tensor) -> Tensor:
        return applied(self.activation, inputs @ self.split(theta)[1].T)

    def sigma(self, inputs: Tensor, theta: Tensor) -> Tensor:
        a, _ = self.split(theta)
        h = self.hidden(inputs, theta)
        return h * a[:, 0] if self.outputs is None else h[:, :, None] * a

    def read_out(self, hidden: Tensor, theta: Tensor, masses: Tensor) -> Tensor:
        a, _ = self.split(theta)
        if self.outputs is None:
            return hidden @ (masses * a[:, 0])
        return hidden @ (masses[:, None] * a)

    def correlate(self, hidden: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        a, _ = self.split(theta)
        if self.outputs is None:
            return a[:, 0] * (slope @ hidden)
        return (a * (hidden.T @ slope)).sum(-1)

    def hidden_blocks(
        self, inputs: Tensor, theta: Tensor, probes: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        if not isinstance(self.activation, Unit):
            return super().hidden_blocks(inputs, theta, probes)
        return hidden_blocks(self.activation, inputs, self.split(theta)[1])

    def value_and_velocity(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure
    ) -> tuple[Tensor, Tensor] | None:
        # The closed form needs atoms and a slope of the activation, and has no graph.
        unit = self.activation
        if (
            not isinstance(mu, Particles)
            or not isinstance(unit, Unit)
            or records(mu.points, mu.weights)
        ):
            return None
        with torch.no_grad():
            value, gradient = value_and_gradient(
                self, unit, loss, inputs, y, mu.points, self.masses(mu.weights)
            )
            return value, gradient.mul_(-self.scale(mu.weights))

    def value_and_derivatives(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        found = self.value_and_velocity(loss, inputs, y, mu)
        if found is None:
            return None
        value, velocity = found
        # A neuron is linear in its outer weights a: F'(theta) = a . grad_a F'(theta).
        outer, moves = self.split(mu.points)[0], self.split(velocity)[0]
        return value, velocity, -(outer * moves).sum(-1)

    def __repr__(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"TwoLayer({shown(self.activation)}{bias}{self._options()})"


def mobilities(*layers: tuple[str, float, int]) -> tuple[float, ...]:
    """Return the mobility of each coordinate of a neuron, by its layers.

    A layer is its name, its mobility, and the number of its coordinates.
    """
    checked = [(positive(m, name, or_zero=True), n) for name, m, n in layers]
    return tuple(m for m, n in checked for _ in range(n))


def shown(activation: Elementwise) -> str:
    """Return a built-in unit by its name in quotes, any other without them.

    The function relu is not the unit "relu", of which more is known.
    """
    name = str(getattr(activation, "name", ""))
    if type(UNITS.get(name)) is type(activation):
        return repr(name)
    return getattr(activation, "__name__", f"{type(activation).__name__}()")


class CustomLayer(Network):
    r"""Network of user-defined neurons, :math:`f = s_N\sum_i w_i\,\sigma(x;\theta_i)`.

    Parameters
    ----------
    sigma : callable
        Maps inputs (n, d) and neurons (N, p) to outputs (n, N), or (n, N, m) if
        `outputs` is m, by torch operations. Each entry depends only on its input and
        its neuron.
    outputs : int, optional
        Number m of outputs; by default one output, and f has shape (n,).
    scaling : str
        "mean-field", "ntk" or "sum".
    offset : float or sequence of float, optional
        A constant added to f, one number per output; it is not trained.

    Attributes
    ----------
    function : callable
        The function :math:`\sigma`.
    outputs, scaling, offset
        As above.

    Raises
    ------
    InvalidFunctional
        At the evaluation, if `sigma` returns another shape or dtype.

    Examples
    --------
    >>> import torch, otflow as of
    >>> def bump(x, theta):  # a exp(-|x - c|^2 / 2), theta = (a, c)
    ...     square = (x[:, None] - theta[:, 1:]).square().sum(-1)
    ...     return theta[:, 0] * torch.exp(-square / 2)
    >>> network = of.meanfield.CustomLayer(bump)
    >>> network(of.Particles(torch.tensor([[3.0, 0.0]])), torch.zeros(1, 1))
    tensor([3.])
    """

    def __init__(
        self,
        sigma: Callable[[Tensor, Tensor], Tensor],
        *,
        outputs: int | None = None,
        scaling: str = "mean-field",
        offset: float | Sequence[float] | ArrayLike | None = None,
    ) -> None:
        super().__init__(outputs, scaling, offset)
        check_function(sigma, "sigma must be a function of (x, theta)")
        self.function = sigma

    def hidden(self, inputs: Tensor, theta: Tensor) -> Tensor:
        return self.sigma(inputs, theta)

    def sigma(self, inputs: Tensor, theta: Tensor) -> Tensor:
        values = self.function(inputs, theta)
        shape = (len(inputs), len(theta), *([self.outputs] if self.outputs else []))
        check_tensor(values, "sigma")
        if values.shape != shape:
            msg = (
                f"sigma must map inputs {tuple(inputs.shape)} and neurons "
                f"{tuple(theta.shape)} to shape {shape}, got {tuple(values.shape)}"
            )
            raise InvalidFunctional(msg)
        check_dtype(values, theta, "sigma", "neurons theta")
        return values

    def read_out(self, hidden: Tensor, theta: Tensor, masses: Tensor) -> Tensor:
        if self.outputs is None:
            return hidden @ masses
        return torch.einsum("kim,i->km", hidden, masses)

    def correlate(self, hidden: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
        if self.outputs is None:
            return slope @ hidden
        return torch.einsum("km,kim->i", slope, hidden)

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"CustomLayer({name}{self._options()})"
