"""Densities on a grid on the way to the least free energy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from otflow.measures import GridDensity
from otflow.optimality.densities import ProximalLaw

__all__ = ["State"]

# Least share of the predicted decrease that a step must reach.
ARMIJO = 1e-4


@dataclass(frozen=True, eq=False)
class State:
    """A density by the logarithms of its masses, its energy and its proximal law."""

    logs: Tensor
    measure: GridDensity
    energy: float
    noise: float
    law: ProximalLaw

    @property
    def step(self) -> Tensor:
        """The way to the proximal law, in the logarithm."""
        return self.law.logs - self.logs

    @property
    def residual(self) -> float:
        """The sum of the differences of masses to those of the proximal law."""
        return self.law.distance(self.measure)

    def descent(self, step: Tensor) -> float:
        """Return how fast the energy falls along a step of the logarithms."""
        w, g = self.logs.exp(), self.step
        return self.law.temperature * float(w @ ((g - w @ g) * (step - w @ step)))

    def falls_to(self, new: State, share: float, step: Tensor) -> bool:
        """Return whether the energy falls to a state, or the residual if it is flat."""
        least = ARMIJO * share * self.descent(step)
        if new.energy <= self.energy - max(least, self.noise):
            return True
        if new.energy > self.energy + self.noise:
            return False
        return new.law.energy_to(new.measure) < self.law.energy_to(self.measure)
