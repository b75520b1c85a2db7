"""Clouds of points: scatters and paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otflow._lazy import lazy_import
from otflow._validation import non_negative_int
from otflow.measures import Measure
from otflow.plotting.canvas import (
    areas_of,
    array,
    check_kind,
    check_snapshots,
    coordinates,
    label_plane,
    new_axes,
    next_color,
)
from otflow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["particles", "trails"]


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

    The area of a marker is proportional to its weight; an atom of weight zero is
    invisible. On the line the markers are on the axis, below a histogram of the mass.

    Parameters
    ----------
    mu : Measure
        The measure to draw.
    axes : sequence of int, optional
        One or two coordinates to draw, counted from 0; needed in more than two
        dimensions, where the figure then shows a marginal.
    size : float, optional
        Mean area of a marker, in square points. The default is smaller for more points.
    label, color : str, optional
        Name for ``ax.legend()``, and colour; by default the next colour of the axes.
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
    check_kind(mu, Measure, "mu", "of a trajectory, take final or a snapshot")
    shown = coordinates(mu, axes)
    areas = areas_of(mu, size)
    x, w = array(mu.points)[:, shown], array(mu.weights)
    ax = new_axes(ax)
    color = color or next_color(ax)
    if len(shown) == 1:
        bins = int(np.clip(np.sqrt(mu.n), 5, 60))  # the square-root rule
        at = x[:, 0]
        ax.hist(at, bins, weights=w, density=True, alpha=0.4, color=color, label=label)
        ax.scatter(at, 0 * at, s=areas, color=color, lw=0, clip_on=False, zorder=3)
        ax.set_xlabel(f"x[{shown[0]}]")
        ax.set_ylabel("density")
        return ax
    ax.scatter(x[:, 0], x[:, 1], s=areas, color=color, lw=0, alpha=0.75, label=label)
    label_plane(ax, shown)
    return ax


def trails(
    trajectory: Trajectory[Any],
    *,
    axes: Sequence[int] | None = None,
    count: int = 200,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the paths of the atoms: against time on the line, in the plane otherwise.

    Straight lines join the recorded positions of an index, and a dot marks the end. The
    paths jump under a scheme that relabels atoms, such as ``Resample``.

    Parameters
    ----------
    trajectory : Trajectory
        What `otflow.flow` returned.
    axes : sequence of int, optional
        One or two coordinates to draw, counted from 0; needed in more than two
        dimensions.
    count : int
        Largest number of atoms to draw, evenly spaced in index.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the paths are the last but one of ``ax.collections``.

    Raises
    ------
    ValueError
        If the number of points changes in the flow, if `axes` is missing or wrong, or
        if the flow has kept no snapshot.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.randn(30, 1))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=20)
    >>> of.plotting.trails(run).get_xlabel()
    'time'
    """
    check_snapshots(trajectory)
    count = non_negative_int(count, "count", minimum=1)
    *_, last = snapshots = trajectory.snapshots
    shown = coordinates(last, axes)
    if len({mu.n for mu in snapshots}) > 1:
        msg = "the number of points changes along the flow: use animate, not trails"
        raise ValueError(msg)
    index = np.linspace(0, last.n - 1, min(count, last.n)).round().astype(int)
    paths = np.stack([array(mu.points)[index][:, shown] for mu in snapshots], axis=1)
    if len(shown) == 1:
        times = np.broadcast_to(array(trajectory.snapshot_times)[:, None], paths.shape)
        paths = np.concatenate([times, paths], axis=2)
    lines = lazy_import("matplotlib.collections").LineCollection
    areas = areas_of(last)[index]
    ax = new_axes(ax)
    color = next_color(ax)
    ax.add_collection(lines(list(paths), colors=[color], lw=0.8, alpha=0.35))
    ends = paths[:, -1]
    ax.scatter(ends[:, 0], ends[:, 1], s=areas, color=color, lw=0, zorder=3)
    ax.autoscale_view()
    if len(shown) == 1:
        ax.set_xlabel("time")
        ax.set_ylabel(f"x[{shown[0]}]")
    else:
        label_plane(ax, shown)
    return ax
