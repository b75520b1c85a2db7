"""Derivatives of a population risk, in units of one matrix of angles of all neurons."""

from __future__ import annotations

import torch

import otflow as of
from benchmarks.timing import Row, at_most, interleaved

N, D, TEACHERS = 4096, 64, 20


def run() -> list[Row]:
    """Return the ratios of value, velocity and first variation to that matrix."""
    generator = torch.Generator().manual_seed(0)

    def normal(n: int) -> of.Particles:
        points = torch.randn(n, 1 + D, generator=generator, dtype=torch.float64)
        return of.Particles(points)

    mu, fixed = normal(N), normal(TEACHERS)
    w = torch.nn.functional.normalize(mu.points[:, 1:], dim=1)

    def angles() -> object:
        cosine = (w @ w.T).clamp(-1, 1)
        return torch.arcsin(cosine), (1 - cosine.square()).sqrt()

    units = ("relu", "step", "erf")
    risks = [of.meanfield.PopulationRisk(fixed, unit, "gaussian") for unit in units]
    unit, *times = interleaved(
        angles,
        *(lambda F=F: F.value_and_derivatives(mu) for F in risks),
        repeats=5,
        warmup=1,
    )
    label = f"N = {N}, d = {D}: / product, arcsin and root"
    return [
        at_most(f"population risk of {name}, {label}", time / unit, 3.0)
        for name, time in zip(units, times, strict=True)
    ]
