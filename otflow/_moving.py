"""Copies of objects in another dtype or on another device, as `Tensor.to` makes them.

What holds tensors is copied with its tensors moved; what holds none stays itself. A
torch module and a function's own tensors cannot be moved without the user.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType, MappingProxyType, MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from otflow._holding import (
    CONTAINERS,
    FOREIGN,
    MAPPINGS,
    PLAIN,
    attributes_of,
    methods_of,
    slots_of,
    tensors_in,
)
from otflow.errors import Unsupported

__all__ = ["Move", "leave_methods", "move_of", "moved_attributes", "moved_object"]

T = TypeVar("T")

_FLOATS = (torch.float32, torch.float64)


class Move:
    """A change of the dtype of floating-point tensors, and of the device of all.

    It remembers what it moved: what was shared stays shared.
    """

    def __init__(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.device, self.dtype = device, dtype
        # The originals are kept, since an identity may be used again.
        self._known: dict[tuple[int, bool], tuple[Any, Any]] = {}

    def __str__(self) -> str:
        return ", ".join(str(x) for x in (self.device, self.dtype) if x is not None)

    def changes(self, x: Tensor) -> bool:
        """Return whether the move makes another tensor of x."""
        other = self.dtype is not None and x.is_floating_point()
        return (other and x.dtype != self.dtype) or self.device not in (None, x.device)

    def tensor(self, x: Tensor) -> Tensor:
        """Return the tensor moved, with its graph; itself if nothing changes."""
        if not self.changes(x):
            return x
        dtype = self.dtype if x.is_floating_point() else None
        return x.to(device=self.device, dtype=dtype)

    def masses(self, before: Tensor) -> Tensor:
        """Return masses moved: in a finer dtype of sum 1, if they were a probability.

        Equal masses become 1/n. Others are divided by their sum, a constant: their
        derivatives are those of free masses.
        """
        after = self.tensor(before)
        if after.dtype in (before.dtype, torch.float32):
            return after
        total = float(after.detach().sum())
        eps = torch.finfo(before.dtype).eps
        if abs(total - 1.0) > max(8.0, len(before)) * eps:
            return after
        if not after.requires_grad and bool((after == after[0]).all()):
            return torch.full_like(after, 1.0 / len(after))
        return after / total

    def once(self, old: Any, make: Callable[[], T], *, derived: bool = True) -> T:
        """Return what an object becomes, made at the first call alone."""
        key = id(old), derived
        if key not in self._known:
            self.begin(old)
            self._known[key] = old, make()
        return cast("T", self._known[key][1])

    def begin(self, old: Any) -> None:
        """Let an object stand for its copy until there is one: it may hold itself."""
        self._known.setdefault((id(old), False), (old, old))


def move_of(*place: Any, dtype: Any = None, device: Any = None) -> Move:
    """Return the move that the arguments of `to` name, as those of `Tensor.to`.

    Raises
    ------
    TypeError
        If an argument is no dtype, device, tensor or object that has both; if two of
        them differ; if the dtype is not a real floating-point one; if tensors of the
        device hold no numbers.
    ValueError
        If the dtype is a half precision.
    """
    dtypes, devices = [dtype], [device]
    for given in place:
        if isinstance(given, torch.dtype):
            dtypes.append(given)
        elif isinstance(given, (torch.device, str, int)) and not isinstance(
            given, bool
        ):
            devices.append(given)
        elif isinstance(getattr(given, "device", None), torch.device):
            dtypes.append(given.dtype)
            devices.append(given.device)
        else:
            msg = (
                f"to takes a dtype, a device or a tensor, got {given!r:.80}; write "
                f".to(torch.float64), .to('cpu') or .to(x)"
            )
            raise TypeError(msg)
    dtype, device = _only(dtypes, "dtype"), _only(map(_device, devices), "device")
    if dtype in (torch.float16, torch.bfloat16):
        msg = f"{dtype} is too coarse for transport; use .to(torch.float32)"
        raise ValueError(msg)
    if dtype is not None and dtype not in _FLOATS:
        msg = f"a measure is float32 or float64, not {dtype}; use .to(torch.float64)"
        raise TypeError(msg)
    if device is not None and device.type == "meta":
        msg = "tensors on the device meta hold no numbers; use .to('cpu')"
        raise TypeError(msg)
    return Move(device, dtype)


def _only(given: Iterable[T | None], what: str) -> T | None:
    """Return the one value that is given, or None; two that differ raise TypeError."""
    found = list(dict.fromkeys(x for x in given if x is not None))
    if len(found) > 1:
        msg = f"to got {found[0]} and {found[1]}; give one {what}"
        raise TypeError(msg)
    return found[0] if found else None


def _device(given: Any) -> torch.device | None:
    """Return a device with its index, as tensors have it: "cuda" is "cuda:0"."""
    if given is None:
        return None
    if isinstance(given, str) and isinstance(getattr(torch, given, None), torch.dtype):
        msg = f"{given!r} is the name of a dtype; write .to(torch.{given})"
        raise TypeError(msg)
    return torch.empty(0, device=given).device


def moved_object(x: T, move: Move, name: str = "") -> T:
    """Return an object with every tensor in it moved; itself if nothing changes.

    What has a method `carry` or `to` moves itself. Of any other object a copy is made,
    if one of its attributes changes.

    Parameters
    ----------
    x : object
        What to move.
    move : Move
        The dtype and the device.
    name : str
        What messages call it.

    Raises
    ------
    Unsupported
        If a torch module, or a tensor that a function closes over, would have to move.
    """
    if isinstance(x, (*PLAIN, type)):
        return x
    return move.once(x, lambda: cast("T", _moved(x, move, name)), derived=False)


def moved_attributes(x: T, move: Move) -> T:
    """Return a copy of an object with its attributes moved; itself if none changes.

    Slots are attributes, and so are the tensors that its class holds: the copy gets its
    own. What a method of the user's class reads from outside cannot be moved.
    """
    held = attributes_of(x)
    move.begin(x)
    leave_methods(type(x), move)
    new = {k: moved_object(v, move, k) for k, v in held.items()}
    if all(new[k] is v for k, v in held.items()):
        return x
    twin = copy.copy(x)
    for k, v in new.items():
        # A method of its own that it keeps is that of the copy.
        own = isinstance(v, MethodType) and v.__self__ is x
        if k in slots_of(type(x)):
            object.__setattr__(twin, k, MethodType(v.__func__, twin) if own else v)
        elif own or v is not held[k]:
            twin.__dict__[k] = MethodType(v.__func__, twin) if own else v
    return twin


def leave_methods(kind: type, move: Move) -> None:
    """Raise if a method of a user's class reads a tensor that would have to move."""
    for name, method in methods_of(kind):
        _leave(method, move, name)


def _moved(x: Any, move: Move, name: str) -> Any:
    new = x
    if isinstance(x, Tensor):
        new = move.tensor(x)
    elif isinstance(x, CONTAINERS):
        new = _moved_within(x, move, name)
    elif isinstance(x, (nn.Module, FunctionType, partial)):
        _leave(x, move, name)
    elif isinstance(x, MethodType):
        owner = moved_object(x.__self__, move, name)
        new = x if owner is x.__self__ else MethodType(x.__func__, owner)
    elif hasattr(type(x), "carry"):
        new = x.carry(move)
    elif type(x).__module__.split(".")[0] not in FOREIGN:
        to = getattr(x, "to", None)
        new = to(device=move.device, dtype=move.dtype) if to else None
        new = moved_attributes(x, move) if new is None else new
    return new


def _moved_within(x: Any, move: Move, name: str) -> Any:
    pairs = dict(x) if isinstance(x, MAPPINGS) else dict(enumerate(x))
    new = {k: moved_object(v, move, f"{name}[{k!r}]") for k, v in pairs.items()}
    if all(new[k] is v for k, v in pairs.items()):
        return x
    if isinstance(x, dict):
        twin = copy.copy(x)  # of its own kind, with its default
        twin.update(new)
        return twin
    if isinstance(x, MappingProxyType):
        return MappingProxyType(new)
    values = new.values()
    if isinstance(x, deque):
        return type(x)(values, x.maxlen)
    return type(x)(*values) if hasattr(x, "_fields") else type(x)(values)


def _leave(x: Any, move: Move, name: str) -> None:
    """Raise if a tensor in a module or in a function would have to move.

    A number in a tensor without axes, on the CPU, serves every dtype and device.
    """
    for where, tensor in tensors_in(x, "", set()):
        is_number = tensor.ndim == 0 and tensor.device.type == "cpu"
        if is_number or not move.changes(tensor):
            continue
        found = f"{where}, a tensor of {tensor.dtype} on {tensor.device}"
        if isinstance(x, nn.Module):
            msg = (
                f"{name} is a torch module that holds {found}; to returns a copy, and "
                f"a copied module is not trained with its original: write "
                f"{name}.to(...), which moves it in place, and make the functional "
                f"again"
            )
        else:
            msg = (
                f"{name} is a function that holds {found}, and the tensors of a "
                f"function cannot be moved from outside; make the function with "
                f"{where}.to(...), and the functional again; or let an object hold "
                f"its tensors as attributes: a functional, or what is called as V(x)"
            )
        raise Unsupported(msg)
