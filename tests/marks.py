"""Parameters of tests that only `make test-slow` runs."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["slow"]


def slow(*values: Any) -> list[Any]:
    """Return values as parameters whose tests are slow."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
