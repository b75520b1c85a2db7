"""Names of tests: the same in every process, or pytest-xdist refuses to collect."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["unsettled"]

ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


def unsettled(names: Iterable[str]) -> list[str]:
    """Return the names that hold an address in memory."""
    return [name for name in names if ADDRESS.search(name)]
