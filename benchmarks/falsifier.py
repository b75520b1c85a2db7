"""Time until a violation of convexity is found, and searches where there is none."""

from __future__ import annotations

from collections.abc import Callable

import torch

import otflow as of
from benchmarks.timing import Row, at_most
from otflow.functionals import SquaredDistanceTo

F64 = torch.float64
Case = tuple[of.Functional, of.Measure]
FAR = 1e7


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Return normal draws in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=F64)


def normal(d: int) -> of.Gaussian:
    """Return the standard normal law."""
    return of.Gaussian(torch.zeros(d, dtype=F64), torch.eye(d, dtype=F64))


def bell() -> of.Quantiles:
    """Return a density on the line."""
    return of.Quantiles.from_function(
        lambda x: (-x[:, 0].square() / 2).exp(), -4, 4, 24, grading=2, dtype=F64
    )


def cosine(modulus: float | None = None) -> of.Functional:
    """Return a potential of the modulus -9."""
    return of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=modulus)


def network() -> of.Functional:
    """Return the loss of a network whose target is one of its neurons."""
    x = torch.linspace(-2, 2, 41, dtype=F64)[:, None]
    return of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), x, x[:, 0].tanh())


NOT_CONVEX: dict[str, Callable[[], Case]] = {
    "a cosine": lambda: (cosine(), of.Particles(points(8, 1))),
    "an attraction of short range": lambda: (
        -1 * of.Interaction(of.kernels.Gaussian(0.5)),
        of.Particles(points(6, 2)),
    ),
    "the loss of a network": lambda: (network(), of.Particles(points(4, 3))),
    "half of W2 squared in the plane": lambda: (
        SquaredDistanceTo(points(4, 2, seed=9)),
        of.Particles(points(6, 2)),
    ),
    "fast diffusion, m = 0.5, in space": lambda: (of.PowerEntropy(0.5), normal(3)),
}

CONVEX: dict[str, Callable[[], Case]] = {
    "a parabola plus 1e6 at 1e7": lambda: (
        of.Potential(lambda x: 0.5 * (x - FAR).square().sum(-1) + 1e6, modulus=1.0),
        of.Particles(points(8, 2) + FAR),
    ),
    "a cosine in float32": lambda: (cosine(-9.0), of.Particles(points(8, 1).float())),
    "an interaction |z|^4": lambda: (
        of.Interaction(lambda z: z.square().sum(-1).square(), modulus=0.0),
        of.Particles(points(6, 2)),
    ),
    "the entropy of cells": lambda: (of.Entropy(), bell()),
    "a sum with kinks, on cells": lambda: (
        of.PowerEntropy(2.0)
        + of.Potential(lambda x: x.abs().sum(-1), modulus=0.0)
        + of.Interaction(lambda z: z.norm(dim=-1), modulus=0.0),
        bell(),
    ),
    "fast diffusion, m = 0.5, in the plane": lambda: (of.PowerEntropy(0.5), normal(2)),
    "half of W2 squared on the line": lambda: (
        SquaredDistanceTo(of.Quantiles(torch.arange(5.0, dtype=F64))),
        bell(),
    ),
    "a smooth norm + a spring, float32, at 1e3": lambda: (
        of.Potential(lambda x: ((x - 1e3).square().sum(-1) + 1).sqrt(), modulus=0.0)
        + of.Interaction(of.kernels.Quadratic()),
        of.Particles((30 * points(6, 3) + 1e3).float()),
    ),
}


def found(name: str, seconds: float = 10.0) -> of.analysis.Falsification:
    """Search until the first violation."""
    F, like = NOT_CONVEX[name]()
    return of.analysis.falsify(F, like, seconds=seconds, evaluations=10**9, first=True)


def not_found(name: str, seconds: float = 60.0) -> of.analysis.Falsification:
    """Search for the whole time where there is nothing to find."""
    F, like = CONVEX[name]()
    return of.analysis.falsify(F, like, seconds=seconds, evaluations=10**9)


def run() -> list[Row]:
    """Return times in seconds, and numbers of false refutations."""
    rows = []
    for name in NOT_CONVEX:
        search = found(name)
        late = search.seconds if search.refuted else float("inf")
        rows.append(at_most(f"violation of {name}, seconds", late, 10.0))
    for name in CONVEX:
        false = not_found(name).refuted
        rows.append(at_most(f"60 s on {name}: refutations", float(false), 0.0))
    return rows
