"""Small pictures as inline SVG, and safe HTML around them; knows no measure.

Axes and words take the colour of the page, so that a picture is legible on light and
dark pages. What is drawn has one colour in the middle, whose opacity varies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

__all__ = [
    "MOST",
    "Array",
    "Index",
    "Picture",
    "figure",
    "harmless",
    "table",
    "thinned",
]

Array = np.ndarray[Any, np.dtype[np.float64]]
Index = np.ndarray[Any, np.dtype[np.int64]]

MOST = 500
"""Largest number of points, cells or dots that a picture shows."""

WIDTH, HEIGHT, MARGIN, LINE, LEAST = 260, 170, 8, 16, 40
SIDE = 56  # room at the right for numbers such as -1.235e+05
COLOR = "#3b87c8"


def thinned(n: int, most: int = MOST) -> Index:
    """Return at most `most` indices below n, evenly spaced, with both ends."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


class Picture:
    """A frame on the plane into which marks are drawn; `svg` returns the text.

    Parameters
    ----------
    x, y : tuple of float
        Smallest and largest coordinate that the frame shows.
    title : str
        What the picture shows, for readers who do not see it.
    square : bool
        Whether lengths along both axes are drawn alike, unless the frame is thin.

    Raises
    ------
    ValueError
        If the frame, or a mark that is drawn into it, is beyond the range of floats.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        title: str,
        *,
        square: bool = False,
    ) -> None:
        self._limits = (_wide(*x), _wide(*y))
        _check([high - low for low, high in self._limits])
        self._size = (WIDTH - 2.0 * MARGIN - SIDE, HEIGHT - 2.0 * MARGIN - LINE)
        self._title = title
        if square:
            spans = [high - low for low, high in self._limits]
            unit = min(s / span for s, span in zip(self._size, spans, strict=True))
            self._size = (max(unit * spans[0], LEAST), max(unit * spans[1], LEAST))
        self._marks: list[str] = []

    def _place(self, x: Any, y: Any) -> tuple[Array, Array]:
        """Return pixels, x to the right and y down."""
        (x0, x1), (y0, y1) = self._limits
        across, down = self._size
        # Divided before the difference: coordinates may be near the largest float.
        x = (np.asarray(x, float) / (x1 - x0) - x0 / (x1 - x0)) * across
        y = (y1 / (y1 - y0) - np.asarray(y, float) / (y1 - y0)) * down
        _check(x, y)
        return MARGIN + x, MARGIN + y

    def line(self, x: Any, y: Any, *, fill: bool = False, opacity: float = 1.0) -> None:
        """Draw a line through points, and fill what it encloses."""
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(*self._place(x, y), strict=True)
        )
        inside = f'{COLOR}" fill-opacity="0.25' if fill else "none"
        self._marks.append(
            f'<polyline points="{points}" fill="{inside}" stroke="{COLOR}" '
            f'stroke-width="1.5" stroke-opacity="{opacity:g}"/>'
        )

    def dots(self, x: Any, y: Any, radii: Any) -> None:
        """Draw a dot at each point."""
        marks = (
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{r:.2f}"/>'
            for a, b, r in zip(*self._place(x, y), radii, strict=True)
        )
        self._marks.append(f'<g fill="{COLOR}" fill-opacity="0.7">{"".join(marks)}</g>')

    def cells(self, shades: Array, blocked: Array) -> None:
        """Fill the frame with cells (columns, rows) of shades from 0 to 1."""
        columns, rows = shades.shape
        width, height = self._size[0] / columns, self._size[1] / rows
        marks = []
        for (i, j), shade in np.ndenumerate(shades):
            color = "currentColor" if blocked[i, j] else COLOR
            opacity = 0.3 if blocked[i, j] else float(shade)
            if opacity < 0.005:
                continue
            marks.append(
                f'<rect x="{MARGIN + i * width:.1f}" '
                f'y="{MARGIN + (rows - 1 - j) * height:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" fill="{color}" fill-opacity="{opacity:.2f}"/>'
            )
        self._marks.append("".join(marks))

    def svg(self) -> str:
        """Return the picture; the ends of the axes are below it and at its right."""
        (x0, x1), (y0, y1) = self._limits
        across, down = self._size
        width, height = across + 2 * MARGIN + SIDE, down + 2 * MARGIN + LINE
        below, right = height - 4, MARGIN + across
        words = (
            (MARGIN, below, "start", x0),
            (right, below, "end", x1),
            (right + 4, MARGIN + 8, "start", y1),
            (right + 4, MARGIN + down, "start", y0),
        )
        texts = "".join(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{value:.4g}</text>'
            for x, y, anchor, value in words
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
            f'height="{height:.0f}" viewBox="0 0 {width:.1f} {height:.1f}" role="img">'
            f"<title>{escape(self._title)}</title>"
            f'<rect x="{MARGIN}" y="{MARGIN}" width="{across:.1f}" '
            f'height="{down:.1f}" fill="none" stroke="currentColor" '
            f'stroke-opacity="0.4"/>{"".join(self._marks)}'
            f'<g fill="currentColor" fill-opacity="0.8" font-size="10" '
            f'font-family="sans-serif">{texts}</g></svg>'
        )


def figure(head: str, picture: str, caption: str) -> str:
    """Return HTML: a line of text, a picture or a table, a line of text."""
    return (
        f'<div style="display:inline-block"><div><code>{escape(head)}</code></div>'
        f'{picture}<div style="font-size:85%;opacity:0.8">{escape(caption)}</div></div>'
    )


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return an HTML table of texts."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def harmless(thing: object, drawn: Callable[[], str]) -> str:
    """Return what `drawn` returns, or a line of text on why there is no picture.

    A notebook shows an object wherever its name ends a cell. So an object that cannot
    be drawn is no reason to raise.
    """
    try:
        # What overflows raises where it would be drawn.
        with np.errstate(all="ignore"):
            return drawn()
    except Exception as error:
        words = f"{type(thing).__name__}: no picture ({type(error).__name__}: {error})"
        return f"<div><code>{escape(words)}</code></div>"


def _check(*numbers: Any) -> None:
    """Raise ValueError where a picture would hold a NaN or an infinity."""
    if not all(np.isfinite(part).all() for part in numbers):
        msg = "numbers beyond the range of floats"
        raise ValueError(msg)


def _wide(low: float, high: float) -> tuple[float, float]:
    """Return limits that differ."""
    low, high = float(low), float(high)
    least = 1e-6 * max(abs(low), abs(high)) or 0.5
    if high - low < least:
        return low - least, high + least
    return low, high
