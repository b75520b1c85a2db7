"""The energies of a run, computed again by the functional it is said to have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from otflow.analysis.findings import Finding, Verdict
from otflow.analysis.run_steps import parts_of
from otflow.errors import InvalidFunctional, NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import ROUND_OFF
from otflow.trajectory import Trajectory

__all__ = ["functional_of"]

# Difference of an energy from that of the record, in units of the round-off of a sum.
SAME = 16 * ROUND_OFF
# An energy of this share of the largest one tells no functional from its multiples.
NOTHING = 1e-6


def functional_of(run: Trajectory[Any], F: Functional) -> Finding:
    """Compare the energies of the measures that were kept with the records."""
    _check_temperature(run, F)
    name, energies = "functional", run.records.get("energy")
    rows = {step: row for row, step in enumerate(run.steps.tolist())}
    worst, count, left_out, seen = 0.0, 0, False, 0.0
    for mu, step in _kept(run):
        if energies is None or step not in rows:
            continue
        recorded, found = float(energies[rows[step]]), _energies(F, mu)
        if not found:
            text = f"F has no value on a {type(mu).__name__}, so it was not compared"
            return Finding(name, Verdict.UNKNOWN, None, text)
        nearest = min(found, key=lambda value: abs(value - recorded))
        error = abs(nearest - recorded)
        scale = float(energies.double().abs().max())
        if not error <= SAME * _precision(energies) * scale:
            was, given = _apart(recorded, nearest)
            msg = (
                f"F is not the functional of the run: at step {step} the run recorded "
                f"the energy {was}, and {F!r} gives {given}; pass the functional that "
                f"was given to flow"
            )
            raise InvalidFunctional(msg)
        seen = max(seen, abs(recorded) / scale if scale else 1.0)
        left_out = left_out or nearest != found[0] or len(found) == 1
        worst, count = max(worst, error / scale if scale else 0.0), count + 1
    left_out = left_out and F.split_entropy()[0] != 0
    if not count:
        text = "no measure was kept at a recorded time, so F was not compared"
        return Finding(name, Verdict.UNKNOWN, None, text)
    text = f"F gives the recorded energy of {count} measure{'s' * (count != 1)} again"
    if worst:
        text += f", with relative differences of at most {worst:.2g}"
    if left_out:
        text += "; the records are without the entropy"
    if worst > SAME * torch.finfo(run.final.dtype).eps:
        text += "; that is no round-off of this dtype"
        return Finding(name, Verdict.UNKNOWN, worst, text)
    if seen < NOTHING:
        text += "; they are near 0, as those of every multiple of F: keep snapshots"
        return Finding(name, Verdict.UNKNOWN, worst, text)
    return Finding(name, Verdict.OBSERVED, worst, text)


def _kept(run: Trajectory[Any]) -> Iterator[tuple[Measure, int]]:
    """Yield the snapshots, and the end if it is none, each with its number of steps."""
    kept = list(zip(run.snapshots, run.snapshot_steps.tolist(), strict=True))
    yield from kept
    if run.bookmark is not None:
        made = run.bookmark.made
    elif len(run.steps):
        made = int(run.steps[0]) + len(run.info)
    else:
        return
    # The steps of a trajectory that was made by hand may be unknown.
    if made not in [step for _, step in kept] and made == int(run.steps[-1]):
        yield run.final, made


def _apart(a: float, b: float) -> tuple[str, str]:
    """Return two numbers as texts, of as many digits as tell them apart."""
    digits = next((n for n in range(6, 17) if f"{a:.{n}g}" != f"{b:.{n}g}"), 17)
    return f"{a:.{digits}g}", f"{b:.{digits}g}"


def _check_temperature(run: Trajectory[Any], F: Functional) -> None:
    """Raise InvalidFunctional if the noise was not that of the entropy in F.

    The recorded energies are without the entropy, and cannot tell it.
    """
    own = F.split_entropy()[0]
    for k, report in enumerate(run.info):
        for leaf in parts_of(report):
            used = leaf.entries.get("temperature")
            # The entropy of a draw of data may have another factor.
            if used is None or "batch_energy" in report.entries:
                continue
            if abs(used - own) > 1e-6 * max(abs(used), abs(own)):
                was, given = _apart(used, own)
                msg = (
                    f"F is not the functional of the run: step {k} took F to hold "
                    f"{was} * Entropy(), and {F!r} holds {given} * Entropy(); pass the "
                    f"functional that was given to flow"
                )
                raise InvalidFunctional(msg)


def _precision(energies: Tensor) -> float:
    """Return the round-off of recorded energies, in the dtype of the flow.

    A run in float32 that was moved to float64 has the energies that it had.
    """
    narrow = bool((energies.float().to(energies) == energies).all())
    return torch.finfo(torch.float32 if narrow else energies.dtype).eps


def _energies(F: Functional, mu: Measure) -> list[float]:
    """Return F and F without its entropy, those of them that have a value."""
    temperature, rest = F.split_entropy()
    found = []
    for G in (F, rest) if temperature else (F,):
        with torch.no_grad(), suppress(Unsupported, NonFinite):
            found.append(float(G.value(mu)))
    return found
