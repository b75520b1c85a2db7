"""What the methods of a functional may answer: numbers that are finite, known words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any

from torch import Tensor

from otflow._algebra import WORDS, Curvature
from otflow._validation import check_finite, check_kind, check_scalar
from otflow.errors import InvalidFunctional
from otflow.measures import Measure

__all__ = ["check_answers", "check_measure"]

# The methods whose answers are checked, and their names in the error.
CHECKED = {
    "value": "the functional's value",
    "first_variation": "the functional's first variation",
    "value_and_velocity": "the functional's value or velocity",
    "value_and_first_variation": "the functional's value or first variation",
    "value_and_derivatives": "the functional's value or a derivative of it",
}


def check_answers(cls: type) -> None:
    """Let the methods that a class defines check what they are given and return."""
    for name, what in CHECKED.items():
        method = vars(cls).get(name)
        # A static method, as in `value = staticmethod(G.value)`, stays one.
        if isinstance(method, staticmethod):
            setattr(cls, name, staticmethod(_finite(method.__func__, what)))
        elif callable(method):
            setattr(cls, name, _finite(method, what))
    if callable(method := vars(cls).get("mixture_curvature")):
        setattr(cls, "mixture_curvature", _known(method))  # noqa: B010  # for mypy


def check_measure(mu: Any) -> None:
    """Raise TypeError unless mu is a measure; say how points are made one."""
    cure = measure_within(mu) or "of points (n, d) make Particles(points)"
    check_kind(mu, Measure, "mu", cure=cure)


def measure_within(result: Any) -> str:
    """Return how the measure of a result is taken, as of a run; "" if none is held."""
    if not is_dataclass(result) or isinstance(result, type):
        return ""
    held = [f.name for f in fields(result) if isinstance(vars(result)[f.name], Measure)]
    return f"the result holds the measure: take its .{held[0]}" if held else ""


def _finite(method: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return a method that takes measures alone, and gives finite tensors alone."""

    @wraps(method)
    def checked(*args: Any, **options: Any) -> Any:
        for mu in args[1:2]:
            check_measure(mu)
        answer = method(*args, **options)
        for part in answer if isinstance(answer, tuple) else (answer,):
            if isinstance(part, Tensor):
                check_finite(part, what)
        return answer

    @wraps(method)
    def checked_value(*args: Any, **options: Any) -> Tensor:
        at = options.get("mu", args[-1])
        check_measure(at)
        return check_scalar(method(*args, **options), at, finite=True)

    return checked_value if method.__name__ == "value" else checked


def _known(method: Callable[[Any], Any]) -> Callable[[Any], Curvature | None]:
    """Return a method `mixture_curvature` that answers by a `Curvature` or None."""

    @wraps(method)
    def checked(self: Any) -> Curvature | None:
        word = method(self)
        if word is None or isinstance(word, Curvature):
            return word
        if word not in WORDS:
            msg = (
                f"{type(self).__name__}.mixture_curvature() must return one of "
                f"{list(WORDS)}, or None where nothing is known, got {word!r:.80}"
            )
            raise InvalidFunctional(msg)
        return Curvature(word)

    return checked
