"""Representations of a probability measure."""

from otflow.measures import portraits as _portraits
from otflow.measures.base import Measure
from otflow.measures.euclidean import Euclidean
from otflow.measures.gaussian.law import Gaussian
from otflow.measures.grid.box import Box
from otflow.measures.grid.convolution import Convolution
from otflow.measures.grid.density import GridDensity
from otflow.measures.lifted import ConicParticles
from otflow.measures.particles import Particles
from otflow.measures.parts import Parts
from otflow.measures.quantiles.density import Quantiles

_portraits.register()

__all__ = [
    "Box",
    "ConicParticles",
    "Convolution",
    "Euclidean",
    "Gaussian",
    "GridDensity",
    "Measure",
    "Particles",
    "Parts",
    "Quantiles",
]


def __dir__() -> list[str]:
    return __all__
