"""Functions whose derivatives are known in advance, to any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from otflow._graphs import records
from otflow.errors import Unsupported

__all__ = ["known_derivatives", "linear", "once", "root_of"]

LinearMap = Callable[..., "Tensor | tuple[Tensor, ...]"]
"""Takes tensors without graphs to one or more."""


def linear(
    function: LinearMap, transposed: LinearMap, *inputs: Tensor, at: Any = None
) -> Any:
    """Return a linear function of tensors, differentiable to any order.

    Parameters
    ----------
    function, transposed : callable
        The map and its transpose, on tensors without graphs.
    *inputs : Tensor
        Arguments of the map.
    at : Tensor or tuple of Tensor, optional
        The value, if it is known up to a constant. Then the map itself serves
        derivatives alone; it is not called before a derivative of second order.

    Returns
    -------
    Tensor or tuple of Tensor
        In the graph of the inputs.
    """
    return _Linear.apply(function, transposed, at, *inputs)  # type: ignore[no-untyped-call]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: LinearMap, transposed: LinearMap, at: Any, *inputs: Tensor
    ) -> Any:
        ctx.maps = transposed, function
        if at is None:
            return function(*inputs)
        return tuple(t.clone() for t in at) if isinstance(at, tuple) else at.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        back = linear(*ctx.maps, *upstream)
        return None, None, None, *(back if isinstance(back, tuple) else (back,))


def known_derivatives(
    value: Tensor,
    state: tuple[Tensor, ...],
    gradients: Callable[..., Iterable[Tensor]],
    function: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return a value whose gradient is known in closed form.

    Parameters
    ----------
    value : Tensor
        0-d.
    state : tuple of Tensor
        Its arguments.
    gradients : callable
        Takes the state to the gradients. It serves a first derivative.
    function : callable, optional
        Takes the state to the value with its graph. It serves higher derivatives. By
        default the gradients themselves have the graph of the state.

    Returns
    -------
    Tensor
        The same number, in the graph of the state.
    """
    if not records(*state):
        return value
    known = _Known.apply(gradients, function, value, *state)  # type: ignore[no-untyped-call]
    return cast("Tensor", known)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradients: Any, function: Any, value: Tensor, *state: Tensor
    ) -> Tensor:
        ctx.gradients, ctx.function = gradients, function
        ctx.save_for_backward(*state)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (g,) = upstream
        state = ctx.saved_tensors
        if not torch.is_grad_enabled() or ctx.function is None:
            grads = ctx.gradients(*state)
            return None, None, None, *(g * grad for grad in grads)
        # Views make the derivatives partial: a part of the state may be computed from
        # another part.
        state = tuple(t.view_as(t) for t in state)
        asked = tuple(t for t in state if t.requires_grad)
        options: Any = {"allow_unused": True, "materialize_grads": True}
        value = ctx.function(*state)
        found = iter(torch.autograd.grad(value, asked, create_graph=True, **options))
        grads = tuple(g * next(found) if t.requires_grad else None for t in state)
        return None, None, None, *grads


def root_of(target: Tensor, root: Tensor, slope: Tensor) -> Tensor:
    """Return the root z of f(z) = target in the graph of the target, entry by entry.

    Parameters
    ----------
    target : Tensor
        Right-hand sides.
    root, slope : Tensor
        z, and f' there; without graphs.

    Returns
    -------
    Tensor
        z. Its derivative is 1/f'. A second derivative raises `Unsupported`.
    """
    if not records(target):
        return root
    return cast("Tensor", _Root.apply(target, root, slope))  # type: ignore[no-untyped-call]


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, root: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(target, slope)
        return root.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        target, slope = ctx.saved_tensors
        msg = (
            "second derivatives of the pointwise maps of an internal energy are not "
            "known; differentiate once, or use Entropy() or PowerEntropy(m), whose "
            "maps are in closed form"
        )
        return once(upstream[0] / slope, msg, target), None, None


def once(x: Tensor, message: str, *tensors: Tensor) -> Tensor:
    """Return a number in the graph of tensors; its derivative raises `Unsupported`."""
    return cast("Tensor", _Once.apply(message, x, *tensors))  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    """Keep a number in the graph of tensors; its derivative in them raises."""

    @staticmethod
    def forward(ctx: Any, message: str, x: Tensor, *_: Tensor) -> Tensor:
        ctx.message = message
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise Unsupported(ctx.message)
