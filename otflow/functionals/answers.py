"""What the methods of a functional may answer: numbers that are finite, known words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from types import FunctionType
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


# The methods that the library calls, with their arguments.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "value": ("mu",),
    "value_and_velocity": ("mu",),
    "modulus": ("dim",),
    "why_modulus": ("dim",),
    "mixture_curvature": (),
    "why_mixture": (),
    "enclosed_variation": ("mu",),
    "resample": ("generator",),
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
    for name, arguments in ARGUMENTS.items():
        method = vars(cls).get(name)
        if isinstance(method, FunctionType):
            _check_arguments(method, name, arguments)
    if callable(method := vars(cls).get("mixture_curvature")):
        setattr(cls, "mixture_curvature", _known(method))  # noqa: B010  # for mypy


def _check_arguments(method: FunctionType, name: str, arguments: Sequence[str]) -> None:
    """Raise InvalidFunctional unless a method can be called with its arguments."""
    try:
        inspect.signature(method).bind("self", *arguments)
    except TypeError as error:
        called = ", ".join(("self", *arguments))
        msg = f"{method.__qualname__}: {error}; write def {name}({called})"
        raise InvalidFunctional(msg) from error


def check_measure(mu: Any) -> None:
    """Raise TypeError unless mu is a measure; say how points are made one."""
    check_kind(mu, Measure, "mu")


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
