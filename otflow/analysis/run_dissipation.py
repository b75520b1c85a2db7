"""The energy that a run lost, beside the integral of its squared velocity."""

from __future__ import annotations

from typing import Any

import torch

from otflow.analysis.certificates import energy_dissipation
from otflow.analysis.findings import Finding, Verdict
from otflow.analysis.run_steps import (
    inserts_atoms,
    is_random,
    is_smoothed,
    may_rise,
    reacts,
)
from otflow.errors import NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.measures import Measure, Particles
from otflow.trajectory import Trajectory

__all__ = ["ENDED", "dissipation_of"]

# Part of the larger one by which both may differ, as steps of a decent length do.
CLOSE = 0.25
# Steps of which the identity is none, and why.
OTHERS = (
    (is_random, "the identity is one of flows without noise"),
    (is_smoothed, "the identity is one of the velocity of F, and steps smoothed it"),
    (inserts_atoms, "the identity is one of transport alone, and atoms were new"),
    (may_rise, "the identity is one of gradient flows, and the steps are others"),
    (reacts, "the identity is one of transport alone, and masses changed by reaction"),
)
# Runs that ended as was asked.
ENDED = ("finished", "stopped", "running")


def dissipation_of(run: Trajectory[Any], F: Functional) -> Finding:
    """Compare both, where the identity is one of the run."""
    name, reason = "dissipation", _no_identity(run)
    if reason is not None:
        return Finding(name, Verdict.UNKNOWN, None, reason)
    try:
        found = energy_dissipation(F, run)
    except (Unsupported, NonFinite) as error:
        return Finding(name, Verdict.UNKNOWN, None, str(error))
    lost, spent = float(found.drop.sum()), float(found.dissipated.sum())
    text = (
        f"F fell by {lost:.6g}, and the integral of |v|^2 over the snapshots is "
        f"{spent:.6g}"
    )
    apart, size = abs(lost - spent), max(abs(lost), abs(spent))
    if apart <= CLOSE * size:
        return Finding(name, Verdict.OBSERVED, found.residual, text)
    text += f"; they differ by {100 * apart / size:.0f} %, so the sum says nothing: "
    if len(run) <= len(run.info):
        text += f"{len(run)} snapshots of {len(run.info)} steps are rare, take every=1"
    else:
        text += "the steps are long, take a smaller dt, or F has a kink"
    return Finding(name, Verdict.UNKNOWN, found.residual, text)


def _no_identity(run: Trajectory[Any]) -> str | None:
    """Return why the energy-dissipation identity says nothing of a run."""
    if run.status not in ENDED:
        return f"the status of the run is {run.status!r}, so it is not compared"
    for is_other, reason in OTHERS:
        if any(map(is_other, run.info)):
            return reason
    if len(run) < 2:
        return "fewer than two snapshots were kept"
    first, last = run.snapshots[0], run.snapshots[-1]
    if isinstance(last, Particles) and not _same_masses(first, last):
        return "the identity is one of transport alone, and masses changed"
    return None


def _same_masses(mu: Measure, nu: Measure) -> bool:
    return mu.n == nu.n and bool(torch.equal(mu.weights, nu.weights))
