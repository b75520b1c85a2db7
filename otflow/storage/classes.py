"""What of an object is data, and the object that such data make."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from otflow.errors import CorruptFile
from otflow.measures import Measure

__all__ = ["classes_in", "data_classes", "held_names", "made_of", "spare_names"]


def held_names(thing: Any) -> list[str] | None:
    """Return the names of what a measure, dataclass or named tuple holds, or None."""
    kind = type(thing)
    if isinstance(thing, Measure):
        return sorted(thing.__getstate__())
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    names = _tuple_fields(kind)
    return None if names is None else list(names)


def spare_names(thing: Any, names: Collection[str]) -> list[str]:
    """Return the names of attributes beside the fields, as a subclass may set them.

    Caches are left out.
    """
    kind, own = type(thing), getattr(thing, "__dict__", {})
    if isinstance(thing, Measure):
        return []  # its state is all that it holds
    cached = {n for n in own if isinstance(getattr(kind, n, None), cached_property)}
    return [name for name in own if name not in names and name not in cached]


def classes_in(thing: Any) -> Iterator[type]:
    """Yield the classes of an object and of its parts that a reader must be told."""
    names = held_names(thing)
    if names is not None or isinstance(thing, Enum):
        yield type(thing)
    parts: Iterable[Any] = ()
    if names is not None:
        held = [*names, *spare_names(thing, names)]
        parts = [getattr(thing, name) for name in held]
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


def made_of(kind: type, held: dict[str, Any], spare: Mapping[str, Any]) -> Any:
    """Return the object of a class with these parts; no constructor is called.

    Parameters
    ----------
    kind : type
        A measure, dataclass or named tuple.
    held : dict
        Its fields.
    spare : mapping
        Its attributes beside the fields.

    Returns
    -------
    object
        Of that class.

    Raises
    ------
    CorruptFile
        If the class holds no data, or other parts, or parts that are no measure.
    """
    names = _tuple_fields(kind)
    if names is not None:
        _check_names(kind, held, names, ())
        # Past a `__new__` of the class, which may change what it is given.
        made: Any = tuple.__new__(kind, [held[name] for name in names])
        for name, value in spare.items():
            setattr(made, name, value)
        return made
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
        _fill(thing, held, spare)
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


def _fill(thing: Any, told: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
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
    for name, value in {**told, **beside}.items():
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
    if what := mu.fault():
        msg = (
            f"the file holds a {type(mu).__name__} with {what}: it was damaged or "
            f"changed"
        )
        raise CorruptFile(msg)
