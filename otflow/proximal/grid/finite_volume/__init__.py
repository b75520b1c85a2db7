"""The JKO step on grids by finite volumes."""

from otflow.proximal.grid.finite_volume.solver import FiniteVolume

__all__ = ["FiniteVolume"]
