"""The warm start of an entropic step, and its form as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.grid.sinkhorn.blur import Told
from otflow.proximal.grid.sinkhorn.iteration import Plan
from otflow.proximal.grid.sinkhorn.problem import Iterate, pose
from otflow.proximal.terms import sort_terms

__all__ = ["Warm", "fitting", "packed", "unpacked"]


@dataclass(frozen=True)
class Warm(Plan):
    """The plan of the last step, and what was told of its blur in this flow."""

    told: Told | None


def fitting(warm: Any, mu: GridDensity) -> Warm | None:
    """Return the state of an earlier step if its arrays are on the same cells."""
    if not isinstance(warm, Warm):
        return None
    old = warm.problem.source
    alike = (old.box, old.dtype, old.device) == (mu.box, mu.dtype, mu.device)
    return warm if alike and torch.equal(old.is_free, mu.is_free) else None


def packed(warm: Warm) -> dict[str, Any]:
    """Return a warm start as plain data: F, which it holds, is left out."""
    problem, told = warm.problem, warm.told
    return {
        "source": problem.source,
        "dt": problem.dt,
        "eps": problem.kernel.eps,
        "safely": problem.safely,
        "iterate": warm.iterate._asdict(),
        "told": None if told is None else told.dts,
    }


def unpacked(F: Functional, kept: dict[str, Any]) -> Warm:
    """Return the warm start of a step of F of which `packed` made plain data."""
    source, told = kept["source"], kept["told"]
    problem = pose(sort_terms(F, source.dim), source, kept["dt"], kept["eps"], None)
    problem = replace(problem, safely=kept["safely"])
    known = None if told is None else Told(F, tuple(told))
    return Warm(problem, Iterate(**kept["iterate"]), known)
