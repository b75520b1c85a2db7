"""Whether a functional is one of the law, or reads its atoms in their order."""

from __future__ import annotations

from typing import Any, TypeVar

from otflow.errors import Unsupported

__all__ = ["check_law", "check_places", "is_exchangeable"]

T = TypeVar("T")


def is_exchangeable(F: Any) -> bool:
    """Return whether all terms of a functional are `exchangeable`."""
    return all(term.exchangeable for _, term in F.terms())


def check_law(F: Any, path: str, cure: str) -> None:
    """Raise Unsupported if a path of laws, as a mixture, is none of a functional."""
    if not is_exchangeable(F):
        msg = (
            f"{path} joins laws, and F = {F!r:.80} reads atoms by their index, so that "
            f"it has no value along the path; {cure}"
        )
        raise Unsupported(msg)


def check_places(F: Any, x: T) -> T:
    """Return places x; raise Unsupported if F has no first variation there.

    New atoms have no index, so a functional that reads the index has no value for them.
    """
    if x is not None and not is_exchangeable(F):
        msg = (
            f"{F!r:.80} reads atoms by their index, and an atom at a new place has "
            f"none; ask for derivatives at the atoms themselves, without x"
        )
        raise Unsupported(msg)
    return x
