"""Distances between measures, and between networks."""

from otflow.metrics import symmetries
from otflow.metrics.assignments import assignment
from otflow.metrics.bounds import Bounds, wasserstein2_bounds
from otflow.metrics.bracket import Bracket
from otflow.metrics.distances import wasserstein2, wasserstein2_squared
from otflow.metrics.divergences import sinkhorn_divergence
from otflow.metrics.geodesics import action, aligned_ends, geodesic, length
from otflow.metrics.plans import Plan, transport_plan
from otflow.metrics.quotients import align, best_matching, quotient_distance

__all__ = [
    "Bounds",
    "Bracket",
    "Plan",
    "action",
    "align",
    "aligned_ends",
    "assignment",
    "best_matching",
    "geodesic",
    "length",
    "quotient_distance",
    "sinkhorn_divergence",
    "symmetries",
    "transport_plan",
    "wasserstein2",
    "wasserstein2_bounds",
    "wasserstein2_squared",
]


def __dir__() -> list[str]:
    return __all__
