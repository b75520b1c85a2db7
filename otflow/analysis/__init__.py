"""Checks of a flow: convexity, dissipation, orders and rates."""

from otflow.analysis.certificates import (
    DissipationReport,
    dissipation,
    energy_dissipation,
    minimizing_movement,
)
from otflow.analysis.convexity import ConvexityReport, displacement_convexity
from otflow.analysis.falsifier import Falsification, Witness, falsify
from otflow.analysis.rates import exponential_rate, observed_order
from otflow.analysis.weak_form import continuity_residual

__all__ = [
    "ConvexityReport",
    "DissipationReport",
    "Falsification",
    "Witness",
    "continuity_residual",
    "displacement_convexity",
    "dissipation",
    "energy_dissipation",
    "exponential_rate",
    "falsify",
    "minimizing_movement",
    "observed_order",
]


def __dir__() -> list[str]:
    return __all__
