"""Whether what a class states of its values is true of a subclass: claims and forms.

A class states things of its values: that they are convex, a formula of their slope, a
bound on boxes. A subclass that changes the values inherits none of these. What the
values of a class consist of is derived from the class: every method that it or one of
its parents defines, and every attribute that a method sets, but for a few names.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any

__all__ = ["changed", "forget", "library_class"]


def changed(
    cls: type,
    parent: type,
    harmless: Collection[str] = (),
    *,
    among: Collection[str] | None = None,
) -> str | None:
    """Return the name of what a class evaluates in another way than a parent.

    Parameters
    ----------
    cls : type
        The class.
    parent : type
        A class that it inherits from.
    harmless : collection of str
        Names on which no value depends, as those of the claims themselves.
    among : collection of str, optional
        The only names that count; by default all that the parent evaluates.

    Returns
    -------
    str or None
        None if every value is that of the parent. A method that is abstract in the
        parent is no change.
    """
    known = _evaluation(parent) if among is None else _evaluation(parent) & set(among)
    for kind in cls.__mro__:
        if kind in parent.__mro__:
            continue
        for name in vars(kind):
            if name in known and name not in harmless:
                return name
    return None


def forget(
    cls: type,
    claims: Mapping[str, Any],
    harmless: Collection[str] = (),
    *,
    among: Collection[str] | None = None,
) -> None:
    """Let a new class forget the claims of parents whose values it changes.

    Parameters
    ----------
    cls : type
        A class that was just made.
    claims : mapping of str to object
        Names of claims, and what takes the place of each.
    harmless, among
        On which names no claim rests, or all do, see `changed`.
    """
    for parent in cls.__mro__[1:]:
        # What an abstract class states is written for every subclass.
        if inspect.isabstract(parent):
            continue
        if changed(cls, parent, harmless, among=among) is None:
            continue
        for name, value in claims.items():
            owner = next((k for k in cls.__mro__ if name in vars(k)), None)
            if owner in parent.__mro__ and vars(owner)[name] is not value:
                setattr(cls, name, value)


def library_class(cls: type) -> type:
    """Return the nearest class of the library that a class inherits from, or itself."""
    return next(kind for kind in cls.__mro__ if kind.__module__.startswith("otflow."))


@cache
def _evaluation(cls: type) -> frozenset[str]:
    """Return the names that the values of a class may depend on."""
    names: set[str] = set()
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    for kind in cls.__mro__:
        if kind is not object:
            names.update(vars(kind), *map(_stored, _functions(kind)))
    special = {name for name in names if name.startswith(("__", "_abc_"))}
    return frozenset(names - (special - {"__call__"}) - abstract)


def _functions(kind: type) -> Iterator[Callable[..., Any]]:
    for value in vars(kind).values():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if callable(function):
            inner = inspect.unwrap(function)
            if hasattr(inner, "__code__"):
                yield inner


def _stored(function: Callable[..., Any]) -> set[str]:
    """Return the attributes that a method sets."""
    code: Any = dis.get_instructions(function)
    return {str(at.argval) for at in code if at.opname == "STORE_ATTR"}
