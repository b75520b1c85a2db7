"""What an estimator watches: the loss of each epoch, and when to end."""

from __future__ import annotations

import math
import time
from typing import Any

from otflow.callbacks import Callback, Event
from otflow.meanfield import Risk
from otflow.measures import Measure

__all__ = ["Epochs"]


class Epochs(Callback):
    """Write the history of a fit, and stop it when it no longer improves.

    What shall improve is the risk on the held-out data, or without these the objective
    on the data of the steps.

    Parameters
    ----------
    tolerance : float
        Improvement below which an epoch is no better.
    patience : int, optional
        Number of epochs in a row that are no better, after which the fit stops; by
        default it does not stop.
    held_out : Risk, optional
        The risk on data that the flow does not see.

    Attributes
    ----------
    best : Measure or None
        The measure of the least held-out risk; None without such data.
    stopped : bool
        Whether it has stopped the flow.
    last : float
        The time of the last step.
    """

    def __init__(
        self,
        tolerance: float = 0.0,
        patience: int | None = None,
        held_out: Risk | None = None,
    ) -> None:
        self.tolerance, self.patience, self.held_out = tolerance, patience, held_out
        self.best: Measure | None = None
        self.stopped = False
        self._least = self._reference = math.inf
        self._waited, self.last = 0, math.inf

    def begin(
        self, history: dict[str, list[float]], steps: int, last: float = math.inf
    ) -> None:
        """Say where to write, and how many steps make an epoch.

        Parameters
        ----------
        history : dict of str to list of float
            One number for each epoch is appended to each list.
        steps : int
            Number of steps in an epoch.
        last : float, optional
            The time of the step before the first one; infinite if there was none.
        """
        self.last = last
        self.history, self.steps = history, steps
        self._sum = self._time = 0.0
        self._began = time.perf_counter()

    def __call__(self, event: Event[Any]) -> bool:
        self._sum += objective(event)
        self._time += event.dt
        self.last = event.dt
        if (event.index + 1) % self.steps:
            return False
        row = {"loss": self._sum / self.steps, "time": self._time}
        row["seconds"] = time.perf_counter() - self._began
        self._sum = self._time = 0.0
        watched = row["loss"]
        if self.held_out is not None:
            mu = event.step.measure
            watched = row["validation_loss"] = float(self.held_out.value(mu))
            if watched < self._least:
                self._least, self.best = watched, mu
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        if watched < self._reference - self.tolerance:
            self._reference, self._waited = watched, 0
        else:
            self._waited += 1
        self.stopped = self.patience is not None and self._waited >= self.patience
        return self.stopped

    def __str__(self) -> str:
        return f"no improvement by {self.tolerance:g} in {self.patience} epochs"


def objective(event: Event[Any]) -> float:
    """Return the objective before a step, on the data of that step."""
    info = event.step.info
    if "batch_energy" in info:
        return float(info["batch_energy"])
    return float(info["energy_before"])
