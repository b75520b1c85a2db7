"""What a solver of barycentres hands on."""

from __future__ import annotations

from typing import NamedTuple

from otflow.measures import Measure

__all__ = ["Found"]


class Found(NamedTuple):
    """A barycentre, the residual and the iterations of its solver.

    ``word`` says what is proved if the residual meets the tolerance. ``value`` is None
    where distances tell it.
    """

    measure: Measure
    residual: float
    iterations: int
    word: str = "optimal"
    value: float | None = None
