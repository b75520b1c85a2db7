"""What the reports of the steps of a run say of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from otflow.analysis.findings import StepFinding, Verdict
from otflow.functionals.base import Functional
from otflow.proximal import Certificate, Guarantee
from otflow.proximal.certificate import CERTIFYING, NESTED, ROUND_OFF
from otflow.trajectory import Trajectory

__all__ = ["doubt_of_modulus", "is_random", "loss_of_steps", "steps_of"]

# Entries of the schemes that draw noise, data or copies of atoms.
RANDOM = ("temperature", "level", "batch_energy", "resampled")


def steps_of(run: Trajectory[Any]) -> Iterator[StepFinding]:
    """Yield what is known of each step."""
    recorded = {}
    if "energy" in run.records:
        energies = run.records["energy"].double().tolist()
        recorded = dict(zip(run.steps.tolist(), energies, strict=True))
    noise = ROUND_OFF * torch.finfo(run.final.dtype).eps
    for k, report in enumerate(run.info):
        before, after = report.energy_before, report.energy_after
        # A draw of data has another energy than F.
        if "batch_energy" in report.entries or before is None or after is None:
            before, after = recorded.get(k), recorded.get(k + 1)
        energy = Verdict.UNKNOWN
        if before is not None and after is not None:
            slack = noise * max(abs(before), abs(after))
            # Without convergence the noise is a residual, which may hide a rise.
            if report.converged:
                slack = max(slack, report.noise or 0.0)
            energy = Verdict.FAILED if after - before > slack else Verdict.OBSERVED
        # A random step promises no fall, and noise leaves the entropy out of it.
        rose = energy == Verdict.FAILED
        if is_random(report, "temperature") or (rose and is_random(report)):
            energy = Verdict.UNKNOWN
        leaves = list(_leaves(report))
        claims = [leaf.guarantee for leaf in leaves if leaf.guarantee is not None]
        words = " + ".join(dict.fromkeys(map(str, claims))) or None
        exact, bound = _distance(leaves)
        yield StepFinding(k, report.dt, before, after, energy, words, exact, bound)


def _distance(leaves: Sequence[Certificate]) -> tuple[Verdict, float | None]:
    """Return how far the exact step from the start of each part is known to be."""
    # A guarantee about the functional of a draw of data is none about F.
    claims = [
        None if "batch_energy" in leaf.entries else leaf.guarantee for leaf in leaves
    ]
    bounds = [leaf.bound for leaf in leaves if leaf.bound is not None]
    if all(c == Guarantee.EXACT for c in claims) and len(bounds) == len(leaves):
        return Verdict.PROVED, max(bounds)
    known = [claim for claim in claims if claim is not None]
    if not known:
        return Verdict.UNKNOWN, None
    if all(claim in CERTIFYING for claim in known):
        return Verdict.OBSERVED, None
    return Verdict.FAILED if Guarantee.NONE in known else Verdict.UNKNOWN, None


def _leaves(report: Certificate) -> Iterator[Certificate]:
    """Yield the reports of the parts of a step that have no parts themselves.

    The stages of a step of higher order are no steps: it is one part.
    """
    names = [name for name in NESTED if name != "stages"]
    inner = [part for name in names for part in report.entries.get(name, ())]
    if not inner:
        yield report
    for part in inner:
        yield from _leaves(part)


def is_random(report: Certificate, *words: str) -> bool:
    """Return whether a step draws numbers, as one of these entries says."""
    entries = {name for leaf in _leaves(report) for name in leaf.entries}
    return not entries.isdisjoint(words or RANDOM)


def doubt_of_modulus(run: Trajectory[Any], F: Functional, dim: int) -> str | None:
    """Return why the steps used a modulus that F does not state, None if none did."""
    own = F.modulus(dim)
    for k, report in enumerate(run.info):
        for leaf in _leaves(report):
            used = leaf.modulus
            if used is None or leaf.guarantee is None:
                continue
            if own is None or used > own + 1e-9 * abs(own):
                return f"step {k} used the modulus {used:g}, and F states {own}"
    return None


def loss_of_steps(run: Trajectory[Any]) -> tuple[int, str | None]:
    r"""Return how many exact steps lost enough energy, and which one did not.

    With :math:`\nu = \mu^k` in the evolution variational inequality, an exact step of
    length :math:`d_*` loses at least :math:`(1/\tau + \lambda/2)\,d_*^2`. The end of
    the step is within b of that of the exact step, and its objective within :math:`b^2
    (1/\tau + \lambda)`. So a step of length d loses at least :math:`\tfrac12(1/\tau +
    \lambda)(d - b)_+^2 + d^2/2\tau - b^2(1/\tau + \lambda)`.
    """
    count = 0
    for k, report in enumerate(run.info):
        tried = False
        for leaf in _leaves(report):
            before, after, d = leaf.energy_before, leaf.energy_after, leaf.w2
            tau, b, modulus = leaf.dt, leaf.bound, leaf.modulus
            if before is None or after is None or d is None or not tau:
                continue
            known = leaf.guarantee == Guarantee.EXACT and "w2_upper" not in leaf
            if not known or b is None or modulus is None:
                continue
            tried, weight = True, 1 / tau + modulus
            least = 0.5 * weight * max(d - b, 0.0) ** 2 + d * d / (2 * tau)
            missing = least - b * b * weight - (before - after)
            if missing > (leaf.noise or 0.0):
                text = (
                    f"the modulus {modulus:g} is refuted: step {k} lost "
                    f"{before - after:.6g}, {missing:.3g} less than an exact step"
                )
                return count, text
        count += tried
    return count, None
