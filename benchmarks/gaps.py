"""A proved gap in units of a velocity of the same functional."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

import otflow as of
from benchmarks.timing import Row, at_most, interleaved
from otflow.optimality import BoxDomain, optimality_gap

F64 = torch.float64
LIMIT = 10.0


def ripple(rows: Tensor, theta: Tensor) -> Tensor:
    """Return sqrt(2) cos(2 pi k theta - phase), rows (k, phase)."""
    angle = 2 * math.pi * rows[:, :1] * theta[:, 0] - rows[:, 1:]
    return math.sqrt(2) * torch.cos(angle)


def problems() -> dict[str, tuple[of.Functional, of.Particles, BoxDomain]]:
    """Return functionals, measures and boxes."""
    g = torch.Generator().manual_seed(0)

    def cloud(n: int, d: int) -> Tensor:
        return torch.rand(n, d, generator=g, dtype=F64)

    waves = [[k, phase] for k in range(1, 5) for phase in (0.0, math.pi / 2)]
    rows = torch.tensor(waves, dtype=F64)
    network = of.meanfield.CustomLayer(ripple)
    spikes = of.Particles(torch.tensor([[0.15], [0.42], [0.77]], dtype=F64))
    circle = of.meanfield.Risk(network, rows, network(spikes, rows))
    X = torch.randn(1000, 1, generator=g, dtype=F64)
    risk = of.meanfield.Risk(of.meanfield.TwoLayer("tanh"), X, X[:, 0].sin())
    kernel = of.kernels.Gaussian(0.3)
    mmd = {d: of.MMDTo(cloud(2000, d), kernel) for d in (1, 2, 3)}
    unit = BoxDomain(0, 1)
    return {
        "deconvolution, 40 atoms": (circle, of.Particles(cloud(40, 1)), unit),
        "risk, 1000 data, 1000 neurons": (
            risk,
            of.Particles(2 * cloud(1000, 3) - 1),
            BoxDomain(-1, 1),
        ),
        "energy distance, 500 points, 1-D": (
            of.EnergyDistanceTo(cloud(500, 1)),
            of.Particles(cloud(500, 1)),
            unit,
        ),
    } | {
        f"MMD, 2000 points, {d}-D": (F, of.Particles(cloud(2000, d)), unit)
        for d, F in mmd.items()
    }


def run() -> list[Row]:
    """Return the ratios."""
    found = []
    for name, (F, mu, box) in problems().items():
        assert optimality_gap(F, mu, box).kind == "proved", name
        gap, velocity = interleaved(
            partial(optimality_gap, F, mu, box),
            partial(F.velocity, mu),
            repeats=5,
            warmup=1,
        )
        found.append(at_most(f"proved gap / velocity: {name}", gap / velocity, LIMIT))
    return found
