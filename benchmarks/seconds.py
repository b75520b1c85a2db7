"""Seconds of one JKO step by solver: ``python -m benchmarks.seconds``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

import otflow as of
from benchmarks.ornstein_uhlenbeck import rst
from benchmarks.timing import seconds

HEAD = ["Measure", "Terms", "Solver", "Seconds", "Iterations", "Certified"]
DT = 0.05
REPEATS = 3

SPRING = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
Problem = tuple[str, str, of.Functional, of.Measure, of.JKO]


def bell(x: torch.Tensor) -> torch.Tensor:
    """Return the start of densities."""
    return torch.exp(-8 * (x - 0.5).square().sum(-1))


def grid(n: int, d: int) -> of.GridDensity:
    """Return the start on n cells a side of a box of width 6."""
    shape = (n,) * d
    return of.GridDensity.from_function(bell, -3, 3, shape, dtype=torch.float64)


def problems() -> Iterator[Problem]:
    """Yield measure, terms, functional, start and scheme of each row."""
    seed = torch.Generator().manual_seed(0)
    repel = of.Interaction(of.kernels.Gaussian(0.5))
    for n in (200, 2000):
        x = torch.randn(n, 2, generator=seed, dtype=torch.float64)
        name = f"Particles, n = {n}, d = 2"
        yield name, "spring", SPRING, of.Particles(x), of.JKO()
        yield name, "spring, interaction", SPRING + repel, of.Particles(x), of.JKO()
    for n in (200, 2000):
        line = of.Quantiles.from_function(
            bell, -3.0, 3.0, n=n, grading=2, dtype=torch.float64
        )
        heat = SPRING + of.Entropy()
        yield f"Quantiles, n = {n}", "spring, entropy", heat, line, of.JKO()
    for d in (2, 20):
        eye = torch.eye(d, dtype=torch.float64)
        law = of.Gaussian(eye[0], 0.25 * eye)
        yield (
            f"Gaussian, d = {d}",
            "spring, entropy",
            SPRING + of.Entropy(),
            law,
            of.JKO(),
        )
    schemes = (of.JKO(), of.JKO(of.proximal.BackAndForth()))
    for n in (64, 128):
        name = f"GridDensity, {n} x {n}"
        for scheme in schemes:
            heat = SPRING + of.PowerEntropy(2)
            yield name, "spring, porous medium", heat, grid(n, 2), scheme
    finite = of.JKO(of.proximal.FiniteVolume())
    yield "GridDensity, 64 x 64", "spring, porous medium", heat, grid(64, 2), finite


def row(problem: Problem) -> list[str]:
    """Return one row of the table."""
    name, terms, F, mu, scheme = problem
    runs: list[of.Trajectory] = []
    step: Callable[[], None] = lambda: runs.append(
        of.flow(F, mu, scheme, dt=DT, steps=1)
    )
    step()
    least = min(seconds(step) for _ in range(REPEATS))
    info = runs[-1].info[0]
    count = "-" if info.iterations is None else str(info.iterations)
    return [
        name,
        terms,
        f"``{info.solver}``",
        f"{least:.2g}",
        count,
        "yes" if info.certified else "no",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seconds")
    parser.add_argument("--rst", action="store_true", help="print reStructuredText")
    options = parser.parse_args(arguments)
    rows = [row(problem) for problem in problems()]
    if options.rst:
        print(rst(HEAD, rows))
        machine = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
        print(f"\nMeasured on {machine}, with torch {torch.__version__.split('+')[0]}.")
    else:
        for line in [HEAD, *rows]:
            print("  ".join(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
