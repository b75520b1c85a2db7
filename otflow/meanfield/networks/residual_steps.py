"""Explicit Runge-Kutta steps through the layers of a residual network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

__all__ = ["SOLVERS", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """The coefficients of an explicit Runge-Kutta method for a field without time.

    Parameters
    ----------
    stages : tuple of tuple of float
        Row s holds the coefficients of the slopes before stage s.
    weights : tuple of float
        The coefficients of the slopes in the step.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def step(self, field: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Return the state after one step of length 1, differentiable.

        Parameters
        ----------
        field : callable
            The field, from states to slopes of the same shape.
        z : Tensor
            State before the step.

        Returns
        -------
        Tensor
            State after it.
        """
        slopes: list[Tensor] = []
        for row in self.stages:
            at = z
            for a, k in zip(row, slopes, strict=True):
                at = at + a * k if a else at
            slopes.append(field(at))
        for b, k in zip(self.weights, slopes, strict=True):
            z = z + b * k
        return z


SOLVERS: Mapping[str, Tableau] = MappingProxyType(
    {
        "euler": Tableau(((),), (1.0,)),
        "rk4": Tableau(
            ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        ),
    }
)
"""The solvers of the network's equation, by name."""
