"""What a callback is: it receives each step of a flow, and may stop the flow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from otflow._validation import check_function
from otflow.measures import Measure
from otflow.schemes import Step
from otflow.trajectory import Trajectory

__all__ = ["Callback", "Event", "as_callbacks"]

M = TypeVar("M", bound=Measure)


@dataclass(frozen=True, eq=False)
class Event(Generic[M]):
    """What a callback receives after each step.

    Parameters
    ----------
    index : int
        Number of the step, from 0. A resumed flow goes on counting.
    time : float
        Time after the step.
    dt : float
        Time that the step took.
    start : Measure
        The measure before the step.
    step : Step
        The step: ``step.measure``, ``step.info``.
    row : mapping of str to Tensor, or None
        What was recorded of `start`: ``"energy"`` and the user's records. None if the
        flow did not record before this step.
    so_far : callable
        Returns the run from a step on; `trajectory` calls it.

    Attributes
    ----------
    index, time, dt, start, step, row, so_far
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> def watch(event):
    ...     print(event.index, event.time, event.row["energy"])
    ...     return event.time >= 1.0
    >>> mu = of.Particles(torch.ones(1, 1))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=9, on_step=watch)
    0 0.5 tensor(0.5000)
    1 1.0 tensor(0.1250)
    >>> run.status
    'stopped'
    """

    index: int
    time: float
    dt: float
    start: M
    step: Step[M]
    row: Mapping[str, Tensor] | None
    so_far: Callable[[int], Trajectory[M]] = field(repr=False)

    def trajectory(self, first: int = 0) -> Trajectory[M]:
        """Return the run so far, of status ``"running"``; cost O(K) for K records.

        Parameters
        ----------
        first : int
            Leave out the rows and the reports of the steps before this one.

        Returns
        -------
        Trajectory
            The rows recorded so far. Its final measure is that after the step.
        """
        return self.so_far(first)


class Callback(ABC):
    """A watcher with a beginning and an end; a plain function of an `Event` serves too.

    A flow calls `start` before its first step, the callback itself after each step, and
    `end` after the last step, also if the flow fails or the program exits. Callbacks
    are called in their order. All see a step, also if one of them stops the flow. If
    one raises, those after it do not see that step; and a callback that was never
    started is not ended.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Count(of.callbacks.Callback):
    ...     def start(self, run):
    ...         self.steps = 0
    ...
    ...     def __call__(self, event):
    ...         self.steps += 1
    >>> F, count = of.Potential(lambda x: 0.5 * x.square().sum(-1)), Count()
    >>> mu = of.Particles(torch.ones(1, 1))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=3, on_step=[count])
    >>> count.steps
    3
    """

    def start(self, run: Trajectory[Any] | None) -> None:  # noqa: B027
        """Prepare for a flow, so that one callback serves several in turn.

        Parameters
        ----------
        run : Trajectory or None
            The run that the flow resumes.
        """

    @abstractmethod
    def __call__(self, event: Event[Any]) -> bool | None:
        """Receive a step; True stops the flow.

        Parameters
        ----------
        event : Event
            The step with its index and time.

        Returns
        -------
        bool or None
            True stops the flow, whose ``status`` is then ``"stopped"``. Anything else
            than a truth value or None raises TypeError.
        """

    def end(self, run: Trajectory[Any]) -> None:  # noqa: B027
        """Receive the run after its last step, also if it failed.

        Parameters
        ----------
        run : Trajectory
            The whole run, with the last record.
        """

    def __str__(self) -> str:
        return f"{type(self).__name__} stopped the flow"


class _Plain(Callback):
    """A function of an Event as a callback."""

    name = "a callback"

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, event: Event[Any]) -> bool | None:
        return stop_or_go(self.function(event), self.name)

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"{name} stopped the flow"


class _Predicate(_Plain):
    """The predicate `stop` of a flow, a function of the Step."""

    name = "stop"

    def __call__(self, event: Event[Any]) -> bool | None:
        return stop_or_go(self.function(event.step), self.name, or_none=False)

    def __str__(self) -> str:
        return "the stop predicate held"


def as_callbacks(on_step: Any, stop: Any) -> list[Callback]:
    """Return the callbacks of a flow; TypeError for what is none."""
    found: list[Callback] = []
    if stop is not None:
        check_function(stop, "stop must be a predicate on a Step")
        found.append(_Predicate(stop))
    if on_step is None:
        return found
    many = isinstance(on_step, Iterable) and not callable(on_step)
    for one in on_step if many else [on_step]:
        if isinstance(one, Callback):
            found.append(one)
            continue
        demand = "on_step must be a function of an Event, or a sequence of functions"
        check_function(one, demand)
        if isinstance(one, type):
            msg = f"{demand}, got the class {one.__name__}; write {one.__name__}(...)"
            raise TypeError(msg)
        found.append(_Plain(one))
    return found


def stops(callback: Callback, event: Event[Any]) -> bool:
    """Return whether a callback stops the flow; TypeError if it does not say."""
    return stop_or_go(callback(event), type(callback).__name__)


def stop_or_go(answer: Any, who: str, *, or_none: bool = True) -> bool:
    """Return a predicate's answer as a bool; raise TypeError if it is not one value.

    A watcher answers a truth value or None. A number is neither: that of
    ``file.write(...)`` would stop the flow.
    """
    if or_none and answer is None:
        return False
    shape = getattr(answer, "shape", ())
    one = math.prod(shape) == 1 and not isinstance(answer, (str, Sequence, Mapping))
    truth = getattr(answer, "dtype", type(answer)) in (bool, torch.bool)
    if one and (truth or not or_none):
        return bool(answer)
    words = "True, False or None" if or_none else "True or False"
    got = f"an array of shape {tuple(shape)}" if shape else type(answer).__name__
    cure = "return a comparison, e.g. x < 1e-6, or nothing"
    if not one:
        cure = "reduce it, e.g. by .all()"
    msg = f"{who} must return {words}, got {got}; {cure}"
    raise TypeError(msg)
