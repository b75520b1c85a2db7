"""Write records and reports for TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from otflow._lazy import lazy_import
from otflow.callbacks.rows import OfRows, Row
from otflow.proximal import Certificate
from otflow.trajectory import Trajectory

__all__ = ["TensorBoardWriter"]

# A record of so many numbers is drawn as curves, one of more as a histogram.
CURVES = 16
# The words of a report that are numbers to look at.
WORDS = ("w2", "residual", "bound", "decrease", "iterations", "converged", "certified")


class TensorBoardWriter(OfRows):
    """Write the records and the reports of a flow for TensorBoard.

    A record of one number is a curve of its name over the steps. A record of at most 16
    numbers is one curve ``name/i`` for each, a larger one a histogram. The words
    ``w2``, ``residual``, ``bound``, ``decrease``, ``iterations``, ``converged`` and
    ``certified`` of a report are the curves ``info/w2`` and so on. The curve ``time``
    is the time of the flow.

    Parameters
    ----------
    target : str, path or SummaryWriter
        The folder of the log, or a writer of ``torch.utils.tensorboard``, which is
        flushed at the end and stays open.

    Raises
    ------
    ImportError
        Before the first step, if a folder is given and tensorboard is missing (extra
        ``tensorboard``).
    TypeError
        If the target is something else. In the flow, if a record is complex.
    ValueError
        In the flow, if two records would be one curve.

    Notes
    -----
    A resumed flow that writes into the folder of its run goes on there. TensorBoard
    then hides what was written of later steps, as by a run that broke off.

    Examples
    --------
    >>> import pathlib, tempfile, torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu, euler = of.Particles(torch.ones(1, 1)), of.ExplicitEuler()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     board = of.callbacks.TensorBoardWriter(folder)
    ...     run = of.flow(F, mu, euler, dt=0.5, steps=2, on_step=board)
    ...     len(list(pathlib.Path(folder).glob("events*")))
    1
    """

    def __init__(self, target: Any) -> None:
        own = isinstance(target, (str, os.PathLike))
        if not own and not callable(getattr(target, "add_scalar", None)):
            msg = (
                f"target must be a folder or a SummaryWriter, got {target!r:.80}; give "
                f"the path of a folder"
            )
            raise TypeError(msg)
        self.target = target
        self._folder = Path(target) if own else None
        self._writer: Any = None if own else target

    def start(self, run: Trajectory[Any] | None) -> None:
        super().start(run)
        if self._folder is None:
            return
        self._close()
        lazy_import("tensorboard")
        kind = lazy_import("torch.utils.tensorboard").SummaryWriter
        made = None if run is None else len(run.info)
        self._writer = kind(str(self._folder), purge_step=made)

    def see(self, row: Row) -> None:
        if self._writer is None:
            return
        tags = {name: _tags(name, value) for name, value in row.values.items()}
        _check_tags(tags)
        if row.report is not None:
            self._write_report(row.report, row.step)
        self._writer.add_scalar("time", row.time, row.step)
        for name, value in row.values.items():
            if value.numel() > CURVES:
                self._writer.add_histogram(name, value.cpu(), row.step)
                continue
            for tag, entry in zip(tags[name], value.flatten().tolist(), strict=True):
                self._writer.add_scalar(tag, entry, row.step)

    def _write_report(self, report: Certificate, step: int) -> None:
        for word in WORDS:
            value = report.get(word)
            if value is not None:
                self._writer.add_scalar(f"info/{word}", float(value), step)

    def end(self, run: Trajectory[Any]) -> None:
        try:
            super().end(run)
        finally:
            if self._folder is None:
                self._writer.flush()
            else:
                self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __repr__(self) -> str:
        shown = str(self._folder) if self._folder else type(self.target).__name__
        return f"TensorBoardWriter({shown!r})"


def _tags(name: str, value: Tensor) -> list[str]:
    """Return the names of the curves of a record, or that of its histogram."""
    if value.is_complex():
        msg = (
            f"the record {name!r} is complex, and TensorBoard shows real numbers; "
            f"record x.real and x.imag as two records, or x.abs()"
        )
        raise TypeError(msg)
    if not value.ndim or value.numel() > CURVES:
        return [name]
    return [f"{name}/{k}" for k in range(value.numel())]


def _check_tags(tags: dict[str, list[str]]) -> None:
    """Raise if two records would be one curve."""
    seen = {"time": "time", **{f"info/{word}": "a report" for word in WORDS}}
    for name, own in tags.items():
        for tag in own:
            other = seen.setdefault(tag, name)
            if other is not name:
                msg = (
                    f"the records {other!r} and {name!r} would both be the curve "
                    f"{tag!r}; give one of them another name"
                )
                raise ValueError(msg)
