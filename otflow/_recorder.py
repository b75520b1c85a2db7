"""Collects the rows of a trajectory, also of a flow that fails or is resumed."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import reduce
from operator import and_, itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from otflow._column import Column
from otflow._context import compare_contexts
from otflow._graphs import value_of
from otflow._snapshots import Snapshots
from otflow._validation import check_function
from otflow._warn import warn
from otflow.errors import NonFinite, ResumeWarning
from otflow.functionals.base import Functional
from otflow.measures import Measure
from otflow.proximal import Certificate
from otflow.schemes import Scheme, Step
from otflow.trajectory import Bookmark, Trajectory

__all__ = ["Position", "Recorder"]

M = TypeVar("M", bound=Measure)
# Names of records that tables of a run need for themselves.
TAKEN = ("energy", "time", "step")


class Position(NamedTuple, Generic[M]):
    """Where a flow stands between two steps."""

    made: int  # number of steps
    time: float
    measure: M
    state: Any  # of the scheme
    stream: Tensor  # the state of the random numbers
    before: float  # the time one step before


class Recorder(Generic[M]):
    """The rows of a trajectory as they come.

    `current` is replaced as a whole after each step. So an interrupt at any instant
    leaves a position from which the flow can go on.
    """

    def __init__(
        self,
        F: Functional,
        scheme: Scheme,
        record: Mapping[str, Callable[[Any], Any]] | None,
        snapshots: Snapshots,
    ) -> None:
        self.functional, self.scheme, self.functions = F, scheme, _functions(record)
        self.wanted = snapshots
        self.seed = 0
        self.context: Mapping[str, str] = {}
        self.previous: Position[M]
        self.current: Position[M]
        self.times: list[float] = []
        self.steps: list[int] = []
        names = ("energy", *self.functions)
        self.rows = {name: Column() for name in names}
        self.snapshots: list[tuple[float, int, M]] = []
        self.info: list[Certificate] = []
        self.begun = False
        self.lost = 0  # steps undone, of which the report is kept

    def begin(self, mu: M, source: torch.Generator, run: Trajectory[M] | None) -> int:
        """Stand at the start of a flow, or at the end of a run; return its steps."""
        mark = None if run is None else run.bookmark
        if run is None or mark is None:
            here = Position(0, 0.0, mu, None, source.get_state(), 0.0)
            self.previous = self.current = here
            state = self.scheme.init(self.functional, mu)
        else:
            before = mark.time if mark.before is None else mark.before
            stream = mark.stream.cpu()  # it was loaded to a device, with all else
            here = Position(mark.made, mark.time, mu, None, stream, before)
            self.previous = self.current = here
            self._take_over(run)
            changed = compare_contexts(mark.context, self.context)
            source.set_state(stream)
            if "scheme" in changed:  # the state of another scheme means nothing to it
                state = self.scheme.init(self.functional, mu)
            else:
                state = self.scheme.load_state(self.functional, mu, mark.state)
        self.previous = self.current = here._replace(state=state)
        self.begun = True
        return self.current.made

    def _take_over(self, run: Trajectory[M]) -> None:
        """Copy the rows of a run; those made because it ended are made anew."""
        made = len(run.info)
        k = int((run.steps < made).sum())
        self.times, self.steps = run.times[:k].tolist(), run.steps[:k].tolist()
        self.rows = {name: Column(run.records[name][:k]) for name in self.rows}
        self.info = list(run.info)
        at = zip(run.snapshot_times.tolist(), run.snapshot_steps.tolist(), strict=True)
        rows = [(*when, mu) for when, mu in zip(at, run.snapshots, strict=True)]
        self.snapshots = [row for row in rows if row[1] < made]

    def advance(self, step: Step[M], dt: float, end: float, stream: Tensor) -> None:
        """Move on to the measure that a step has made."""
        time = self.current.time + step.taken(dt)
        # A sum of steps misses the end by round-off; the last time must equal `until`.
        if math.isclose(time, end, rel_tol=4 * sys.float_info.epsilon):
            time = end
        k = self.current.made + 1
        before = self.current.time
        now = Position(k, time, step.measure.detach(), step.state, stream, before)
        self.info.append(step.info)
        self.previous, self.current = self.current, now

    def step_back(self) -> None:
        """Return to the measure before the last step."""
        self.current, self.lost = self.previous, 1

    def add(self, energy: Tensor | None = None) -> dict[str, Tensor]:
        """Record the current measure; return the row."""
        made, time, mu, *_ = self.current
        with torch.no_grad():
            row = value_of(mu, lambda mu: self._row(mu, energy), by="a record")
        energy = row["energy"]
        if not bool(torch.isfinite(energy)):
            msg = f"the energy is {float(energy)} at time {time:g}"
            raise NonFinite(msg)
        if not _finite(mu):
            msg = (
                f"points or weights are not finite at time {time:g}; take a smaller dt"
            )
            raise NonFinite(msg)
        for name, entry in row.items():
            if not bool(torch.isfinite(entry).all()):
                msg = (
                    f"record[{name!r}] is not finite at time {time:g}; let it return "
                    f"finite numbers, or compute it from the trajectory's snapshots"
                )
                raise NonFinite(msg)
            column = self.rows[name]
            if len(column) and entry.shape != column.shape:
                msg = (
                    f"record[{name!r}] had shape {tuple(column.shape)} and now has "
                    f"{tuple(entry.shape)}; records of one name are stacked: keep the "
                    f"shape, or compute it from the trajectory's snapshots"
                )
                raise ValueError(msg)
        for name, entry in row.items():
            row[name] = entry.detach()
            self.rows[name].append(row[name])
        self.times.append(time)
        self.steps.append(made)
        return row

    def look(self, *, recorded: bool, last: bool = False) -> None:
        """Take a snapshot of the current measure if one is wanted."""
        made, time, mu, *_, before = self.current
        if self.snapshots and self.snapshots[-1][1] == made:
            return  # taken before the step that failed
        if self.wanted.at(made, before, time, recorded=recorded, last=last):
            self.snapshots.append((time, made, mu))

    def _row(self, mu: M, energy: Tensor | None) -> dict[str, Tensor]:
        """Return the energy, computed if not known, and the answers of the records."""
        if energy is None:
            energy = self.scheme.energy(self.functional, mu)
        row = {"energy": energy}
        for name, function in self.functions.items():
            try:
                answer = function(mu)
            except NonFinite as error:
                when = f"at time {self.current.time:g}"
                msg = f"record[{name!r}] is not finite {when}: {error}"
                raise NonFinite(msg) from error
            row[name] = _entry(name, answer, mu.device)
        return row

    def salvage(self, status: str, message: str) -> Trajectory[M]:
        """Return the trajectory of a failed loop, up to the current measure."""
        # What was recorded before must survive whatever fails here.
        with suppress(Exception, KeyboardInterrupt):
            new = not self.steps or self.steps[-1] != self.current.made
            if new:
                self.add()
            self.look(recorded=new, last=True)
        return self.trajectory(status, message)

    def trajectory(self, status: str, message: str, first: int = 0) -> Trajectory[M]:
        """Return the records so far, from a step on."""
        k = len(self.steps)  # the last to be appended, should Ctrl-C come between
        j = bisect_left(self.steps, first, hi=k)
        seen = self.snapshots[bisect_left(self.snapshots, first, key=itemgetter(1)) :]
        made = self.current.made + self.lost
        return Trajectory(
            times=torch.tensor(self.times[j:k], dtype=torch.float64),
            records={
                name: rows.between(j, k) if k > j else torch.empty(0)
                for name, rows in self.rows.items()
            },
            snapshots=tuple(mu for _, _, mu in seen),
            final=self.current.measure,
            info=tuple(self.info[first:made]),
            seed=self.seed,
            status=status,
            message=message,
            steps=torch.tensor(self.steps[j:k], dtype=torch.int64),
            snapshot_times=torch.tensor([t for t, _, _ in seen], dtype=torch.float64),
            snapshot_steps=torch.tensor([k for _, k, _ in seen], dtype=torch.int64),
            bookmark=self._bookmark(),
        )

    def _bookmark(self) -> Bookmark | None:
        if not self.begun:
            return None
        made, time, _, state, stream, before = self.current
        try:
            packed = self.scheme.state_dict(state)
        except Exception as error:  # the run itself must not be lost
            msg = (
                f"the state of {self.scheme!r} cannot be kept, so the run cannot be "
                f"resumed: {type(self.scheme).__name__}.state_dict raised {error!r}"
            )
            warn(msg, ResumeWarning)
            return None
        return Bookmark(made, time, packed, stream, self.context, before)


def _finite(mu: Measure) -> bool:
    """Return whether all numbers of a measure are finite; the device answers once."""
    return bool(reduce(and_, (torch.isfinite(x).all() for x in mu.tensors())))


def _functions(
    record: Mapping[str, Callable[[Any], Any]] | None,
) -> dict[str, Callable[[Any], Any]]:
    if record is not None and not isinstance(record, Mapping):
        msg = (
            f"record must be a mapping of names to functions of the measure, got "
            f"{type(record).__name__}; e.g. record={{'risk': risk}}"
        )
        raise TypeError(msg)
    functions = dict(record or {})
    for name, function in functions.items():
        if not isinstance(name, str) or not name:
            msg = (
                f"the name of a record must be a text that is not empty, got {name!r}; "
                f"name it, e.g. record={{'loss': function}}"
            )
            raise (ValueError if name == "" else TypeError)(msg)
        if name == "energy":
            msg = "the record name 'energy' is taken: the energy is always recorded"
            raise ValueError(msg)
        if name in TAKEN:
            msg = (
                f"the record name {name!r} is taken: tables of a run use it; choose "
                f"another, e.g. {'my_' + name!r}"
            )
            raise ValueError(msg)
        check_function(function, f"record[{name!r}] must be a function of the measure")
    return functions


def _entry(name: str, entry: Any, device: torch.device) -> Tensor:
    try:
        # NumPy keeps all digits of Python's floats; torch would round them to float32.
        plain = isinstance(entry, (float, list, tuple))
        return torch.as_tensor(np.asarray(entry) if plain else entry, device=device)
    except (RuntimeError, TypeError, ValueError) as error:
        msg = (
            f"record[{name!r}] returned {type(entry).__name__}, of which no tensor can "
            f"be made ({error}); return a number or a tensor"
        )
        raise TypeError(msg) from error
