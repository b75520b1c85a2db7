"""Optimisation over probability measures in Wasserstein-2 space."""

from otflow import (
    analysis,
    callbacks,
    errors,
    functionals,
    kernels,
    meanfield,
    measures,
    metrics,
    plotting,
    proximal,
    schemes,
    testing,
)
from otflow.flow import flow
from otflow.functionals import (
    KL,
    Congestion,
    Entropy,
    Functional,
    Interaction,
    Internal,
    OfExpectation,
    Potential,
    PowerEntropy,
)
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.schemes import JKO, BirthDeath, ExplicitEuler, Langevin, chain
from otflow.trajectory import Trajectory

__version__ = "0.2.0.dev0"

__all__ = [
    "JKO",
    "KL",
    "BirthDeath",
    "Congestion",
    "Entropy",
    "ExplicitEuler",
    "Functional",
    "Gaussian",
    "GridDensity",
    "Interaction",
    "Internal",
    "Langevin",
    "Measure",
    "OfExpectation",
    "Particles",
    "Potential",
    "PowerEntropy",
    "Quantiles",
    "Trajectory",
    "analysis",
    "callbacks",
    "chain",
    "errors",
    "flow",
    "functionals",
    "kernels",
    "meanfield",
    "measures",
    "metrics",
    "plotting",
    "proximal",
    "schemes",
    "testing",
]
