"""Why a functional is convex along displacements or mixtures, term by term."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

from otflow._algebra import sum_of_curvatures, text_of_multiple
from otflow._validation import non_negative_int

__all__ = [
    "NOT_A_NUMBER",
    "explain",
    "generic_reason",
    "not_convex",
    "unchecked",
]

NOT_A_NUMBER = (
    "modulus(dim) is a method of every functional, not a number; declare a bound by "
    "overriding it, or by Potential(V, modulus=...), whose number is `convexity`, and "
    "give an attribute of your own another name"
)

DERIVED = {
    "modulus": "as the sum of the bounds of its terms",
    "mixture_curvature": "as the sum of its terms",
}


def generic_reason(F: Any, word: str, base: type) -> str:
    """Return why a functional of any class has its modulus or mixture curvature.

    Parameters
    ----------
    F : Functional
        The functional.
    word : str
        "modulus" or "mixture_curvature".
    base : type
        The class `Functional`, whose methods derive both from the terms.
    """
    owner = _owner(F, word, base)
    if owner is not base:
        return f"as {owner.__name__}.{word} states"
    arguments = "(self, dim)" if word == "modulus" else "(self)"
    if _is_one_term(F) and type(F).__module__.startswith("otflow."):
        return (
            f"since none is known of {type(F).__name__}: state {word}{arguments} in a "
            f"subclass where you know it"
        )
    if _is_one_term(F):
        return (
            f"since {type(F).__name__} states none: override {word}{arguments} where "
            f"you know it"
        )
    return DERIVED[word]


def explain(F: Any, dim: int | None, base: type) -> str:
    """Return the text of `Functional.why`."""
    if dim is not None:
        dim = non_negative_int(dim, "dim", minimum=1)
    return "\n".join([*_of_modulus(F, dim, base), *_of_mixture(F, base)])


def _of_modulus(F: Any, dim: int | None, base: type) -> Iterator[str]:
    """Yield the bound on the displacement convexity, then that of each term."""
    # McCann's condition is stricter in each higher dimension.
    d = sys.maxsize if dim is None else dim
    rows, causes = [], []
    for c, term in _leaves(F, 1.0, "modulus", base):
        bound, reason = _bound(c, term, d)
        name = _text(c, term)
        rows.append(f"    {name}: {_number(bound)}, {reason}")
        causes += [name] if bound is None else []
    total = F.modulus(d)
    head = f"{_number(total)}-convex" if total is not None else "unknown"
    if total is None and len(rows) > 1:
        head += f", because of {', '.join(causes) or 'a sum that is infinite'}"
    where = "every dimension" if dim is None else f"dimension {dim}"
    yield f"along displacements, in {where}: {head}"
    yield from rows


def _bound(c: float, term: Any, dim: int) -> tuple[float | None, str]:
    """Return the bound of a multiple of a term, and the reason."""
    if c == 0:
        return 0.0, "since its factor is 0"
    if c < 0:
        return None, "since a negative factor turns a bound from below into one above"
    bound, reason = term.modulus(dim), term.why_modulus(dim)
    if bound is None:
        return None, reason
    if not math.isfinite(c * bound):
        return None, f"since {c:g} times {bound:g} overflows"
    return c * bound, reason if c == 1 else f"{c:g} times {bound:g}: {reason}"


def _of_mixture(F: Any, base: type) -> Iterator[str]:
    """Yield how F bends along mixtures, then how each term does."""
    rows, causes = [], []
    for c, term in _leaves(F, 1.0, "mixture_curvature", base):
        word = sum_of_curvatures([(c, term.mixture_curvature())])
        name = _text(c, term)
        if c == 0:
            reason = "since its factor is 0"
        elif c < 0 and word is not None:
            reason = f"minus a {term.mixture_curvature()} term: {term.why_mixture()}"
        else:
            reason = term.why_mixture()
        rows.append(f"    {name}: {word or 'unknown'}, {reason}")
        causes += [name] if word is None else []
    total = F.mixture_curvature()
    head = str(total or "unknown")
    if total is None and len(rows) > 1:
        both = "a sum of convex and concave terms"
        head += f", because of {', '.join(causes) or both}"
    yield f"along mixtures: {head}"
    yield from rows


def not_convex(F: Any, base: type) -> str:
    """Return which terms of F are not known to be convex along mixtures, and why."""
    found = []
    for c, term in _leaves(F, 1.0, "mixture_curvature", base):
        word = sum_of_curvatures([(c, term.mixture_curvature())])
        if word in ("convex", "linear"):
            continue
        is_concave = "" if word is None else " is concave"
        found.append(f"{_text(c, term)}{is_concave}, {term.why_mixture()}")
    return f"not known to be convex along mixtures: {'; and '.join(found) or repr(F)}"


def unchecked(F: Any, base: type) -> list[tuple[Any, str]]:
    """Return the terms whose bending along mixtures is declared, with its reason."""
    found = []
    for c, term in _leaves(F, 1.0, "mixture_curvature", base):
        reason = term.why_mixture()
        if c and any(word in reason for word in (" declare", " state")):
            word = term.mixture_curvature()
            found.append((term, f"{term!r} is {word} along mixtures, {reason}"))
    return found


def _leaves(F: Any, c: float, word: str, base: type) -> Iterator[tuple[float, Any]]:
    """Yield the multiples of terms by which the convexity of c F is derived.

    A functional that states its own is one term, whatever it is made of.
    """
    if _owner(F, word, base) is not base or _is_one_term(F):
        yield c, F
        return
    for a, part in F._summands():
        yield from _leaves(part, c * a, word, base)


def _is_one_term(F: Any) -> bool:
    return any(term is F for _, term in F._summands())


def _owner(F: Any, word: str, base: type) -> type:
    """Return the class that defines a method of F."""
    found = next(cls for cls in type(F).__mro__ if word in vars(cls))
    # A subclass that changes the value goes back to the method of `base`.
    return base if vars(found)[word] is vars(base)[word] else found


def _text(c: float, term: Any) -> str:
    return repr(term) if c == 1 else text_of_multiple(c, repr(term), in_brackets=False)


def _number(bound: float | None) -> str:
    if bound is None:
        return "unknown"
    return f"{bound:g}" if math.isfinite(bound) else str(bound)
