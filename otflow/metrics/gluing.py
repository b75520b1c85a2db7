"""Glue plans from one measure to several into one coupling of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from otflow.metrics.line import staircase
from otflow.metrics.plans import Plan

__all__ = ["glue"]


def glue(plans: Sequence[Plan]) -> tuple[Tensor, list[Tensor], Tensor]:
    r"""Return a coupling of a base measure with others whose plans are given.

    Given the atom of the base, the atoms of the others are coupled in the order of
    their indices. So the projection on the base and one other is the plan between both,
    and there are fewer cells than in all plans together.

    Parameters
    ----------
    plans : sequence of Plan
        Plans from one base measure, in float64.

    Returns
    -------
    rows : Tensor, shape (k,), int64
        Atoms of the base, non-decreasing.
    columns : list of Tensor, shape (k,), int64
        Atoms of the others.
    masses : Tensor, shape (k,)
        Positive masses of sum 1.
    """
    rows, first, masses = _sorted(plans[0])
    columns = [first]
    for plan in plans[1:]:
        other_rows, others, other_masses = _sorted(plan)
        i, j, shared, *_ = staircase(
            rows.double(), masses, other_rows.double(), other_masses
        )
        # Levels of both differ by round-off: slivers join different atoms of the base.
        same = rows[i] == other_rows[j]
        i, j, masses = i[same], j[same], shared[same]
        rows, columns = rows[i], [*(column[i] for column in columns), others[j]]
    # A cell alone in its row has the mass of its atom; the others are differences of
    # levels, whose round-off leaves slivers beside larger cells.
    atoms = int(rows.max()) + 1
    own = masses.new_zeros(atoms).index_add(0, *_sorted(plans[0])[::2])
    count = rows.bincount(minlength=atoms)
    masses = torch.where(count[rows] == 1, own[rows], masses)
    noise = len(rows) * torch.finfo(masses.dtype).eps
    kept = (masses > noise) | (own[rows] <= noise) | (count[rows] == 1)
    masses = masses[kept]
    return rows[kept], [c[kept] for c in columns], masses / masses.sum()


def _sorted(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells with mass, by rows."""
    full = (plan.masses > 0).nonzero()[:, 0]
    full = full[plan.rows[full].argsort(stable=True)]
    masses = plan.masses[full]
    return plan.rows[full], plan.columns[full], masses / torch.sum(masses)
