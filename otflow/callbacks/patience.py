"""Stop when a record no longer improves, and keep the best measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from otflow._validation import check_option, non_negative_int, positive
from otflow.callbacks.rows import OfRows, Row, number
from otflow.measures import Measure
from otflow.trajectory import Trajectory

__all__ = ["Patience"]


class Patience(OfRows):
    """Stop a flow whose record no longer improves, and keep the best measure.

    It is early stopping: the record may be the loss on data that the flow does not see.
    The flow stops once `patience` successive rows have not been better than the
    reference by more than `tolerance`. The reference is the last row that was better by
    more than `tolerance`.

    Parameters
    ----------
    record : str
        Name of a record of one number: ``"energy"``, or a key of ``record=`` of the
        flow.
    patience : int
        Number of rows to wait, >= 1. It counts recorded rows, not steps.
    tolerance : float
        Difference, in units of the record, up to which a row is no improvement.
    best : {"min", "max"}
        Whether small or large values are good.

    Attributes
    ----------
    best_measure : Measure or None
        The measure with the best value of all rows, however small its lead. None before
        the first row. It is also None in a resumed flow until a row is better, if the
        best row before had no snapshot.
    best_value : float or None
        Its value.
    best_time : float or None
        Its time.

    Raises
    ------
    ValueError
        In the flow, if there is no such record.
    TypeError
        In the flow, if the record is not one real number.

    Notes
    -----
    The last row of a flow is seen too: it may be the best. A resumed flow starts with
    the rows of the run that it resumes, and waits on. So a run that was stopped stops
    again at its first row, unless it is resumed with a larger `patience`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1))
    >>> distance = lambda mu: (mu.points - 0.4).abs().max()
    >>> early = of.callbacks.Patience("distance", patience=2)
    >>> run = of.flow(
    ...     F,
    ...     mu,
    ...     of.ExplicitEuler(),
    ...     dt=0.1,
    ...     steps=50,
    ...     record={"distance": distance},
    ...     on_step=[early],
    ... )
    >>> run.status, len(run.info), round(early.best_time, 6)
    ('stopped', 12, 0.9)
    """

    best_measure: Measure | None
    best_value: float | None
    best_time: float | None

    def __init__(
        self,
        record: str = "energy",
        *,
        patience: int,
        tolerance: float = 0.0,
        best: Literal["min", "max"] = "min",
    ) -> None:
        if not isinstance(record, str):
            msg = (
                f"record must be the name of a record, got {type(record).__name__}; "
                f"give the function to flow(..., record={{'name': function}})"
            )
            raise TypeError(msg)
        self.record = record
        self.patience = non_negative_int(patience, "patience", minimum=1)
        self.tolerance = positive(tolerance, "tolerance", or_zero=True)
        self.best = check_option(best, "best", ("min", "max"))
        self._forget()

    def _forget(self) -> None:
        self.best_measure = self.best_value = self.best_time = None
        self._reference: float | None = None
        self._waited = 0

    def start(self, run: Trajectory[Any] | None) -> None:
        super().start(run)
        self._forget()
        if run is None:
            return
        measures = dict(zip(run.snapshot_steps.tolist(), run.snapshots, strict=True))
        for k, step in enumerate(run.steps.tolist()):
            if step < len(run.info):  # the row of the end is made anew
                row = {name: rows[k] for name, rows in run.records.items()}
                self._judge(row, float(run.times[k]), measures.get(step))

    def see(self, row: Row) -> bool:
        self._judge(row.values, row.time, row.measure)
        return self._waited >= self.patience

    def _judge(
        self, row: Mapping[str, Tensor], time: float, measure: Measure | None
    ) -> None:
        value = number(row, self.record)
        if self.best_value is None or self._lead(value, self.best_value) > 0:
            self.best_value, self.best_time = value, time
            self.best_measure = measure
        reference = self._reference
        if reference is None or self._lead(value, reference) > self.tolerance:
            self._reference, self._waited = value, 0
        else:
            self._waited += 1

    def _lead(self, value: float, other: float) -> float:
        """Return by how much a value is better than another."""
        return other - value if self.best == "min" else value - other

    def __str__(self) -> str:
        rows = f"{self.patience} rows"
        return f"Patience stopped the flow ({self.record!r} no better in {rows})"

    def __repr__(self) -> str:
        return (
            f"Patience({self.record!r}, patience={self.patience}, "
            f"tolerance={self.tolerance:g}, best={self.best!r})"
        )
