"""What the reports of the steps of a run say of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from otflow.analysis.findings import Finding, StepFinding, Verdict
from otflow.proximal import Certificate, Guarantee
from otflow.proximal.certificate import CERTIFYING, ROUND_OFF
from otflow.schemes.reports import levels_of, may_rise, parts_of, prescribed
from otflow.trajectory import Trajectory

__all__ = [
    "gap_of_steps",
    "has_mobility",
    "inserts_atoms",
    "is_random",
    "is_smoothed",
    "lowers_another",
    "may_rise",
    "parts_of",
    "prescribed",
    "reacts",
    "steps_of",
]

# Entries of the schemes that draw noise, data or copies of atoms.
RANDOM = ("temperature", "level", "batch_energy", "batch_gap", "resampled")


def steps_of(run: Trajectory[Any]) -> Iterator[StepFinding]:
    """Yield what is known of each step."""
    recorded = {}
    if "energy" in run.records:
        energies = run.records["energy"].double().tolist()
        recorded = dict(zip(run.steps.tolist(), energies, strict=True))
    times = dict(zip(run.steps.tolist(), run.times.tolist(), strict=True))
    noise = ROUND_OFF * torch.finfo(run.final.dtype).eps
    for k, report in enumerate(run.info):
        before, after = report.energy_before, report.energy_after
        # A draw of data, or another temperature, has another energy than F.
        if lowers_another(report) or before is None or after is None:
            before, after = recorded.get(k), recorded.get(k + 1)
        energy = Verdict.UNKNOWN
        if before is not None and after is not None:
            slack = noise * max(abs(before), abs(after))
            # Without convergence the noise is a residual, which may hide a rise.
            if report.converged:
                slack = max(slack, report.noise or 0.0)
            energy = Verdict.FAILED if after - before > slack else Verdict.OBSERVED
        # Some steps promise no fall, and some leave the entropy out of the energy.
        rose = energy == Verdict.FAILED
        hidden = any("temperature" in leaf.entries for leaf in parts_of(report))
        if hidden or (rose and (is_random(report) or may_rise(report))):
            energy = Verdict.UNKNOWN
        leaves = list(parts_of(report))
        claims = [leaf.guarantee for leaf in leaves if leaf.guarantee is not None]
        words = " + ".join(dict.fromkeys(map(str, claims))) or None
        if words and len(claims) < len(leaves):
            words += f" in {len(claims)} of {len(leaves)} parts"
        exact, bound = _distance(leaves)
        if lowers_another(report):
            exact, bound = Verdict.UNKNOWN, None
        dt = report.dt
        if dt is None and k in times and k + 1 in times:
            dt = times[k + 1] - times[k]
        yield StepFinding(k, dt, before, after, energy, words, exact, bound)


def gap_of_steps(run: Trajectory[Any]) -> Finding:
    """Return the least gap that the steps themselves report, as Frank-Wolfe's do."""
    name, of_draws = "step gap", 0
    told: list[tuple[bool, float, int, str]] = []
    for k, report in enumerate(run.info):
        for entries in (leaf.entries for leaf in parts_of(report)):
            gap, kind = entries.get("gap"), entries.get("gap_kind")
            if gap is None or kind not in ("proved", "searched"):
                continue
            if "batch_gap" in report.entries or is_random(report, "batch_gap"):
                of_draws += 1
                continue
            reason = str(entries.get("gap_reason"))
            told.append((kind == "searched", float(gap), k, reason))
    if not told:
        text = "no step tells a gap, as those of FrankWolfe do"
        if of_draws:
            text = f"the gaps of {of_draws} steps are those of draws of data, not of F"
        return Finding(name, Verdict.UNKNOWN, None, text)
    searched, gap, k, reason = min(told, key=lambda row: row[:2])
    verdict = Verdict.OBSERVED if searched else Verdict.PROVED
    text = (
        f"F - inf F <= {gap:.6g} before step {k}, over the domain of the scheme, "
        f"{'searched' if searched else 'proved'}: {reason}"
    )
    return Finding(name, verdict, gap, text)


def _distance(leaves: Sequence[Certificate]) -> tuple[Verdict, float | None]:
    """Return how far the exact step from the start of each part is known to be."""
    # A guarantee about another functional than F is none about F.
    claims = [None if lowers_another(leaf) else leaf.guarantee for leaf in leaves]
    bounds = [leaf.bound for leaf in leaves if leaf.bound is not None]
    if all(c == Guarantee.EXACT for c in claims) and len(bounds) == len(leaves):
        return Verdict.PROVED, max(bounds)
    known = [claim for claim in claims if claim is not None]
    if not known:
        return Verdict.UNKNOWN, None
    if all(claim in CERTIFYING for claim in known):
        return Verdict.OBSERVED, None
    return Verdict.FAILED if Guarantee.NONE in known else Verdict.UNKNOWN, None


def is_random(report: Certificate, *words: str) -> bool:
    """Return whether a step draws numbers, as one of these entries says."""
    for leaf in levels_of(report):
        entries = set(leaf.entries)
        if is_smoothed(leaf):
            entries.discard("temperature")
        if not entries.isdisjoint(words or RANDOM):
            return True
        # Which atoms jump and are born is drawn. On a grid the share of births is not.
        born = leaf.entries.get("born")
        if not words and isinstance(born, int) and born > 0:
            return True
    return False


def reacts(report: Certificate) -> bool:
    """Return whether a step moves mass from place to place, as birth and death do."""
    return any("effective_size" in leaf.entries for leaf in parts_of(report))


def lowers_another(report: Certificate) -> bool:
    """Return whether a step is one of another functional than F, in whole or part.

    That of a draw of data is another one, and so is F at another temperature, or F in
    one part of a measure.
    """
    return any(
        not one.entries.keys().isdisjoint(("batch_energy", "part"))
        or one.entries.get("annealed", 1.0) != 1.0
        for one in levels_of(report)
    )


def is_smoothed(report: Certificate) -> bool:
    """Return whether a step smooths the velocity of F, as one of SVGD."""
    return any("smoothed" in leaf.entries for leaf in parts_of(report))


def has_mobility(report: Certificate) -> bool:
    """Return whether a step is one in the metric of a mobility, and not of W2."""
    return any("mobility" in leaf.entries for leaf in parts_of(report))


def inserts_atoms(report: Certificate) -> bool:
    """Return whether a step gives mass to new atoms, as one of Frank-Wolfe."""
    return any("gap_kind" in leaf.entries for leaf in parts_of(report))
