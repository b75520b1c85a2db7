"""The base of functions that a measure parametrises: what a risk needs of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from otflow._arrays import as_points
from otflow._claims import changed, forget, library_class
from otflow._typing import ArrayLike
from otflow._validation import (
    check_dtype,
    check_kind,
    check_like,
    check_tensor,
    first_not_finite,
    non_negative_int,
    real,
)
from otflow.errors import InvalidFunctional, NonFinite
from otflow.meanfield.losses import Loss
from otflow.measures import Measure

__all__ = ["PASSES", "Model", "evaluated", "finite", "redefined"]


PASSES = (
    "value_and_velocity",
    "value_and_first_variation",
    "value_and_derivatives",
)
"""What a model may state beside its outputs, which follows from these."""


class Model(ABC):
    r"""A function :math:`f_\mu(x) + c` of inputs that a measure parametrises.

    A subclass states `check_measure` and `respond`. `Risk` then gives the loss of its
    outputs, and automatic differentiation all derivatives. A subclass may state a pass
    of its own for speed: `value_and_velocity`, `value_and_first_variation` or
    `value_and_derivatives`. A class that changes what a parent computes does not
    inherit the passes of that parent.

    Parameters
    ----------
    outputs : int, optional
        Number m of outputs; by default one output, without an axis of its own.
    offset : float or sequence of float, optional
        The constant c, one number per output; it is not trained. Zero by default.

    Attributes
    ----------
    outputs, offset
        As above.

    See Also
    --------
    TwoLayer : An integral over the measure of neurons.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Line(of.meanfield.Model):  # x -> m.x with the mean m of the measure
    ...     def check_measure(self, mu, d):
    ...         assert mu.dim == d
    ...
    ...     def respond(self, inputs, mu):
    ...         return self.add_offset(inputs @ mu.expectation(lambda x: x))
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]]))
    >>> Line()(mu, torch.tensor([[5.0]]))
    tensor([10.])
    """

    # What a model of one's own states; all else may change what is known of outputs.
    stated: frozenset[str] = frozenset(
        ("check_measure", "encode", "respond", "exchangeable", *PASSES)
    )

    exchangeable: bool = True
    """Whether outputs depend on the law alone, as for `Functional.exchangeable`."""

    # Those of a subclass that does not call `__init__`.
    outputs: int | None = None
    offset: float | tuple[float, ...] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Forget the pass of a parent, if the subclass changes what it computes."""
        super().__init_subclass__(**options)
        forget(cls, {name: vars(Model)[name] for name in PASSES}, PASSES)

    def __init__(
        self,
        outputs: int | None = None,
        offset: float | Sequence[float] | ArrayLike | None = None,
    ) -> None:
        if outputs is not None:
            outputs = non_negative_int(outputs, "outputs", minimum=1)
        self.outputs = outputs
        self.offset = _as_offset(offset, outputs)

    def __call__(self, mu: Measure, X: ArrayLike) -> Tensor:
        r"""Return the outputs :math:`f(x_k)` at the rows of `X`.

        Parameters
        ----------
        mu : Measure
            The measure that parametrises the function.
        X : Tensor or ndarray, shape (n, d)
            Inputs, of the dtype of `mu`.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Differentiable in the measure and in X.

        Raises
        ------
        ValueError, TypeError
            If the inputs or the measure are wrong for the model.
        InvalidFunctional
            If `respond` returns outputs of another shape or dtype.
        NonFinite
            If an output is infinite or NaN.
        """
        check_kind(mu, Measure, "mu")
        X = as_points(X, "X")
        check_like(X, mu, "X", "the measure")
        self.check_measure(mu, X.shape[1])
        return finite(evaluated(self, self.encode(X), mu), self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def check_measure(self, mu: Measure, d: int) -> None:
        """Raise `ValueError` or `TypeError` for a measure that is no such function.

        Parameters
        ----------
        mu : Measure
            The measure.
        d : int
            Dimension of the inputs.
        """

    def encode(self, X: Tensor) -> Tensor:
        """Return a copy of the data in the form that the other methods take.

        Parameters
        ----------
        X : Tensor, shape (n, d)
            Inputs.

        Returns
        -------
        Tensor, shape (n, q)
            Encoded inputs, the first d columns X itself.
        """
        return X.clone()

    @abstractmethod
    def respond(self, inputs: Tensor, mu: Measure) -> Tensor:
        """Return the outputs, with the offset, at encoded inputs.

        Parameters
        ----------
        inputs : Tensor, shape (n, q)
            Encoded inputs.
        mu : Measure
            A measure that `check_measure` accepts.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Differentiable in the measure.
        """

    def value_and_velocity(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure
    ) -> tuple[Tensor, Tensor] | None:
        r"""Return the risk and its velocity by a pass of the model, if it has one.

        Parameters
        ----------
        loss : Loss
            The loss of an output.
        inputs : Tensor, shape (n, q)
            Encoded inputs.
        y : Tensor
            Targets, n rows.
        mu : Measure
            A measure that `check_measure` accepts.

        Returns
        -------
        tuple of Tensor, or None
            The mean loss, 0-d, and minus its gradient, a tangent at `mu`. None where
            automatic differentiation is to be used: by default, if
            `value_and_derivatives` has no pass; and for a measure with a graph.
        """
        found = self.value_and_derivatives(loss, inputs, y, mu)
        return None if found is None else found[:2]

    def value_and_first_variation(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure, x: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        r"""Return the risk and its first variation by a pass of the model, if any.

        Parameters
        ----------
        loss, inputs, y, mu
            As those of `value_and_velocity`.
        x : Tensor, shape (k, p), optional
            Probes; by default the points of the measure.

        Returns
        -------
        tuple of Tensor, or None
            The mean loss, 0-d, and F' at the k probes or at the N points. None where
            automatic differentiation is to be used: by default, and for a measure or
            probes with a graph.
        """
        return None

    def value_and_derivatives(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        r"""Return the risk, its velocity and F' at the points by one pass, if any.

        Parameters
        ----------
        loss, inputs, y, mu
            As those of `value_and_velocity`.

        Returns
        -------
        tuple of Tensor, or None
            The mean loss, 0-d, a tangent, and F' at the N points. None where automatic
            differentiation is to be used.
        """
        return None

    def add_offset(self, f: Tensor) -> Tensor:
        """Return the outputs with the constant c added.

        Parameters
        ----------
        f : Tensor, shape (n,) or (n, m)
            Outputs without the constant.

        Returns
        -------
        Tensor, shape (n,) or (n, m)
            Outputs with the constant.
        """
        return f if self.offset is None else f + f.new_tensor(self.offset)


def evaluated(model: Model, inputs: Tensor, mu: Measure) -> Tensor:
    """Return the outputs of a model, (n,) or (n, m): a loss broadcasts other shapes."""
    values = model.respond(inputs, mu)
    name = f"{type(model).__name__}.respond"
    check_tensor(values, name)
    m = model.outputs
    if values.shape != ((len(inputs),) if m is None else (len(inputs), m)):
        wanted = "(n,)" if m is None else f"(n, {m})"
        msg = (
            f"{name} must return outputs of shape {wanted} for n = {len(inputs)} "
            f"inputs and outputs={m}, got {tuple(values.shape)}; return f[:, 0] for "
            f"one output, and call super().__init__(outputs=m) for m of them"
        )
        raise InvalidFunctional(msg)
    check_dtype(values, inputs, name, "inputs X")
    return values


def finite(values: Tensor, model: Model, what: str = "outputs") -> Tensor:
    """Return what a model computed; raise `NonFinite` if it is not finite."""
    index = first_not_finite(values)
    if index is not None:
        msg = (
            f"the {what} of {type(model).__name__} are not finite, first at index "
            f"{index}: {values[index].item()}; a number is too large for "
            f"{values.dtype}, or a function of yours has no value there; take smaller "
            f"weights or inputs"
        )
        raise NonFinite(msg)
    return values


def redefined(model: Model) -> str | None:
    """Return the name of what a model evaluates otherwise than the library's class.

    None if there is no such thing: then all closed forms of its class hold.
    """
    kind = library_class(type(model))
    # A base of the library leaves to its subclasses what it says itself.
    own = vars(kind).get("stated", frozenset(("__repr__",)))
    return changed(type(model), kind, own)


def _as_offset(offset: Any, outputs: int | None) -> float | tuple[float, ...] | None:
    """Return the offset as plain numbers, which have neither dtype nor device."""
    if offset is None:
        return None
    if isinstance(offset, (Tensor, np.ndarray)):
        offset = offset.tolist()
    if outputs is None:
        if isinstance(offset, (list, tuple)):
            msg = (
                f"offset must be one number for one output, got {offset!r}; give "
                f"outputs={len(offset)}, or a number"
            )
            raise TypeError(msg)
        return real(offset, "offset")
    if not isinstance(offset, Sequence) or len(offset) != outputs:
        msg = (
            f"offset must hold {outputs} numbers, one per output, got {offset!r}; e.g. "
            f"offset={[0.0] * outputs!r:.40}"
        )
        raise ValueError(msg)
    return tuple(real(value, f"offset[{k}]") for k, value in enumerate(offset))
