"""The JKO step on grids: three solvers, and what they share."""

from otflow.proximal.grid.back_and_forth import BackAndForth
from otflow.proximal.grid.finite_volume import FiniteVolume
from otflow.proximal.grid.sinkhorn import GridSinkhorn

__all__ = ["BackAndForth", "FiniteVolume", "GridSinkhorn"]
