"""Stop a flow after some seconds."""

from __future__ import annotations

import time
from typing import Any

from otflow._validation import positive
from otflow.callbacks.base import Callback, Event
from otflow.trajectory import Trajectory

__all__ = ["TimeLimit"]


class TimeLimit(Callback):
    """Stop a flow after some seconds on the clock.

    The flow ends after the first step that ends later. So it takes longer than the
    limit by less than one step. A resumed flow has the whole limit again. Changes of
    the computer's clock do not matter.

    Parameters
    ----------
    seconds : float
        The limit, > 0.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1))
    >>> limit = of.callbacks.TimeLimit(0.05)
    >>> run = of.flow(
    ...     F, mu, of.ExplicitEuler(), dt=1e-9, steps=10**9, every=1000, on_step=[limit]
    ... )
    >>> run.status, run.message.count("TimeLimit")
    ('stopped', 1)
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = positive(seconds, "seconds")
        self._begun = time.monotonic()

    def start(self, run: Trajectory[Any] | None) -> None:
        self._begun = time.monotonic()

    def __call__(self, event: Event[Any]) -> bool:
        return time.monotonic() - self._begun >= self.seconds

    def __str__(self) -> str:
        return f"TimeLimit stopped the flow ({self.seconds:g} seconds have passed)"

    def __repr__(self) -> str:
        return f"TimeLimit({self.seconds:g})"
