"""Tensors in the layout that a file holds, and back to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from otflow.errors import CorruptFile, Unsupported

__all__ = ["Shelf", "aligned", "taken"]

# A reader needs some calls of Python for each level, and Python allows a thousand.
DEPTH = 100
# What torch aligns its own tensors to, in bytes.
ALIGNED = 64
# A tensor with gaps comes back with its gaps, unless they are most of it.
MOSTLY = 8


class Shelf:
    """The tensors of a file by their keys; a tensor that occurs twice is kept once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []  # an address is known as long as it is in use
        self._depth = 0

    @contextmanager
    def level(self, at: str) -> Iterator[None]:
        """Count how deep parts are nested; raise Unsupported before Python does."""
        if self._depth == DEPTH:
            msg = (
                f"{at:.40}... is nested {DEPTH} times: no file holds what holds itself"
            )
            raise Unsupported(msg)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def put(self, x: Tensor, at: str) -> dict[str, Any]:
        """Keep a tensor; return the note by which `taken` finds it.

        The last bits of sums depend on the order of the axes in memory, so the note
        holds that order too. An axis that repeats one entry is kept as one entry.
        """
        if x.requires_grad:
            msg = (
                f"{at} carries a graph of automatic differentiation, which no file "
                f"holds; save a detached copy, e.g. mu.detach()"
            )
            raise Unsupported(msg)
        plain = x.layout == torch.strided and not (x.is_quantized or x.is_nested)
        if not plain or x.is_complex() or x.is_meta:
            msg = (
                f"{at} is a tensor that no file holds ({x.layout}, {x.dtype}, on "
                f"{x.device}); save a dense real one, e.g. x.to_dense() or "
                f"torch.view_as_real(x)"
            )
            raise Unsupported(msg)
        # The imaginary part of a conjugate shares its memory and differs in sign.
        x = x.detach().resolve_neg()
        stride, shape = x.stride(), list(x.shape)
        repeated = [k for k, n in enumerate(shape) if stride[k] == 0 and n > 1]
        for k in repeated:
            x = x.narrow(k, 0, 1)
        order = sorted(range(x.ndim), key=lambda k: -abs(stride[k]))
        note: dict[str, Any] = {"key": self._key(x, order), "device": str(x.device)}
        if order != list(range(x.ndim)):
            note["order"] = order
        if repeated:
            note["shape"] = shape
        if _has_gaps(x, order):
            note["stride"] = [0 if k in repeated else stride[k] for k in range(x.ndim)]
        return note

    def _key(self, x: Tensor, order: list[int]) -> str:
        known = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, str(x.device))
        if known not in self._known or not x.numel():
            key = f"t{len(self.tensors)}"
            self._known[known] = key
            self._alive.append(x)
            flat = x.permute(order).to("cpu")
            self.tensors[key] = flat.clone(memory_format=torch.contiguous_format)
        return self._known[known]


def aligned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in memory as torch lays it out: a product's last bits tell."""
    return {
        key: x.clone() if x.data_ptr() % ALIGNED else x for key, x in tensors.items()
    }


def _has_gaps(x: Tensor, order: list[int]) -> bool:
    """Return whether entries lie apart: sums of them differ in their last bits."""
    end, apart = 1, False
    for k in reversed(order):
        if x.shape[k] > 1:
            if x.stride(k) < end:
                return False  # entries that overlap are written one by one
            apart |= x.stride(k) > end
            end = 1 + (x.shape[k] - 1) * x.stride(k)
    return apart and end <= MOSTLY * x.numel()


def _with_gaps(x: Tensor, stride: list[int]) -> Tensor:
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, stride, strict=True))
    if extent > MOSTLY * x.numel() or min(stride) < 0:
        msg = f"strides {stride} of a tensor of shape {tuple(x.shape)}"
        raise ValueError(msg)
    return torch.empty_strided(tuple(x.shape), tuple(stride), dtype=x.dtype).copy_(x)


def taken(
    note: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str | None
) -> Tensor:
    """Return the tensor of a note, on the device where it was unless one is given."""
    try:
        x = tensors[note["key"]]
        order = note.get("order")
        if order is not None:
            x = x.permute([order.index(k) for k in range(x.ndim)])
        if "stride" in note:
            x = _with_gaps(x, note["stride"])
        if "shape" in note:
            x = x.expand(note["shape"])
        own = str(note["device"])
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        msg = f"the note {note!r:.80} of a tensor fits no tensor of the file"
        raise CorruptFile(msg) from error
    try:
        return x.to(own if device is None else device)
    except (RuntimeError, AssertionError) as error:
        msg = f"the file holds tensors of {own}, which is not here ({error!s:.80})"
        msg += '; read them on the CPU: load(path, device="cpu")'
        raise Unsupported(msg) from error
