"""What tests share: particle measures of every degeneracy, and checks of purity."""

from otflow.testing.clouds import (
    assert_plain,
    assert_untouched,
    degenerate,
    global_state,
    normal,
    state,
    uniform,
    weighted,
)

__all__ = [
    "assert_plain",
    "assert_untouched",
    "degenerate",
    "global_state",
    "normal",
    "state",
    "uniform",
    "weighted",
]
