"""What an error is asked for: its kind, its words, and cures that work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import pytest

Case: TypeAlias = tuple[
    type[Exception] | tuple[type[Exception], ...],
    str,
    Callable[[], Any],
    Sequence[Callable[[], Any]],
]


def check_cures(case: Case) -> None:
    """Do what is wrong, read the error, try each of its cures; leave no figure open."""
    kind, words, wrong, cures = case
    with pytest.raises(kind, match=words):
        wrong()
    assert cures
    try:
        for cure in cures:
            cure()
    finally:
        plt.close("all")
