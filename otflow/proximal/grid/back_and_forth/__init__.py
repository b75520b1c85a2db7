"""The JKO step on grids by its dual."""

from otflow.proximal.grid.back_and_forth.solver import BackAndForth

__all__ = ["BackAndForth"]
