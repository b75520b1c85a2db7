"""Distances between measures, and between networks."""

from otflow.metrics.assignment import assignment
from otflow.metrics.plan import Plan, transport_plan
from otflow.metrics.wasserstein import wasserstein2, wasserstein2_squared

__all__ = [
    "Plan",
    "assignment",
    "transport_plan",
    "wasserstein2",
    "wasserstein2_squared",
]
