"""Differentiate once, here: the only file that calls ``torch.autograd``.

Two tools: gradients of a scalar with every failure named, and sums over pairs of rows
that are evaluated and differentiated tile by tile, to any order, in O(n d) memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from otflow.errors import InvalidFunctional, NonFinite

__all__ = [
    "check_finite",
    "check_scalar",
    "differentiable_gradient",
    "entrywise_derivative",
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


def leaf(x: Tensor) -> Tensor:
    """Return a detached alias of `x` that records gradients."""
    return x.detach().requires_grad_()


class unmodified:
    """Refuse code that writes into `tensors`; on the path of every step, so lean."""

    __slots__ = ("by", "tensors", "versions")

    def __init__(self, *tensors: Tensor, by: str) -> None:
        self.tensors, self.by = tensors, by

    def __enter__(self) -> None:
        self.versions = [tensor._version for tensor in self.tensors]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.versions != [t._version for t in self.tensors]:
            msg = (
                f"{self.by} modified the measure in place; "
                f"work on a copy: mu.points.clone()"
            )
            raise InvalidFunctional(msg)


def check_scalar(value: Any, like: Tensor) -> Tensor:
    """Refuse what is not one finite real number on the device of `like`."""
    if not isinstance(value, Tensor):
        msg = (
            f"a functional's value must be a 0-d tensor, got {type(value).__name__}; "
            f"compute it from mu.points and mu.weights with torch, and do not call "
            f"float() or .item()"
        )
        raise InvalidFunctional(msg)
    if value.ndim != 0:
        msg = (
            f"a functional's value must be a 0-d tensor, got shape "
            f"{tuple(value.shape)}; average over the measure, e.g. mu.expectation(f)"
        )
        raise InvalidFunctional(msg)
    if not value.is_floating_point():
        msg = f"a functional's value must be real floating point, got {value.dtype}"
        raise InvalidFunctional(msg)
    if value.device != like.device:
        msg = (
            f"a functional's value is on {value.device} but the measure is on "
            f"{like.device}; build its tensors on the measure's device"
        )
        raise InvalidFunctional(msg)
    return value


def check_finite(x: Tensor, what: str) -> None:
    """Raise `NonFinite`, naming `what`, if an entry of `x` is NaN or infinite."""
    # One reduction on the good path: a sum is finite only if its terms are, and a sum
    # of finite terms that overflows is looked at again, entry by entry.
    if math.isfinite(float(x.sum() if x.ndim else x)):
        return
    if bool(torch.isfinite(x).all()):
        return
    bad = (~torch.isfinite(x)).nonzero()
    where = f", first at index {tuple(int(i) for i in bad[0])}" if x.ndim else ""
    first = float(x[tuple(bad[0])]) if x.ndim else float(x)
    msg = (
        f"{what} is {first}{where}: the functional is not finite at this measure; "
        f"look for log(0), division by 0, or an overflow"
    )
    raise NonFinite(msg)


def _grad(
    value: Tensor, at: tuple[Tensor, ...], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    grads = torch.autograd.grad(
        value, at, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return tuple(grads)


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor, *, unused: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a scalar function's value and gradient at `x`, detached and checked.

    With ``unused=True`` a value that does not depend on `x` has gradient zero; else it
    is an error, as a value detached from the graph is most often a mistake.
    """
    if torch.is_inference_mode_enabled():
        msg = "torch.inference_mode() forbids derivatives; use torch.no_grad() instead"
        raise RuntimeError(msg)
    with torch.enable_grad():
        x = leaf(x)
        live = check_scalar(function(x), x)
        value, grad = live.detach(), None
        check_finite(value, "the functional's value")
        if live.requires_grad:
            (grad,) = torch.autograd.grad(live, x, allow_unused=True)
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
    with torch.enable_grad():
        x = leaf(x)
        y = function(x)
        for k in range(order):
            if not y.requires_grad:
                return torch.zeros_like(x.detach())
            (y,) = _grad(y.sum(), (x,), create_graph=k + 1 < order)
        return y.detach()


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
    (1/w_i) dF/dx_i is 0/0.
    """
    with torch.enable_grad():
        x, w = leaf(x), leaf(w)
        value = check_scalar(function(x, w), x)
        (mass,) = _grad(value, (w,), create_graph=True)
        total = mass[rows].sum()
        if not total.requires_grad:
            return torch.zeros_like(x[rows].detach())
        (grad,) = _grad(total, (x,))
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
) -> Tensor:
    """Return ``sum over blocks I, J of energy(*rows[I], *rows[J], I is J)``.

    Differentiable in every tensor of `rows`, to any order; each order keeps O(n d)
    memory. Value and first gradient come from one visit of the tiles: that of `sweep`,
    a closed form of the same sum, where given. Time O(n^2 d).
    """
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
            grads = _PairGradient.apply(ctx.energy, ctx.tile, *rows)  # type: ignore[no-untyped-call]
        return None, None, None, *(upstream[0] * g for g in grads)


class _PairGradient(torch.autograd.Function):
    """The gradient of a sum over pairs; differentiable, as the gradient of another."""

    @staticmethod
    def forward(ctx: Any, energy: PairEnergy, tile: int, *rows: Tensor) -> Any:
        ctx.energy, ctx.tile = energy, tile
        ctx.save_for_backward(*rows)
        ctx.set_materialize_grads(False)
        return _sweep(energy, tile, rows, gradients=True)[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        rows = ctx.saved_tensors
        energy, count = ctx.energy, len(rows)
        # Only the gradients that are used are differentiated: a second derivative that
        # is infinite, times a cotangent of zero, would be NaN.
        used = [k for k, u in enumerate(upstream) if u is not None]
        if not used:
            return (None,) * (2 + count)
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

        grads = _PairGradient.apply(along, ctx.tile, *rows, *cotangents)  # type: ignore[no-untyped-call]
        # `along` is linear in the cotangents: its gradient in them is the gradient
        # itself, which autograd already has.
        return None, None, *grads[:count]
