"""Small pictures of each kind of measure: ellipses, curves and images of densities."""

from __future__ import annotations

import math

import numpy as np

from otflow._svg import MOST, Array, Index, Picture, thinned
from otflow.measures.euclidean import Euclidean
from otflow.measures.gaussian.law import Gaussian
from otflow.measures.grid.density import GridDensity
from otflow.measures.parts import Parts
from otflow.measures.portrait import (
    Portrait,
    array,
    drawn,
    first_two,
    framed,
    histogram,
    stairs,
)
from otflow.measures.quantiles.density import Quantiles

__all__ = ["register"]

# Parts of a measure that are drawn beside each other.
MOST_PARTS = 4


def register() -> None:
    """Let `drawn` draw each kind in its own way."""
    drawn.register(Gaussian, _draw_gaussian)
    drawn.register(Quantiles, _draw_quantiles)
    drawn.register(GridDensity, _draw_grid)
    drawn.register(Euclidean, _draw_parameters)
    drawn.register(Parts, _draw_parts)


def _draw_gaussian(mu: Gaussian) -> Portrait:
    mean, covariance = array(mu.mean[:2]), array(mu.covariance[:2, :2])
    sigma = np.sqrt(np.diag(covariance))
    if mu.dim == 1:
        z = np.linspace(-4, 4, 101)
        heights = np.exp(-0.5 * z**2) / (sigma[0] * math.sqrt(2 * math.pi))
        return _curve(mean[0] + sigma[0] * z, heights, "the density")
    picture = framed(mean - 2.2 * sigma, mean + 2.2 * sigma, "a Gaussian in the plane")
    angle = np.linspace(0, 2 * np.pi, 91)
    values, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(values.clip(0))
    x, y = root @ np.stack([np.cos(angle), np.sin(angle)])
    for deviations in (2, 1):
        x_, y_ = mean[0] + deviations * x, mean[1] + deviations * y
        picture.line(x_, y_, fill=deviations == 1, opacity=1 / deviations)
    return Portrait(picture.svg(), first_two(mu.dim, "1 and 2 standard deviations"))


def _draw_parameters(mu: Euclidean) -> Portrait:
    values = array(mu.values).reshape(-1)
    chosen = values[thinned(len(values))]
    said = "" if len(chosen) == len(values) else f"{len(chosen)} of {len(values)}"
    return histogram(chosen, np.full(len(chosen), 1 / len(chosen)), said)


def _draw_parts(mu: Parts) -> Portrait:
    """Draw the parts side by side, as far as there is room."""
    shown = list(zip(mu.names, mu.parts, strict=True))[:MOST_PARTS]
    each = [(name, drawn(part)) for name, part in shown]
    said = [f"{name}: {part.caption}" if part.caption else name for name, part in each]
    left = len(mu.parts) - len(shown)
    said += [f"{left} more parts"] if left else []
    return Portrait("".join(part.svg for _, part in each), "; ".join(said))


def _draw_quantiles(mu: Quantiles) -> Portrait:
    cuts = thinned(mu.n + 1, MOST + 1)
    edges = array(mu.edges)[cuts]
    masses = np.add.reduceat(array(mu.weights), cuts[:-1])
    return _steps(edges, masses, mu.n)


def _draw_grid(mu: GridDensity) -> Portrait:
    masses = mu.weights.detach().reshape(mu.shape)
    lower, upper = np.array(mu.box.lower[:2]), np.array(mu.box.upper[:2])
    if mu.dim == 1:
        cuts = thinned(mu.n + 1, MOST + 1)
        edges = lower[0] + (upper[0] - lower[0]) * cuts / mu.n
        return _steps(edges, np.add.reduceat(array(masses), cuts[:-1]), mu.n)
    free = mu.is_free.detach().reshape(mu.shape)
    if mu.dim > 2:
        masses, free = masses.sum(2), free.any(2)
    blocks = [
        thinned(k + 1, most + 1)
        for k, most in zip(mu.shape[:2], _sides(mu), strict=True)
    ]
    mass, open_ = (_summed(array(part), blocks) for part in (masses, free))
    areas = np.diff(blocks[0])[:, None] * np.diff(blocks[1])
    density = mass / areas
    picture = Picture(
        (lower[0], upper[0]), (lower[1], upper[1]), "a density", square=True
    )
    picture.cells(density / (density.max() or 1.0), open_ == 0)
    columns, rows = density.shape
    said = " x ".join(map(str, mu.shape)) + " cells"
    if (columns, rows) != tuple(mu.shape[:2]):
        said += f" in {columns} x {rows} blocks"
    return Portrait(picture.svg(), first_two(mu.dim, said))


def _sides(mu: GridDensity) -> tuple[int, int]:
    """Return how many columns and rows of blocks to draw, `MOST` blocks at most."""
    columns, rows = mu.shape[:2]
    side = math.isqrt(MOST)
    if columns <= side:
        return columns, min(rows, MOST // columns)
    if rows <= side:
        return min(columns, MOST // rows), rows
    return side, side


def _summed(values: Array, blocks: list[Index]) -> Array:
    rows: Array = np.add.reduceat(values, blocks[0][:-1], axis=0)
    summed: Array = np.add.reduceat(rows, blocks[1][:-1], axis=1)
    return summed


def _steps(edges: Array, masses: Array, n: int) -> Portrait:
    """Draw a density that is constant on cells, or its means over blocks of cells."""
    heights = masses / np.diff(edges)
    said = f"the density on {n} cells"
    if len(masses) < n:
        said += f", as means over {len(masses)} blocks"
    return _curve(*stairs(edges, heights), said)


def _curve(x: Array, heights: Array, caption: str) -> Portrait:
    top = float(heights.max()) or 1.0
    picture = Picture((x[0], x[-1]), (0.0, 1.05 * top), "a density on a line")
    picture.line(x, heights, fill=True)
    return Portrait(picture.svg(), caption)
