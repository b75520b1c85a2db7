"""The operations of torch that move the entries of an enclosure, or make constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from otflow.numerics.enclosed_operations import (
    Operand,
    axes_from_end,
    check_no_cast,
    enclosed,
)
from otflow.numerics.enclosures import Enclosure, NotEnclosed, linear, operation, padded

__all__: list[str] = []


# Shapes ------------------------------------------------------------------------------


@operation("view", "_unsafe_view", "reshape", "_reshape_copy", "view_copy")
def _view(x: Enclosure, size: Sequence[int]) -> Enclosure:
    size = list(size)
    if -1 in size:
        rest = math.prod(k for k in size if k != -1)
        size[size.index(-1)] = x.numel() // rest
    return linear(x, lambda t: t.reshape(*t.shape[:2], *size))


@operation("expand")
def _expand(x: Enclosure, size: Sequence[int], **_: Any) -> Enclosure:
    rows = padded(x, len(size))
    return x.like(rows.expand(*rows.shape[:2], *size))


@operation("permute")
def _permute(x: Enclosure, dims: Sequence[int]) -> Enclosure:
    return linear(x, lambda t: t.permute(0, 1, *(2 + k % x.ndim for k in dims)))


@operation("transpose")
def _transpose(x: Enclosure, a: int, b: int) -> Enclosure:
    return linear(x, lambda t: t.transpose(2 + a % x.ndim, 2 + b % x.ndim))


@operation("t")
def _t(x: Enclosure) -> Enclosure:
    return _same(x) if x.ndim < 2 else linear(x, lambda t: t.mT)


@operation("unsqueeze")
def _unsqueeze(x: Enclosure, dim: int) -> Enclosure:
    return linear(x, lambda t: t.unsqueeze(2 + dim % (x.ndim + 1)))


@operation("squeeze")
def _squeeze(x: Enclosure, dim: Sequence[int] | int | None = None) -> Any:
    dims = range(-x.ndim, 0) if dim is None else axes_from_end(x, dim)
    left = [
        n
        for k, n in zip(range(-x.ndim, 0), x.shape, strict=True)
        if not (k in dims and n == 1)
    ]
    return _view(x, left)


@operation("select")
def _select(x: Enclosure, dim: int, index: int) -> Enclosure:
    return linear(x, lambda t: t.select(2 + dim % x.ndim, index))


@operation("slice")
def _slice(x: Enclosure, dim: int = 0, *limits: Any) -> Enclosure:
    axis = 2 + dim % x.ndim
    cut = (slice(None),) * axis + (slice(*(limits or (None,))),)
    return linear(x, lambda t: t[cut])


@operation("index_select")
def _index_select(x: Enclosure, dim: int, index: Tensor) -> Enclosure:
    return linear(x, lambda t: t.index_select(2 + dim % x.ndim, index))


@operation("index")
def _index(x: Enclosure, indices: Sequence[Tensor | None]) -> Enclosure:
    held = [k for k, index in enumerate(indices) if index is not None]
    if held != list(range(held[0], held[-1] + 1)):
        msg = "indices on axes that are not adjacent have no interval extension here"
        raise NotEnclosed(msg)
    cut = tuple(slice(None) if index is None else index for index in indices)
    return linear(x, lambda t: t[(slice(None), slice(None), *cut)])


@operation("flip")
def _flip(x: Enclosure, dims: Sequence[int]) -> Enclosure:
    return linear(x, lambda t: t.flip([2 + k % x.ndim for k in dims]))


@operation("roll")
def _roll(x: Enclosure, shifts: Sequence[int], dims: Sequence[int] = ()) -> Enclosure:
    if not dims:
        msg = "a roll of all axes as one has no interval extension here"
        raise NotEnclosed(msg)
    return linear(x, lambda t: t.roll(shifts, [2 + k % x.ndim for k in dims]))


@operation("unbind")
def _unbind(x: Enclosure, dim: int = 0) -> list[Enclosure]:
    return [x.like(t) for t in x.rows.unbind(2 + dim % x.ndim)]


@operation("split", "split_with_sizes")
def _split(x: Enclosure, sizes: Any, dim: int = 0) -> list[Enclosure]:
    return [x.like(t) for t in torch.split(x.rows, sizes, 2 + dim % x.ndim)]


@operation("cat")
def _cat(tensors: Sequence[Operand], dim: int = 0) -> Enclosure:
    parts = _all_enclosed(tensors)
    return parts[0].like(torch.cat([p.rows for p in parts], 2 + dim % parts[0].ndim))


@operation("stack")
def _stack(tensors: Sequence[Operand], dim: int = 0) -> Enclosure:
    parts = _all_enclosed(tensors)
    return parts[0].like(
        torch.stack([p.rows for p in parts], 2 + dim % (parts[0].ndim + 1))
    )


@operation("clone", "alias", "detach", "contiguous", "positive", "lift_fresh")
def _same(x: Enclosure, **_: Any) -> Enclosure:
    # torch does not take the object itself for a view of it.
    found = x.like(x.rows)
    found.is_point = x.is_point
    return found


@operation("_to_copy")
def _to(x: Enclosure, *, dtype: Any = None, **_: Any) -> Any:
    check_no_cast(dtype)
    return _same(x)


# Tensors that do not depend on x -----------------------------------------------------


def _constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(x: Enclosure, *args: Any, **options: Any) -> Tensor:
        options = {k: v for k, v in options.items() if v is not None}
        return make(x.rows[0, 0], *args, **options)

    return made


for _name in ("zeros_like", "ones_like", "full_like"):
    operation(_name)(_constant(getattr(torch, _name)))
for _name in ("new_zeros", "new_ones", "new_full", "new_empty"):
    operation(_name)(_constant(getattr(Tensor, _name)))


def _all_enclosed(tensors: Sequence[Operand]) -> list[Enclosure]:
    like = next(t for t in tensors if isinstance(t, Enclosure))
    return [enclosed(t, like) for t in tensors]
