"""The only loop: time, records, progress and failure belong to it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from otflow._context import context_of, continued
from otflow._journal import log_begin, log_end, log_step
from otflow._progress import progress_bar
from otflow._recorder import Recorder
from otflow._snapshots import Snapshots
from otflow._typing import Seed
from otflow._validation import (
    check_kind,
    non_negative_int,
    positive,
    seed_and_stream,
)
from otflow.callbacks import Callback, Checkpoint, Event
from otflow.callbacks.base import as_callbacks, stops
from otflow.errors import Diverged, Interrupted, NonFinite
from otflow.functionals.base import Functional, check_functional, check_measure
from otflow.functionals.of_part import where_seen
from otflow.functionals.potential import Potential
from otflow.measures import Measure, Particles
from otflow.schemes import Scheme, Step, reports
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
    snapshots: str | int | Sequence[float] | None = None,
    stop: Callable[[Step[M]], bool] | None = None,
    on_step: Callable[[Event[M]], Any]
    | Sequence[Callable[[Event[M]], Any]]
    | None = None,
    resume: Trajectory[M] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
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
    snapshots : "none", "last", int or sequence of float, optional
        Which measures ``run.snapshots`` keeps: none, that at the end, every k-th and
        that at the end, or the first at or after each of the given times. By default
        those that are recorded. ``run.final`` is kept anyhow.
    stop : callable, optional
        Predicate on the `Step` just made. The flow ends when it returns True.
    on_step : callable or sequence of callable, optional
        Callbacks: each receives an `otflow.callbacks.Event` after each step, and stops
        the flow by returning True. Ready ones are in `otflow.callbacks`.
    resume : Trajectory, optional
        A run to continue from its end: in time, steps, records, scheme state and random
        numbers. `steps` then counts further steps. The run in two parts equals the run
        in one to the bit. `mu` is the start or the end of that run. The result holds
        both parts. The records and snapshots that were made because the first part
        ended are those of one run. Another scheme begins with a state of its own. A run
        that diverged, or that has reached `until`, raises ValueError.
    checkpoint : str or path, optional
        A directory to which the run is written while it goes on, see
        `otflow.callbacks.Checkpoint`: neither an exception nor Ctrl-C, SIGTERM or a
        kill loses it. ``otflow.load(checkpoint)`` returns the run so far.
    checkpoint_every : int, optional
        Number of steps between two checkpoints; by default about two seconds.
    generator : torch.Generator or int, optional
        The flow makes its random numbers from one integer, ``run.seed``: the given
        integer, or one drawn from the given generator, or a fresh one. The same flow
        with ``generator=run.seed`` repeats the run bit for bit on the same device. A
        start drawn from ``manual_seed(0)`` and a flow with ``generator=0`` share no
        numbers. The flow leaves the global random state alone.
    progress : bool
        Show a bar of tqdm with the energy and the share of certified steps (extra
        ``plot``). The bar of a resumed flow starts at the steps made before.

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
        If an argument is of the wrong kind or out of range, or if a run to resume
        cannot go on, before any work.

    Warns
    -----
    NotConvergedWarning
        Once, at the end, if a solve did not converge. The message says how many steps,
        the first one, the worst residual and the cure. ``run.converged`` is then False.
    ResumeWarning
        If a resumed run has another functional, scheme, version, or number of threads.
    BlurWarning, BoxWarning
        On grids, once: if the blur of `GridSinkhorn` is not small beside the step, or
        if mass has come to the border of a box that stands for all space.

    Notes
    -----
    Cost: the cost of the steps, and one energy for a record if the step has not
    computed that energy. An exception of the user's own code is raised unchanged. The
    flow adds a note of the step and the trajectory so far, as ``trajectory``. The log
    ``otflow.flow`` of Python's `logging` receives the start, the end and each step that
    did not converge.

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
    check_measure(mu)
    check_kind(scheme, Scheme, "scheme", cure="take one, e.g. ExplicitEuler() or JKO()")
    length = _step_length(dt)
    steps = non_negative_int(steps, "steps")
    every = non_negative_int(every, "every", minimum=1)
    end = math.inf if until is None else positive(until, "until", or_zero=True)
    callbacks = as_callbacks(on_step, stop) + _checkpoints(checkpoint, checkpoint_every)
    watchers: list[Callback] = []  # those that have begun, and must end
    recorder: Recorder[M] = Recorder(F, scheme, record, Snapshots.of(snapshots))
    if resume is not None:
        mu = continued(resume, mu, recorder.rows, end, generator)
        generator = resume.seed
    mu = mu.detach()
    recorder.seed, source = seed_and_stream(generator, mu.device)
    recorder.context = context_of(F, mu, scheme)

    done = 0 if resume is None else len(resume.info)
    with (
        progress_bar(done + steps, progress, done) as bar,
        _nothing_lost(recorder, watchers, done + steps),
    ):
        first = recorder.begin(mu, source, resume)
        log_begin(F, mu, scheme, steps, first)
        for callback in callbacks:
            watchers.append(callback)  # first: a start that raises may have opened
            callback.start(resume)
        reason = ""
        for k in range(first, first + steps):
            here = recorder.current
            left = end - here.time
            if left <= 0:
                break
            h = _cut(length(k), left)
            # Moves share tensors that they do not change. So the first step starts from
            # a copy: a later write into a result must not reach the caller's tensors.
            start = here.measure if k > first else here.measure.clone()
            step = made_by(scheme, scheme.step(F, start, h, here.state, source))
            row = None
            if k % every == 0:
                row = recorder.add(step.energy)
                bar.show_energy(f"{float(row['energy']):.4g}")
            recorder.look(recorded=row is not None)
            recorder.advance(step, h, end, source.get_state())
            log_step(k, step.info)
            bar.update(reports.certified(step.info))
            if watchers and (reason := _stopped(watchers, recorder, step, row)):
                break
        row = recorder.add()
        recorder.look(recorded=True, last=True)
        bar.show_energy(f"{float(row['energy']):.4g}")
        made, time, *_ = recorder.current
        trajectory = recorder.trajectory(
            *_outcome(reason, done + steps, made, time, end)
        )
        log_end(trajectory)
        while watchers:
            watchers.pop(0).end(trajectory)
    warn_of_solves(trajectory)
    return trajectory


@contextmanager
def _nothing_lost(
    recorder: Recorder[Any], watchers: list[Callback], steps: int
) -> Iterator[None]:
    """Attach the trajectory so far to the exception that ends the loop."""
    try:
        yield
    except (Diverged, NonFinite) as error:
        k = len(recorder.info)
        text = f"the flow diverged in step {k}: {error}"
        if isinstance(error, NonFinite):
            walls = ""
            with suppress(Exception):  # the first error counts
                walls = _walls(recorder.functional, recorder.current.measure, k)
            if walls:
                text = f"the flow diverged in step {k}: {walls}"
            elif k and not re.search("smaller|^record", str(error)):
                text += ", or a step went where it is not finite: take a smaller dt"
            recorder.step_back()  # the functional is not finite at the current measure
        trajectory = _ended(recorder, watchers, "diverged", text)
        raise Diverged(
            text, measure=trajectory.final, step=k, trajectory=trajectory
        ) from error
    except KeyboardInterrupt as error:
        text = f"interrupted in step {len(recorder.info)} of {steps}"
        msg = f"{text}; the trajectory so far is in the error's `trajectory`"
        trajectory = _ended(recorder, watchers, "interrupted", text)
        raise Interrupted(msg, trajectory=trajectory) from error
    except BaseException as error:  # as of sys.exit: the run is written all the same
        text = f"step {len(recorder.info)} of {steps} raised {type(error).__name__}"
        error.add_note(
            f"in otflow.flow: {text}; the trajectory so far is in the error's "
            f"attribute `trajectory`"
        )
        trajectory = _ended(recorder, watchers, "failed", text)
        error.trajectory = trajectory  # type: ignore[attr-defined]
        raise


def _walls(F: Functional, whole: Measure, made: int) -> str:
    """Return which potential with a map is infinite at the measure, and the cure."""
    noise = [where_seen(term, whole)[1] for _, term in F.terms() if term.entropic]
    for _, stated in F.terms():
        term, mu = where_seen(stated, whole)
        if not isinstance(term, Potential) or term.prox is None:
            continue
        with torch.no_grad():
            here = torch.isfinite(mu.points).all(-1) & (mu.weights > 0)
            outside = torch.isinf(term.V(mu.points)) & here
        if not bool(outside.any()):
            continue
        if made and any(heated in (mu, whole) for heated in noise):
            cure = (
                "noise does not see where it ends; flow a GridDensity(..., walls=True) "
                "over the region where it is finite, by JKO()"
            )
        elif made:
            cure = (
                "a step without its proximal map does not see where it ends; take "
                "schemes.ForwardBackward()"
            )
        elif isinstance(mu, Particles):
            cure = (
                "start where it is finite, e.g. with term as that potential from "
                "Particles(term.proximal(mu.points, 1.0), mu.weights)"
            )
        else:
            cure = (
                "start where it is finite, from Particles or from a GridDensity whose "
                "box lies there"
            )
        if made and mu is not whole:
            cure += ", for this part alone, in schemes.PartByPart"
        return (
            f"{stated!r} is infinite at {int(outside.sum())} of {mu.n} points; {cure}"
        )
    return ""


def _ended(
    recorder: Recorder[M], watchers: list[Callback], status: str, text: str
) -> Trajectory[M]:
    """Return the trajectory of a flow that failed; let the callbacks close."""
    trajectory = recorder.salvage(status, text)
    log_end(trajectory)
    while watchers:
        # The error that ended the flow counts, not one that follows from it.
        with suppress(Exception):
            watchers.pop(0).end(trajectory)
    return trajectory


def _stopped(
    watchers: list[Callback],
    recorder: Recorder[M],
    step: Step[M],
    row: Mapping[str, Tensor] | None,
) -> str:
    """Show a step to all callbacks; return who of them stops the flow, or nothing."""
    before, now = recorder.previous, recorder.current

    def so_far(first: int) -> Trajectory[M]:
        return recorder.trajectory("running", f"after step {before.made}", first)

    event = Event(
        before.made, now.time, now.time - before.time, before.measure, step, row, so_far
    )
    stopping = [watcher for watcher in watchers if stops(watcher, event)]
    return f"{stopping[0]} after step {before.made}" if stopping else ""


def _checkpoints(
    directory: str | os.PathLike[str] | None, every: int | None
) -> list[Callback]:
    if directory is not None:
        return [Checkpoint(directory, every)]
    if every is not None:
        msg = "checkpoint_every needs a directory; give checkpoint='some/directory'"
        raise ValueError(msg)
    return []


def _outcome(
    reason: str, steps: int, made: int, time: float, end: float
) -> tuple[str, str]:
    """Return the status and the message of a flow that did not fail."""
    if reason:
        return "stopped", reason
    if end == math.inf:
        return "finished", f"made all {steps} steps" if steps else "made no step"
    if time < end:
        where = f"and is at time {time:g} of {end:g}"
        return "unfinished", f"made all {steps} steps {where}"
    return "finished", f"reached time {end:g} in {made} steps"


def _cut(h: float, left: float) -> float:
    """Return the step, or the time left if less than a share 1e-9 would remain."""
    return left if h >= left * (1 - 1e-9) else h


def _step_length(dt: Any) -> Callable[[int], float]:
    if callable(dt):
        return lambda k: positive(dt(k), f"dt({k})")
    if isinstance(dt, Sequence) and not isinstance(dt, str):
        msg = (
            f"dt must be one number or a function of the index, got "
            f"{type(dt).__name__}; give dt=lambda k: lengths[k]"
        )
        raise TypeError(msg)
    fixed = positive(dt, "dt")
    return lambda _: fixed
