"""Distances between measures, and between networks."""

from otflow.metrics import symmetries
from otflow.metrics.assignment import assignment
from otflow.metrics.geodesic import action, aligned_ends, geodesic, length
from otflow.metrics.plan import Plan, transport_plan
from otflow.metrics.quotient import align, best_matching, quotient_distance
from otflow.metrics.sinkhorn import sinkhorn_divergence
from otflow.metrics.wasserstein import wasserstein2, wasserstein2_squared

__all__ = [
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
    "wasserstein2_squared",
]
