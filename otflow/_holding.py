"""What an object of Python holds in its attributes, and what a function reaches."""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "CONTAINERS",
    "FOREIGN",
    "MAPPINGS",
    "PLAIN",
    "attributes_of",
    "data_of",
    "methods_of",
    "slots_of",
    "tensors_in",
]

# What these packages define holds no tensors of the user.
FOREIGN = {"torch", "numpy", "scipy", "builtins"}
PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device,
    torch.Generator, ModuleType, BuiltinFunctionType,
)  # fmt: skip
MAPPINGS = (dict, MappingProxyType)
CONTAINERS = (tuple, list, set, frozenset, deque, *MAPPINGS)


def attributes_of(x: Any) -> dict[str, Any]:
    """Return the attributes of an object, with its slots and what its class holds."""
    slots = {name: getattr(x, name) for name in slots_of(type(x)) if hasattr(x, name)}
    return data_of(type(x)) | slots | getattr(x, "__dict__", {})


def data_of(kind: type) -> dict[str, Any]:
    """Return what a class holds for its objects: tensors, and what may hold some."""
    held: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            held.pop(name, None)  # a child may put something else in its place
            if _is_data(name, value):
                held[name] = value
    return held


def _is_data(name: str, value: Any) -> bool:
    """Return whether a class that holds this value holds tensors by it."""
    if name.startswith("__"):
        return False
    return isinstance(value, (Tensor, *CONTAINERS)) or hasattr(type(value), "carry")


def slots_of(kind: type) -> list[str]:
    """Return the names of the slots of a class."""
    found: list[str] = []
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        found += [names] if isinstance(names, str) else names
    return [name for name in found if not name.startswith("__")]


def methods_of(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the methods that the user wrote and that values may come from.

    What an `__init__` reads it has put into attributes. Of a class that is not made for
    otflow only the call counts: its other methods may do anything.
    """
    made_for_it = hasattr(kind, "carry")
    for base in kind.__mro__:
        if base.__module__.split(".")[0] in {"otflow", *FOREIGN}:
            continue
        for name, value in vars(base).items():
            method = getattr(value, "__func__", value)  # of a static method
            gives = name == "__call__" or (made_for_it and not name.startswith("__"))
            if gives and isinstance(method, FunctionType):
                yield f"{base.__name__}.{name}", method


def tensors_in(x: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that an object reaches, with their names."""
    if isinstance(x, PLAIN) or id(x) in seen:
        return
    seen.add(id(x))
    if isinstance(x, Tensor):
        yield name, x
        return
    if isinstance(x, nn.Module):
        yield from (*x.named_parameters(), *x.named_buffers())
        return
    for inner, value in _parts(x):
        yield from tensors_in(value, inner or name, seen)


def _parts(x: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds, with the names of the variables."""
    if isinstance(x, MAPPINGS):
        yield from ((str(key), value) for key, value in x.items())
    elif isinstance(x, CONTAINERS):
        yield from (("", value) for value in x)
    elif isinstance(x, type):
        yield from ((k, v) for k, v in vars(x).items() if isinstance(v, Tensor))
    elif isinstance(x, partial):
        yield from _parts((x.func, *x.args))
        yield from _parts(x.keywords)
    elif isinstance(x, MethodType):
        yield from (("", x.__self__), ("", x.__func__))
    elif isinstance(x, FunctionType):
        home = (x.__module__ or "").split(".")[0]
        if home in FOREIGN:
            return
        for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
            with suppress(ValueError):  # a variable without a value yet
                yield name, cell.cell_contents
        yield from _defaults(x)
        if home != "otflow":
            known = x.__globals__
            yield from ((n, known[n]) for n in _globals(x.__code__) if n in known)
    elif type(x).__module__.split(".")[0] not in FOREIGN:
        yield from attributes_of(x).items()
        yield from methods_of(type(x))


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
