"""Steps with noise, a mobility or momentum against an Euler step of the same risk."""

from __future__ import annotations

from collections.abc import Callable

import torch

import otflow as of
from benchmarks.risk import D, n, problem
from benchmarks.timing import Row, at_most, interleaved


def run() -> list[Row]:
    """Return the ratios of times, of steps made side by side."""
    _, _, mu, risk = problem()
    F = of.meanfield.free_energy(risk, temperature=1e-3)
    generator = torch.Generator().manual_seed(0)

    def step_of(scheme: of.schemes.Scheme, G: of.Functional) -> Callable[[], object]:
        """Return a function that makes one step."""
        # The second step: the first one draws the velocities, and so does a measure
        # to which those of the state do not belong.
        first = scheme.step(G, mu, 0.1, scheme.init(G, mu), generator)
        return lambda: scheme.step(G, first.measure, 0.1, first.state, generator)

    schemes, euler = of.schemes, of.ExplicitEuler()
    network = of.meanfield.TwoLayer("relu")
    layers, outer = (network.mobility(D, inner=rate) for rate in (0.1, 0.0))
    plain, *others = interleaved(
        step_of(euler, risk),
        step_of(of.Langevin(), F),
        step_of(schemes.UnderdampedLangevin(), F),
        step_of(schemes.Mobility(euler, layers), risk),
        step_of(schemes.Mobility(euler, outer), risk),
        step_of(schemes.Momentum(), risk),
        step_of(schemes.Adam(), risk),
    )
    noisy, moving, scaled, alone, nesterov, adam = (time / plain for time in others)
    label = f"a step on a risk, relu, n = N = {n}, d = {D}:"
    return [
        at_most(f"{label} Langevin / Euler", noisy, 1.15),
        at_most(f"{label} UnderdampedLangevin / Euler", moving, 1.15),
        at_most(f"{label} Mobility of layers / Euler", scaled, 1.15),
        at_most(f"{label} Mobility, outer layer alone / Euler", alone, 0.7),
        at_most(f"{label} Momentum / Euler", nesterov, 1.15),
        at_most(f"{label} Adam / Euler", adam, 1.15),
    ]
