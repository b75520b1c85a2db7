"""Losses of a network's outputs, each with its slope in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from otflow._arrays import as_float_tensor, as_tensor
from otflow._autodiff import value_and_gradient
from otflow._typing import ArrayLike
from otflow._validation import check_like, check_option, check_tensor
from otflow.errors import InvalidFunctional
from otflow.numerics.enclosures import Enclosure, NotEnclosed

__all__ = ["LOSSES", "CustomLoss", "Loss", "Square", "as_loss"]

PerSample: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss (outputs, targets) -> (n,), one number per sample."""


class Loss(ABC):
    r"""A loss :math:`\ell(f, y)` of one sample, and its slope in f."""

    name: str
    # Whether the loss is known to be convex in f: then the risk is along mixtures.
    convex: bool = True

    @abstractmethod
    def targets(self, y: ArrayLike, X: Tensor, outputs: int | None) -> Tensor:
        """Return the checked targets as a detached tensor.

        Parameters
        ----------
        y : Tensor or ndarray
            Targets, n rows.
        X : Tensor, shape (n, d)
            Inputs.
        outputs : int or None
            Number of outputs; None is one output without an axis of its own.

        Returns
        -------
        Tensor
            Targets in the form that `values` and `total_and_slope` take.

        Raises
        ------
        ValueError, TypeError
            If the targets do not fit the loss, the inputs or the number of outputs.
        """

    @abstractmethod
    def values(self, f: Tensor, y: Tensor) -> Tensor:
        r"""Return :math:`\ell(f_k, y_k)`, differentiable in f.

        Parameters
        ----------
        f : Tensor, shape (n,) or (n, m)
            Outputs.
        y : Tensor
            Targets, as `targets` returns them.

        Returns
        -------
        Tensor, shape (n,)
            One loss for each sample, summed over outputs.
        """

    @abstractmethod
    def total_and_slope(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\sum_k \ell(f_k, y_k)` and :math:`\partial\ell/\partial f`.

        Parameters
        ----------
        f : Tensor, shape (n,) or (n, m)
            Outputs.
        y : Tensor
            Targets, as `targets` returns them.

        Returns
        -------
        total : Tensor
            The sum of the losses, 0-d.
        slope : Tensor, shape (n,) or (n, m)
            The derivative of each loss in its outputs.
        """

    def enclosed_slope(self, f: Enclosure, y: Tensor) -> Enclosure:
        r"""Return :math:`\partial\ell/\partial f` at enclosed outputs, as `f` is.

        Parameters
        ----------
        f : Enclosure, shape (n,) or (n, m)
            Outputs.
        y : Tensor
            Targets, as `targets` returns them.

        Returns
        -------
        Enclosure, shape (n,) or (n, m)
            The derivative of each loss in its outputs.

        Raises
        ------
        NotEnclosed
            If the slope has no interval extension.
        """
        msg = (
            f"the slope of the loss {self.name!r} has no interval extension; for the "
            f"risk of a TwoLayer take meanfield.VariationBall or PathBall as the "
            f"domain, which need none"
        )
        raise NotEnclosed(msg)


class Square(Loss):
    r""":math:`\tfrac12|f - y|^2`, summed over outputs."""

    name = "square"

    def targets(self, y: ArrayLike, X: Tensor, outputs: int | None) -> Tensor:
        y = as_float_tensor(y, "y").detach()
        check_like(y, X, "y", "X")
        _check_shape(y, X, outputs)
        _check_finite_targets(y)
        return y

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        return _over_outputs(0.5 * (f - y).square())

    def total_and_slope(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        residual = f - y
        return 0.5 * residual.square().sum(), residual

    def enclosed_slope(self, f: Enclosure, y: Tensor) -> Enclosure:
        return f - y  # type: ignore[return-value]


class Logistic(Loss):
    r""":math:`\log(1 + e^{-yf})` for labels -1 and +1, summed over outputs."""

    name = "logistic"

    def targets(self, y: ArrayLike, X: Tensor, outputs: int | None) -> Tensor:
        y = as_tensor(y, "y").detach()
        if y.is_complex() or y.dtype == torch.bool:
            cure = "2 * y.long() - 1" if y.dtype == torch.bool else "y.real"
            msg = (
                f"y must hold the labels -1 and +1 for the loss 'logistic', got "
                f"{y.dtype}; use {cure}"
            )
            raise TypeError(msg)
        _check_device(y, X)
        _check_shape(y, X, outputs)
        # Check before the cast, which would round a label close to 1 to 1.
        wrong = (y != 1) & (y != -1)
        if bool(wrong.any()):
            found = sorted({float(value) for value in y.flatten()[:1000]})[:4]
            hint = "; use 2 * y - 1 for labels 0 and 1" if set(found) <= {0, 1} else ""
            index = tuple(int(i) for i in wrong.nonzero()[0])
            msg = (
                f"y must hold the labels -1 and +1 for the loss 'logistic', got "
                f"{y[index].item()!r} at index {index}{hint}"
            )
            raise ValueError(msg)
        return y.to(X.dtype)

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        return _over_outputs(-functional.logsigmoid(y * f))

    def total_and_slope(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # log(1 + exp(-margin)) as written overflows where the margin is very negative.
        margin = y * f
        return -functional.logsigmoid(margin).sum(), -y * torch.sigmoid(-margin)

    def enclosed_slope(self, f: Enclosure, y: Tensor) -> Enclosure:
        return -y * torch.sigmoid(-y * f)  # type: ignore[return-value]


class CrossEntropy(Loss):
    r""":math:`\log\sum_c e^{f_c} - f_y` for classes y in 0, ..., m - 1."""

    name = "cross-entropy"

    def targets(self, y: ArrayLike, X: Tensor, outputs: int | None) -> Tensor:
        if outputs is None or outputs < 2:
            msg = (
                "the loss 'cross-entropy' needs one output per class: "
                "TwoLayer(..., outputs=number of classes)"
            )
            raise ValueError(msg)
        y = as_tensor(y, "y").detach()
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            msg = (
                f"y must hold integer classes for the loss 'cross-entropy', got "
                f"{y.dtype}; use y.long()"
            )
            raise TypeError(msg)
        _check_device(y, X)
        _check_shape(y, X, None)
        y = y.long()
        wrong = (y < 0) | (y >= outputs)
        if bool(wrong.any()):
            k = int(wrong.nonzero()[0])
            msg = (
                f"y must hold classes 0, ..., {outputs - 1}, one per output, got "
                f"{int(y[k])} at index {k}"
            )
            raise ValueError(msg)
        return y

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(f, y, reduction="none")

    def total_and_slope(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(f, dim=1)
        slope = log_p.exp()
        index = y[:, None]
        slope.scatter_add_(1, index, slope.new_full((1, 1), -1.0).expand_as(index))
        return -log_p.gather(1, index).sum(), slope

    def enclosed_slope(self, f: Enclosure, y: Tensor) -> Enclosure:
        # The share of class c is 1 over the sum of exp(f_j - f_c).
        shares = 1 / (f[:, None, :] - f[:, :, None]).exp().sum(-1)
        return shares - functional.one_hot(y, f.shape[1])  # type: ignore[return-value]


class CustomLoss(Loss):
    """A user's function (f, y) -> (n,), with its slope by autodiff."""

    convex = False

    def __init__(self, function: PerSample) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def targets(self, y: ArrayLike, X: Tensor, outputs: int | None) -> Tensor:
        y = as_tensor(y, "y").detach()
        _check_device(y, X)
        if y.ndim == 0 or len(y) != len(X):
            _refuse_shape(y, X, f"({len(X)}, ...)")
        if y.is_floating_point() or y.is_complex():
            _check_finite_targets(y)
        return y

    def values(self, f: Tensor, y: Tensor) -> Tensor:
        values = self.function(f, y)
        check_tensor(values, "a loss")
        if values.shape != f.shape[:1]:
            msg = (
                f"a loss must map outputs {tuple(f.shape)} and targets "
                f"{tuple(y.shape)} to one number per sample, {(len(f),)}, got "
                f"{tuple(values.shape)}; for a torch loss use reduction='none', and "
                f"sum over outputs"
            )
            raise InvalidFunctional(msg)
        if values.dtype != f.dtype:
            msg = (
                f"a loss returned {values.dtype} for outputs of dtype {f.dtype}; it "
                f"must be real, of the dtype of the outputs: use .to(f.dtype) on the "
                f"targets"
            )
            raise InvalidFunctional(msg)
        return values

    def total_and_slope(self, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(lambda g: self.values(g, y).sum(), f)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {loss.name: loss for loss in (Square(), Logistic(), CrossEntropy())}
)
"""The built-in losses, by name."""


def as_loss(loss: str | PerSample) -> Loss:
    """Return the built-in loss of that name, or wrap the user's own function."""
    if isinstance(loss, type):
        msg = f"loss must be a function; write {loss.__name__}(reduction='none')"
        raise TypeError(msg)
    if not isinstance(loss, str) and callable(loss):
        return CustomLoss(loss)
    return LOSSES[check_option(loss, "loss", LOSSES)]


# Helpers -----------------------------------------------------------------------------


def _over_outputs(values: Tensor) -> Tensor:
    return values if values.ndim == 1 else values.sum(-1)


def _check_device(y: Tensor, X: Tensor) -> None:
    if y.device != X.device:
        msg = f"y is on {y.device} but X is on {X.device}; move one with .to(...)"
        raise ValueError(msg)


def _check_shape(y: Tensor, X: Tensor, outputs: int | None) -> None:
    shape = (len(X),) if outputs is None else (len(X), outputs)
    if y.shape != shape:
        _refuse_shape(y, X, str(shape))


def _refuse_shape(y: Tensor, X: Tensor, expected: str) -> None:
    n = len(X)
    if y.ndim > 0 and len(y) != n:
        cure = f": X has {n} rows and y has {len(y)}"
    elif y.ndim == 2 and expected == f"({n},)":
        m = y.shape[1]
        cure = "; use y[:, 0]" if m == 1 else f"; or TwoLayer(..., outputs={m})"
    else:
        cure = ""
    msg = f"y must have shape {expected}, got {tuple(y.shape)}{cure}"
    raise ValueError(msg)


def _check_finite_targets(y: Tensor) -> None:
    good = torch.isfinite(y)
    if not bool(good.all()):
        index = tuple(int(i) for i in (~good).nonzero()[0])
        msg = f"y must be finite, got {y[index].item()} at index {index}"
        raise ValueError(msg)
