"""Representations of a probability measure."""

from otflow.measures.base import Measure
from otflow.measures.box import Box
from otflow.measures.gaussian import Gaussian
from otflow.measures.grid import GridDensity
from otflow.measures.grid_convolution import Convolution
from otflow.measures.particles import Particles
from otflow.measures.quantiles import Quantiles

__all__ = [
    "Box",
    "Convolution",
    "Gaussian",
    "GridDensity",
    "Measure",
    "Particles",
    "Quantiles",
]
