"""Copies of objects in another dtype or on another device, as `Tensor.to` makes them.

What holds tensors is copied with its tensors moved; what holds none stays itself. A
torch module and a function's own tensors cannot be moved without the user.
"""

from __future__ import annotations

import copy
import dis
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from otflow.errors import Unsupported

__all__ = ["Move", "move_of", "moved_attributes", "moved_object"]

T = TypeVar("T")

_FLOATS = (torch.float32, torch.float64)
# What these packages define holds no tensors of the user.
_FOREIGN = {"torch", "numpy", "scipy", "builtins"}
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device,
    torch.Generator, ModuleType, type, BuiltinFunctionType,
)  # fmt: skip


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
        If an argument is no dtype, device, tensor or object that has both; if the dtype
        is not a real floating-point one; if tensors of the device hold no numbers.
    ValueError
        If the dtype is a half precision.
    """
    for given in place:
        if isinstance(given, torch.dtype):
            dtype = given
        elif _is_device(given):
            device = given
        elif isinstance(getattr(given, "device", None), torch.device):
            dtype, device = given.dtype, given.device
        else:
            raise _no_place(given)
    if dtype in (torch.float16, torch.bfloat16):
        msg = f"{dtype} is too coarse for transport; use .to(torch.float32)"
        raise ValueError(msg)
    if dtype is not None and dtype not in _FLOATS:
        msg = f"a measure is float32 or float64, not {dtype}; use .to(torch.float64)"
        raise TypeError(msg)
    if device is not None:
        if not _is_device(device):
            raise _no_place(device)
        # With its index, as tensors have it: "cuda" is "cuda:0".
        device = torch.empty(0, device=device).device
        if device.type == "meta":
            msg = "tensors on the device meta hold no numbers; use .to('cpu')"
            raise TypeError(msg)
    return Move(device, dtype)


def _is_device(x: Any) -> bool:
    """Return whether x names a device, here or not; 'float64' and 'gpu' do not."""
    if isinstance(x, str):
        try:
            torch.device(x)
        except RuntimeError:
            return False
        return True
    return isinstance(x, (torch.device, int)) and not isinstance(x, bool)


def _no_place(given: Any) -> TypeError:
    return TypeError(
        f"to takes a dtype, a device or a tensor, got {given!r:.80}; write "
        f".to(torch.float64), .to('cpu') or .to(x)"
    )


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
    if isinstance(x, _PLAIN):
        return x
    return move.once(x, lambda: cast("T", _moved(x, move, name)), derived=False)


def moved_attributes(x: T, move: Move) -> T:
    """Return a copy of an object with its attributes moved; itself if none changes."""
    held = dict(getattr(x, "__dict__", {}))
    move.begin(x)
    new = {k: moved_object(v, move, k) for k, v in held.items()}
    if all(new[k] is v for k, v in held.items()):
        return x
    twin = copy.copy(x)
    for k, v in new.items():
        # A method of its own that it keeps is that of the copy.
        if isinstance(v, MethodType) and v.__self__ is x:
            new[k] = MethodType(v.__func__, twin)
    twin.__dict__.update(new)
    return twin


def _moved(x: Any, move: Move, name: str) -> Any:
    new = x
    if isinstance(x, Tensor):
        new = move.tensor(x)
    elif isinstance(x, (tuple, list, dict)):
        new = _moved_within(x, move, name)
    elif isinstance(x, (nn.Module, FunctionType, partial)):
        _leave(x, move, name)
    elif isinstance(x, MethodType):
        owner = moved_object(x.__self__, move, name)
        new = x if owner is x.__self__ else MethodType(x.__func__, owner)
    elif hasattr(type(x), "carry"):
        new = x.carry(move)
    elif type(x).__module__.split(".")[0] not in _FOREIGN:
        to = getattr(x, "to", None)
        new = to(device=move.device, dtype=move.dtype) if to else None
        new = moved_attributes(x, move) if new is None else new
    return new


def _moved_within(x: Any, move: Move, name: str) -> Any:
    pairs = dict(x) if isinstance(x, dict) else dict(enumerate(x))
    new = {k: moved_object(v, move, f"{name}[{k!r}]") for k, v in pairs.items()}
    if all(new[k] is v for k, v in pairs.items()):
        return x
    if isinstance(x, dict):
        return new
    values = new.values()
    return type(x)(*values) if hasattr(x, "_fields") else type(x)(values)


def _leave(x: Any, move: Move, name: str) -> None:
    """Raise if a tensor in a module or in a function would have to move.

    A number in a tensor without axes, on the CPU, serves every dtype and device.
    """
    for where, tensor in _tensors_in(x, "", set()):
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
                f"{where}.to(...), and the functional again; or give an object that "
                f"is called, with its tensors as attributes"
            )
        raise Unsupported(msg)


def _tensors_in(x: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that an object reaches, with their names."""
    if isinstance(x, _PLAIN) or id(x) in seen:
        return
    seen.add(id(x))
    if isinstance(x, Tensor):
        yield name, x
        return
    if isinstance(x, nn.Module):
        yield from (*x.named_parameters(), *x.named_buffers())
        return
    for inner, value in _parts(x):
        yield from _tensors_in(value, inner or name, seen)


def _parts(x: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, with the names of the variables."""
    if isinstance(x, (tuple, list, set)):
        yield from (("", value) for value in x)
    elif isinstance(x, dict):
        yield from ((str(key), value) for key, value in x.items())
    elif isinstance(x, partial):
        yield from _parts((x.func, *x.args))
        yield from _parts(x.keywords)
    elif isinstance(x, MethodType):
        yield from (("", x.__self__), ("", x.__func__))
    elif isinstance(x, FunctionType):
        home = (x.__module__ or "").split(".")[0]
        if home in _FOREIGN:
            return
        for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
            with suppress(ValueError):  # a variable without a value yet
                yield name, cell.cell_contents
        yield from _defaults(x)
        if home != "otflow":
            known = x.__globals__
            yield from ((n, known[n]) for n in _globals(x.__code__) if n in known)
    elif type(x).__module__.split(".")[0] not in _FOREIGN:
        yield from getattr(x, "__dict__", {}).items()


def _defaults(x: FunctionType) -> Iterator[tuple[str, Any]]:
    code, given = x.__code__, x.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(given) : code.co_argcount]
    yield from zip(names, given, strict=True)
    yield from (x.__kwdefaults__ or {}).items()


def _globals(code: CodeType) -> Iterator[str]:
    """Yield the names of global variables that code reads, and code within it."""
    for line in dis.get_instructions(code):
        if line.opname == "LOAD_GLOBAL":
            yield str(line.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
