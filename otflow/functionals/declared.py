"""What was declared of an internal energy, checked once against its values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from otflow._algebra import Curvature
from otflow.errors import InvalidFunctional
from otflow.functionals.chords import (
    Chord,
    broken_chord,
    falling_chord,
    undefined,
)

__all__ = ["Checks"]

SIGNS = {
    Curvature.CONVEX: (1.0,),
    Curvature.CONCAVE: (-1.0,),
    Curvature.LINEAR: (1.0, -1.0),
}


class Checks:
    """The checks that an internal energy has passed, so that none is made twice."""

    def __init__(self) -> None:
        # Why a check was not possible, None for one that found nothing.
        self.passed: dict[str, str | None] = {}

    def mccann(self, F: Any, dim: int) -> None:
        """Raise InvalidFunctional if F.e contradicts McCann's condition."""
        found = self._once(
            _of(dim),
            lambda: falling_chord(F.e) or broken_chord(F.e, dim) or undefined(F.e),
        )
        if found is None:
            return
        shape = "they fall" if len(found.densities) == 2 else "they bend the wrong way"
        msg = (
            f"modulus=0.0 was declared, but {F!r} does not obey {_of(dim)}, that e(r) "
            f"is convex and non-increasing as a function of r^(-1/d): {found}: "
            f"{shape}; leave modulus= out"
        )
        raise InvalidFunctional(msg)

    def shape(self, F: Any, word: Curvature) -> None:
        """Raise InvalidFunctional if the U of F does not bend as was declared."""

        def refuted() -> Chord | None:
            chords = (broken_chord(F.e, 1, sign) for sign in SIGNS[word])
            return next(filter(None, chords), None) or undefined(F.e)

        found = self._once(word, refuted)
        if found is None:
            return
        msg = (
            f"mixture={str(word)!r} was declared, but the U(r) = r e(r) of {F!r} does "
            f"not bend so: {found}; leave mixture= out"
        )
        raise InvalidFunctional(msg)

    def of_mccann(self, dim: int) -> str:
        """Return how the check of McCann's condition went, to end a sentence."""
        return self._text(_of(dim), "McCann's condition")

    def of_shape(self, word: Curvature) -> str:
        """Return how the check of the shape of U went, to end a sentence."""
        return self._text(word, "it")

    def _once(self, what: str, refuted: Callable[[], Chord | None]) -> Chord | None:
        if what in self.passed:
            return None
        try:
            found = refuted()
        except Exception as error:
            # As of a function of tensors of another dtype, or that raises where no
            # measure of the user has its density: that is no fault of the energy.
            self.passed[what] = f"{type(error).__name__}: {error}"
            return None
        if found is None:
            self.passed[what] = None
        return found

    def _text(self, what: str, name: str) -> str:
        failure = self.passed.get(what)
        if failure is not None:
            return f"; {name} could not be checked: {failure}"
        return f"; no value of e contradicts {name}"


def _of(dim: int) -> str:
    where = "every dimension" if dim == sys.maxsize else f"dimension {dim}"
    return f"McCann's condition in {where}"
