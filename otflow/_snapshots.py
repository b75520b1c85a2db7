"""Which measures of a flow are kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from otflow._validation import non_negative_int, real

__all__ = ["Snapshots"]

# A time reached up to round-off counts as reached.
NEARLY = 1e-9


@dataclass(frozen=True)
class Snapshots:
    """The rule by which a flow keeps measures: one of four kinds.

    Parameters
    ----------
    kind : str
        ``"records"``, ``"every"``, ``"last"``, ``"none"`` or ``"times"``.
    every : int
        The distance of two snapshots in steps, for ``"every"``.
    times : tuple of float
        The times asked for, in rising order.
    """

    kind: str
    every: int = 1
    times: tuple[float, ...] = ()

    @classmethod
    def of(cls, asked: Any) -> Snapshots:
        """Return the rule that the argument `snapshots` of a flow states."""
        if asked is None:
            return cls("records")
        if isinstance(asked, str):
            if asked in ("none", "last"):
                return cls(asked)
            msg = (
                f"snapshots must be 'none', 'last', a number of steps or a sequence of "
                f"times, got {asked!r}"
            )
            raise ValueError(msg)
        if isinstance(asked, Iterable):
            times = [real(t, "a time of snapshots") for t in _numbers(asked)]
            if any(t < 0 for t in times):
                msg = f"times of snapshots must be >= 0, got {min(times):g}"
                raise ValueError(msg)
            return cls("times", times=tuple(sorted(times)))
        return cls("every", non_negative_int(asked, "snapshots", minimum=1))

    def at(
        self, k: int, before: float, now: float, *, recorded: bool, last: bool
    ) -> bool:
        """Return whether the measure after k steps is kept.

        Parameters
        ----------
        k : int
            Number of steps made.
        before, now : float
            Time before the last step, and after it.
        recorded : bool
            Whether the measure was recorded just now.
        last : bool
            Whether the flow ends here.
        """
        if self.kind == "records":
            return recorded
        if self.kind == "every":
            return last or k % self.every == 0
        if self.kind == "times":
            first = -1.0 if k == 0 else before * (1 + NEARLY)
            reached = bisect_right(self.times, now * (1 + NEARLY))
            return reached > bisect_right(self.times, first)
        return last and self.kind == "last"


def _numbers(asked: Iterable[Any]) -> list[Any]:
    return list(getattr(asked, "tolist", lambda: asked)())
