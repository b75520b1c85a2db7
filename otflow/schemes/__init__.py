"""Schemes: pure one-step objects."""

from otflow.schemes.adaptive import Adaptive
from otflow.schemes.anneal import Anneal, Logarithmic
from otflow.schemes.base import Scheme, Step
from otflow.schemes.birth_death import BirthDeath
from otflow.schemes.chain import Chain, chain
from otflow.schemes.euler import ExplicitEuler
from otflow.schemes.forward_backward import ForwardBackward
from otflow.schemes.frank_wolfe import FrankWolfe
from otflow.schemes.gibbs_steps import DualAveraging, EntropicFictitiousPlay
from otflow.schemes.jko import JKO
from otflow.schemes.langevin import Langevin
from otflow.schemes.mala import MALA
from otflow.schemes.minibatch import Minibatch
from otflow.schemes.mobility import Mobility
from otflow.schemes.momentum import Adam, Momentum
from otflow.schemes.noisy import NoisyEuler
from otflow.schemes.part_by_part import PartByPart
from otflow.schemes.resample import Resample
from otflow.schemes.svgd import SVGD
from otflow.schemes.underdamped import UnderdampedLangevin

__all__ = [
    "JKO",
    "MALA",
    "SVGD",
    "Adam",
    "Adaptive",
    "Anneal",
    "BirthDeath",
    "Chain",
    "DualAveraging",
    "EntropicFictitiousPlay",
    "ExplicitEuler",
    "ForwardBackward",
    "FrankWolfe",
    "Langevin",
    "Logarithmic",
    "Minibatch",
    "Mobility",
    "Momentum",
    "NoisyEuler",
    "PartByPart",
    "Resample",
    "Scheme",
    "Step",
    "UnderdampedLangevin",
    "chain",
]


def __dir__() -> list[str]:
    return __all__
