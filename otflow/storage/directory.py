"""A run in a directory: rows in parts that stay, and the state to go on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import CorruptFile, DirectoryInUse, ForeignDirectory
from otflow.storage.files import read, replace, write
from otflow.storage.lock import Lock
from otflow.trajectory import Trajectory

__all__ = ["RunDirectory", "read_run"]

SUFFIX = ".safetensors"
LABEL = "run.json"
LOCK = "lock"
FORMAT = {"format": "otflow run", "version": 1}
# What half a file is called.
TEMPORARY = (f".{LABEL}.", ".rows-", ".state-")
# A damaged state leaves the one before.
STATES_KEPT = 2
# How often a reader looks again for states that a writer has replaced.
TRIES = 20


class RunDirectory:
    """Writes a run, part by part; one writer at a time.

    Parameters
    ----------
    path : Path
        The directory. It is made if it is missing.
    run : Trajectory or None
        The run that goes on, or None for a new one.

    Attributes
    ----------
    kept : int
        Number of steps that the directory holds.

    Raises
    ------
    DirectoryInUse
        If another flow writes there.
    ForeignDirectory
        If the directory holds another run, or files of something else.
    CorruptFile
        If a file of the run is damaged.
    OSError
        From the file system, as for a directory that is read-only.
    """

    def __init__(self, path: Path, run: Trajectory[Any] | None) -> None:
        self.path = path
        lazy_import("safetensors.torch")  # it is missing before any work, not after
        if path.is_file():
            msg = f"{path} is a file, and a run needs a directory; name another path"
            raise NotADirectoryError(msg)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(path / LOCK)
        try:
            self.parts, self.kept = self._begin(run)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write there."""
        self._lock.release()

    def write(self, run: Trajectory[Any], made: int, first: int = 0) -> None:
        """Add what a run has done since the last call.

        Parameters
        ----------
        run : Trajectory
            The run; its rows and reports from the step `kept` on are enough.
        made : int
            Number of steps that led to its final measure.
        first : int
            Number of the step of its first report.
        """
        if not self._lock.held:
            msg = (
                f"this process was forked from a flow that writes to {self.path}, and "
                f"must not write there too; begin a flow of its own in another "
                f"directory"
            )
            raise DirectoryInUse(msg)
        new = f"rows-{self.kept:09d}-{made:09d}{SUFFIX}"
        reports = run.info[self.kept - first : made - first]
        parts = self.parts
        if made > self.kept:
            rows = _rows(run, self.kept, made)
            write(self.path / new, {**rows, "info": list(reports)})
            parts = [*parts, new]
        # The state names its parts: it counts from the moment it stands there.
        state = {
            "made": made,
            "parts": parts,
            "final": run.final,
            "seed": run.seed,
            "status": run.status,
            "message": run.message,
            "bookmark": run.bookmark,
            "tail": _rows(run, made, made + 1),
        }
        # A run that goes on begins with the state that stands there already.
        write(self.path / _state_name(made), state, unless_there=True)
        self.parts, self.kept = parts, made
        for old in _states(self.path)[:-STATES_KEPT]:
            old.unlink()

    def _begin(self, run: Trajectory[Any] | None) -> tuple[list[str], int]:
        """Return the parts and the number of steps that stand there already."""
        label, states = self.path / LABEL, _states(self.path)
        if not label.exists():
            _check_empty(self.path)
            replace(label, json.dumps(FORMAT).encode())
        check_label(self.path)
        for stray in self.path.glob(".*"):
            if stray.name.startswith(TEMPORARY):
                stray.unlink()  # half a file of a process that was killed
        if not states:
            _clear(self.path, set())
            return [], 0
        if run is None:
            msg = (
                f"{self.path} holds a run: go on with it, flow(F, run.final, ..., "
                f"resume=run, checkpoint=...) for run = load(the directory), or take "
                f"another directory"
            )
            raise ForeignDirectory(msg)
        state = _newest(self.path, len(run.info))
        if state is None:
            return [], 0
        held = _held(self.path, state, types=None)
        _check_same(self.path, held, state, run)
        _clear(self.path, {*state["parts"]})
        return list(state["parts"]), int(state["made"])


def read_run(
    path: Path, *, types: Iterable[type], device: str | None, strict: bool
) -> Trajectory[Any]:
    """Return the run that a directory holds, up to its last checkpoint.

    With ``strict=False`` a damaged checkpoint is passed over for the one before.
    """
    types = list(types)
    for _ in range(TRIES):
        # A flow that writes meanwhile may remove a state before it is read.
        with suppress(FileNotFoundError):
            return _read_run(path, types, device, strict=strict)
    return _read_run(path, types, device, strict=strict)


def _read_run(
    path: Path, types: list[type], device: str | None, *, strict: bool
) -> Trajectory[Any]:
    check_label(path)
    states = _states(path)
    if not states:
        msg = f"{path} holds a run without a checkpoint yet; begin it anew"
        raise CorruptFile(msg)
    for name in reversed(states[1:]):
        try:
            return _held(path, read(name, types=types, device=device), types, device)
        except CorruptFile as error:
            if strict:
                cure = "load(path, strict=False) reads the checkpoint before it"
                error.add_note(f"{path} holds an older checkpoint: {cure}")
                raise
    return _held(path, read(states[0], types=types, device=device), types, device)


def check_label(path: Path) -> None:
    """Raise ForeignDirectory unless a directory holds a run, in the present format."""
    try:
        known = json.loads((path / LABEL).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError) as error:
        msg = f"{path} holds no run of otflow; name the `checkpoint` of a flow"
        raise ForeignDirectory(msg) from error
    if known != FORMAT:
        msg = f"{path} holds {known!r:.80} and this otflow reads {FORMAT}"
        msg += "; read it with the otflow that wrote it"
        raise ForeignDirectory(msg)


def _rows(run: Trajectory[Any], first: int, last: int) -> dict[str, Any]:
    """Return the rows and the snapshots of the steps from `first` to before `last`."""
    row = (run.steps >= first) & (run.steps < last)
    seen = (run.snapshot_steps >= first) & (run.snapshot_steps < last)
    measures = [mu for mu, here in zip(run.snapshots, seen, strict=True) if here]
    # A run that was loaded to a device goes on with times on the CPU.
    return {
        "times": run.times[row].cpu(),
        "steps": run.steps[row].cpu(),
        "records": {n: held[row[: len(held)]] for n, held in run.records.items()},
        "snapshots": measures,
        "snapshot_times": run.snapshot_times[seen].cpu(),
        "snapshot_steps": run.snapshot_steps[seen].cpu(),
    }


def _held(
    path: Path,
    state: Mapping[str, Any],
    types: Iterable[type] | None,
    device: str | None = None,
) -> Trajectory[Any]:
    """Return the run of a state and of the parts that it names."""
    types = None if types is None else list(types)
    try:
        parts = [read(path / p, types=types, device=device) for p in _named(state)]
    except FileNotFoundError as error:
        msg = f"{path} lacks a part of its run, {error.filename}"
        raise CorruptFile(msg) from error
    rows = [*parts, state["tail"]]
    names = list(dict.fromkeys(name for part in rows for name in part["records"]))
    info = [report for part in parts for report in part["info"]]
    if len(info) != state["made"]:
        msg = f"{path} holds {len(info)} reports of {state['made']} steps"
        raise CorruptFile(msg)
    return Trajectory(
        times=_joined(rows, "times"),
        records={name: _record(rows, name) for name in names},
        snapshots=tuple(mu for part in rows for mu in part["snapshots"]),
        final=state["final"],
        info=tuple(info),
        seed=state["seed"],
        status=state["status"],
        message=state["message"],
        steps=_joined(rows, "steps"),
        snapshot_times=_joined(rows, "snapshot_times"),
        snapshot_steps=_joined(rows, "snapshot_steps"),
        bookmark=state["bookmark"],
    )


def _joined(rows: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([part[name] for part in rows])


def _record(rows: list[dict[str, Any]], name: str) -> Tensor:
    held = [part["records"][name] for part in rows if name in part["records"]]
    # Without a row neither the shape nor the dtype of a record is known.
    return torch.cat([x for x in held if len(x)] or held[:1])


def _named(state: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the parts; a name that leaves the directory is damage."""
    for name in state["parts"]:
        if Path(name).name != name or not name.startswith("rows-"):
            msg = f"a checkpoint names the part {name!r:.80}, which is none"
            raise CorruptFile(msg)
        yield name


def _state_name(made: int) -> str:
    return f"state-{made:09d}{SUFFIX}"


def _states(path: Path) -> list[Path]:
    return sorted(path.glob(f"state-*{SUFFIX}"))


def _newest(path: Path, most: int) -> dict[str, Any] | None:
    """Return the newest good state of at most so many steps; put later ones aside."""
    for name in reversed(_states(path)):
        try:
            state: dict[str, Any] = read(name, types=None)
            _held(path, state, types=None)
        except CorruptFile:
            name.rename(name.with_suffix(".damaged"))
            continue
        if state["made"] > most:
            msg = (
                f"{path} holds {state['made']} steps and the run to resume has {most}; "
                f"go on from load of the directory, or take another directory"
            )
            raise ForeignDirectory(msg)
        return state
    return None


def _clear(path: Path, named: set[str]) -> None:
    """Remove the parts of states that were never written."""
    for part in path.glob(f"rows-*{SUFFIX}"):
        if part.name not in named:
            part.unlink()


def _check_empty(path: Path) -> None:
    names = sorted(found.name for found in path.iterdir())
    others = [name for name in names if not name.startswith(TEMPORARY)]
    others = [name for name in others if name != LOCK]
    if others:
        msg = (
            f"{path} holds {others[0]!r}, which is no part of a run; take a new or an "
            f"empty directory"
        )
        raise ForeignDirectory(msg)


def _check_same(
    path: Path, held: Trajectory[Any], state: Mapping[str, Any], run: Trajectory[Any]
) -> None:
    """Raise ForeignDirectory unless a directory holds the beginning of a run."""
    k = int((held.steps < state["made"]).sum())
    same = held.seed == run.seed and torch.equal(held.times[:k], run.times[:k])
    energy = held.records.get("energy", torch.empty(0))[:k].cpu()
    mine = run.records.get("energy", torch.empty(0))[:k].cpu()
    if not (same and torch.equal(energy, mine)):
        msg = f"{path} holds another run than the one to resume; take another directory"
        raise ForeignDirectory(msg)
