"""Old names in the contract of functionals: they warn, and work for one release."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from otflow._warn import warn

__all__ = ["adopt", "warn_of"]

# The name that replaces each old name, and the call that a message shows.
REPLACEMENTS = {
    "split_entropy": ("terms", "terms()"),
    "modulus_in": ("modulus", "modulus(dim)"),
    "displacement_modulus": ("modulus", "modulus(dim)"),
}


def warn_of(old: str, new: str) -> None:
    """Warn (DeprecationWarning) that `old` goes and name its replacement `new`."""
    msg = f"{old} goes in the next release: use {new}"
    warn(msg, DeprecationWarning)


def adopt(cls: type, entropy: Callable[[], Any]) -> None:
    """Let a class that overrides an old name override the new name, with a warning.

    Parameters
    ----------
    cls : type
        A subclass of `Functional`, just made.
    entropy : callable
        Returns the entropy, which the module of the base class cannot import.
    """
    own = vars(cls)
    for old, (new, written) in REPLACEMENTS.items():
        if old not in own or new in own:
            continue
        warn_of(f"{cls.__name__} overrides {old}, which", written)
        setattr(cls, new, _in_terms_of(cls, old, own[old], new, entropy))
        delattr(cls, old)  # that of the base calls `new`


def _in_terms_of(
    cls: Any, old: str, word: Any, new: str, entropy: Callable[[], Any]
) -> Callable[..., Any]:
    """Return the method `new` of a class that defines the old name alone."""
    busy: set[tuple[int, int]] = set()

    def method(self: Any, *dim: int) -> Any:
        key = threading.get_ident(), id(self)
        # The old method may call that of its parent, which calls `new`: this method.
        if key in busy:
            return getattr(super(cls, self), new)(*dim)
        busy.add(key)
        try:
            bound = word.__get__(self, cls) if hasattr(word, "__get__") else word
            if old == "displacement_modulus":
                return bound
            if old == "modulus_in":
                return bound(*dim)
            temperature, rest = bound()
            return ((temperature, entropy()), (1.0, rest))
        finally:
            busy.discard(key)

    return method
