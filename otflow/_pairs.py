"""Sums over pairs of rows, evaluated and differentiated tile by tile, to any order.

Memory is O(n d): no matrix of all pairs is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otflow._autodiff import grads_of
from otflow._graphs import differentiating, leaf, recording
from otflow._missing import derivatives_named

__all__ = ["PairFunction", "Sweep", "pair_field", "pair_sum", "tiles"]

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
    others: tuple[Tensor, ...] = (),
    sweep: Sweep | None = None,
    tile: int = TILE,
    is_closed: bool = True,
) -> Tensor:
    """Return ``sum over blocks I, J of energy(*rows[I], *rows[J], I is J)``.

    With `others` the second blocks are rows of these, and no pair is diagonal. The sum
    is differentiable in every tensor of `rows` and `others`, to any order; each order
    keeps O(n d) memory. One visit of the tiles gives value and first gradient; if
    `sweep` is given, a closed form of the same sum replaces the visit. Time O(n^2 d).

    An `energy` whose parameters carry a graph is not closed. Then each tile is recorded
    by itself, and evaluated again for each derivative.
    """
    if not is_closed and recording():
        total = rows[0].new_zeros(())
        for _i, _j, *blocks in _blocks(tile, len(rows), (*rows, *others)):
            part = checkpoint(energy, *blocks, use_reentrant=False)
            total = total + part
        return total
    tensors = (*rows, *others)
    return cast("Tensor", _PairSum.apply(energy, sweep, tile, len(rows), *tensors))  # type: ignore[no-untyped-call]


def _blocks(tile: int, count: int, rows: tuple[Tensor, ...]) -> Iterator[Any]:
    """Yield the slices of a pair of blocks, its rows, and whether it is diagonal.

    The first blocks are rows of the first `count` tensors. The second blocks are rows
    of the other tensors, or of the same ones if there are no others.
    """
    left, right = rows[:count], rows[count:] or rows[:count]
    for i in tiles(len(left[0]), tile):
        for j in tiles(len(right[0]), tile):
            blocks = (*(r[i] for r in left), *(r[j] for r in right))
            yield i, j, *blocks, len(rows) == count and i == j


@derivatives_named()
def _sweep(
    energy: PairEnergy,
    tile: int,
    count: int,
    rows: tuple[Tensor, ...],
    *,
    gradients: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Visit the tiles once; return the sum and, on request, its gradients."""
    total = rows[0].new_zeros(())
    grads = tuple(torch.zeros_like(r) for r in rows) if gradients else ()
    for i, j, *live, is_diagonal in _blocks(tile, count, rows):
        blocks = tuple(b.detach() for b in live)
        if not gradients:
            total = total + energy(*blocks, is_diagonal)
            continue
        with torch.enable_grad():
            blocks = tuple(b.requires_grad_() for b in blocks)
            part = energy(*blocks, is_diagonal)
        total = total + part.detach()
        if part.requires_grad:
            for k, g in enumerate(grads_of(part, blocks)):
                grads[k % len(rows)][i if k < count else j] += g
    return total, grads


class PairFunction(Protocol):
    """What a field asks of a kernel of two points."""

    def rows(self, points: Tensor) -> Tensor:
        """Return what the kernel sees of points (n, d)."""

    def even_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the symmetric part of the kernel at rows that broadcast."""


@derivatives_named()
def pair_field(
    K: PairFunction, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
) -> tuple[Tensor, Tensor]:
    """Return potentials (m, k) of masses (n, k), and their gradients (m, k, d).

    By automatic differentiation, tile by tile; see `kernels.PairKernel.field`.
    """
    x, masses, count = x.detach(), masses.detach(), masses.shape[1]
    potentials = x.new_zeros(len(x), count)
    slopes = x.new_zeros(len(x), count, x.shape[1]) if gradients else x.new_zeros(0)
    with torch.no_grad():
        far = K.rows(points.detach())
    for i in tiles(len(x)):
        with differentiating(parameters=False), torch.set_grad_enabled(gradients):
            at = leaf(x[i])
            rows = K.rows(at)
            near = leaf(rows)
            pulls = [torch.zeros_like(near.detach()) for _ in range(count)]
            for j in tiles(len(points)):
                part = K.even_pairs(near[:, None], far[j]) @ masses[j]
                potentials[i] += part.detach()
                for k in range(count if part.requires_grad else 0):
                    (pull,) = torch.autograd.grad(
                        part[:, k].sum(), near, retain_graph=k + 1 < count
                    )
                    pulls[k] += pull
            for k in range(count if gradients and rows.requires_grad else 0):
                (slopes[i, k],) = torch.autograd.grad(
                    rows, at, pulls[k], retain_graph=k + 1 < count
                )
    return potentials, slopes


class _PairSum(torch.autograd.Function):
    """The value of a sum over pairs; its gradient is a `_PairGradient`."""

    @staticmethod
    def forward(
        ctx: Any,
        energy: PairEnergy,
        sweep: Sweep | None,
        tile: int,
        count: int,
        *rows: Tensor,
    ) -> Tensor:
        gradients = any(ctx.needs_input_grad)
        if sweep is not None:
            total, grads = sweep(*rows, gradients=gradients)
        else:
            total, grads = _sweep(energy, tile, count, rows, gradients=gradients)
        ctx.energy, ctx.tile, ctx.count = energy, tile, count
        ctx.save_for_backward(*rows, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        saved = ctx.saved_tensors
        rows, grads = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        if torch.is_grad_enabled():  # a derivative of this gradient is wanted too
            grads = _PairGradient.apply(ctx.energy, ctx.tile, ctx.count, grads, *rows)  # type: ignore[no-untyped-call]
        return None, None, None, None, *(upstream[0] * g for g in grads)


class _PairGradient(torch.autograd.Function):
    """The gradient of a sum over pairs; differentiable, as the gradient of another."""

    @staticmethod
    def forward(
        ctx: Any,
        energy: PairEnergy,
        tile: int,
        count: int,
        known: tuple[Tensor, ...],
        *rows: Tensor,
    ) -> Any:
        ctx.energy, ctx.tile, ctx.count = energy, tile, count
        ctx.save_for_backward(*rows)
        ctx.set_materialize_grads(False)
        if known:
            return tuple(g.detach() for g in known)
        return _sweep(energy, tile, count, rows, gradients=True)[1]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        rows, count = ctx.saved_tensors, ctx.count
        energy = ctx.energy
        # Only the gradients that are used are differentiated: a second derivative that
        # is infinite, times a cotangent of zero, would be NaN.
        used = [k for k, u in enumerate(upstream) if u is not None]
        if not used:
            return (None,) * (4 + len(rows))
        first = [k for k in used if k < count]
        # The second blocks are their own rows, or the first ones again.
        second = [k for k in used if k >= count]
        again = second if len(rows) > count else [count + k for k in first]
        width, rest = count + len(first), (len(rows) - count) or count

        def along(*args: Any) -> Tensor:
            """Return the derivative of `energy` in its rows along the cotangents."""
            *blocks, is_diagonal = args
            x = (*blocks[:count], *blocks[width : width + rest])
            u = (*blocks[count:width], *blocks[width + rest :])
            part: Tensor = energy(*x, is_diagonal)
            if not part.requires_grad:
                return part
            grads = grads_of(part, x, create_graph=True)
            pairs = zip((*first, *again), u, strict=True)
            return torch.stack([(grads[k] * v).sum() for k, v in pairs]).sum()

        left = (*rows[:count], *(upstream[k] for k in first))
        right = (*rows[count:], *(upstream[k] for k in second))
        grads = _PairGradient.apply(along, ctx.tile, width, (), *left, *right)  # type: ignore[no-untyped-call]
        # `along` is linear in the cotangents: its gradient in them is the gradient
        # itself, which autograd already has.
        own = (*grads[:count], *grads[width : width + len(rows) - count])
        return None, None, None, None, *own
