"""JKO steps on grids: accuracy, iterations, cost, memory, and solvers side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import otflow as of
from benchmarks.memory import peak_extra_megabytes
from benchmarks.timing import Row, at_most

STEPS, START, END = 10, 0.15, 0.30


def barenblatt(n: int, dim: int, radius: float) -> Tensor:
    """Return Barenblatt's profile for m = 2, averaged over n^dim cells of a box."""
    axis = (torch.arange(2 * n, dtype=torch.float64) + 0.5) / (2 * n) - 0.5
    axes = torch.meshgrid(*[axis] * dim, indexing="ij")
    square = torch.stack(axes).square().sum(0)
    fine = (1 - square / radius**2).clamp_min(0)
    profile = fine.reshape((n, 2) * dim).mean(tuple(range(1, 2 * dim, 2)))
    return profile * (n**dim / profile.sum())


def rate(dim: int) -> float:
    """Return A, with R' = A R^(-1-d) along the flow."""
    ball = math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
    return 4 / (ball * 2 / (dim + 2))


def jko_radius(dim: int, dt: float) -> float:
    """Return the radius after the steps, (R+ - R)/dt = A R+^(-1-d)."""
    radius = START
    for _ in range(STEPS):
        low, high = radius, 2 * END
        for _ in range(60):
            middle = 0.5 * (low + high)
            ahead = middle - radius > dt * rate(dim) * middle ** (-1 - dim)
            low, high = (low, middle) if ahead else (middle, high)
        radius = low
    return radius


class Spreading:
    """Ten steps of the porous medium from radius .15 to .30 in the unit box."""

    def __init__(self, n: int, dim: int = 2) -> None:
        self.n, self.dim = n, dim
        power = dim + 2
        self.dt = (END**power - START**power) / (rate(dim) * power * STEPS)
        self.start = of.GridDensity(barenblatt(n, dim, START), -0.5, 0.5)
        self.expected = barenblatt(n, dim, jko_radius(dim, self.dt))

    def run(
        self, solver: of.proximal.ProximalSolver[of.GridDensity], steps: int = STEPS
    ) -> tuple[float, float, float]:
        """Return the L1 error, iterations a step, and seconds."""
        F, mu, warm, spent = of.PowerEntropy(2.0), self.start, None, 0
        begin = time.perf_counter()
        for _ in range(steps):
            result = solver.solve(F, mu, self.dt, warm)
            mu, warm = result.measure, result.warm
            spent += result.iterations
        seconds = time.perf_counter() - begin
        error = float((mu.grid - self.expected).abs().sum() / self.n**self.dim)
        return error, spent / steps, seconds


def entropic() -> list[Row]:
    """Report the step by entropic transport in the plane and in space."""
    error, iterations, seconds = Spreading(128).run(of.proximal.GridSinkhorn())
    plane = "porous medium, 128 x 128, ten entropic steps"
    rows = [
        at_most(f"{plane}: L1 to the exact steps", error, 6e-4),
        at_most(f"{plane}: iterations a step", iterations, 22),
        at_most(f"{plane}: seconds", seconds, 2.0, " s"),
    ]
    error, _, seconds = Spreading(96, 3).run(of.proximal.GridSinkhorn())
    space = "porous medium, 96^3, ten entropic steps"
    rows.append(at_most(f"{space}: L1 to the exact steps", error, 3e-3))
    rows.append(at_most(f"{space}: seconds", seconds, 60, " s"))
    return rows


def growth() -> Row:
    """Compare the time of an iteration on grids of 256^2 and 512^2 cells."""
    times = []
    for n in (256, 512):
        problem = Spreading(n)
        solver = of.proximal.GridSinkhorn(max_iterations=12, certify=False)
        problem.run(solver, 1)
        times.append(min(problem.run(solver, 1)[2] for _ in range(3)) / 12)
    label = "entropic iteration, 512^2 / 256^2 cells (n^3: 8, cells: 4)"
    return at_most(label, times[1] / times[0], 9.0)


def memory(solver: str, steps: int) -> Row:
    """Measure the peak memory of a step on 512 x 512 cells."""
    setup = (
        "import torch\ntorch.set_num_threads(1)\nimport otflow as of\n"
        "from benchmarks.grids import Spreading\n"
        f"Spreading(16).run(of.proximal.{solver}(), 1)\n"
        "problem = Spreading(512)"
    )
    work = f"problem.run(of.proximal.{solver}(max_iterations=20), {steps})"
    megabytes = peak_extra_megabytes(setup, work)
    return at_most(f"{solver} step, 512 x 512, extra memory", megabytes, 500, " MB")


def duel() -> list[Row]:
    """Compare the time of ten steps with back-and-forth's at its own tolerance."""
    rival = getattr(of.proximal, "BackAndForth", None)
    if rival is None:
        return []
    problem = Spreading(128)
    ours = min(problem.run(of.proximal.GridSinkhorn())[2] for _ in range(3))
    error, _, theirs = problem.run(rival())
    label = f"ten steps, 128 x 128: entropic / back-and-forth (L1 {error:.1e})"
    return [at_most(label, ours / theirs, 0.1)]


def walls() -> list[Row]:
    """Report the cost of a step by finite volumes, of a crowd in a room."""
    width, height, steps = 96, 48, 12
    blocked = torch.zeros(width, height, dtype=torch.bool)
    blocked[46:50] = True
    blocked[46:50, 20:28] = False
    rho = torch.zeros(width, height, dtype=torch.float64)
    rho[3:43, 6:42] = 1.0
    mu = of.GridDensity(
        rho, 0.0, (2.0, 1.0), obstacles=blocked, walls=True, normalize=True
    )

    def way(x: Tensor) -> Tensor:
        door = x.new_tensor([0.95, 0.5])
        through = torch.where(x[:, 0] < 0.95, (x - door).norm(dim=-1), 0.0)
        return through + (2.0 - x[:, 0].clamp_min(0.95))

    F = of.Potential(way) + of.Congestion(1.2 * float(mu.density().max()))
    solver, warm, spent = of.proximal.FiniteVolume(), None, 0
    begin = time.perf_counter()
    for _ in range(steps):
        result = solver.solve(F, mu, 0.05, warm)
        mu, warm, spent = result.measure, result.warm, spent + result.iterations
    seconds = (time.perf_counter() - begin) / steps
    room = "crowd in a room with a door, 96 x 48, finite volumes"
    return [
        at_most(f"{room}: linear systems a step", spent / steps, 20),
        at_most(f"{room}: seconds a step", seconds, 0.55, " s"),
    ]


def run() -> list[Row]:
    """Return all rows."""
    memories = memory("GridSinkhorn", 2), memory("BackAndForth", 1)
    return [*entropic(), growth(), *memories, *duel(), *walls()]


def table(sizes: Sequence[int] = (128, 256)) -> str:
    """Return the rows of the table of docs/solvers.rst, as reStructuredText."""
    rows = []
    for n in sizes:
        problem = Spreading(n)
        exact = barenblatt(n, 2, END)
        time_error = float((problem.expected - exact).abs().sum() / n**2)
        for name in ("GridSinkhorn", "BackAndForth", "FiniteVolume"):
            solver = getattr(of.proximal, name, None)
            if solver is None:
                continue
            error, iterations, _ = problem.run(solver())
            rows += [
                f"   * - ``{name}``, {n} x {n}",
                f"     - {iterations:.0f}",
                f"     - {error:.1e}",
                f"     - {time_error:.1e}",
            ]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
