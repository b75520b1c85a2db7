"""Functionals of a measure: one abstract method, `value`."""

from otflow.functionals.base import Functional, Scaled, Sum
from otflow.functionals.expectation import OfExpectation
from otflow.functionals.interaction import Interaction
from otflow.functionals.internal import Entropy
from otflow.functionals.potential import Potential

__all__ = [
    "Entropy",
    "Functional",
    "Interaction",
    "OfExpectation",
    "Potential",
    "Scaled",
    "Sum",
]
