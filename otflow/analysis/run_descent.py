"""Whether the energy of a run fell, and by how much it rose where it did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from otflow.analysis.findings import Finding, StepFinding, Verdict
from otflow.analysis.roundoff import shaken
from otflow.analysis.run_steps import is_random, is_smoothed, may_rise, prescribed
from otflow.functionals.base import Functional
from otflow.proximal.certificate import ROUND_OFF
from otflow.trajectory import Trajectory

__all__ = ["energy_of", "settled"]

NAME = "energy"
# Draws of the round-off inside of F, and by how much it may exceed them.
DRAWS, MARGIN = 3, 8.0


def settled(
    run: Trajectory[Any], F: Functional, steps: Sequence[StepFinding]
) -> tuple[StepFinding, ...]:
    """Return the steps; a rise that the round-off inside of F explains is none.

    The size of F does not tell the round-off of an F whose large terms cancel.
    """
    if not any(step.energy == Verdict.FAILED for step in steps):
        return tuple(steps)
    noise = _round_off(run, F)
    return tuple(
        replace(step, energy=Verdict.OBSERVED)
        if step.energy == Verdict.FAILED and _rise(step) <= noise
        else step
        for step in steps
    )


def energy_of(
    run: Trajectory[Any], F: Functional, steps: Sequence[StepFinding]
) -> Finding:
    """Return whether the steps, or else the records, fell."""
    known = [s for s in steps if s.energy != Verdict.UNKNOWN]
    rises = [s for s in known if s.energy == Verdict.FAILED]
    of = f"of {len(steps)} steps"
    if rises:
        text = (
            f"rose in {len(rises)} {of}, first in step {rises[0].step}, by at most "
            f"{max(map(_rise, rises)):.3g}"
        )
        return Finding(NAME, Verdict.FAILED, float(len(rises)), text)
    if any(map(may_rise, run.info)):
        return _allowed(run, steps)
    if len(known) == len(steps) and steps:
        largest = max(map(_rise, steps))
        beyond = f" beyond round-off, {largest:.2g}," if largest > 0 else ""
        text = f"did not rise{beyond} in any {of}, {_ends(run)}"
        return Finding(NAME, Verdict.OBSERVED, 0.0, text)
    random = sum(map(is_random, run.info))
    if random:
        text = f"{random} {of} are random, and a random step may raise the energy"
    elif any(map(is_smoothed, run.info)):
        text = "the records leave out the entropy, which particles do not have"
    elif len(run.records.get(NAME, ())) > 1:
        return _between_records(run, F)
    else:
        text = f"known at both ends of {len(known)} {of}: record each, every=1"
    return Finding(NAME, Verdict.UNKNOWN, None, text)


def _allowed(run: Trajectory[Any], steps: Sequence[StepFinding]) -> Finding:
    """Return how often and how much a scheme raised the energy that may do so."""
    ups = [rise for step in steps if (rise := _rise(step)) > 0]
    text = f"rose in {len(ups)} of {len(steps)} steps"
    text += f", by at most {max(ups):.3g}" if ups else ""
    if any(map(prescribed, run.info)):
        text += (
            "; that is normal for plain Frank-Wolfe, whose step length is prescribed, "
            "as 2/(k + 2), and does not look at the energy"
        )
    else:
        text += "; the scheme says of its steps that they need not lower it"
    return Finding(NAME, Verdict.OBSERVED, float(len(ups)), text)


def _between_records(run: Trajectory[Any], F: Functional) -> Finding:
    """Compare successive records, where single steps were not recorded."""
    energies = run.records[NAME].double()
    size = torch.maximum(energies[1:].abs(), energies[:-1].abs())
    slack = ROUND_OFF * torch.finfo(run.final.dtype).eps * size
    changes = energies.diff()
    if bool((changes > slack).any()):
        slack = slack.clamp(min=_round_off(run, F))
    rose = (changes > slack).nonzero()[:, 0].tolist()
    pairs = f"of {len(changes)} pairs of successive records"
    if not rose:
        text = (
            f"did not rise between any {pairs}, {_ends(run)}; the steps between them "
            f"were not recorded"
        )
        return Finding(NAME, Verdict.OBSERVED, 0.0, text)
    first, last = run.steps[rose[0]], run.steps[rose[0] + 1]
    text = (
        f"rose between {len(rose)} {pairs}, first from step {int(first)} to step "
        f"{int(last)}, by at most {float(changes.max()):.3g}"
    )
    return Finding(NAME, Verdict.FAILED, float(len(rose)), text)


def _rise(step: StepFinding) -> float:
    if step.energy_before is None or step.energy_after is None:
        return 0.0
    return step.energy_after - step.energy_before


def _ends(run: Trajectory[Any]) -> str:
    first, last = (float(run.records[NAME][k]) for k in (0, -1))
    return f"{first:.6g} to {last:.6g}"


def _round_off(run: Trajectory[Any], F: Functional) -> float:
    """Return the round-off of a value of F, as random last places inside of F show."""
    return MARGIN * max(_shakes(run, F), default=0.0)


def _shakes(run: Trajectory[Any], F: Functional) -> Iterator[float]:
    # What has no value was said to have none before.
    with torch.no_grad():
        for mu in (run.final, *run.snapshots[:1]):
            try:
                value = float(F.value(mu))
                for seed in range(DRAWS):
                    yield abs(_shaken(F, mu, seed) - value)
            except Exception:
                continue


def _shaken(F: Functional, mu: Any, seed: int) -> float:
    return shaken(lambda _: float(F.value(mu)), mu.weights, seed)
