"""Steps of birth and death, in units of an explicit Euler step of the same risk."""

from __future__ import annotations

import torch

import otflow as of
from benchmarks.risk import D, N, n, problem
from benchmarks.timing import Row, at_most, interleaved

STEPS = 3


def run() -> list[Row]:
    """Return the ratios, each with the energy recorded before every step."""
    *_, mu, risk = problem()
    euler, reaction = of.ExplicitEuler(), of.BirthDeath(1.0)
    prior = of.Particles(torch.randn(N, D + 2, generator=torch.Generator()))
    schemes = {
        "birth-death alone": (reaction, 1.15),
        "jumps alone": (of.BirthDeath(1.0, jumps=True), 1.15),
        "chained with Euler": (of.chain(euler, reaction), 1.15),
        "chained with Euler, jumps": (
            of.chain(euler, of.BirthDeath(1.0, jumps=True)),
            1.15,
        ),
        "chained with Euler, prior": (
            of.chain(euler, of.BirthDeath(1.0, prior=prior)),
            2.5,
        ),
    }

    def timed(scheme: of.schemes.Scheme) -> object:
        return of.flow(risk, mu, scheme, dt=0.01, steps=STEPS, generator=0)

    unit, *times = interleaved(
        lambda: timed(euler),
        *(lambda scheme=scheme: timed(scheme) for scheme, _ in schemes.values()),
        repeats=5,
        warmup=1,
    )
    label = f"n = N = {n}, d = {D}: / explicit Euler"
    return [
        at_most(f"{name}, {label}", time / unit, limit)
        for time, (name, (_, limit)) in zip(times, schemes.items(), strict=True)
    ]
