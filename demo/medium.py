"""A porous medium on a grid: a photograph seeps, a front spreads."""

from __future__ import annotations

import math
import time

import torch
from sklearn.datasets import load_sample_image

import otflow as of
from demo.table import Row, certificates


def soak_photograph(n: int, steps: int) -> tuple[Row, of.Trajectory]:
    """Let a photograph, dark is dense, seep through a porous medium."""
    picture = load_sample_image("china.jpg")
    side = picture.shape[0]
    cells = picture[:, 100 : 100 + side][:: side // n, :: side // n]
    photo = of.GridDensity.from_image(
        cells, 0.0, 1.0, invert=True, walls=True, dtype=torch.float64
    )
    return _seep("photograph", photo, 2e-4, steps)


def spread_barenblatt(n: int, steps: int) -> tuple[Row, float]:
    """Spread Barenblatt's profile; return its L1 distance to the exact JKO steps."""
    rate = 32 / math.pi  # of R^4 along the exact flow
    dt = (0.30**4 - 0.15**4) / rate / 10
    radius = 0.15
    row, run = _seep("Barenblatt", _paraboloid(radius, n), dt, steps)
    for _ in range(steps):
        before, radius = radius, 1.1 * radius
        for _ in range(40):  # Newton on (R - before) / dt = rate / (4 R^3)
            excess = (radius - before) / dt - 0.25 * rate / radius**3
            radius -= excess / (1 / dt + 0.75 * rate / radius**4)
    exact = _paraboloid(radius, n)
    return row, float((run.final.weights - exact.weights).abs().sum())


def _paraboloid(radius: float, n: int) -> of.GridDensity:
    return of.GridDensity.from_function(
        lambda x: (1 - (x - 0.5).square().sum(-1) / radius**2).clamp_min(0),
        0.0,
        1.0,
        (n, n),
        dtype=torch.float64,
    )


def _seep(
    name: str, mu: of.GridDensity, dt: float, steps: int
) -> tuple[Row, of.Trajectory]:
    start = time.perf_counter()
    run = of.flow(of.PowerEntropy(2), mu, of.JKO(), dt=dt, steps=steps, progress=True)
    seconds = time.perf_counter() - start
    energy = run.records["energy"]
    change = f"{float(energy[0]):.4f} to {float(energy[-1]):.4f}"
    row = Row(f"{name}, JKO", None, "-", "-", change, certificates(run), seconds)
    return row, run
