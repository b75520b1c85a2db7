"""Words of a fixed list: enumerations whose members are texts."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Word"]


class Word(StrEnum):
    """A list of words; each member equals its string, and is shown as one."""

    def __repr__(self) -> str:
        return repr(str(self))
