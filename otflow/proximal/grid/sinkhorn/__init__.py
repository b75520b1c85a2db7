"""The JKO step on grids by debiased entropic transport."""

from otflow.proximal.grid.sinkhorn.solver import GridSinkhorn

__all__ = ["GridSinkhorn"]
