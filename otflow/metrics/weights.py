"""Derivatives of a distance in the weights: the potentials of a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._graphs import records
from otflow.metrics.forest import Forest, potentials
from otflow.metrics.inputs import Cloud
from otflow.metrics.plans import Plan

__all__ = ["is_weighted", "weight_slope", "weight_term"]


def is_weighted(*both: Cloud) -> bool:
    """Return whether a gradient in weights may be asked for."""
    return any(c.weights is not None and records(c.weights) for c in both)


def weight_term(p: Cloud, q: Cloud, plan: Plan, distances: Tensor) -> Tensor:
    """Return a term of value 0 whose gradient in the weights is the potential.

    The potentials carry the graph of the points. So derivatives of the first variation
    and of the velocity are right too.
    """
    forest = Forest(plan.rows, plan.columns, plan.masses, p.masses, q.masses)
    return weight_slope(p, q, *potentials(forest, distances, plan.f, plan.g))


def weight_slope(p: Cloud, q: Cloud, f: Tensor, g: Tensor) -> Tensor:
    """Return a term of value 0 whose gradient in the weights is the potential."""
    term = f.new_zeros(())
    for own, potential in ((p, f), (q, g)):
        if own.weights is not None and own.weights.requires_grad:
            a = own.weights.to("cpu", torch.float64)
            a = a / a.sum()
            term = term + (a - a.detach()) @ potential
    return term
