"""What the callbacks share that look at records: rows in order, the last included."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from otflow.callbacks.base import Callback, Event
from otflow.measures import Measure
from otflow.proximal import Certificate
from otflow.trajectory import Trajectory

__all__ = ["OfRows", "Row"]


class Row(NamedTuple):
    """One row of the records.

    Parameters
    ----------
    step : int
        How many steps had been made.
    time : float
        When.
    values : mapping of str to Tensor
        The records.
    measure : Measure
        Of what.
    report : Certificate or None
        The report of the step made from there; None for the last row.
    """

    step: int
    time: float
    values: Mapping[str, Tensor]
    measure: Measure
    report: Certificate | None


class OfRows(Callback):
    """A callback that sees each recorded row once, the last one at the end."""

    _seen = -1  # the step of the last row

    def start(self, run: Trajectory[Any] | None) -> None:
        self._seen = -1

    def __call__(self, event: Event[Any]) -> bool | None:
        if event.row is None:
            return None
        self._seen = event.index
        time, report = event.time - event.dt, event.step.info
        return self.see(Row(event.index, time, event.row, event.start, report))

    def end(self, run: Trajectory[Any]) -> None:
        if not len(run.steps) or int(run.steps[-1]) <= self._seen:
            return
        values = {name: rows[-1] for name, rows in run.records.items()}
        time = float(run.times[-1])
        self.see(Row(int(run.steps[-1]), time, values, run.final, None))

    @abstractmethod
    def see(self, row: Row) -> bool | None:
        """Look at a row; True stops the flow."""


def number(row: Mapping[str, Tensor], name: str) -> float:
    """Return a record that is one number; raise ValueError or TypeError if it is not.

    The message names the records that there are.
    """
    if name not in row:
        known = ", ".join(map(repr, row))
        msg = (
            f"there is no record {name!r} to watch, only {known}; record it by "
            f"flow(..., record={{{name!r}: function}})"
        )
        raise ValueError(msg)
    value = row[name]
    if value.numel() != 1 or value.is_complex():
        shape = tuple(value.shape)
        msg = (
            f"the record {name!r} has shape {shape} and dtype {value.dtype}, and a "
            f"record that is watched must be one real number; record its norm or "
            f"another number beside it"
        )
        raise TypeError(msg)
    return float(value)
