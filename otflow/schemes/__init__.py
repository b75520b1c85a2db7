"""Schemes: pure one-step objects."""

from otflow.schemes.adaptive import Adaptive
from otflow.schemes.base import Scheme, Step
from otflow.schemes.birth_death import BirthDeath
from otflow.schemes.chain import Chain, chain
from otflow.schemes.euler import ExplicitEuler
from otflow.schemes.jko import JKO
from otflow.schemes.langevin import Langevin
from otflow.schemes.minibatch import Minibatch
from otflow.schemes.resample import Resample

__all__ = [
    "JKO",
    "Adaptive",
    "BirthDeath",
    "Chain",
    "ExplicitEuler",
    "Langevin",
    "Minibatch",
    "Resample",
    "Scheme",
    "Step",
    "chain",
]


def __dir__() -> list[str]:
    return __all__
