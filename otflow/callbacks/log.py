"""One line of a log for a step."""

from __future__ import annotations

import logging
from typing import Any

from otflow._validation import non_negative_int
from otflow.callbacks.base import Callback, Event
from otflow.schemes import reports
from otflow.trajectory import Trajectory

__all__ = ["LogTo"]


class LogTo(Callback):
    """Write to a log: the start, one line for a step, the end.

    Parameters
    ----------
    logger : logging.Logger
        Where to write, e.g. ``logging.getLogger("experiment")``.
    level : int
        Level of the lines. Steps that did not converge are logged as warnings.
    every : int
        Log every `every`-th step, >= 1.

    Notes
    -----
    A line shows the step, the time after it, and what was recorded of its start: the
    energy and each record that is one number. A step that was not recorded shows the
    energy if it has computed it.

    Examples
    --------
    >>> import logging, sys, torch, otflow as of
    >>> logger = logging.getLogger("doctest")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> logger.setLevel(logging.INFO)
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1))
    >>> log = of.callbacks.LogTo(logger)
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=2, on_step=[log])
    start
    step 0, time 0.5: energy 0.5
    step 1, time 1: energy 0.125
    finished: made all 2 steps
    """

    def __init__(
        self,
        logger: logging.Logger,
        level: int = logging.INFO,
        *,
        every: int = 1,
    ) -> None:
        if not isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
            msg = (
                f"logger must be a logging.Logger, got {logger!r:.80}; use "
                f"logging.getLogger(name)"
            )
            raise TypeError(msg)
        self.logger = logger
        self.level = non_negative_int(level, "level")
        self.every = non_negative_int(every, "every", minimum=1)

    def start(self, run: Trajectory[Any] | None) -> None:
        if run is None:
            self.logger.log(self.level, "start")
        else:
            steps = len(run.info)
            self.logger.log(self.level, "go on after %d steps: %r", steps, run)

    def __call__(self, event: Event[Any]) -> None:
        failed = reports.failed(event.step.info)
        level = max(self.level, logging.WARNING) if failed else self.level
        due = failed or event.index % self.every == 0
        if due and self.logger.isEnabledFor(level):
            words = ", ".join(_words(event, failed=bool(failed)))
            what = "step %d, time %g: %s"
            self.logger.log(level, what, event.index, event.time, words)

    def end(self, run: Trajectory[Any]) -> None:
        self.logger.log(self.level, "%s: %s", run.status, run.message)

    def __repr__(self) -> str:
        return f"LogTo({self.logger.name!r})"


def _words(event: Event[Any], *, failed: bool) -> list[str]:
    """Return what is known of a step."""
    row = event.row
    if row is None:
        row = {} if event.step.energy is None else {"energy": event.step.energy}
    words = [
        f"{name} {value.item():.6g}"
        for name, value in row.items()
        if value.numel() == 1
    ]
    if failed:
        words.append("did not converge")
    certified = reports.certified(event.step.info)
    if certified is not None:
        words.append("certified" if certified else "not certified")
    return words
