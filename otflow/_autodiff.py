"""Gradients of a scalar, with every failure named; derivatives of implicit maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow._graphs import (
    alias,
    differentiating,
    leaf,
    only_without_mass,
    records,
)
from otflow._missing import derivatives_named
from otflow._validation import check_finite, check_scalar
from otflow.errors import InvalidFunctional, Unsupported

__all__ = [
    "along",
    "check_finite",
    "differentiable_gradient",
    "entrywise_derivative",
    "entrywise_derivatives",
    "gradient",
    "grads_if_all",
    "grads_of",
    "implicit",
    "leaf",
    "line_derivatives",
    "second_gradient",
    "value_and_gradient",
    "value_gradient_product",
]


@derivatives_named()
def grads_of(
    value: Tensor, at: tuple[Tensor, ...], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradients of a 0-d tensor; zeros in what it does not depend on."""
    grads = torch.autograd.grad(
        value, at, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return tuple(grads)


def grads_if_all(value: Tensor, at: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the gradients of a 0-d tensor; None unless it depends on each tensor."""
    if not value.requires_grad:
        return None
    grads = torch.autograd.grad(value, at, allow_unused=True)
    return None if any(grad is None for grad in grads) else tuple(grads)


@derivatives_named()
def value_and_gradient(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    beside: tuple[Tensor, ...] = (),
    unused: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return a scalar function's value and gradient at `x`, checked.

    If gradients are recorded and `x`, or a tensor `beside` it, has a graph, both
    answers carry the graphs of all that they depend on. Else they are detached,
    whatever parameters the function has, and the gradient costs one backward pass.

    A value that does not depend on `x` raises InvalidFunctional: a value detached from
    the graph is most often a mistake. With ``unused=True`` its gradient is zero.
    """
    held = any(tensor.is_inference() for tensor in (x, *beside))
    if held or torch.is_inference_mode_enabled():
        msg = (
            "torch.inference_mode() forbids derivatives, also later in tensors made "
            "under it; use torch.no_grad() instead, or mu.clone() after it"
        )
        raise RuntimeError(msg)
    keep = records(x, *beside)
    with differentiating(parameters=keep):
        at = alias(x) if keep else leaf(x)
        live = check_scalar(function(at), x, finite=True)
        value, grad = live if keep else live.detach(), None
        if live.requires_grad:
            (grad,) = torch.autograd.grad(
                live, at, create_graph=keep, allow_unused=True
            )
    if grad is None:
        if unused:
            return value, torch.zeros_like(x)
        msg = (
            "the functional's value is detached from the measure: it carries no "
            "gradient in its points, or in its weights where those are asked for; "
            "remove .detach(), .numpy(), .item() or torch.no_grad() from `value`, and "
            "integrate with the weights, e.g. mu.expectation(f) in place of f.mean()"
        )
        raise InvalidFunctional(msg)
    check_finite(grad, "the functional's gradient")
    return value, grad


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of a batched ground function (n, d) -> (n,), row by row."""
    return value_and_gradient(lambda y: function(y).sum(), x, unused=True)[1]


@derivatives_named()
def entrywise_derivative(
    function: Callable[[Tensor], Tensor], x: Tensor, order: int = 1
) -> Tensor:
    """Return f' or a higher derivative of an entrywise function.

    Overflow is not checked.
    """
    keep = records(x)
    with torch.enable_grad():
        at = alias(x) if keep else leaf(x)
        y = function(at)
        for k in range(order):
            if not y.requires_grad:
                return torch.zeros_like(x.detach())
            (y,) = grads_of(y.sum(), (at,), create_graph=keep or k + 1 < order)
        return y if keep else y.detach()


@derivatives_named()
def entrywise_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f' and f'' of an entrywise function by one evaluation; without graph.

    The function may also take rows of one entry to numbers. Overflow is not checked.
    """
    zero = torch.zeros_like(x.detach())
    with torch.enable_grad():
        at = leaf(x)
        y = function(at)
        if not y.requires_grad:
            return y.detach(), zero, zero
        (first,) = grads_of(y.sum(), (at,), create_graph=True)
        second = grads_of(first.sum(), (at,))[0] if first.requires_grad else zero
    return y.detach(), first.detach(), second.detach()


def line_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f' and f'' of a batched ground function (n, 1) -> (n,) on the line."""
    values, first, second = entrywise_derivatives(function, x)
    check_finite(values, "a ground function")
    check_finite(first, "the gradient of a ground function")
    check_finite(second, "the second derivative of a ground function")
    return values, first[:, 0], second[:, 0]


@derivatives_named()
def along(
    function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return f and its first two derivatives along :math:`x + tv` at t = 0.

    They carry the graphs of x and v, so that the curvature is minimised in both. A
    value that does not depend on x raises `InvalidFunctional`.
    """
    keep = records(x, v)
    with differentiating(parameters=False):
        t = leaf(x.new_zeros(()))
        value = check_scalar(function(x + t * v), x, finite=True)
        if not value.requires_grad:
            msg = "the value is detached from the measure: it has no derivative"
            raise InvalidFunctional(msg)
        (first,) = grads_of(value, (t,), create_graph=True)
        second = torch.zeros_like(value)
        if first.requires_grad:
            (second,) = grads_of(first, (t,), create_graph=keep)
    if keep:
        return value, first, second
    return value.detach(), first.detach(), second.detach()


@derivatives_named()
def value_gradient_product(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Return F, its gradient, and the map from v to the Hessian times v, at `x`.

    The graph of the gradient is kept, so that a product costs one backward pass.
    """
    with torch.enable_grad():
        x = leaf(x)
        live = check_scalar(function(x), x, finite=True)
        grads = grads_of(live, (x,), create_graph=True) if live.requires_grad else ()
    slope = grads[0] if grads else torch.zeros_like(x.detach())
    check_finite(slope.detach(), "the functional's gradient")

    def product(v: Tensor) -> Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(v)
        options = {"retain_graph": True, "materialize_grads": True}
        return torch.autograd.grad(slope, (x,), v, allow_unused=True, **options)[0]

    return live.detach(), slope.detach(), product


@derivatives_named()
def second_gradient(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, rows: Tensor
) -> Tensor:
    """Return d/dx_i of dF/dw_i for the rows where `rows` is True, (k, d).

    It is the gradient of the first variation at atoms without mass, where (1/w_i)
    dF/dx_i is 0/0. It carries the graphs of what it depends on, like that of
    `value_and_gradient`.

    Raises
    ------
    Unsupported
        If `w` carries a graph. Terms that vanish with the masses of these rows are
        omitted, so a derivative in these masses would be wrong.
    """
    if records(w):
        msg = (
            "the velocity of atoms of mass zero has no derivative in the masses here; "
            "leave these atoms out (points[weights > 0]), or give weights.detach()"
        )
        raise Unsupported(msg)
    keep = records(x)
    with differentiating(parameters=keep):
        at, masses = alias(x) if keep else leaf(x), leaf(w)
        value = check_scalar(function(at, masses), x)
        (mass,) = grads_of(value, (masses,), create_graph=True)
        total = mass[rows].sum()
        if not total.requires_grad:
            return torch.zeros_like(x[rows].detach())
        with only_without_mass():
            (grad,) = grads_of(total, (at,), create_graph=keep)
    check_finite(grad, "the gradient of the first variation")
    # torch 2.4 makes zeros that ask for a gradient.
    return (grad if keep else grad.detach())[rows]


# A gradient in a graph, and fixed points ---------------------------------------------


@derivatives_named()
def differentiable_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of a scalar function at `x`, in the graph of `x`."""
    with torch.enable_grad():
        at = x if x.requires_grad else leaf(x)
        return grads_of(check_scalar(function(at), x), (at,), create_graph=True)[0]


def implicit(
    step: Callable[[Tensor], Tensor],
    fixed: Tensor,
    adjoint: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
) -> Tensor:
    r"""Return the fixed point of `step` with its derivative in parameters of `step`.

    For :math:`x = T(x, p)` the derivative is :math:`(I - J)^{-1} \partial_p T`, with J
    = :math:`\partial_x T`. An incoming gradient g is replaced by the solution of
    :math:`y = g + J^\top y`, which `adjoint` returns.

    Parameters
    ----------
    step : callable
        T, a tensor of the shape of `fixed` again, written with torch operations.
    fixed : Tensor
        The fixed point.
    adjoint : callable
        Takes :math:`y \mapsto J^\top y` and g to the solution.

    Returns
    -------
    Tensor
        One more evaluation of T at the fixed point; once differentiable.
    """
    fixed = fixed.detach()
    new = step(fixed)
    if not new.requires_grad:
        return new
    with torch.enable_grad():
        at = leaf(fixed)
        image = step(at)

    def transposed(y: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(image, at, y, retain_graph=True)
        return g

    new.register_hook(lambda g: adjoint(transposed, g))  # type: ignore[no-untyped-call]
    return new
