"""The small picture of a measure that a notebook shows, from what any measure has."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from otflow._svg import Array, Picture, thinned

__all__ = ["Portrait", "array", "drawn", "first_two", "framed", "histogram"]

# Share of the largest coordinate difference by which a frame is wider than its points.
AIR = 0.04
# Area of all dots together in square pixels, and bounds for the radius of one.
INK, SMALLEST, LARGEST = 1500.0, 0.4, 7.0


class Portrait(NamedTuple):
    """A picture, and one line on what it shows and what it leaves out."""

    svg: str
    caption: str


@singledispatch
def drawn(mu: Any) -> Portrait:
    """Draw a measure; a representation registers a way of its own."""
    index = thinned(mu.n)
    chosen = index.tolist()
    x = array(mu.points[chosen][:, :2])
    w = array(mu.weights[chosen])
    caption = "" if len(index) == mu.n else f"{len(index)} of {mu.n} points"
    if mu.dim == 1:
        return histogram(x[:, 0], w, caption)
    low, high = x.min(0), x.max(0)
    picture = framed(low, high, f"{len(index)} points")
    radii = np.sqrt(INK / np.pi * w / max(float(w.sum()), 1e-300))
    radii = np.where(w > 0, np.clip(radii, SMALLEST, LARGEST), 0.0)
    picture.dots(x[:, 0], x[:, 1], radii)
    return Portrait(picture.svg(), first_two(mu.dim, caption))


def histogram(x: Array, w: Array, caption: str) -> Portrait:
    """Draw points on the line below the histogram of their mass."""
    bins = int(np.clip(np.sqrt(len(x)), 5, 60))  # the square-root rule
    low, high = float(x.min()), float(x.max())
    air = AIR * (high - low) or 0.5 * max(abs(low), 1.0)
    heights, edges = np.histogram(x, bins, (low - air, high + air), weights=w)
    top = float(heights.max()) or 1.0
    picture = Picture((edges[0], edges[-1]), (0.0, top), f"{len(x)} points on a line")
    picture.line(*stairs(edges, heights), fill=True)
    picture.dots(x, 0 * x, np.full(len(x), 1.5))
    said = f"mass in {bins} bins"
    return Portrait(picture.svg(), f"{caption}; {said}" if caption else said)


def stairs(edges: Array, heights: Array) -> tuple[Array, Array]:
    """Return the corners of a step function that starts and ends at 0."""
    return np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(heights, 2), [0.0]])


def framed(low: Array, high: Array, title: str) -> Picture:
    """Return a frame in the plane around points, with some air."""
    air = AIR * float((high - low).max())
    x, y = ((float(a - air), float(b + air)) for a, b in zip(low, high, strict=True))
    return Picture(x, y, title, square=True)


def first_two(dim: int, caption: str) -> str:
    """Return the caption, and say so if coordinates are left out."""
    said = [caption] if caption else []
    if dim > 2:
        said.append(f"the first two of {dim} coordinates")
    return "; ".join(said)


def array(x: Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return x.detach().to("cpu").double().numpy()
