"""Optimisation over probability measures in Wasserstein-2 space."""

import gc as _gc
import logging as _logging

# What an import makes stays. A collection meanwhile finds nothing, and walks the
# 170,000 objects of torch for it: a third of the time of the import.
_collects = _gc.isenabled()
_gc.disable()
try:
    from otflow import (
        analysis,
        callbacks,
        errors,
        functionals,
        kernels,
        meanfield,
        measures,
        metrics,
        optimality,
        plotting,
        proximal,
        schemes,
        storage,
        testing,
    )
    from otflow._versions import show_versions
    from otflow.flow import flow
    from otflow.functionals import (
        KL,
        KSD,
        Blob,
        Congestion,
        EnergyDistanceTo,
        Entropy,
        Functional,
        Interaction,
        Internal,
        MMDTo,
        OfExpectation,
        Potential,
        PowerEntropy,
        SinkhornDivergenceTo,
        SlicedWassersteinTo,
        SquaredDistanceTo,
    )
    from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
    from otflow.schemes import JKO, BirthDeath, ExplicitEuler, Langevin, chain
    from otflow.storage import load, save
    from otflow.trajectory import Bookmark, Trajectory
finally:
    if _collects:
        _gc.enable()

__version__ = "0.2.0.dev0"

# Silent until the user asks for messages, as a library should be.
_logging.getLogger("otflow").addHandler(_logging.NullHandler())

__all__ = [
    "JKO",
    "KL",
    "KSD",
    "BirthDeath",
    "Blob",
    "Bookmark",
    "Congestion",
    "EnergyDistanceTo",
    "Entropy",
    "ExplicitEuler",
    "Functional",
    "Gaussian",
    "GridDensity",
    "Interaction",
    "Internal",
    "Langevin",
    "MMDTo",
    "Measure",
    "OfExpectation",
    "Particles",
    "Potential",
    "PowerEntropy",
    "Quantiles",
    "SinkhornDivergenceTo",
    "SlicedWassersteinTo",
    "SquaredDistanceTo",
    "Trajectory",
    "analysis",
    "callbacks",
    "chain",
    "errors",
    "flow",
    "functionals",
    "kernels",
    "load",
    "meanfield",
    "measures",
    "metrics",
    "optimality",
    "plotting",
    "proximal",
    "save",
    "schemes",
    "show_versions",
    "storage",
    "testing",
]


def __dir__() -> list[str]:
    return __all__
