"""Figures of measures and of flows, with matplotlib (extra ``plot``).

Every function draws into the `ax` it is given, or into a new figure, and returns what
it drew into; it changes no global setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from otflow._lazy import lazy_import
from otflow._validation import non_negative_int, positive, real
from otflow.measures import Measure
from otflow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

__all__ = ["animate", "energy", "particles", "trails"]

# The colours of Okabe and Ito, told apart by colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Ink of all the markers together, in square points, and the bounds for one of them.
INK, SMALLEST, LARGEST = 3000.0, 2.0, 40.0

Array = np.ndarray[Any, np.dtype[np.float64]]


def energy(
    trajectory: Trajectory,
    *,
    record: str = "energy",
    minimum: float = 0.0,
    log: bool = False,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a recorded number against time, the energy by default.

    Parameters
    ----------
    trajectory : Trajectory
        What `otflow.flow` returned.
    record : str
        Name of the record to draw.
    minimum : float
        Subtracted from the record: the least value, where it is known, so that a
        logarithmic axis shows the rate at which it is reached.
    log : bool
        Whether the vertical axis is logarithmic.
    label, color : str, optional
        Name for ``ax.legend()`` and colour; the next one of the axes by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the curve is the last of ``ax.lines``.

    Raises
    ------
    ValueError
        If there is no such record, it is not one number a time, or it is not positive
        under a logarithmic axis.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 2))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=9)
    >>> ax = of.plotting.energy(run, log=True)
    >>> ax.get_xlabel(), ax.get_yscale()
    ('time', 'log')
    """
    _check_trajectory(trajectory)
    if record not in trajectory.records:
        msg = f"no record {record!r}; there are {sorted(trajectory.records)}"
        raise ValueError(msg)
    values = _array(trajectory.records[record])
    if values.ndim != 1:
        msg = f"record {record!r} has shape {values.shape}: not one number a time"
        raise ValueError(msg)
    minimum = real(minimum, "minimum")
    values = values - minimum
    if log and not bool((values > 0).all()):
        k = int(np.argmax(~(values > 0)))
        msg = (
            f"log=True needs a positive record, but {record} - {minimum:g} is "
            f"{values[k]:.3g} at time {trajectory.times[k]:g}; pass a smaller minimum"
        )
        raise ValueError(msg)
    ax = _axes(ax)
    ax.plot(_array(trajectory.times), values, label=label, color=color)
    ax.set_xlabel("time")
    ax.set_ylabel(f"{record} - {minimum:g}" if minimum else record)
    if log:
        ax.set_yscale("log")
    return ax


def particles(
    mu: Measure,
    *,
    axes: Sequence[int] | None = None,
    size: float | None = None,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a measure: a scatter of its points in the plane, a histogram on the line.

    The area of a marker is proportional to its weight, so that equal ink is equal mass;
    an atom of weight zero is not seen. On the line the markers stand on the axis, under
    a histogram of the mass.

    Parameters
    ----------
    mu : Measure
        What to draw.
    axes : sequence of int, optional
        One or two coordinates to draw, counted from 0; needed in more than two
        dimensions, where the figure then shows a marginal.
    size : float, optional
        Mean area of a marker, in square points; smaller for more points by default.
    label, color : str, optional
        Name for ``ax.legend()`` and colour; the next one of the axes by default.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the markers are the last of ``ax.collections``.

    Raises
    ------
    ValueError
        If `axes` is missing in more than two dimensions, or out of range.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.randn(50, 3))
    >>> ax = of.plotting.particles(mu, axes=(0, 2))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('x[0]', 'x[2]')
    """
    _check_kind(mu, Measure, "mu", "of a trajectory, take final or a snapshot")
    shown = _coordinates(mu, axes)
    areas = _areas(mu, size)
    x, w = _array(mu.points)[:, shown], _array(mu.weights)
    ax = _axes(ax)
    color = color or _next_color(ax)
    if len(shown) == 1:
        bins = int(np.clip(np.sqrt(mu.n), 5, 60))
        at = x[:, 0]
        ax.hist(at, bins, weights=w, density=True, alpha=0.4, color=color, label=label)
        ax.scatter(at, 0 * at, s=areas, color=color, lw=0, clip_on=False, zorder=3)
        ax.set_xlabel(f"x[{shown[0]}]")
        ax.set_ylabel("density")
        return ax
    ax.scatter(x[:, 0], x[:, 1], s=areas, color=color, lw=0, alpha=0.75, label=label)
    _label_plane(ax, shown)
    return ax


def trails(
    trajectory: Trajectory,
    *,
    axes: Sequence[int] | None = None,
    count: int = 200,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the paths of the atoms: against time on the line, in the plane otherwise.

    Recorded positions of one index are joined by straight lines, and a dot marks the
    end. After a scheme that relabels atoms, such as ``Resample``, paths jump.

    Parameters
    ----------
    trajectory : Trajectory
        What `otflow.flow` returned.
    axes : sequence of int, optional
        One or two coordinates to draw, counted from 0; needed in more than two
        dimensions.
    count : int
        Number of atoms at most, evenly spaced in index.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the paths are the last but one of ``ax.collections``.

    Raises
    ------
    ValueError
        If the number of points changes on the way, or `axes` is missing or wrong.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.randn(30, 1))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=20)
    >>> of.plotting.trails(run).get_xlabel()
    'time'
    """
    _check_trajectory(trajectory)
    count = non_negative_int(count, "count", minimum=1)
    *_, last = snapshots = trajectory.snapshots
    shown = _coordinates(last, axes)
    if len({mu.n for mu in snapshots}) > 1:
        msg = "the number of points changes along the flow: use animate, not trails"
        raise ValueError(msg)
    index = np.linspace(0, last.n - 1, min(count, last.n)).round().astype(int)
    paths = np.stack([_array(mu.points)[index][:, shown] for mu in snapshots], axis=1)
    if len(shown) == 1:
        times = np.broadcast_to(_array(trajectory.times)[:, None], paths.shape)
        paths = np.concatenate([times, paths], axis=2)
    lines = lazy_import("matplotlib.collections").LineCollection
    areas = _areas(last)[index]
    ax = _axes(ax)
    color = _next_color(ax)
    ax.add_collection(lines(list(paths), colors=[color], lw=0.8, alpha=0.35))
    ends = paths[:, -1]
    ax.scatter(ends[:, 0], ends[:, 1], s=areas, color=color, lw=0, zorder=3)
    ax.autoscale_view()
    if len(shown) == 1:
        ax.set_xlabel("time")
        ax.set_ylabel(f"x[{shown[0]}]")
    else:
        _label_plane(ax, shown)
    return ax


def animate(
    trajectory: Trajectory,
    *,
    axes: Sequence[int] | None = None,
    frames: int = 40,
    ax: Axes | None = None,
) -> FuncAnimation:
    r"""Animate a flow in the plane; the title shows the time and the energy.

    The limits are those of the whole flow and do not move. A notebook shows the result
    by ``HTML(animation.to_jshtml())``; a file is written by ``animation.save(path)``.
    Keep a reference to it: matplotlib stops an animation that nobody holds.

    Parameters
    ----------
    trajectory : Trajectory
        What `otflow.flow` returned.
    axes : sequence of int, optional
        The two coordinates to draw, counted from 0; needed in more than two dimensions.
    frames : int
        Number of frames at most, evenly spaced over the snapshots; both ends are shown.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of 400 x 400 pixels by default.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        The animation.

    Raises
    ------
    ValueError
        If the points are on a line, or `axes` is missing or wrong.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.randn(30, 2))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=9)
    >>> animation = of.plotting.animate(run, frames=3)
    >>> animation.to_jshtml().count("data:image/png")
    3
    """
    _check_trajectory(trajectory)
    frames = non_negative_int(frames, "frames", minimum=1)
    shown = _coordinates(trajectory.snapshots[0], axes)
    if len(shown) == 1:
        msg = "animate draws two coordinates; for points on the line use trails"
        raise ValueError(msg)
    last = len(trajectory.snapshots) - 1
    chosen = np.unique(np.linspace(0, last, min(frames, last + 1)).round().astype(int))
    chosen[-1] = last  # a single frame shows the end
    snapshots = [trajectory.snapshots[k] for k in chosen]
    clouds = [_array(mu.points)[:, shown] for mu in snapshots]
    areas = [_areas(mu) for mu in snapshots]
    times, energies = trajectory.times, trajectory.records["energy"]
    titles = [f"t = {times[k]:.3g},  energy = {energies[k]:.4g}" for k in chosen]

    ax = _axes(ax, figsize=(4.0, 4.0))
    low = np.min([cloud.min(0) for cloud in clouds], axis=0)
    high = np.max([cloud.max(0) for cloud in clouds], axis=0)
    # The same length on both axes; a single point still gets a window.
    half = 0.55 * max((high - low).max(), 1e-6 * (1 + np.abs(high).max()))
    middle = 0.5 * (low + high)
    ax.set_xlim(middle[0] - half, middle[0] + half)
    ax.set_ylim(middle[1] - half, middle[1] + half)
    _label_plane(ax, shown)
    x, y = clouds[0].T
    color = _next_color(ax)
    dots = ax.scatter(x, y, s=areas[0], color=color, lw=0, alpha=0.75)

    def draw(frame: int) -> tuple[Any]:
        dots.set_offsets(clouds[frame])
        dots.set_sizes(areas[frame])
        ax.set_title(titles[frame])
        return (dots,)

    kind: Any = lazy_import("matplotlib.animation").FuncAnimation
    made: FuncAnimation = kind(ax.figure, draw, frames=len(chosen), interval=80)
    return made


# Helpers ------------------------------------------------------------------------------


def _check_kind(value: Any, kind: type, name: str, cure: str) -> None:
    if not isinstance(value, kind):
        got = type(value).__name__
        msg = f"{name} must be a {kind.__name__}, got {got}; {cure}"
        raise TypeError(msg)


def _check_trajectory(trajectory: Any) -> None:
    _check_kind(trajectory, Trajectory, "trajectory", "pass what otflow.flow returned")
    if not len(trajectory.times):
        msg = f"the trajectory has no recorded time: {trajectory.message}"
        raise ValueError(msg)


def _coordinates(mu: Measure, axes: Sequence[int] | None) -> list[int]:
    """Return the one or two coordinates to draw."""
    cure = "choose one or two coordinates, e.g. axes=(0, 1)"
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


def _areas(mu: Measure, size: float | None = None) -> Array:
    """Return areas of markers in square points, proportional to the weights."""
    size = np.clip(INK / mu.n, SMALLEST, LARGEST) if size is None else size
    return positive(size, "size") * mu.n * _array(mu.weights)


def _array(x: torch.Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).numpy()


def _axes(ax: Axes | None, figsize: tuple[float, float] = (4.8, 3.6)) -> Axes:
    """Return `ax`, or plain axes in a new figure."""
    if ax is not None:
        return ax
    pyplot = lazy_import("matplotlib.pyplot")
    _, new = pyplot.subplots(figsize=figsize, dpi=100, layout="constrained")
    new.set_prop_cycle(color=COLORS)
    new.spines[["top", "right"]].set_visible(False)
    made: Axes = new
    return made


def _next_color(ax: Axes) -> Any:
    """Return the next colour of the axes, one cycle for every kind of artist."""
    (line,) = ax.plot([], [])
    line.remove()
    return line.get_color()


def _label_plane(ax: Axes, shown: list[int]) -> None:
    """Name the coordinates; lengths are equal on both, as in the distance itself."""
    ax.set_xlabel(f"x[{shown[0]}]")
    ax.set_ylabel(f"x[{shown[1]}]")
    ax.set_aspect("equal")
