"""Write records to a file as they are made: comma-separated values, lines of JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from abc import abstractmethod
from typing import Any, BinaryIO

import numpy as np

from otflow._paths import a_path, check_folder
from otflow._validation import true_or_false
from otflow._views import columns_of
from otflow.callbacks.rows import OfRows, Row
from otflow.trajectory import Trajectory

__all__ = ["CSVWriter", "JSONLinesWriter"]


class _Writer(OfRows):
    """Writes one line for each row, and hands each to the system at once."""

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = a_path(path, "path")
        self.append = true_or_false(append, "append")
        self._file: BinaryIO | None = None

    def start(self, run: Trajectory[Any] | None) -> None:
        super().start(run)
        self._close()
        check_folder(self.path)
        if self.path.is_dir():
            msg = f"{self.path} is a folder; give the path of a file in it"
            raise IsADirectoryError(msg)
        goes_on = self.append and self.path.exists()
        try:
            file = self.path.open("r+b" if goes_on else "xb")
        except FileExistsError as error:
            msg = (
                f"{self.path} exists, and is not written over; give another path, or "
                f"append=True to go on in it"
            )
            raise FileExistsError(msg) from error
        if goes_on:
            try:
                self._clean(file, None if run is None else len(run.info))
            except Exception:
                file.close()  # nothing is written into a file of others
                raise
        self._file = file

    def _clean(self, file: BinaryIO, resumed: int | None) -> None:
        """Drop what is not wanted at the end of the file.

        It is a line that was not finished. If a flow is resumed, it is also the row of
        the end, which is made anew, and the rows of later steps, which a run that broke
        off has written.
        """
        *lines, rest = self._split(file.read())
        ends = np.cumsum([len(line) + 1 for line in lines], dtype=np.int64)
        steps = [self._step(line, k) for k, line in enumerate(lines)]
        begin = self._begin(len(lines))
        if not (rest.startswith(begin) or begin.startswith(rest)):
            raise self._not_mine(rest)
        keep = len(steps)
        if resumed is not None:
            later: float = math.inf
            # A row of a step no earlier than the next is the end of an earlier flow.
            while keep and resumed <= (step := steps[keep - 1]) < later:
                keep, later = keep - 1, step
        file.seek(int(ends[keep - 1]) if keep else 0)
        file.truncate()

    def see(self, row: Row) -> None:
        file = self._file
        if file is None:
            return
        values = {name: value.tolist() for name, value in row.values.items()}
        for line in self._lines(row, values, is_first=file.tell() == 0):
            file.write(line.encode() + b"\n")
        file.flush()

    def end(self, run: Trajectory[Any]) -> None:
        try:
            super().end(run)
        finally:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _not_mine(self, line: bytes) -> ValueError:
        """Return the error of a file that has other lines."""
        msg = (
            f"{self.path} has a line that {type(self).__name__} does not write: "
            f"{line[:60]!r}; give another path"
        )
        return ValueError(msg)

    def _split(self, text: bytes) -> list[bytes]:
        """Return the lines of a file, and what is behind the last."""
        return text.split(b"\n")

    @abstractmethod
    def _begin(self, k: int) -> bytes:
        """Return how the k-th line begins."""

    @abstractmethod
    def _step(self, line: bytes, k: int) -> int:
        """Return the step of the k-th line; -1 for a head of columns."""

    @abstractmethod
    def _lines(self, row: Row, values: dict[str, Any], *, is_first: bool) -> list[str]:
        """Return the lines to write."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, append={self.append})"


class CSVWriter(_Writer):
    """Write the records to a file of comma-separated values, row by row.

    The columns are ``step``, ``time``, ``energy`` and the records of the flow. The
    entry (i, j) of a record of several numbers is the column ``name[i,j]``. The row of
    step k is that of the measure before step k; the last row is that of the end. Each
    row is handed to the system before the next step: a run that breaks off leaves whole
    rows. Numbers have all their digits: to read them gives the records to the bit. The
    text is UTF-8. A name with a comma, a quote or an end of a line is in quotes, as the
    module ``csv`` and pandas read it.

    Parameters
    ----------
    path : str or path
        The file. Its folder exists.
    append : bool
        Whether to go on in a file that exists. A resumed flow goes on where its run
        ended. It removes the row of that end, which it makes anew, and the rows of
        later steps, which a run that broke off has left. So the file is that of one
        run.

    Raises
    ------
    FileExistsError
        Before the first step, if the file exists and `append` is False.
    FileNotFoundError, IsADirectoryError
        Before the first step, if there is no such folder, or the path is a folder.
    ValueError
        If the file that exists has other lines or columns, or if two columns would have
        one name.

    Examples
    --------
    >>> import pathlib, tempfile, torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu, euler = of.Particles(torch.ones(1, 1)), of.ExplicitEuler()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "run.csv"
    ...     writer = of.callbacks.CSVWriter(path)
    ...     run = of.flow(F, mu, euler, dt=0.5, steps=2, on_step=writer)
    ...     path.read_text().splitlines()
    ['step,time,energy', '0,0.0,0.5', '1,0.5,0.125', '2,1.0,0.03125']
    """

    def _split(self, text: bytes) -> list[bytes]:
        # The name of a record may hold ends of lines, in quotes: the head goes on.
        lines, quotes = text.split(b"\n"), 0
        for k, line in enumerate(lines, start=1):
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                return [b"\n".join(lines[:k]), *lines[k:]]
        if len(lines) > 1:  # a quote that is never closed: rows may lie behind it
            raise self._not_mine(lines[0])
        return lines

    def _begin(self, k: int) -> bytes:
        return b"" if k else b"step,time,energy"

    def _step(self, line: bytes, k: int) -> int:
        if k == 0:
            if not line.startswith(self._begin(0)):
                raise self._not_mine(line)
            self._head = line.decode(errors="replace")
            return -1
        try:
            return int(line.split(b",", 1)[0])
        except ValueError as error:
            raise self._not_mine(line) from error

    def _lines(self, row: Row, values: dict[str, Any], *, is_first: bool) -> list[str]:
        rows = {name: np.array([x], dtype=object) for name, x in values.items()}
        entries = {name: x[0] for name, x in columns_of(rows).items()}
        head = _comma_separated(["step", "time", *entries])
        line = _comma_separated([row.step, row.time, *entries.values()])
        if is_first:
            self._head = head
            return [head, line]
        if head != self._head:
            msg = (
                f"{self.path} has the columns {self._head}, and this flow records "
                f"{head}; record the same names, or give another path"
            )
            raise ValueError(msg)
        return [line]


class JSONLinesWriter(_Writer):
    """Write the records and the reports to a file, one object of JSON a line.

    An object holds ``step``, ``time``, ``records`` (the energy and the records of the
    flow) and ``info``, the report of the step that the flow made from there
    (`Certificate.to_dict`); in the last line ``info`` is null. What JSON has no word
    for, such as an infinity, is written as a string. Numbers have all their digits: to
    read them gives the records to the bit. Each line is handed to the system before the
    next step: a run that breaks off leaves whole lines.

    Parameters
    ----------
    path : str or path
        The file. Its folder exists.
    append : bool
        Whether to go on in a file that exists. A resumed flow goes on where its run
        ended. It removes the line of that end, which it makes anew, and the lines of
        later steps, which a run that broke off has left. So the file is that of one
        run.

    Raises
    ------
    FileExistsError
        Before the first step, if the file exists and `append` is False.
    FileNotFoundError, IsADirectoryError
        Before the first step, if there is no such folder, or the path is a folder.
    ValueError
        If the file that exists has other lines.

    Examples
    --------
    >>> import json, pathlib, tempfile, torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu, euler = of.Particles(torch.ones(1, 1)), of.ExplicitEuler()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "run.jsonl"
    ...     writer = of.callbacks.JSONLinesWriter(path)
    ...     run = of.flow(F, mu, euler, dt=0.5, steps=2, on_step=writer)
    ...     first, *_ = path.read_text().splitlines()
    >>> json.loads(first)["records"]
    {'energy': 0.5}
    """

    def _begin(self, k: int) -> bytes:
        return b'{"step": '

    def _step(self, line: bytes, k: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_mine(line) from error

    def _lines(self, row: Row, values: dict[str, Any], *, is_first: bool) -> list[str]:
        info = None if row.report is None else row.report.to_dict()
        whole = {"step": row.step, "time": row.time, "records": values, "info": info}
        return [json.dumps(_plain(whole), default=str, allow_nan=False)]


def _comma_separated(cells: list[Any]) -> str:
    text = io.StringIO()
    # With this end of a line the writer puts names in quotes that hold a part of it.
    end = "\r\n"
    csv.writer(text, lineterminator=end).writerow(cells)
    return text.getvalue().removesuffix(end)


def _plain(value: Any) -> Any:
    """Return a value without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
