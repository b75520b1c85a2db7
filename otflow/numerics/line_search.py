"""A line search for the point where a concave function almost turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

__all__ = ["turning_point"]

T = TypeVar("T")

# In units of the slope at the start: a trial may overshoot the maximum down to the
# slope -OVERSHOOT. A longer trial follows while the slope is more than STEEP.
OVERSHOOT, STEEP = 0.5, 0.5
# Most trials, and the range of the factor that shortens a trial that was too long.
MAX_TRIALS, LEAST, MOST = 16, 0.1, 0.9


def turning_point(
    trial: Callable[[float], tuple[T, float, bool]],
    start: float,
    bent: Callable[[], bool] = lambda: False,
) -> tuple[T | None, float, int]:
    """Return a point along a direction where a concave function almost turns.

    The search reads slopes alone: near the maximum round-off drowns differences of
    values.

    Parameters
    ----------
    trial : callable
        Returns the point at a length, the slope there, and whether the point is good
        whatever the slope. A slope that is not finite counts as too far.
    start : float
        The slope at length 0.
    bent : callable
        Called after a trial that is too far. It may change the direction and return
        True; then the same length is tried again.

    Returns
    -------
    point : object or None
        None if the function does not rise at the start, or no trial was good.
    length : float
        Length of the point.
    trials : int
        Number of trials.

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
            # Almost as steep as at the start: the maximum is far.
            length *= 2.0
        elif best is not None:
            break
        elif not bent():
            # The zero of the straight line through both slopes.
            share = start / (start - slope) if finite else 0.0
            length *= min(max(share, LEAST), MOST)
    return best, reached, used
