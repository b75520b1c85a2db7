"""A run written to a directory while it goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from otflow._paths import a_path
from otflow._validation import non_negative_int
from otflow.callbacks.base import Callback, Event
from otflow.storage.directory import RunDirectory
from otflow.trajectory import Trajectory

__all__ = ["Checkpoint"]

# Without `every`: after so many seconds, or after this share of the time so far, if it
# is longer. So a long run does not leave a file for every other second.
SECONDS, SHARE = 2.0, 0.02


class Checkpoint(Callback):
    """Write a run to a directory, so that no end of the process loses it.

    ``flow(checkpoint=directory, checkpoint_every=k)`` adds this callback. The rows of a
    run stay in parts; the state from which it goes on is written beside them, and each
    file appears as a whole or not at all (written, synced, renamed). Killed at any
    instant, the run goes on from its last checkpoint and equals to the bit the run that
    was not killed:

    .. code-block:: python

        run = otflow.load(directory)
        left = 1000 - len(run.info)
        otflow.flow(
            F, run.final, scheme, ..., steps=left, resume=run, checkpoint=directory
        )

    An exception, ``sys.exit``, Ctrl-C and SIGTERM write the last step made. On SIGTERM
    the process then ends by that signal, as it does without a checkpoint. A handler of
    SIGTERM of your own stays in place, and so does the signal outside of the main
    thread.

    Parameters
    ----------
    directory : str or path
        Where to write: a new or an empty directory, or that of the run to resume.
    every : int, optional
        Write after every so many steps. By default a checkpoint is made every two
        seconds, or after 2 % of the time so far if that is longer.

    Raises
    ------
    DirectoryInUse
        From the flow, before its first step: another flow writes there. From a step,
        in a process that was forked meanwhile: its parent writes there.
    ForeignDirectory
        From the flow, before its first step: the directory holds another run, or other
        files.
    OSError
        From the file system, as for a full disk. The run so far is in the error's
        ``trajectory``, and the checkpoints before it are good.
    ImportError
        If safetensors is missing (extra ``store``).

    See Also
    --------
    otflow.load : Read the run of a directory.

    Notes
    -----
    A checkpoint costs one measure and one state of the scheme on disk, of which two are
    kept, and the rows since the last one. Writing takes some milliseconds and waits for
    the disk.

    Examples
    --------
    >>> import tempfile, torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu, euler = of.Particles(torch.ones(1, 1)), of.ExplicitEuler()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = of.flow(F, mu, euler, dt=0.5, steps=3, checkpoint=folder)
    ...     again = of.load(folder)
    ...     more = of.flow(
    ...         F, mu, euler, dt=0.5, steps=2, resume=again, checkpoint=folder
    ...     )
    ...     of.load(folder)
    Trajectory(finished after 5 steps, t = 2.5: energy 0.5 -> 0.000488281)
    """

    def __init__(
        self, directory: str | os.PathLike[str], every: int | None = None
    ) -> None:
        self.directory = a_path(directory, "checkpoint", cure="name a directory")
        self.every = every
        if every is not None:
            self.every = non_negative_int(every, "checkpoint_every", minimum=1)
        self._place: RunDirectory | None = None
        self._quit = _Quit()

    def start(self, run: Trajectory[Any] | None) -> None:
        self._place = RunDirectory(self.directory, run)
        if run is not None:
            self._place.write(run, len(run.info))
        self._begun = self._last = time.monotonic()
        self._quit.watch()

    def __call__(self, event: Event[Any]) -> None:
        place = self._place
        assert place is not None
        made = event.index + 1
        if self.every is not None:
            due = made % self.every == 0
        else:
            now = time.monotonic()
            due = now - self._last >= max(SECONDS, SHARE * (now - self._begun))
        if due:
            place.write(event.trajectory(place.kept), made, first=place.kept)
            self._last = time.monotonic()

    def end(self, run: Trajectory[Any]) -> None:
        place, self._place = self._place, None
        if place is None:
            return
        try:
            # A diverged run ends before the step that it reports last.
            mark = run.bookmark
            place.write(run, len(run.info) if mark is None else mark.made)
        finally:
            place.close()
            self._quit.obey()


class _Quit:
    """SIGTERM as Ctrl-C, until the run is written; then as SIGTERM."""

    def __init__(self) -> None:
        self._asked, self._watching = False, False

    def watch(self) -> None:
        """Turn SIGTERM into KeyboardInterrupt, if nobody else has a handler of it."""
        is_main = threading.current_thread() is threading.main_thread()
        self._asked, self._watching = False, False
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._interrupt())
            self._watching = True

    def obey(self) -> None:
        """Put the signal back, and end the process if it came meanwhile."""
        if self._watching:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._watching = False
        if self._asked:
            os.kill(os.getpid(), signal.SIGTERM)

    def _interrupt(self) -> Callable[[int, Any], None]:
        def interrupt(_: int, __: Any) -> None:
            # Once: a second signal must not cut the writing of the run.
            if not self._asked:
                self._asked = True
                raise KeyboardInterrupt

        return interrupt
