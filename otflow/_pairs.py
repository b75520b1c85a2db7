"""Sums over pairs of rows, evaluated and differentiated tile by tile, to any order.

Memory is O(n d): no matrix of all pairs is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otflow._autodiff import grads_of
from otflow._graphs import recording

__all__ = ["pair_sum", "tiles"]

# A tile's distance matrix (TILE x TILE, float64: 0.5 MB) stays in the L2 cache.
TILE = 256

PairEnergy = Callable[..., Tensor]
"""``e(*rows_i, *rows_j, diagonal)`` -> 0-d tensor: the energy of two blocks of rows."""

Sweep = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""``sweep(*rows, gradients=...)`` -> the sum and its gradients, () if unwanted."""


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
                for k, g in enumerate(grads_of(part, blocks)):
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
            grads = grads_of(part, x, create_graph=True)
            chosen = [grads[k + side] for side in (0, count) for k in used]
            terms = [(g * v).sum() for g, v in zip(chosen, u, strict=True)]
            return torch.stack(terms).sum()

        grads = _PairGradient.apply(along, ctx.tile, (), *rows, *cotangents)  # type: ignore[no-untyped-call]
        # `along` is linear in the cotangents: its gradient in them is the gradient
        # itself, which autograd already has.
        return None, None, None, *grads[:count]
