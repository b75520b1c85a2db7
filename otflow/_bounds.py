"""Bounds as text: the number that a message shows obeys the bound."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context

__all__ = ["at_least", "at_most"]


def at_least(x: float, digits: int) -> str:
    """Return a lower bound as text, rounded up."""
    number = Context(digits, ROUND_CEILING).create_decimal_from_float(x)
    return f"{float(number):.{digits}g}"


def at_most(x: float, digits: int) -> str:
    """Return an upper bound as text, rounded down."""
    number = Context(digits, ROUND_FLOOR).create_decimal_from_float(x)
    return f"{float(number):.{digits}g}"
