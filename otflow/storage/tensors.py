"""Tensors in the layout that a file holds, and back to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from otflow.errors import CorruptFile, Unsupported

__all__ = ["Shelf", "taken"]


class Shelf:
    """The tensors of a file by their keys; a tensor that occurs twice is kept once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []  # an address is known as long as it is in use

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
        if x.layout != torch.strided or x.is_quantized or x.is_complex():
            msg = (
                f"{at} is a tensor that no file holds ({x.layout}, {x.dtype}); save a "
                f"dense real one, e.g. x.to_dense() or torch.view_as_real(x)"
            )
            raise Unsupported(msg)
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
        return note

    def _key(self, x: Tensor, order: list[int]) -> str:
        known = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, str(x.device))
        if known not in self._known or not x.numel():
            key = f"t{len(self.tensors)}"
            self._known[known] = key
            self._alive.append(x)
            flat = x.detach().permute(order).to("cpu")
            self.tensors[key] = flat.clone(memory_format=torch.contiguous_format)
        return self._known[known]


def taken(
    note: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str | None
) -> Tensor:
    """Return the tensor of a note, on the device where it was unless one is given."""
    try:
        x = tensors[note["key"]]
        order = note.get("order")
        if order is not None:
            x = x.permute([order.index(k) for k in range(x.ndim)])
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
