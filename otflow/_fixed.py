"""Attributes that are fixed once set, since other things were derived from them."""

from __future__ import annotations

from typing import Any

__all__ = ["check_fixed"]


def check_fixed(thing: Any, name: str) -> None:
    """Raise AttributeError if a fixed attribute is set a second time.

    Parameters
    ----------
    thing : object
        What is changed. Its ``_fixed`` holds the names of its fixed attributes.
    name : str
        The attribute that is set.

    Raises
    ------
    AttributeError
        If what was derived from the attribute, or declared of it, would stay.
    """
    if name in thing._fixed and name in vars(thing):
        kind = type(thing).__name__
        msg = (
            f"{name} of {kind} is fixed, since what it states of itself was derived "
            f"from it or declared of it; make a new {kind}"
        )
        raise AttributeError(msg)
