"""Sums and multiples of functionals and kernels: bounds, divisors, texts to read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from otflow._validation import real

__all__ = ["inverse", "sum_of_bounds", "text_of_multiple", "text_of_sum"]


def inverse(divisor: Any, what: str) -> float:
    """Return one over a real number; 0 raises ZeroDivisionError."""
    number = real(divisor, f"the divisor of {what}")
    if number == 0:
        msg = (
            f"the divisor of {what} is 0, and the quotient would be infinite; divide "
            f"by another number, or leave the term out of the sum"
        )
        raise ZeroDivisionError(msg)
    return real(1.0 / number, f"one over the divisor of {what}")


def sum_of_bounds(bounds: Iterable[tuple[float, float | None]]) -> float | None:
    """Return the sum of c times a bound on convexity; None if a bound is unknown.

    A negative c makes the sum unknown; c = 0 adds 0, whatever the bound. A sum that
    overflows is unknown: an infinite bound would be false.
    """
    total = 0.0
    for c, bound in bounds:
        if c == 0:
            continue
        if c < 0 or bound is None:
            return None
        total += c * bound
    return total if math.isfinite(total) else None


def text_of_multiple(factor: float, text: str, *, in_brackets: bool) -> str:
    """Return the text of a multiple, which Python reads as the same multiple."""
    body = f"({text})" if in_brackets else text
    if factor == -1:
        return f"-{body}"
    short = f"{factor:g}"
    return f"{short if float(short) == factor else repr(factor)} * {body}"


def text_of_sum(texts: Iterable[str]) -> str:
    """Return the text of a sum; a text that begins with a minus is taken away."""
    total = ""
    for text in texts:
        if not total:
            total = text
        elif text.startswith("-"):
            total += f" - {text[1:]}"
        else:
            total += f" + {text}"
    return total or "0"
