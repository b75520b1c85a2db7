"""Functionals of a measure: one abstract method, `value`."""

from otflow._algebra import Curvature
from otflow.functionals.base import Functional, Scaled, Sum
from otflow.functionals.blob import Blob
from otflow.functionals.discrepancy import EnergyDistanceTo, MMDTo
from otflow.functionals.divergence import KL
from otflow.functionals.expectation import OfExpectation
from otflow.functionals.interaction import Interaction
from otflow.functionals.internal import Entropy, Internal
from otflow.functionals.lifted import Lifted
from otflow.functionals.of_part import InPart, OfPart
from otflow.functionals.potential import Potential
from otflow.functionals.power import Congestion, PowerEntropy
from otflow.functionals.proxes import box, group_norm, l1_norm
from otflow.functionals.sliced import SlicedWassersteinTo
from otflow.functionals.stein import KSD
from otflow.functionals.transport import SinkhornDivergenceTo, SquaredDistanceTo

__all__ = [
    "KL",
    "KSD",
    "Blob",
    "Congestion",
    "Curvature",
    "EnergyDistanceTo",
    "Entropy",
    "Functional",
    "InPart",
    "Interaction",
    "Internal",
    "Lifted",
    "MMDTo",
    "OfExpectation",
    "OfPart",
    "Potential",
    "PowerEntropy",
    "Scaled",
    "SinkhornDivergenceTo",
    "SlicedWassersteinTo",
    "SquaredDistanceTo",
    "Sum",
    "box",
    "group_norm",
    "l1_norm",
]


def __dir__() -> list[str]:
    return __all__
