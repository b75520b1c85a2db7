"""Functionals of a measure: one abstract method, `value`."""

from otflow.functionals.base import Functional, Scaled, Sum
from otflow.functionals.blob import Blob
from otflow.functionals.divergence import KL
from otflow.functionals.expectation import OfExpectation
from otflow.functionals.interaction import Interaction
from otflow.functionals.internal import Entropy, Internal
from otflow.functionals.potential import Potential
from otflow.functionals.power import Congestion, PowerEntropy
from otflow.functionals.stein import KSD

__all__ = [
    "KL",
    "KSD",
    "Blob",
    "Congestion",
    "Entropy",
    "Functional",
    "Interaction",
    "Internal",
    "OfExpectation",
    "Potential",
    "PowerEntropy",
    "Scaled",
    "Sum",
]


def __dir__() -> list[str]:
    return __all__
