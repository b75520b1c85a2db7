"""The numbers beside theory: each run of a test compares them with docs/survey.toml.

An entry names a test and an expression in its local variables. The variables are read
when the test has ended, so that the test states its claims and nothing else.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

__all__ = ["ROWS", "Number", "agrees", "caught", "compared", "named", "of_test"]

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
    return _by_test().get(nodeid, [])


@cache
def _by_test() -> dict[str, list[Number]]:
    """Return the numbers of each test that measures some, by its id."""
    found: dict[str, list[Number]] = {}
    for row in ROWS:
        for number in row.get("measured", ()):
            found.setdefault(named(number["by"]), []).append(number)
    return found


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


@contextmanager
def compared(item: Any, numbers: list[Number] | None = None) -> Iterator[None]:
    """Run a test in here, and compare its numbers with those that were found.

    All of them are kept in the properties of the test, for `tools.measured`.
    """
    numbers = of_test(item.nodeid) if numbers is None else numbers
    if not numbers:
        yield
        return
    with caught(item.obj.__code__) as frames:
        yield
    assert frames, f"{item.nodeid} is called by a wrapper, which hides its variables"
    values = [value_of(number, frames[0]) for number in numbers]
    for number, value in zip(numbers, values, strict=True):
        item.user_properties.append((number["what"], value))
    for number, value in zip(numbers, values, strict=True):
        assert agrees(number, value), (
            f"{number['what']} is {value:.6g}, but docs/survey.toml has "
            f"{number['found']}: measure it again, or mend what changed"
        )
