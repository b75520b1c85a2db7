"""Differentiate once, here: the only file that calls ``torch.autograd``.

Two tools: gradients of a scalar with every failure named, and sums over pairs of rows
that are evaluated and differentiated tile by tile, to any order, in O(n d) memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otflow._graphs import (
    alias,
    detached,
    leaf,
    only_without_mass,
    recording,
    records,
    unmodified,
)
from otflow._validation import check_finite, check_scalar
from otflow.errors import InvalidFunctional, Unsupported

__all__ = [
    "check_finite",
    "check_scalar",
    "differentiable_gradient",
    "entrywise_derivative",
    "entrywise_derivatives",
    "gradient",
    "implicit",
    "leaf",
    "line_derivatives",
    "pair_sum",
    "second_gradient",
    "tiles",
    "unmodified",
    "value_and_gradient",
    "value_gradient_product",
]

# A tile's distance matrix (TILE x TILE, float64: 0.5 MB) stays in the L2 cache.
TILE = 256

PairEnergy = Callable[..., Tensor]
"""``e(*rows_i, *rows_j, diagonal)`` -> 0-d tensor: the energy of two blocks of rows."""

Sweep = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""``sweep(*rows, gradients=...)`` -> the sum and its gradients, () if unwanted."""


def _grad(
    value: Tensor, at: tuple[Tensor, ...], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    grads = torch.autograd.grad(
        value, at, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return tuple(grads)


def value_and_gradient(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    beside: tuple[Tensor, ...] = (),
    unused: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return a scalar function's value and gradient at `x`, checked.

    If `x`, or a tensor that the function takes `beside` it, has a graph and gradients
    are recorded, both carry the graphs of all that they depend on; else they are
    detached, whatever parameters the function has, and the gradient costs one backward
    pass. With ``unused=True`` a value that does not depend on `x` has gradient zero;
    else it is an error, as a value detached from the graph is most often a mistake.
    """
    if torch.is_inference_mode_enabled():
        msg = "torch.inference_mode() forbids derivatives; use torch.no_grad() instead"
        raise RuntimeError(msg)
    keep = records(x, *beside)
    with torch.enable_grad(), nullcontext() if keep else detached():
        at = alias(x) if keep else leaf(x)
        live = check_scalar(function(at), x)
        check_finite(live, "the functional's value")
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


def entrywise_derivative(
    function: Callable[[Tensor], Tensor], x: Tensor, order: int = 1
) -> Tensor:
    """Return f' or a higher derivative of an entrywise function; overflow is let by."""
    keep = records(x)
    with torch.enable_grad():
        at = alias(x) if keep else leaf(x)
        y = function(at)
        for k in range(order):
            if not y.requires_grad:
                return torch.zeros_like(x.detach())
            (y,) = _grad(y.sum(), (at,), create_graph=keep or k + 1 < order)
        return y if keep else y.detach()


def entrywise_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return f' and f'' of an entrywise function by one evaluation; no graph is kept.

    Overflow is let by.
    """
    zero = torch.zeros_like(x.detach())
    with torch.enable_grad():
        at = leaf(x)
        y = function(at)
        if not y.requires_grad:
            return zero, zero
        (first,) = _grad(y.sum(), (at,), create_graph=True)
        second = _grad(first.sum(), (at,))[0] if first.requires_grad else zero
    return first.detach(), second.detach()


def line_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f' and f'' of a batched ground function (n, 1) -> (n,) on the line."""
    with torch.enable_grad():
        x = leaf(x)
        values = function(x)
        zero = torch.zeros_like(x[:, 0])
        if not values.requires_grad:
            return values.detach(), zero, zero
        (first,) = _grad(values.sum(), (x,), create_graph=True)
        second = _grad(first.sum(), (x,))[0] if first.requires_grad else zero[:, None]
    check_finite(values.detach(), "a ground function")
    check_finite(first.detach(), "the gradient of a ground function")
    check_finite(second, "the second derivative of a ground function")
    return values.detach(), first.detach()[:, 0], second[:, 0]


def value_gradient_product(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Return F, its gradient, and the map from v to the Hessian times v, at `x`.

    The graph of the gradient is kept, so that a product costs one backward pass.
    """
    with torch.enable_grad():
        x = leaf(x)
        live = check_scalar(function(x), x)
        check_finite(live.detach(), "the functional's value")
        grads = _grad(live, (x,), create_graph=True) if live.requires_grad else ()
    slope = grads[0] if grads else torch.zeros_like(x.detach())
    check_finite(slope.detach(), "the functional's gradient")

    def product(v: Tensor) -> Tensor:
        if not slope.requires_grad:
            return torch.zeros_like(v)
        options = {"retain_graph": True, "materialize_grads": True}
        return torch.autograd.grad(slope, (x,), v, allow_unused=True, **options)[0]

    return live.detach(), slope.detach(), product


def second_gradient(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, rows: Tensor
) -> Tensor:
    """Return d/dx_i of dF/dw_i for the rows where `rows` is True, (k, d).

    It is the gradient of the first variation at atoms that carry no mass, where
    (1/w_i) dF/dx_i is 0/0. Like that of `value_and_gradient` it carries the graphs of
    what it depends on; but a derivative in the masses of these rows would be wrong, as
    terms that vanish with them are left out: a graph on `w` is refused.
    """
    if records(w):
        msg = (
            "the velocity of atoms of mass zero has no derivative in the masses here; "
            "leave these atoms out (points[weights > 0]), or give weights.detach()"
        )
        raise Unsupported(msg)
    keep = records(x)
    with torch.enable_grad(), nullcontext() if keep else detached():
        at, masses = alias(x) if keep else leaf(x), leaf(w)
        value = check_scalar(function(at, masses), x)
        (mass,) = _grad(value, (masses,), create_graph=True)
        total = mass[rows].sum()
        if not total.requires_grad:
            return torch.zeros_like(x[rows].detach())
        with only_without_mass():
            (grad,) = _grad(total, (at,), create_graph=keep)
    check_finite(grad, "the gradient of the first variation")
    return grad[rows]


# Sums over pairs, tile by tile -------------------------------------------------------


def differentiable_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of a scalar function at `x`, in the graph of `x`."""
    with torch.enable_grad():
        at = x if x.requires_grad else leaf(x)
        return _grad(check_scalar(function(at), x), (at,), create_graph=True)[0]


def implicit(
    step: Callable[[Tensor], Tensor],
    fixed: Tensor,
    adjoint: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
) -> Tensor:
    r"""Return the fixed point of `step` with its derivative in what `step` closes over.

    Of :math:`x = T(x, p)` the derivative is :math:`(I - J)^{-1} \partial_p T`, with J =
    :math:`\partial_x T`: the gradient g that comes in is replaced by the solution of
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


def tiles(n: int, tile: int = TILE) -> Iterator[slice]:
    """Yield the slices that cut range(n) into blocks of at most `tile` rows."""
    for start in range(0, n, tile):
        yield slice(start, min(start + tile, n))


def pair_sum(
    energy: PairEnergy,
    *rows: Tensor,
    sweep: Sweep | None = None,
    tile: int = TILE,
    is_closed: bool = True,
) -> Tensor:
    """Return ``sum over blocks I, J of energy(*rows[I], *rows[J], I is J)``.

    Differentiable in every tensor of `rows`, to any order; each order keeps O(n d)
    memory. Value and first gradient come from one visit of the tiles: that of `sweep`,
    a closed form of the same sum, where given. Time O(n^2 d).

    An `energy` that has parameters with a graph of their own is not closed: each tile
    is then recorded by itself, and evaluated again for each derivative.
    """
    if not is_closed and recording():
        total = rows[0].new_zeros(())
        for i in tiles(len(rows[0]), tile):
            for j in tiles(len(rows[0]), tile):
                blocks = (r[s] for s in (i, j) for r in rows)
                total = total + checkpoint(energy, *blocks, i == j, use_reentrant=False)
        return total
    return cast("Tensor", _PairSum.apply(energy, sweep, tile, *rows))  # type: ignore[no-untyped-call]


def _sweep(
    energy: PairEnergy, tile: int, rows: tuple[Tensor, ...], *, gradients: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Visit the tiles once; return the sum and, on request, its gradients."""
    n, count = len(rows[0]), len(rows)
    total = rows[0].new_zeros(())
    grads = tuple(torch.zeros_like(r) for r in rows) if gradients else ()
    for i in tiles(n, tile):
        for j in tiles(n, tile):
            blocks = tuple(r[s].detach() for s in (i, j) for r in rows)
            if not gradients:
                total = total + energy(*blocks, i == j)
                continue
            with torch.enable_grad():
                blocks = tuple(b.requires_grad_() for b in blocks)
                part = energy(*blocks, i == j)
            total = total + part.detach()
            if part.requires_grad:
                for k, g in enumerate(_grad(part, blocks)):
                    grads[k % count][i if k < count else j] += g
    return total, grads


class _PairSum(torch.autograd.Function):
    """The value of a sum over pairs; its gradient is a `_PairGradient`."""

    @staticmethod
    def forward(
        ctx: Any, energy: PairEnergy, sweep: Sweep | None, tile: int, *rows: Tensor
    ) -> Tensor:
        gradients = any(ctx.needs_input_grad)
        if sweep is not None:
            total, grads = sweep(*rows, gradients=gradients)
        else:
            total, grads = _sweep(energy, tile, rows, gradients=gradients)
        ctx.energy, ctx.tile = energy, tile
        ctx.save_for_backward(*rows, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        saved = ctx.saved_tensors
        rows, grads = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        if torch.is_grad_enabled():  # a derivative of this gradient is wanted too
            grads = _PairGradient.apply(ctx.energy, ctx.tile, grads, *rows)  # type: ignore[no-untyped-call]
        return None, None, None, *(upstream[0] * g for g in grads)


class _PairGradient(torch.autograd.Function):
    """The gradient of a sum over pairs; differentiable, as the gradient of another."""

    @staticmethod
    def forward(
        ctx: Any,
        energy: PairEnergy,
        tile: int,
        known: tuple[Tensor, ...],
        *rows: Tensor,
    ) -> Any:
        ctx.energy, ctx.tile = energy, tile
        ctx.save_for_backward(*rows)
        ctx.set_materialize_grads(False)
        if known:
            return tuple(g.detach() for g in known)
        return _sweep(energy, tile, rows, gradients=True)[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        rows = ctx.saved_tensors
        energy, count = ctx.energy, len(rows)
        # Only the gradients that are used are differentiated: a second derivative that
        # is infinite, times a cotangent of zero, would be NaN.
        used = [k for k, u in enumerate(upstream) if u is not None]
        if not used:
            return (None,) * (3 + count)
        cotangents = [u for u in upstream if u is not None]
        width = count + len(used)

        def along(*args: Any) -> Tensor:
            """Return the derivative of `energy` in its rows along the cotangents."""
            *blocks, diagonal = args
            x = (*blocks[:count], *blocks[width : width + count])
            u = (*blocks[count:width], *blocks[width + count :])
            part: Tensor = energy(*x, diagonal)
            if not part.requires_grad:
                return part
            grads = _grad(part, x, create_graph=True)
            chosen = [grads[k + side] for side in (0, count) for k in used]
            terms = [(g * v).sum() for g, v in zip(chosen, u, strict=True)]
            return torch.stack(terms).sum()

        grads = _PairGradient.apply(along, ctx.tile, (), *rows, *cotangents)  # type: ignore[no-untyped-call]
        # `along` is linear in the cotangents: its gradient in them is the gradient
        # itself, which autograd already has.
        return None, None, None, *grads[:count]
