"""Sums and multiples of functionals and kernels: bounds, divisors, texts to read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from otflow._validation import check_option, real
from otflow._words import Word

__all__ = [
    "Curvature",
    "curvature_named",
    "inverse",
    "sum_of_bounds",
    "sum_of_curvatures",
    "text_of_multiple",
    "text_of_sum",
]


class Curvature(Word):
    r"""How a functional bends along mixtures :math:`(1 - t)\mu + t\nu`.

    Each member equals its string. A linear functional is convex and concave.

    Examples
    --------
    >>> import otflow as of
    >>> of.Potential(lambda x: x.square().sum(-1)).mixture_curvature() == "linear"
    True
    """

    LINEAR = "linear"
    CONVEX = "convex"
    CONCAVE = "concave"


WORDS = tuple(map(str, Curvature))
FLIPPED = {
    Curvature.LINEAR: Curvature.LINEAR,
    Curvature.CONVEX: Curvature.CONCAVE,
    Curvature.CONCAVE: Curvature.CONVEX,
}


def curvature_named(word: Any, name: str) -> Curvature | None:
    """Return a curvature that was given by its word, and None as it is."""
    return None if word is None else Curvature(check_option(word, name, WORDS))


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


def sum_of_curvatures(
    terms: Iterable[tuple[float, Curvature | str | None]],
) -> Curvature | None:
    """Return how a sum of c times a term bends along mixtures; None if unknown.

    A negative c turns convex into concave; c = 0 adds a constant. A sum of a convex
    and a concave term is unknown. The empty sum is linear.
    """
    total: Curvature | None = Curvature.LINEAR
    for c, word in terms:
        if c == 0:
            continue
        if word is None:
            return None
        own = Curvature(word) if c > 0 else FLIPPED[Curvature(word)]
        if total == Curvature.LINEAR:
            total = own
        elif own not in (Curvature.LINEAR, total):
            return None
    return total


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
