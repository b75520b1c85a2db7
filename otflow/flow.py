"""The only loop: time, records, progress and failure belong to it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from otflow._graphs import value_of
from otflow._progress import progress_bar
from otflow._typing import Seed
from otflow._validation import (
    check_function,
    check_kind,
    non_negative_int,
    positive,
    seed_and_stream,
)
from otflow.errors import Diverged, Interrupted, NonFinite
from otflow.functionals.base import Functional, check_functional
from otflow.measures import Measure
from otflow.proximal import Certificate
from otflow.schemes import Scheme, Step
from otflow.schemes.base import made_by
from otflow.trajectory import Trajectory, warn_of_solves

__all__ = ["flow"]

M = TypeVar("M", bound=Measure)


def flow(
    F: Functional,
    mu: M,
    scheme: Scheme,
    *,
    dt: float | Callable[[int], float],
    steps: int,
    until: float | None = None,
    every: int = 1,
    record: Mapping[str, Callable[[Any], Any]] | None = None,
    stop: Callable[[Step[M]], bool] | None = None,
    generator: Seed = None,
    progress: bool = False,
) -> Trajectory[M]:
    r"""Minimise F from `mu`: repeat a scheme's step and record what happens.

    .. math:: \partial_t \mu = \nabla\cdot(\mu \nabla F'[\mu]), \qquad \mu_0 = \mu

    for the transport schemes; see each scheme for the equation it discretises.

    Parameters
    ----------
    F : Functional
        What to minimise.
    mu : Measure
        Where to start. The flow does not modify it, and detaches it: no gradient passes
        through a flow.
    scheme : Scheme
        How to step, e.g. ``ExplicitEuler()``.
    dt : float or callable
        Time step, > 0, or a function of the step's index.
    steps : int
        Number of steps, >= 0.
    until : float, optional
        Final time. The last step is shortened to end there. `steps` is then the largest
        number of steps; if they do not reach `until`, ``status`` is ``"unfinished"``.
    every : int
        Record before every `every`-th step, from the first on, and at the end.
    record : mapping of str to callable, optional
        Functions of the measure to record, e.g. another functional. They run without
        gradients.
    stop : callable, optional
        Predicate on the `Step` just made. The flow ends when it returns True.
    generator : torch.Generator or int, optional
        The flow makes its random numbers from one integer, ``run.seed``: the given
        integer, or one drawn from the given generator, or a fresh one. The same flow
        with ``generator=run.seed`` repeats the run bit for bit on the same device. A
        start drawn from ``manual_seed(0)`` and a flow with ``generator=0`` share no
        numbers. The flow leaves the global random state alone.
    progress : bool
        Show a tqdm bar (extra ``plot``).

    Returns
    -------
    Trajectory
        Times, records, snapshots, the final measure, the report of each step.

    Raises
    ------
    Diverged
        If the measure, its energy or a record is not finite. The error carries the
        step, the last good measure and the trajectory up to it.
    Interrupted
        On Ctrl-C. The error is a ``KeyboardInterrupt`` and carries the trajectory so
        far.
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, before any work.

    Warns
    -----
    NotConvergedWarning
        Once, at the end, if a solve did not converge. The message says how many steps,
        the first one, the worst residual and the cure. ``run.converged`` is then False.
    BlurWarning, BoxWarning
        On grids, once: if the blur of `GridSinkhorn` is not small beside the step, or
        if mass has come to the border of a box that stands for all space.

    Notes
    -----
    Cost: the cost of the steps, and one energy for a record if the step has not
    computed that energy. An exception of the user's own code is raised unchanged. The
    flow adds a note of the step and the trajectory so far, as ``trajectory``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0], [2.0]]))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=4, every=2)
    >>> run.records["energy"]
    tensor([1.2500, 0.0781, 0.0049])
    """
    check_functional(F)
    check_kind(mu, Measure, "mu")
    check_kind(scheme, Scheme, "scheme")
    length = _step_length(dt)
    steps = non_negative_int(steps, "steps")
    every = non_negative_int(every, "every", minimum=1)
    mu = mu.detach()
    end = math.inf if until is None else positive(until, "until", or_zero=True)
    if stop is not None:
        check_function(stop, "stop must be a predicate on a Step")
    recorder = _Recorder(F, mu, scheme, record)
    recorder.seed, source = seed_and_stream(generator, mu.device)

    status, message = "finished", f"made all {steps} steps"
    with progress_bar(steps, progress) as bar, _nothing_lost(recorder, steps):
        state = scheme.init(F, mu)
        for k in range(steps):
            time, measure = recorder.current
            left = end - time
            if left <= 0:
                break
            h = _cut(length(k), left)
            # Moves share tensors that they do not change. So the first step starts from
            # a copy: a later write into a result must not reach the caller's tensors.
            measure = measure if k else measure.clone()
            step = made_by(scheme, scheme.step(F, measure, h, state, source))
            if k % every == 0:
                bar.set_postfix(energy=recorder.add(step.energy), refresh=False)
            recorder.advance(step, h, end)
            state = step.state
            bar.update()
            if stop is not None and _holds(stop(step)):
                status = "stopped"
                message = f"the stop predicate held after step {k}"
                break
        bar.set_postfix(energy=recorder.add(), refresh=False)
    if status == "finished" and until is not None:
        time, made = recorder.current[0], len(recorder.info)
        message = f"reached time {end:g} in {made} steps"
        if time < end:
            status = "unfinished"
            message = f"made all {steps} steps and is at time {time:g} of {end:g}"
    trajectory = recorder.trajectory(status, message)
    warn_of_solves(trajectory)
    return trajectory


@contextmanager
def _nothing_lost(recorder: _Recorder[Any], steps: int) -> Iterator[None]:
    """Attach the trajectory so far to the exception that ends the loop."""
    try:
        yield
    except (Diverged, NonFinite) as error:
        k = len(recorder.info)
        text = f"the flow diverged in step {k}: {error}"
        if isinstance(error, NonFinite):
            recorder.step_back()  # the functional is not finite at the current measure
        trajectory = recorder.salvage("diverged", text)
        raise Diverged(
            text, measure=trajectory.final, step=k, trajectory=trajectory
        ) from error
    except KeyboardInterrupt as error:
        text = f"interrupted in step {len(recorder.info)} of {steps}"
        msg = f"{text}; the trajectory so far is in the error's `trajectory`"
        trajectory = recorder.salvage("interrupted", text)
        raise Interrupted(msg, trajectory=trajectory) from error
    except Exception as error:
        text = f"step {len(recorder.info)} of {steps} raised {type(error).__name__}"
        error.add_note(
            f"in otflow.flow: {text}; the trajectory so far is in the error's "
            f"attribute `trajectory`"
        )
        error.trajectory = recorder.salvage("failed", text)  # type: ignore[attr-defined]
        raise


class _Recorder(Generic[M]):
    """Collects the rows of a trajectory, also of a flow that fails."""

    def __init__(
        self,
        F: Functional,
        mu: M,
        scheme: Scheme,
        record: Mapping[str, Callable[[Any], Any]] | None,
    ) -> None:
        if record is not None and not isinstance(record, Mapping):
            msg = (
                f"record must be a mapping of names to functions of the measure, got "
                f"{type(record).__name__}; e.g. record={{'risk': risk}}"
            )
            raise TypeError(msg)
        record = dict(record or {})
        for name, function in record.items():
            if name == "energy":
                msg = "the record name 'energy' is taken: the energy is always recorded"
                raise ValueError(msg)
            check_function(
                function, f"record[{name!r}] must be a function of the measure"
            )
        self.functional, self.scheme, self.functions = F, scheme, record
        self.seed = 0
        # A measure of the flow, after its time.
        self.previous: tuple[float, M] = (0.0, mu)
        self.current = self.previous
        self.times: list[float] = []
        self.rows: dict[str, list[Tensor]] = {"energy": [], **{n: [] for n in record}}
        self.snapshots: list[M] = []
        self.info: list[Certificate] = []

    def advance(self, step: Step[M], dt: float, end: float) -> None:
        """Move on to the measure that a step has made."""
        time = self.current[0] + step.taken(dt)
        # A sum of steps misses the end by round-off; the last time must equal `until`.
        if math.isclose(time, end, rel_tol=4 * sys.float_info.epsilon):
            time = end
        self.previous, self.current = self.current, (time, step.measure.detach())
        self.info.append(step.info)

    def step_back(self) -> None:
        """Return to the measure before the last step."""
        self.current = self.previous

    def add(self, energy: Tensor | None = None) -> str:
        """Record the current measure; return its energy as a text."""
        time, mu = self.current
        with torch.no_grad():
            row = value_of(mu, lambda mu: self._row(mu, energy), by="a record")
        energy = row["energy"]
        if not bool(torch.isfinite(energy)):
            msg = f"the energy is {float(energy)} at time {time:g}"
            raise NonFinite(msg)
        if not bool(torch.isfinite(mu.points).all() & torch.isfinite(mu.weights).all()):
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
            first = self.rows[name][0] if self.rows[name] else entry
            if entry.shape != first.shape:
                msg = (
                    f"record[{name!r}] had shape {tuple(first.shape)} and now has "
                    f"{tuple(entry.shape)}; records of one name are stacked: keep the "
                    f"shape, or compute it from the trajectory's snapshots"
                )
                raise ValueError(msg)
        for name, entry in row.items():
            self.rows[name].append(entry.detach())
        self.times.append(time)
        self.snapshots.append(mu)
        return f"{float(energy):.4g}"

    def _row(self, mu: M, energy: Tensor | None) -> dict[str, Tensor]:
        """Return the energy, computed if not known, and the answers of the records."""
        if energy is None:
            energy = self.scheme.energy(self.functional, mu)
        row = {"energy": energy}
        for name, function in self.functions.items():
            try:
                answer = function(mu)
            except NonFinite as error:
                when = f"at time {self.current[0]:g}"
                msg = f"record[{name!r}] is not finite {when}: {error}"
                raise NonFinite(msg) from error
            row[name] = _entry(name, answer, mu.device)
        return row

    def salvage(self, status: str, message: str) -> Trajectory[M]:
        """Return the trajectory of a failed loop, up to the current measure."""
        if not self.snapshots or self.snapshots[-1] is not self.current[1]:
            # What was recorded before must survive whatever fails here.
            with suppress(Exception, KeyboardInterrupt):
                self.add()
        return self.trajectory(status, message)

    def trajectory(self, status: str, message: str) -> Trajectory[M]:
        """Return the records so far."""
        k = len(self.snapshots)  # the last to be appended, should Ctrl-C come between
        return Trajectory(
            times=torch.tensor(self.times[:k], dtype=torch.float64),
            records={
                name: torch.stack(rows[:k]) if k else torch.empty(0)
                for name, rows in self.rows.items()
            },
            snapshots=tuple(self.snapshots),
            final=self.current[1],
            info=tuple(self.info),
            seed=self.seed,
            status=status,
            message=message,
        )


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


def _holds(answer: Any) -> bool:
    """Return a predicate's answer as a bool; raise TypeError if it is not one value."""
    shape = getattr(answer, "shape", ())
    if math.prod(shape) != 1 or isinstance(answer, (str, Sequence, Mapping)):
        got = f"an array of shape {tuple(shape)}" if shape else type(answer).__name__
        msg = f"stop must return True or False, got {got}; reduce it, e.g. by .all()"
        raise TypeError(msg)
    return bool(answer)


def _cut(h: float, left: float) -> float:
    """Return the step, or the time left if less than a share 1e-9 would remain."""
    return left if h >= left * (1 - 1e-9) else h


def _step_length(dt: Any) -> Callable[[int], float]:
    if callable(dt):
        return lambda k: positive(dt(k), f"dt({k})")
    fixed = positive(dt, "dt")
    return lambda _: fixed
