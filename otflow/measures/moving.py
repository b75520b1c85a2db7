"""The copy of a measure in another dtype or on another device."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from otflow._holding import data_of
from otflow._moving import Move, leave_methods, moved_object

__all__ = ["carried"]

M = TypeVar("M", bound=Any)


def carried(mu: M, move: Move) -> M:
    """Return a measure with its attributes moved, those of its class too.

    It is the measure itself if none changes.

    Weights of a finer dtype sum to 1, if they were a probability. What follows from
    other attributes is computed again after a change of dtype.
    """
    own: dict[str, Any] = mu._attributes()
    held = data_of(type(mu)) | own
    leave_methods(type(mu), move)
    masses = held.get("weights")
    if isinstance(masses, Tensor):
        move.once(masses, lambda: move.masses(masses), derived=False)
    new = {name: moved_object(value, move, name) for name, value in held.items()}
    if all(new[name] is value for name, value in held.items()):
        return mu
    twin: M = object.__new__(type(mu))
    twin._hold(**{k: v for k, v in new.items() if k in own or v is not held[k]})
    if move.dtype not in (None, mu.dtype):
        twin._hold(**twin._retyped(mu, move))
    return twin
