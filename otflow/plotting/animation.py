"""Animations of flows, and of paths of measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otflow._lazy import lazy_import
from otflow._validation import check_kind, non_negative_int, real, shown
from otflow.errors import Unsupported
from otflow.measures import GridDensity, Measure, Particles
from otflow.plotting.canvas import (
    areas_of,
    array,
    check_snapshots,
    coordinates,
    draw_curve,
    label_plane,
    new_axes,
    next_color,
)
from otflow.plotting.densities import curve, draw_picture, picture
from otflow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

__all__ = ["animate"]


def animate(
    trajectory: Trajectory[Any] | Sequence[Measure],
    *,
    times: Iterable[float] | None = None,
    axes: Sequence[int] | None = None,
    frames: int = 40,
    ax: Axes | None = None,
) -> FuncAnimation:
    r"""Animate a flow or a path of measures; the title shows the time.

    Along a flow the title also shows the energy, where it was recorded. A path is a
    sequence of measures, such as `otflow.metrics.geodesic` returns.

    In the plane clouds are drawn as dots and densities on a grid as pictures; on the
    line a density is drawn as a curve. The limits, and the colours of a density, are
    fixed for the whole flow.

    ``animation.save(path)`` writes a file, e.g. ``flow.mp4`` or ``flow.gif``. In a
    notebook ``HTML(animation.to_html5_video())`` shows the film, and
    ``HTML(animation.to_jshtml())`` shows pictures with buttons. A film is written by
    the program ffmpeg, or, where there is none, by that of the package imageio-ffmpeg
    (extra ``plot``). No setting of matplotlib changes. Keep a reference to the
    animation: matplotlib stops an animation without one.

    Parameters
    ----------
    trajectory : Trajectory, or sequence of Measure
        What `otflow.flow` returned, or measures of one kind.
    times : iterable of float, optional
        Times of a sequence, one for each measure; by default evenly spread over [0, 1].
        A trajectory has its own.
    axes : sequence of int, optional
        One or two coordinates to draw, counted from 0; needed in more than two
        dimensions. With one coordinate the density is drawn.
    frames : int
        Largest number of frames. They are evenly spaced over the snapshots, with both
        ends; a single frame shows the end.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure of 400 x 400 pixels by default.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        The animation.

    Raises
    ------
    Unsupported
        For particles on a line, which have no density: use `trails`. Later, by ``save``
        and ``to_html5_video``, if a film is asked for and there is no ffmpeg.
    ValueError
        If `axes` is missing or wrong, or the flow has kept no snapshot. If a sequence
        is empty, or has not one time for each measure.
    TypeError
        If the path is neither a trajectory nor measures of one kind, or if times are
        given for a trajectory.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.randn(30, 2))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=9)
    >>> animation = of.plotting.animate(run, frames=3)
    >>> animation.to_jshtml().count("data:image/png")
    3

    A morph, from one cloud to another:

    >>> path = of.metrics.geodesic(mu, of.Particles(torch.rand(30, 2)), [0, 0.5, 1])
    >>> of.plotting.animate(path).to_jshtml().count("data:image/png")
    3
    """
    measures, titles = _entitled(trajectory, times)
    frames = non_negative_int(frames, "frames", minimum=1)
    drawn = coordinates(measures[0], axes)
    if len(drawn) == 1 and isinstance(measures[-1], Particles):
        msg = "animate draws particles in two coordinates; on the line use trails"
        raise Unsupported(msg)
    last = len(measures) - 1
    chosen = np.unique(np.linspace(0, last, min(frames, last + 1)).round().astype(int))
    chosen[-1] = last  # a single frame shows the end
    snapshots = [measures[k] for k in chosen]
    ax = new_axes(ax, figsize=(4.0, 4.0))
    grids = [mu for mu in snapshots if isinstance(mu, GridDensity)]
    if len(drawn) == 1:
        show = _curves(snapshots, drawn[0], ax)
    else:
        show = _pictures(grids, drawn, ax) if grids else _dots(snapshots, drawn, ax)
        label_plane(ax, drawn)

    def draw(frame: int) -> tuple[Any]:
        ax.set_title(titles[chosen[frame]])
        return (show(frame),)

    made: FuncAnimation = _film()(ax.figure, draw, frames=len(chosen), interval=80)
    return made


def _entitled(
    path: Trajectory[Any] | Sequence[Measure], times: Iterable[float] | None
) -> tuple[Sequence[Measure], list[str]]:
    """Return the measures to draw, and a title for each of them."""
    if isinstance(path, Trajectory):
        check_snapshots(path)
        if times is not None:
            msg = "a trajectory has its own times; leave times out"
            raise TypeError(msg)
        return path.snapshots, _titles(path)
    if not isinstance(path, (list, tuple)):
        msg = (
            f"trajectory must be a Trajectory, got {shown(path)}; pass what "
            f"otflow.flow or metrics.geodesic returned, or a list of measures"
        )
        raise TypeError(msg)
    count = len(path)
    if not count:
        msg = "the path holds no measure to draw; give one measure or more"
        raise ValueError(msg)
    for k, mu in enumerate(path):
        check_kind(mu, Measure, f"path[{k}]")
        check_kind(mu, type(path[0]), f"path[{k}]", cure="draw one kind of measure")
    even = np.linspace(0.0, 1.0, count).tolist()
    instants = even if times is None else [real(float(t), "times") for t in times]
    if len(instants) != count:
        msg = f"times must be one per measure, {count} of them, got {len(instants)}"
        raise ValueError(msg)
    return path, [f"t = {t:.3g}" for t in instants]


def _titles(trajectory: Trajectory[Any]) -> list[str]:
    """Return the title of each snapshot; not each was recorded."""
    energies = dict(
        zip(trajectory.steps.tolist(), trajectory.records["energy"], strict=True)
    )
    titles = []
    times, steps = trajectory.snapshot_times, trajectory.snapshot_steps.tolist()
    for time, step in zip(times, steps, strict=True):
        title = f"t = {time:.3g}"
        if step in energies:
            title += f",  energy = {energies[step]:.4g}"
        titles.append(title)
    return titles


@cache
def _film() -> Any:
    """Return matplotlib's class of animations, with films that find ffmpeg."""
    module = lazy_import("matplotlib.animation")

    class Film(module.FuncAnimation):  # type: ignore[misc, name-defined]
        def save(self, filename: Any, writer: Any = None, **options: Any) -> None:
            """Write a file; by default the end of its name chooses the writer."""
            if writer is None and Path(filename).suffix.lower() in (".gif", ".webp"):
                writer = "pillow"
            if writer in (None, "ffmpeg"):
                settings = _with_ffmpeg(module, filename)
            else:
                settings = {}
            with lazy_import("matplotlib").rc_context(settings):
                super().save(filename, writer=writer, **options)

        def to_html5_video(self, *options: Any, **named: Any) -> str:
            """Return a video tag that holds the film."""
            settings = _with_ffmpeg(module, "an HTML5 video", "call to_jshtml()")
            with lazy_import("matplotlib").rc_context(settings):
                tag: str = super().to_html5_video(*options, **named)
            return tag

    return Film


def _with_ffmpeg(
    module: Any, what: Any, other: str = "save to a name that ends in .gif"
) -> dict[str, str]:
    """Return settings by which matplotlib finds ffmpeg; Unsupported without it."""
    if module.writers.is_available("ffmpeg"):
        return {"animation.writer": "ffmpeg"}
    try:
        ffmpeg = lazy_import("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        msg = (
            f"to write {what} a film needs ffmpeg, which is not to be found: "
            f"pip install 'otflow[plot]', or {other}"
        )
        raise Unsupported(msg) from error
    return {"animation.writer": "ffmpeg", "animation.ffmpeg_path": ffmpeg}


def _dots(
    snapshots: Sequence[Measure], shown: list[int], ax: Axes
) -> Callable[[int], Any]:
    """Draw clouds of points as dots; return the function that shows a frame."""
    clouds = [array(mu.points)[:, shown] for mu in snapshots]
    areas = [areas_of(mu) for mu in snapshots]
    low = np.min([cloud.min(0) for cloud in clouds], axis=0)
    high = np.max([cloud.max(0) for cloud in clouds], axis=0)
    # Both axes get the same length; a single point gets a window of positive size.
    half = 0.55 * max((high - low).max(), 1e-6 * (1 + np.abs(high).max()))
    middle = 0.5 * (low + high)
    ax.set_xlim(middle[0] - half, middle[0] + half)
    ax.set_ylim(middle[1] - half, middle[1] + half)
    x, y = clouds[0].T
    color = next_color(ax)
    dots = ax.scatter(x, y, s=areas[0], color=color, lw=0, alpha=0.75)

    def show(frame: int) -> Any:
        dots.set_offsets(clouds[frame])
        dots.set_sizes(areas[frame])
        return dots

    return show


def _pictures(
    snapshots: Sequence[GridDensity], shown: list[int], ax: Axes
) -> Callable[[int], Any]:
    """Draw densities as pictures; return the function that shows a frame."""
    pictures = [picture(mu, shown) for mu in snapshots]
    largest = max(float(p.max()) for p in pictures)
    image = draw_picture(snapshots[0], shown, ax, pictures[0], largest)

    def show(frame: int) -> Any:
        image.set_data(pictures[frame])
        return image

    return show


def _curves(snapshots: Sequence[Measure], axis: int, ax: Axes) -> Callable[[int], Any]:
    """Draw densities as curves; return the function that shows a frame."""
    curves = [curve(mu, axis) for mu in snapshots]
    drawn = draw_curve(ax, axis, *curves[0], color=next_color(ax))
    ax.set_xlim(
        min(float(x[0]) for x, _ in curves), max(float(x[-1]) for x, _ in curves)
    )
    ax.set_ylim(0, 1.05 * max(float(h.max()) for _, h in curves))

    def show(frame: int) -> Any:
        x, heights = curves[frame]
        # Steps take the heights first.
        drawn.set_data(*((heights, x) if len(x) > len(heights) else (x, heights)))
        return drawn

    return show
