"""Schemes: pure one-step objects."""

from otflow.schemes.adaptive import Adaptive
from otflow.schemes.base import Scheme, Step
from otflow.schemes.birth_death import BirthDeath
from otflow.schemes.chain import Chain, chain
from otflow.schemes.euler import ExplicitEuler
from otflow.schemes.forward_backward import ForwardBackward
from otflow.schemes.frank_wolfe import FrankWolfe
from otflow.schemes.jko import JKO
from otflow.schemes.langevin import Langevin
from otflow.schemes.minibatch import Minibatch
from otflow.schemes.noisy import NoisyEuler
from otflow.schemes.resample import Resample
from otflow.schemes.svgd import SVGD

__all__ = [
    "JKO",
    "SVGD",
    "Adaptive",
    "BirthDeath",
    "Chain",
    "ExplicitEuler",
    "ForwardBackward",
    "FrankWolfe",
    "Langevin",
    "Minibatch",
    "NoisyEuler",
    "Resample",
    "Scheme",
    "Step",
    "chain",
]


def __dir__() -> list[str]:
    return __all__
