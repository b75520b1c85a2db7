"""Tables of a run for pandas and xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._views.run import Run
from otflow.proximal.certificate import WORDS

__all__ = ["columns_of", "dataset", "records_frame", "reports_frame"]

# Names that stand for something else in the tables.
COORDINATES = ("time", "snapshot_time", "particle", "dim")
SNAPSHOTS = ("points", "weights")


def records_frame(run: Run) -> Any:
    """Return one row for each recorded time, one column for each number."""
    pandas = lazy_import("pandas")
    columns = columns_of({name: _array(rows) for name, rows in run.records.items()})
    times = pandas.Index(_array(run.times), name="time")
    return pandas.DataFrame(columns, index=times)


def columns_of(records: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of records, arrays over the rows: one for each entry."""
    columns: dict[str, Any] = {}
    for name, values in records.items():
        for place in np.ndindex(values.shape[1:]):
            inner = ",".join(map(str, place))
            column = f"{name}[{inner}]" if place else name
            if column in columns:
                msg = (
                    f"two records have the column {column!r}, one of them as an entry "
                    f"of a record of several numbers; give one of them another name"
                )
                raise ValueError(msg)
            columns[column] = values[(slice(None), *place)]
    return columns


def reports_frame(run: Run) -> Any:
    """Return one row for each step, one column for each word of its report."""
    pandas = lazy_import("pandas")
    # A column of numbers holds infinities, which to_dict writes as texts for JSON.
    rows = [
        report.to_dict() | {k: x for k, x in report.items() if isinstance(x, float)}
        for report in run.info
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    # The words of every report come first, in one order.
    columns = [name for name in WORDS if name in names]
    columns += [name for name in names if name not in WORDS]
    index = pandas.RangeIndex(len(rows), name="step")
    return pandas.DataFrame(
        {name: [row.get(name) for row in rows] for name in columns}, index=index
    )


def dataset(run: Run) -> Any:
    """Return the records, and the points and weights of the snapshots."""
    xarray = lazy_import("xarray")
    axes = {f"{k}_{i}" for k, v in run.records.items() for i in range(v.ndim - 1)}
    taken = sorted({*COORDINATES, *SNAPSHOTS, *axes}.intersection(run.records))
    if taken:
        msg = (
            f"the record {taken[0]!r} has the name of a coordinate, of an axis or of "
            f"the snapshots in the dataset; give the record another name"
        )
        raise ValueError(msg)
    variables: dict[str, Any] = {}
    for name, rows in run.records.items():
        own = [f"{name}_{axis}" for axis in range(rows.ndim - 1)]
        variables[name] = (("time", *own), _array(rows))
    coordinates = {"time": _array(run.times)}
    snapshots, times = run.snapshots, run.snapshot_times
    if snapshots:
        sizes = {mu.n for mu in snapshots}
        if len(sizes) > 1:
            msg = (
                f"the number of points changes along the run, from {min(sizes)} to "
                f"{max(sizes)}, so the snapshots fill no table: take "
                f"run.snapshots[k].points one by one, or run.to_pandas() for the "
                f"records"
            )
            raise ValueError(msg)
        same = torch.equal(times, run.times)
        axis = "time" if same else "snapshot_time"
        coordinates[axis] = _array(times)
        variables["points"] = (
            (axis, "particle", "dim"),
            _stacked([mu.points for mu in snapshots]),
        )
        variables["weights"] = (
            (axis, "particle"),
            _stacked([mu.weights for mu in snapshots]),
        )
    about = {
        "status": run.status,
        "message": run.message,
        "steps": len(run.info),
        # netCDF has no integers beyond 64 bits with a sign; a seed may be larger.
        "seed": str(run.seed),
    }
    return xarray.Dataset(variables, coordinates, about)


def _stacked(tensors: list[Tensor]) -> Any:
    """Return the rows of all; where all are alike, a view of one."""
    first = tensors[0]
    if all(x is first or torch.equal(x, first) for x in tensors):
        return np.broadcast_to(_array(first), (len(tensors), *first.shape))
    return np.stack([_array(x) for x in tensors])


def _array(x: Tensor) -> Any:
    """Return a tensor as an array of its own dtype, or of the next that NumPy has."""
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy().copy()
