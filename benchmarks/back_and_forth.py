"""The dual JKO step on grids: fronts, cost, memory, and the c-transform."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

import otflow as of
from benchmarks.grids import Spreading
from benchmarks.memory import peak_extra_megabytes
from benchmarks.timing import Row, at_least, at_most, interleaved
from otflow.measures import Box
from otflow.proximal.grid.c_transform import c_transform, has_compiler


class Crowd:
    """A disk of density 1/2 that its potential draws to the centre, bound 1."""

    def __init__(self, n: int) -> None:
        self.F = of.Potential(
            lambda x: 0.5 * x.square().sum(-1), modulus=1.0
        ) + of.Congestion(1.0)
        self.first = math.sqrt(2 / math.pi)
        axis = (torch.arange(4 * n, dtype=torch.float64) + 0.5) / (2 * n) - 1
        inside = axis[:, None].square() + axis.square() < self.first**2
        cells = inside.double().reshape(n, 4, n, 4).mean((1, 3))
        self.start = of.GridDensity(cells, -1, 1, normalize=True)

    def run(self, steps: int, dt: float) -> tuple[float, float, float, float]:
        """Return how far a front was off in cells, two violations, and seconds."""
        mu, warm, solver = self.start, None, of.proximal.BackAndForth()
        off = lost = over = 0.0
        begin = time.perf_counter()
        for k in range(1, steps + 1):
            result = solver.solve(self.F, mu, dt, warm)
            mu, warm = result.measure, result.warm
            radius = max(self.first * (1 + dt) ** -k, 1 / math.sqrt(math.pi))
            h, rho = mu.box.spacing[0], mu.grid
            ray = rho[mu.shape[0] // 2, mu.shape[1] // 2 :]
            level = 0.5 / (math.pi * radius**2)
            last = int((ray > level).nonzero().max())
            part = (ray[last] - level) / (ray[last] - ray[last + 1])
            off = max(off, abs(h * (last + 0.5 + float(part)) - radius) / h)
            lost = max(lost, abs(float(mu.weights.sum()) - 1))
            over = max(over, float(rho.max()) - 1)
        return off, lost, over, time.perf_counter() - begin


def crowds() -> list[Row]:
    """Report the disk until it is full and beyond."""
    off, lost, over, seconds = Crowd(256).run(10, 0.05)
    disk = "crowd, 256 x 256, ten steps"
    return [
        at_most(f"{disk}: front off, cells", off, 1.0),
        at_most(f"{disk}: mass lost", lost, 1e-10),
        at_most(f"{disk}: density above the bound", over, 1e-3),
        at_most(f"{disk}: seconds", seconds, 10.0, " s"),
    ]


def diffusion() -> list[Row]:
    """Report the porous medium at two tolerances."""
    problem, rows = Spreading(128), []
    for tolerance, target in ((1e-2, 5e-3), (1e-6, 6e-4)):
        solver = of.proximal.BackAndForth(tolerance=tolerance)
        problem.run(solver, 1)
        error, iterations, seconds = problem.run(solver)
        label = f"porous medium, 128 x 128, ten dual steps to {tolerance:g}"
        rows += [
            at_most(f"{label}: L1", error, target),
            at_most(f"{label}: iterations a step", iterations, 22),
            at_most(f"{label}: seconds", seconds, 5.0, " s"),
        ]
    return rows


def growth() -> Row:
    """Compare the time of a Newton step on grids of 256^2 and 512^2 cells."""
    times = []
    for n in (256, 512):
        problem = Spreading(n)
        solver = of.proximal.BackAndForth()
        problem.run(solver, 1)
        _, iterations, seconds = min(problem.run(solver, 2) for _ in range(2))
        times.append(seconds / iterations)
    label = "dual Newton step, 512^2 / 256^2 cells (cells: 4)"
    return at_most(label, times[1] / times[0], 6.0)


def memory() -> Row:
    """Measure the peak memory of steps on 512 x 512 cells."""
    setup = (
        "import torch\ntorch.set_num_threads(1)\nimport otflow as of\n"
        "from benchmarks.back_and_forth import Crowd\n"
        "Crowd(32).run(2, 0.3)\n"
        "problem = Crowd(512)"
    )
    megabytes = peak_extra_megabytes(setup, "problem.run(3, 0.2)")
    return at_most("dual step, 512 x 512, extra memory", megabytes, 500, " MB")


def transforms() -> list[Row]:
    """Compare the compiled c-transform with the plain one, and its growth."""
    if not has_compiler():
        return []

    def problem(n: int, *, compiled: bool) -> Callable[[], object]:
        box = Box.of(0.0, 1.0, (n, n))
        x = box.centres(torch.zeros(1, dtype=torch.float64))
        phi = 0.05 * (6 * x).sin().sum(-1) - 0.5 * (x - 0.3).square().sum(-1)
        return lambda: c_transform(phi, box, 0.5, compiled=compiled)

    fast, large, plain = interleaved(
        problem(256, compiled=True),
        problem(1024, compiled=True),
        problem(256, compiled=False),
        repeats=3,
        warmup=1,
    )
    return [
        at_least("c-transform, 256 x 256, plain / compiled", plain / fast, 5.0),
        at_most("c-transform, 1024^2 / 256^2 cells (cells: 16)", large / fast, 60.0),
    ]


def run() -> list[Row]:
    """Return all rows."""
    return [*crowds(), *diffusion(), growth(), memory(), *transforms()]
