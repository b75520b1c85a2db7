"""Densities that are constant on the cells of a regular grid."""

from otflow.measures.grid.box import Box
from otflow.measures.grid.convolution import Convolution
from otflow.measures.grid.density import GridDensity

__all__ = ["Box", "Convolution", "GridDensity"]
