"""Draw the logo and the pictures of the cards: ``python -m tools.pictures``.

The drawings are plain SVG made from formulas, sharp at every resolution. They stand in
``docs/_static`` and change only by this script; a test compares them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["DRAWINGS", "main"]

FOLDER = Path(__file__).parent.parent / "docs" / "_static"
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8a8a"


def svg(width: int, height: int, shapes: list[str]) -> str:
    """Return a drawing."""
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, *shapes, "</svg>"]) + "\n"


def dot(x: float, y: float, r: float, fill: str, opacity: float = 1.0) -> str:
    """Return a disk."""
    shade = "" if opacity == 1 else f' opacity="{opacity:.2f}"'
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{r:.2f}" fill="{fill}"{shade}/>'


def line(points: list[tuple[float, float]], colour: str, width: float = 2.0) -> str:
    """Return a line through the points."""
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="{width:g}" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def curve(
    height: Callable[[float], float], start: float, end: float, n: int = 80
) -> list[tuple[float, float]]:
    """Return points of a graph."""
    xs = [start + (end - start) * k / n for k in range(n + 1)]
    return [(x, height(x)) for x in xs]


def mark(size: float) -> list[str]:
    """Return the logo: a heap of particles that flows down into another heap."""
    shapes = []
    for k in range(-2, 3):
        x = 0.5 + 0.11 * k
        top = 0.30 - 0.16 * math.exp(-k * k / 2)
        bottom = 0.70 + 0.16 * math.exp(-k * k / 2)
        bend = [
            (
                size * (x + 0.05 * math.sin(math.tau * t)),
                size * (top + (bottom - top) * t),
            )
            for t in (i / 16 for i in range(17))
        ]
        shapes.append(line(bend, GREY, 0.02 * size))
        shapes.append(dot(size * x, size * top, 0.05 * size, ORANGE))
        shapes.append(dot(size * x, size * bottom, 0.05 * size, BLUE))
    return shapes


def particles() -> list[str]:
    """Return a cloud that spirals into its equilibrium, a disk."""
    shapes = []
    for k in range(90):
        angle = k * math.pi * (3 - math.sqrt(5))
        r = 52 * math.sqrt((k + 0.5) / 90)
        x, y = 160 + r * math.cos(angle), 70 + r * math.sin(angle)
        far = 1.25 + 0.25 * math.sin(5.0 * k)
        tail = [(160 + (x - 160) * s, 70 + (y - 70) * s) for s in (1.0, far)]
        if k >= 60:
            shapes.append(line(tail, GREY, 1))
        shapes.append(dot(x, y, 3, BLUE))
    return shapes


def densities() -> list[str]:
    """Return a bell under heat, at three times."""
    shapes = []
    for sigma, colour in ((16.0, ORANGE), (28.0, GREEN), (48.0, BLUE)):

        def bell(x: float, s: float = sigma) -> float:
            return 122 - 1700 / s * math.exp(-((x - 160) ** 2) / (2 * s * s))

        shapes.append(line(curve(bell, 20, 300), colour, 3))
    return [*shapes, line([(20, 124), (300, 124)], GREY, 1)]


def networks() -> list[str]:
    """Return a network with one wide hidden layer."""
    inputs = [(60.0, y) for y in (45.0, 95.0)]
    hidden = [(160.0, 16.0 + 12 * k) for k in range(10)]
    output = (260.0, 70.0)
    shapes = [line([a, b], GREY, 0.7) for a in inputs for b in hidden]
    shapes += [line([b, output], GREY, 0.7) for b in hidden]
    shapes += [dot(*a, 7, ORANGE) for a in inputs]
    shapes += [dot(*b, 5, BLUE) for b in hidden]
    return [*shapes, dot(*output, 7, GREEN)]


def certificates() -> list[str]:
    """Return energies that fall step by step, the last one with a tick."""
    values = [118 * math.exp(-k / 2.2) for k in range(7)]
    points = [(40.0 + 40 * k, 126 - v) for k, v in enumerate(values)]
    shapes = [line(points, GREY, 1.5)]
    shapes += [dot(x, y, 5, BLUE) for x, y in points]
    tick = [(222.0, 46.0), (240.0, 64.0), (274.0, 22.0)]
    return [*shapes, line(tick, GREEN, 8)]


DRAWINGS: dict[str, Callable[[], str]] = {
    "logo.svg": lambda: svg(128, 128, mark(128)),
    "favicon.svg": lambda: svg(32, 32, mark(32)),
    "cards/particles.svg": lambda: svg(320, 140, particles()),
    "cards/densities.svg": lambda: svg(320, 140, densities()),
    "cards/networks.svg": lambda: svg(320, 140, networks()),
    "cards/certificates.svg": lambda: svg(320, 140, certificates()),
}


def main() -> int:
    """Write every drawing."""
    for name, draw in DRAWINGS.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(draw(), "utf-8")
        print(path.relative_to(FOLDER.parent.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
