"""Distances between measures, and between networks."""

from otflow.metrics import symmetries
from otflow.metrics.assignments import assignment
from otflow.metrics.barycenters import BarycenterResult, barycenter
from otflow.metrics.batches import batched_wasserstein2_squared
from otflow.metrics.bounds import Bounds, wasserstein2_bounds
from otflow.metrics.bracket import Bracket
from otflow.metrics.costs import least_cost_plan, transport_cost
from otflow.metrics.distances import wasserstein2, wasserstein2_squared
from otflow.metrics.divergences import sinkhorn_divergence
from otflow.metrics.entropic_plans import EntropicPlan, entropic_plan
from otflow.metrics.geodesics import aligned_ends, generalized_geodesic, geodesic
from otflow.metrics.laguerre_plans import semidiscrete_plan
from otflow.metrics.lengths import action, length
from otflow.metrics.maps import TransportMap
from otflow.metrics.moments import gelbrich
from otflow.metrics.plans import Plan, transport_plan
from otflow.metrics.powers import wasserstein
from otflow.metrics.quotients import (
    align,
    aligned_networks,
    best_matching,
    quotient_distance,
)
from otflow.metrics.semidiscrete_plans import SemidiscretePlan

__all__ = [
    "BarycenterResult",
    "Bounds",
    "Bracket",
    "EntropicPlan",
    "Plan",
    "SemidiscretePlan",
    "TransportMap",
    "action",
    "align",
    "aligned_ends",
    "aligned_networks",
    "assignment",
    "barycenter",
    "batched_wasserstein2_squared",
    "best_matching",
    "entropic_plan",
    "gelbrich",
    "generalized_geodesic",
    "geodesic",
    "least_cost_plan",
    "length",
    "quotient_distance",
    "semidiscrete_plan",
    "sinkhorn_divergence",
    "symmetries",
    "transport_cost",
    "transport_plan",
    "wasserstein",
    "wasserstein2",
    "wasserstein2_bounds",
    "wasserstein2_squared",
]


def __dir__() -> list[str]:
    return __all__
