"""What an estimator watches: the loss of each epoch, and when to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otflow.callbacks import Callback, Event
from otflow.errors import Diverged
from otflow.flow import flow
from otflow.functionals import Functional
from otflow.meanfield import Risk
from otflow.measures import Measure
from otflow.schemes import Scheme, Step
from otflow.trajectory import Trajectory

__all__ = ["Carried", "Epochs", "run_epochs"]


class Carried(Scheme):
    """A scheme that begins with the state of an earlier call, as with its momenta.

    Parameters
    ----------
    scheme : Scheme
        The scheme.
    kept : object
        What its `state_dict` returned at the end of that call.
    """

    def __init__(self, scheme: Scheme, kept: Any) -> None:
        self.scheme, self.kept = scheme, kept

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the scheme."""
        return self.scheme.order

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Effects of the scheme."""
        return self.scheme.effects

    def init(self, F: Functional, mu: Measure) -> Any:
        return self.scheme.load_state(F, mu, self.kept)

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        return self.scheme.step(F, mu, dt, state, generator)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return self.scheme.energy(F, mu)


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
    state : object
        The state of the scheme after the last step.
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
        self.state: Any = None

    def begin(
        self,
        history: dict[str, list[float]],
        steps: int,
        last: float,
        objective: Callable[[Measure], float],
    ) -> None:
        """Say where to write, and how many steps make an epoch.

        Parameters
        ----------
        history : dict of str to list of float
            One number for each epoch is appended to each list.
        steps : int
            Number of steps in an epoch.
        last : float
            The time of the step before the first one; infinite if there was none.
        objective : callable
            The objective on all data, for a scheme that reports none.
        """
        self.last = last
        self.history, self.steps, self.objective = history, steps, objective
        self._sum = self._time = 0.0
        self._began = time.perf_counter()

    def __call__(self, event: Event[Any]) -> bool:
        before = objective(event)
        self._sum += math.nan if before is None else before
        self._time += event.dt
        self.last, self.state = event.dt, event.step.state
        if (event.index + 1) % self.steps:
            return False
        loss = self._sum / self.steps
        if before is None:
            loss = self.objective(event.step.measure)
        row = {"loss": loss, "time": self._time}
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


def objective(event: Event[Any]) -> float | None:
    """Return the objective before a step, on the data of that step, if it is told."""
    info = event.step.info
    found: float | None = info.entries.get("batch_energy", info.energy_before)
    return None if found is None else float(found)


def run_epochs(
    F: Functional,
    mu: Measure,
    scheme: Scheme,
    *,
    longest: float,
    steps: int,
    watch: Epochs,
    seed: int,
    progress: bool,
    cure: str,
) -> Trajectory[Measure]:
    """Let the flow run, by steps about as long as the last one.

    Parameters
    ----------
    F, mu, scheme
        As those of a flow.
    longest : float
        The longest step.
    steps : int
        The largest number of steps.
    watch : Epochs
        What knows the time of the last step, and stops the flow.
    seed : int
        Seed of batches and noise.
    progress : bool
        Whether to show a bar.
    cure : str
        What to give if the flow diverges.

    Returns
    -------
    Trajectory
        The run, with its two ends.

    Raises
    ------
    Diverged
        If the flow diverges.
    """

    def length(_: int) -> float:
        # Also in the first step of a further call: a search from the longest one
        # would cost many trials.
        return min(longest, 2.0 * watch.last) or longest

    try:
        return flow(
            F,
            mu,
            scheme,
            dt=length,
            steps=steps,
            every=steps,
            snapshots="none",
            on_step=watch,
            generator=seed,
            progress=progress,
        )
    except Diverged as error:
        msg = (
            f"the fit diverged in step {error.step} with dt={longest:.3g}; give {cure}"
        )
        raise Diverged(
            msg, measure=error.measure, step=error.step, trajectory=error.trajectory
        ) from error
