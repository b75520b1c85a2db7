"""Operations that torch does not differentiate are named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from otflow.errors import InvalidFunctional

__all__ = ["derivatives_named"]

# How torch says so, of an operation of its own table or of one that Python calls.
MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+)[^']*'? is not implemented")
# What gives the same values, and has a derivative almost everywhere.
INSTEAD = {
    "floor_divide": "torch.floor(a / b)",
    "heaviside": "torch.where(x > 0, 1.0, 0.0), or a sigmoid for a slope",
}


@contextmanager
def derivatives_named() -> Iterator[None]:
    """Raise InvalidFunctional where torch lacks a derivative; also a decorator."""
    try:
        yield
    except RuntimeError as error:  # and NotImplementedError, which is one
        found = MISSING.search(str(error))
        if found is None:
            raise
        name = found[1]
        cure = INSTEAD.get(name, "operations that torch differentiates")
        msg = f"torch.{name} has no derivative in torch; write {cure} in its place"
        raise InvalidFunctional(msg) from error
