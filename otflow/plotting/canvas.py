"""Checks, colours and axes for all drawing functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otflow._lazy import lazy_import
from otflow._validation import non_negative_int, positive
from otflow.measures import Measure
from otflow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "areas_of",
    "array",
    "check_kind",
    "check_snapshots",
    "check_trajectory",
    "coordinates",
    "draw_curve",
    "label_plane",
    "new_axes",
    "next_color",
]

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Area of all markers together, in square points, and bounds for the mean of one marker.
INK, SMALLEST, LARGEST = 3000.0, 2.0, 40.0

Array = np.ndarray[Any, np.dtype[np.float64]]


def check_kind(value: Any, kind: type, name: str, cure: str) -> None:
    """Raise TypeError with the cure if a value is not a `kind`."""
    if not isinstance(value, kind):
        got = type(value).__name__
        msg = f"{name} must be a {kind.__name__}, got {got}; {cure}"
        raise TypeError(msg)


def check_trajectory(trajectory: Any) -> None:
    """Raise an error for a value that is no trajectory, or one without a record."""
    check_kind(trajectory, Trajectory, "trajectory", "pass what otflow.flow returned")
    if not len(trajectory.times):
        msg = f"the trajectory has no recorded time: {trajectory.message}"
        raise ValueError(msg)


def check_snapshots(trajectory: Any) -> None:
    """Raise an error for a value that is no trajectory, or one without a snapshot."""
    check_trajectory(trajectory)
    if not trajectory.snapshots:
        msg = "the flow kept no snapshot to draw; leave snapshots out of flow(...)"
        raise ValueError(msg)


def coordinates(mu: Measure, axes: Sequence[int] | None) -> list[int]:
    """Return the one or two coordinates to draw."""
    cure = "choose one or two coordinates, e.g. axes=(0, 1)"
    mu.points  # noqa: B018  # a measure of parts raises: each part has its own
    if axes is None:
        if mu.dim > 2:
            msg = f"points of dimension {mu.dim} cannot be drawn whole; {cure}"
            raise ValueError(msg)
        return list(range(mu.dim))
    if not isinstance(axes, (tuple, list)) or len(axes) not in (1, 2):
        msg = f"axes is {axes!r}: {cure}"
        raise ValueError(msg)
    shown = [non_negative_int(i, "an entry of axes") for i in axes]
    if max(shown) >= mu.dim:
        msg = f"axes is {axes!r} but coordinates go from 0 to {mu.dim - 1}"
        raise ValueError(msg)
    return shown


def areas_of(mu: Measure, size: float | None = None) -> Array:
    """Return areas of markers in square points, proportional to the weights."""
    size = np.clip(INK / mu.n, SMALLEST, LARGEST) if size is None else size
    return positive(size, "size") * mu.n * array(mu.weights)


def array(x: torch.Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return x.detach().to("cpu", torch.float64).numpy()


def new_axes(ax: Axes | None, figsize: tuple[float, float] = (4.8, 3.6)) -> Axes:
    """Return `ax`, or plain axes in a new figure."""
    if ax is not None:
        return ax
    pyplot = lazy_import("matplotlib.pyplot")
    _, new = pyplot.subplots(figsize=figsize, dpi=100, layout="constrained")
    new.set_prop_cycle(color=COLORS)
    new.spines[["top", "right"]].set_visible(False)
    made: Axes = new
    return made


def next_color(ax: Axes) -> Any:
    """Return the next colour of the axes, one cycle for every kind of artist."""
    (line,) = ax.plot([], [])
    line.remove()
    return line.get_color()


def draw_curve(ax: Axes, axis: int, x: Array, heights: Array, **style: Any) -> Any:
    """Draw a density: steps between edges x, or a line; return the artist."""
    ax.set_xlabel(f"x[{axis}]")
    ax.set_ylabel("density")
    if len(x) > len(heights):
        return ax.stairs(heights, x, **style)
    (line,) = ax.plot(x, heights, **style)
    return line


def label_plane(ax: Axes, shown: list[int]) -> None:
    """Name the coordinates; give both axes the same scale, as the distance has."""
    ax.set_xlabel(f"x[{shown[0]}]")
    ax.set_ylabel(f"x[{shown[1]}]")
    ax.set_aspect("equal")
