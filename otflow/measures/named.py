"""Parts of a measure by their names and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otflow._validation import check_kind, check_like
from otflow.measures.base import Measure

__all__ = ["named", "number_of"]


def named(parts: Any) -> dict[str, Measure]:
    """Return measures of one dtype on one device by their names, checked.

    Parameters
    ----------
    parts : mapping of str to Measure, or sequence of Measure
        Those of a sequence are named by their numbers.

    Raises
    ------
    ValueError, TypeError
        As `Parts` does.
    """
    if isinstance(parts, Measure) or not isinstance(parts, (Mapping, Sequence)):
        msg = (
            f"parts must be a mapping of names to measures, or a sequence of "
            f"measures, got {type(parts).__name__}; e.g. "
            f"Parts({{'outer': mu, 'inner': nu}})"
        )
        raise TypeError(msg)
    if not isinstance(parts, Mapping):
        parts = {str(k): part for k, part in enumerate(parts)}
    if not parts:
        msg = "parts is empty: a measure has one part at least; give it a measure"
        raise ValueError(msg)
    first = next(iter(parts.items()))
    for name, part in parts.items():
        if not isinstance(name, str) or not name:
            msg = (
                f"the name of a part must be a text that is not empty, got "
                f"{name!r}; name it, e.g. 'outer'"
            )
            raise (ValueError if name == "" else TypeError)(msg)
        check_kind(part, Measure, f"the part {name!r}")
        check_like(part, first[1], f"the part {name!r}", f"the part {first[0]!r}")
    return dict(parts)


def number_of(names: Sequence[str], key: str | int) -> int:
    """Return the number of a part, from its name or its number, which may be < 0.

    Raises
    ------
    KeyError, IndexError
        If there is no such part.
    TypeError
        If the key is no name and no number.
    """
    if isinstance(key, str):
        if key in names:
            return names.index(key)
        msg = f"there is no part {key!r}; take one of {list(names)}"
        raise KeyError(msg)
    if isinstance(key, bool) or not isinstance(key, int):
        msg = (
            f"a part has a name or a number, got {type(key).__name__}; take one of "
            f"{list(names)}"
        )
        raise TypeError(msg)
    if not -len(names) <= key < len(names):
        msg = (
            f"there are {len(names)} parts and no number {key}; take one of "
            f"{list(names)}"
        )
        raise IndexError(msg)
    return key % len(names)
