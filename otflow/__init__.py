"""Optimisation over probability measures in Wasserstein-2 space."""

from otflow import (
    analysis,
    errors,
    functionals,
    kernels,
    meanfield,
    metrics,
    plotting,
    proximal,
    schemes,
)
from otflow.flow import flow
from otflow.functionals import (
    Entropy,
    Functional,
    Interaction,
    OfExpectation,
    Potential,
)
from otflow.measures import Measure, Particles
from otflow.schemes import JKO, BirthDeath, ExplicitEuler, Langevin, chain
from otflow.trajectory import Trajectory

__version__ = "0.1.0"

__all__ = [
    "JKO",
    "BirthDeath",
    "Entropy",
    "ExplicitEuler",
    "Functional",
    "Interaction",
    "Langevin",
    "Measure",
    "OfExpectation",
    "Particles",
    "Potential",
    "Trajectory",
    "analysis",
    "chain",
    "errors",
    "flow",
    "functionals",
    "kernels",
    "meanfield",
    "metrics",
    "plotting",
    "proximal",
    "schemes",
]
