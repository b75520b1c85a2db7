"""A search along a line for where a concave function has all but turned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

__all__ = ["turning_point"]

T = TypeVar("T")

# A trial may overshoot the maximum until the slope there is minus this share of that at
# the start, and points further on are tried while it is more than the second share.
OVERSHOOT, STEEP = 0.5, 0.5
# Trials at most, and what a trial leaves of a length that was too long.
MAX_TRIALS, LEAST, MOST = 16, 0.1, 0.9


def turning_point(
    trial: Callable[[float], tuple[T, float, bool]],
    start: float,
    bent: Callable[[], bool] = lambda: False,
) -> tuple[T | None, float, int]:
    """Return a point along a direction where a concave function has all but turned.

    It is found by slopes alone, which round-off does not drown.

    Parameters
    ----------
    trial : callable
        Returns the point at a length, the slope there, and whether the point is good
        whatever the slope. A slope that is not finite is too far.
    start : float
        The slope at length 0.
    bent : callable
        Is asked after a trial that is too far: whether it changed the direction. Then
        the same length is tried again.

    Returns
    -------
    point : object or None
        None if the function does not rise at the start, or no trial was good.
    length : float
        Where the point is.
    trials : int
        How many it took.

    Examples
    --------
    >>> from otflow.numerics.line_search import turning_point
    >>> def parabola(x):  # its slope is 1 - x / 5
    ...     return x, 1 - x / 5, False
    >>> turning_point(parabola, 1.0)
    (4.0, 4.0, 3)
    """
    best: T | None = None
    length, reached, used = 1.0, 0.0, 0
    while start > 0 and used < MAX_TRIALS:
        used += 1
        point, slope, good = trial(length)
        finite = math.isfinite(slope)
        if good or (finite and slope >= -OVERSHOOT * start):
            best, reached = point, length
            if not slope > STEEP * start:
                break
            length *= 2.0  # nearly as steep as at the start: go on
        elif best is not None:
            break
        elif not bent():
            share = start / (start - slope) if finite else 0.0
            length *= min(max(share, LEAST), MOST)
    return best, reached, used
