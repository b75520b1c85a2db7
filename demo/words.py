"""Particles spell a word and flow into another: the Sinkhorn divergence falls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path as FilePath

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import animation
from matplotlib import pyplot as plt
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from torch import Tensor

import otflow as of
from demo.table import Row

FIRST, SECOND = "Monge", "otflow"
# Frames that show the first word at rest, the flow, and the second word at rest.
HELD, KEPT = 3, 5
PARTICLES = 450
# Blurs, each with its number of steps: a coarse blur is cheap and finds the way, a fine
# one sees the edges of the strokes.
STAGES = ((0.2, 16), (0.07, 9), (0.03, 7))
FRAMES_A_SECOND = 12
# Pixels across the picture, an even number.
WIDTH = 880
# Share of the way that is left at the end.
LEFT = 2e-3
# Pixels of a glyph for the height of its font.
FINE = 50
# Space between letters, wider than in print, in heights of the font.
GAP = 0.1


class Towards(of.Functional):
    """The debiased Sinkhorn divergence to a target: a functional is its value."""

    def __init__(self, target: of.Particles, blur: float) -> None:
        self.target, self.blur = target, blur

    def value(self, mu: of.Particles) -> Tensor:  # type: ignore[override]
        return of.metrics.sinkhorn_divergence(mu, self.target, blur=self.blur)


@cache
def spelled(word: str, n: int) -> of.Particles:
    """Return n points spread evenly over the glyphs of a word, centred at 0.

    The points are pixels inside the outlines. Each point is the pixel farthest from the
    points before it, so that they keep their distance.
    """
    bold = FontProperties(family="DejaVu Sans", weight="bold")  # part of matplotlib
    outlines: list = []
    for letter in word:
        shape = TextPath((0, 0), letter, size=1, prop=bold)
        right = max((float(line[:, 0].max()) for line in outlines), default=0.0)
        shift = np.array([right + GAP - float(shape.get_extents().x0), 0.0])
        outlines += [np.asarray(line) + shift for line in shape.to_polygons()]
    corners = np.concatenate(outlines)
    lower, upper = corners.min(0), corners.max(0)
    across, up = (np.arange(a, b, 1 / FINE) for a, b in zip(lower, upper, strict=True))
    pixels = np.stack(np.meshgrid(across, up, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = np.zeros(len(pixels), dtype=bool)
    for outline in outlines:  # the second outline of an "o" is its hole
        inside ^= Path(outline).contains_points(pixels)
    pixels = pixels[inside]
    if len(pixels) < n:
        msg = f"{word!r} has {len(pixels)} pixels, fewer than {n} particles"
        raise ValueError(msg)
    chosen, nearest = [0], np.full(len(pixels), np.inf)
    while len(chosen) < n:
        step = pixels - pixels[chosen[-1]]
        nearest = np.minimum(nearest, np.square(step).sum(1))
        chosen.append(int(nearest.argmax()))
    points = torch.from_numpy(pixels[chosen])
    return of.Particles(points - points.mean(0))


def left(k: int, steps: int) -> float:
    """Return the share of the way that is left after k steps: slow, fast, slow."""
    s = k / steps
    return 1 - (1 - LEFT) * s * s * (3 - 2 * s)


@dataclass(frozen=True)
class Words:
    """The flow from one word to the other, a run for each blur."""

    target: of.Particles
    runs: list[of.Trajectory]
    seconds: float

    @property
    def clouds(self) -> list[of.Particles]:
        """The particles after each step."""
        first, *_ = self.runs
        later = [mu for run in self.runs for mu in run.snapshots[1:]]
        return [first.snapshots[0], *later]

    @property
    def mean_error(self) -> float:
        """Distance of the final mean to its exact value.

        The gradient of the divergence moves the mean m by dt (target - m), whatever the
        blur is.
        """
        first, last, aim = (
            mu.points.mean(0) for mu in (self.clouds[0], self.clouds[-1], self.target)
        )
        return float((last - aim - LEFT * (first - aim)).norm())

    def distance(self, k: int) -> float:
        """Return the exact W2 from the particles after k steps to the second word."""
        return float(of.metrics.wasserstein2(self.clouds[k], self.target))

    @property
    def rises(self) -> int:
        """In how many steps the divergence did not fall."""
        return sum(int((run.records["energy"].diff() >= 0).sum()) for run in self.runs)

    @property
    def row(self) -> Row:
        """The line of the table."""
        steps = len(self.clouds) - 1
        return Row(
            f"{FIRST} to {SECOND}, explicit Euler",
            gradients=steps,
            energy=f"W2 {self.distance(0):.3f} to {self.distance(-1):.3f}",
            certificate=f"none; energy rose in {self.rises} of {steps} steps",
            seconds=self.seconds,
        )


def flow_words(n: int, stages: Sequence[tuple[float, int]] = STAGES) -> Words:
    """Flow n particles from the first word to the second."""
    target, mu = spelled(SECOND, n), spelled(FIRST, n)
    total, made = sum(steps for _, steps in stages), 0
    runs: list[of.Trajectory] = []
    began = time.perf_counter()
    for blur, steps in stages:
        share = [left(made + k, total) for k in range(steps + 1)]
        lengths = [1 - after / before for before, after in pairwise(share)]
        F = Towards(target, blur)
        run = of.flow(F, mu, of.ExplicitEuler(), dt=lengths.__getitem__, steps=steps)
        runs, mu, made = [*runs, run], run.final, made + steps
    return Words(target, runs, time.perf_counter() - began)


def ffmpeg() -> str | None:
    """Return the program that writes films; None without it."""
    if animation.writers.is_available("ffmpeg"):
        return str(mpl.rcParams["animation.ffmpeg_path"])
    if find_spec("imageio_ffmpeg") is None:
        return None
    return str(import_module("imageio_ffmpeg").get_ffmpeg_exe())


def draw(words: Words, *paths: FilePath) -> None:
    """Write the flow as a GIF, or with ffmpeg as a film, to each path."""
    clouds = [mu.points.numpy() for mu in words.clouds]
    clouds = [clouds[0]] * HELD + clouds + [clouds[-1]] * KEPT
    half = 1.06 * np.abs(np.concatenate([clouds[0], clouds[-1]])).max(0) + 0.03
    # A particle keeps the colour of the place where it started.
    shade = 0.85 * (clouds[0][:, 0] / half[0] + 1) / 2
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["animation.ffmpeg_path"] = ffmpeg() or "ffmpeg"
        # A film needs an even number of pixels.
        tall = 2 * round(0.5 * WIDTH * half[1] / half[0])
        figure = plt.figure(figsize=(WIDTH / 100, tall / 100), dpi=100)
        ax = figure.add_axes((0, 0, 1, 1), xlim=(-half[0], half[0]))
        ax.set(ylim=(-half[1], half[1]))
        ax.set_axis_off()
        x, y = clouds[0].T
        dots = ax.scatter(x, y, c=mpl.colormaps["viridis"](shade), s=28, lw=0)

        def show(frame: int) -> list:
            dots.set_offsets(clouds[frame])
            return [dots]

        film = animation.FuncAnimation(figure, show, frames=len(clouds))
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = "pillow" if path.suffix == ".gif" else "ffmpeg"
            film.save(path, writer=writer, fps=FRAMES_A_SECOND, dpi=100)
        plt.close(figure)
