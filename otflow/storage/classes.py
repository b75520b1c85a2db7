"""What of an object is data, and the object that such data make."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch

from otflow.errors import CorruptFile, Unsupported
from otflow.measures import Measure

__all__ = ["classes_in", "data_classes", "held_names", "made_of"]


def held_names(thing: Any, at: str) -> list[str] | None:
    """Return the names of what a measure, dataclass or named tuple holds, or None."""
    kind, own = type(thing), getattr(thing, "__dict__", {})
    if isinstance(thing, Measure):
        return sorted(thing.__getstate__())
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        # What the class itself makes anew is not kept: caches, and attributes that
        # `__post_init__` sets beside the fields.
        told = "__dataclass_fields__" in vars(kind)
    else:
        found = _tuple_fields(kind)
        if found is None:
            return None
        names, told = list(found), False
    spare = [n for n in own if n not in names and not _is_cached(kind, n)]
    if spare and not told:
        msg = (
            f"{at} is a {kind.__name__} with the attribute {spare[0]!r}, which is no "
            f"field, so that no file holds it; make {kind.__name__} a dataclass with "
            f"that field"
        )
        raise Unsupported(msg)
    return names


def classes_in(thing: Any) -> Iterator[type]:
    """Yield the classes of an object and of its parts that a reader must be told."""
    names = held_names(thing, type(thing).__name__)
    if names is not None or isinstance(thing, Enum):
        yield type(thing)
    parts: Iterable[Any] = ()
    if names is not None:
        parts = [getattr(thing, name) for name in names]
    elif isinstance(thing, Mapping):
        parts = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple)):
        parts = thing
    for part in parts:
        yield from classes_in(part)


def _tuple_fields(kind: type) -> tuple[str, ...] | None:
    """Return the names of a named tuple's entries, None for another class."""
    names = getattr(kind, "_fields", None) if issubclass(kind, tuple) else None
    return names if isinstance(names, tuple) else None


def _is_cached(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), cached_property)


def made_of(kind: type, held: dict[str, Any]) -> Any:
    """Return the object of a class with these parts; no constructor is called.

    Raises
    ------
    CorruptFile
        If the class holds no data, or other parts, or parts that are no measure.
    """
    names = _tuple_fields(kind)
    if names is not None:
        _check_names(kind, held, names, ())
        # Past a `__new__` of the class, which may change what it is given.
        return tuple.__new__(kind, [held[name] for name in names])
    if not _holds_data(kind):
        msg = f"{kind.__name__} holds no data that a file could set"
        raise CorruptFile(msg)
    thing: Any = object.__new__(kind)
    if isinstance(thing, Measure):
        own = [field.name for field in fields(kind)] if is_dataclass(kind) else []
        _check_names(kind, held, {*own, *held}, ())  # a user's may hold more
        thing.__setstate__(held)
        _check_measure(thing)
    else:
        _fill(thing, held)
    return thing


def data_classes() -> list[Any]:
    """Return the classes of otflow that hold data: measures, dataclasses and so on."""
    found: set[type] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "otflow":
            kinds = (k for k in vars(module).values() if isinstance(k, type))
            found.update(k for k in kinds if k.__module__ == name and _holds_data(k))
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def _holds_data(kind: type) -> bool:
    named = _tuple_fields(kind) is not None
    return is_dataclass(kind) or issubclass(kind, (Measure, Enum)) or named


def _fill(thing: Any, told: Mapping[str, Any]) -> None:
    """Set the fields of a dataclass, and what its `__post_init__` makes of them."""
    kind = type(thing)
    # A field that is newer than the file has its default.
    spare = {f.name: f for f in fields(kind) if _has_default(f)}
    _check_names(kind, told, [f.name for f in fields(kind)], spare)
    newer = {name: _default(spare[name]) for name in spare.keys() - told.keys()}
    for name, value in {**newer, **told}.items():
        object.__setattr__(thing, name, value)
    if hasattr(thing, "__post_init__") and _takes_nothing(thing.__post_init__):
        thing.__post_init__()
        # It has seen these values before, and may change what it sees.
        for name, value in told.items():
            object.__setattr__(thing, name, value)


def _takes_nothing(method: Any) -> bool:
    """Return whether a method can be called; not one that takes an `InitVar`."""
    try:
        inspect.signature(method).bind()
    except TypeError:
        return False
    return True


def _check_names(
    kind: type,
    held: Mapping[str, Any],
    names: Collection[str],
    spare: Collection[str],
) -> None:
    unknown = sorted(held.keys() - set(names))
    missing = sorted(set(names) - held.keys() - set(spare))
    if unknown or missing:
        what = f"unknown fields {unknown}" if unknown else f"no {missing}"
        msg = (
            f"the {kind.__name__} of the file has {what}; it was damaged, or written "
            f"by another version"
        )
        raise CorruptFile(msg)


def _has_default(field: Any) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _check_measure(mu: Measure) -> None:
    """Raise CorruptFile unless the arrays are those of a measure."""
    x, w, kind = mu.points, mu.weights, type(mu).__name__
    if x.ndim != 2 or w.shape != x.shape[:1] or x.dtype != w.dtype or not len(w):
        what = f"points {tuple(x.shape)} {x.dtype}, weights {tuple(w.shape)} {w.dtype}"
    elif x.dtype not in (torch.float32, torch.float64):
        what = f"points of {x.dtype}"
    elif not bool(x.isfinite().all() & w.isfinite().all()):
        what = "points or weights that are not finite"
    elif bool((w < 0).any()) or abs(float(w.double().sum()) - 1) > 1e-3:
        what = f"weights that are negative or of sum {float(w.double().sum()):g}, not 1"
    else:
        return
    msg = f"the file holds a {kind} with {what}: it was damaged or changed"
    raise CorruptFile(msg)
