"""Optimal couplings that carry each atom to one of its label."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from otflow.measures import Particles
from otflow.measures.labelled import LabelledParticles
from otflow.metrics import assignment, transport_plan

__all__ = ["Coupled", "assigned", "planned"]


class Coupled(NamedTuple):
    """A plan: cell k moves ``masses[k]`` from atom ``rows[k]`` to ``columns[k]``."""

    rows: Tensor
    columns: Tensor
    masses: Tensor
    cost: float


def assigned(source: Particles, nu: Particles) -> Tensor:
    """Return the optimal assignment of atoms of equal mass, within labels if any.

    Parameters
    ----------
    source, nu : Particles
        Two measures of n atoms each, with the same labels by index.

    Returns
    -------
    Tensor of int64, shape (n,)
        Atom i of `source` goes to atom ``index[i]`` of `nu`.
    """
    if not isinstance(source, LabelledParticles):
        return assignment(source.points, nu.points)
    index = torch.arange(source.n, device=source.device)
    for atoms in _shared(source):
        within = assignment(source.points[atoms], nu.points[atoms])
        index[atoms] = atoms[within]
    return index


def planned(source: Particles, nu: Particles) -> Coupled:
    """Return the optimal plan of atoms of other masses, within labels if any.

    Parameters
    ----------
    source, nu : Particles
        Two measures of n atoms each, with the same masses and labels by index.

    Returns
    -------
    Coupled
        The plan and its cost.
    """
    if not isinstance(source, LabelledParticles):
        plan = transport_plan(source, nu)
        return Coupled(plan.rows, plan.columns, plan.masses, float(plan.cost))
    x, y, w = source.points, nu.points, source.weights
    alone = torch.ones_like(w, dtype=torch.bool)
    parts: list[Coupled] = []
    for atoms in _shared(source):
        mass = w[atoms].sum()
        if not float(mass) > 0:
            continue
        share = w[atoms] / mass
        plan = transport_plan(Particles(x[atoms], share), Particles(y[atoms], share))
        alone[atoms] = False
        rows, columns = atoms[plan.rows], atoms[plan.columns]
        cost = float(mass) * float(plan.cost)
        parts.append(Coupled(rows, columns, plan.masses * mass, cost))
    here = alone.nonzero()[:, 0]
    kept = float(w[here] @ (x[here] - y[here]).square().sum(-1))
    parts.append(Coupled(here, here, w[here], kept))
    return Coupled(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.columns for part in parts]),
        torch.cat([part.masses for part in parts]),
        sum(part.cost for part in parts),
    )


def _shared(source: LabelledParticles) -> list[Tensor]:
    """Return the atoms of each label that several atoms share."""
    groups = source.groups()
    if int(groups.max()) + 1 == source.n:
        return []
    ends = groups.bincount().cumsum(0)[:-1].cpu()
    parts = groups.argsort(stable=True).tensor_split(ends)
    return [part for part in parts if len(part) > 1]
