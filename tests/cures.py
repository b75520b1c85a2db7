"""What an error is asked for: its kind, its words, and cures that work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest

Case: TypeAlias = tuple[
    type[Exception] | tuple[type[Exception], ...],
    str,
    Callable[[], Any],
    Sequence[Callable[[], Any]],
]


def check_cures(case: Case) -> None:
    """Do what is wrong, read the error, and try each of its cures."""
    kind, words, wrong, cures = case
    with pytest.raises(kind, match=words):
        wrong()
    assert cures
    for cure in cures:
        cure()
