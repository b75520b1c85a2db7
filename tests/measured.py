"""The numbers beside theory: each run of a test compares them with docs/survey.toml.

An entry names a test and an expression in its local variables. The variables are read
when the test has ended, so that the test states its claims and nothing else.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

__all__ = ["ROWS", "Number", "agrees", "caught", "named", "of_test", "value_of"]

ROOT = Path(__file__).parent.parent
Number = dict[str, Any]
ROWS: list[dict[str, Any]] = [
    row
    for section in tomllib.loads((ROOT / "docs/survey.toml").read_text("utf-8"))[
        "section"
    ]
    for row in section["row"]
]


def named(test: str) -> str:
    """Return the id of a test as pytest knows it."""
    return test if test.startswith("otflow/") else f"tests/{test}"


def of_test(nodeid: str) -> list[Number]:
    """Return the numbers that a test measures."""
    return [
        number
        for row in ROWS
        for number in row.get("measured", ())
        if named(number["by"]) == nodeid
    ]


def agrees(number: Number, value: float) -> bool:
    """Return whether a value is the one that was found, to a tenth or to ``within``."""
    found = number["found"]
    if found.startswith("< "):
        return value < float(found[2:])
    return bool(
        abs(value - float(found)) <= number.get("within", 0.1 * abs(float(found)))
    )


@contextmanager
def caught(code: CodeType) -> Iterator[list[FrameType]]:
    """Keep the frame of the first call of `code`, and trace nothing else."""
    before, frames = sys.gettrace(), list[FrameType]()

    def note(frame: FrameType, event: str, argument: object) -> None:
        del event, argument
        if frame.f_code is code:
            frames.append(frame)
            sys.settrace(before)

    sys.settrace(note)
    try:
        yield frames
    finally:
        sys.settrace(before)


def value_of(number: Number, frame: FrameType) -> float:
    """Return the number as its test found it."""
    # One namespace: a comprehension does not see the second of two.
    value = eval(number["value"], {**frame.f_globals, **frame.f_locals})
    return float(value.detach() if isinstance(value, torch.Tensor) else value)
