"""The modulus on which the proofs of a run rest, tried by its own steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from otflow.analysis.certificates import check_each_step
from otflow.analysis.evi import check_proximal, evolution_variational_inequality
from otflow.analysis.findings import Finding, Verdict
from otflow.analysis.run_steps import has_mobility
from otflow.errors import NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.measures import Measure
from otflow.proximal import Guarantee
from otflow.schemes.reports import parts_of
from otflow.trajectory import Trajectory

__all__ = ["doubt_of_modulus", "modulus_of"]

NAME = "modulus"


def modulus_of(
    run: Trajectory[Any],
    F: Functional,
    nus: Sequence[tuple[str, Measure]],
    found: Sequence[tuple[str, Measure]] = (),
) -> Finding:
    """Try the modulus of F by the energy that steps lost, and against measures.

    Those that were found, and not asked for, count where they contradict it.
    """
    count, refuted = _loss_of_steps(run)
    if refuted is not None:
        return Finding(NAME, Verdict.FAILED, None, refuted)
    for named in found:
        tried = _against(run, F, [named])
        if tried.verdict == Verdict.FAILED:
            return tried
    if nus:
        reason = _untried(run, F)
        if reason is not None:
            return Finding(NAME, Verdict.UNKNOWN, None, reason)
        return _against(run, F, nus)
    if not count:
        text = (
            "not tried: only a JKO step with the guarantee 'exact' can contradict a "
            "modulus, and the run has none"
        )
        if any(map(has_mobility, run.info)):
            text = "not tried: it is one of W2, and the steps have a mobility"
        return Finding(NAME, Verdict.UNKNOWN, None, text)
    text = (
        f"no step contradicts it: {count} lost as much as an exact step must; "
        f"certify(run, F, against=[nu]) tries it further"
    )
    return Finding(NAME, Verdict.OBSERVED, None, text)


def _against(
    run: Trajectory[Any], F: Functional, nus: Sequence[tuple[str, Measure]]
) -> Finding:
    least, tried = math.inf, 0.0
    for name, nu in nus:
        try:
            found = evolution_variational_inequality(F, run, nu)
        except (Unsupported, NonFinite, ValueError) as error:
            text = f"not tried against {name}: {error}"
            return Finding(NAME, Verdict.UNKNOWN, None, text)
        least, tried = min(least, float(found.slack.min())), found.modulus
        if found.holds:
            continue
        # A step that may be far from the exact one refutes nothing.
        violated = [int(k) for k in found.violated]
        exact = [k for k in violated if run.info[k].guarantee == Guarantee.EXACT]
        k = (exact or violated)[0]
        verdict, text = Verdict.FAILED, f"the modulus {tried:g} is refuted by step {k}"
        if not exact:
            verdict, text = Verdict.UNKNOWN, f"no bound says how exact step {k} is"
        text += (
            f": its inequality with {name} (evolution_variational_inequality) fails by "
            f"{-found.slack[k]:.3g}"
        )
        return Finding(NAME, verdict, float(found.slack[k]), text)
    several = f"{len(nus)} measure{'s' * (len(nus) != 1)}"
    text = (
        f"no step contradicts {tried:g}: its inequality with {several} holds, which "
        f"proves nothing of others"
    )
    return Finding(NAME, Verdict.OBSERVED, least, text)


def _untried(run: Trajectory[Any], F: Functional) -> str | None:
    """Return why measures cannot try a modulus, by a cure that a report has."""
    try:
        check_proximal(run)
        check_each_step(run)
    except (Unsupported, ValueError) as error:
        return f"not tried against the measures given: {error}"
    if F.modulus(run.final.dim) is None:
        return (
            f"no modulus of F is known, as F.why({run.final.dim}) tells, and so none "
            f"was tried; try one by evolution_variational_inequality(F, run, nu, "
            f"modulus=...)"
        )
    return None


def doubt_of_modulus(run: Trajectory[Any], F: Functional, dim: int) -> str | None:
    """Return why the steps used a modulus that F does not state, None if none did."""
    own = F.modulus(dim)
    for k, report in enumerate(run.info):
        for leaf in parts_of(report, of_all=True):
            used = leaf.modulus
            if used is None or leaf.guarantee is None:
                continue
            if own is None or used > own + 1e-9 * abs(own):
                return f"step {k} used the modulus {used:g}, and F states {own}"
    return None


def _loss_of_steps(run: Trajectory[Any]) -> tuple[int, str | None]:
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
        own = list(parts_of(report, of_all=True))
        for leaf in parts_of(report):
            before, after, d = leaf.energy_before, leaf.energy_after, leaf.w2
            tau, b, modulus = leaf.dt, leaf.bound, leaf.modulus
            if before is None or after is None or d is None or not tau:
                continue
            known = leaf.guarantee == Guarantee.EXACT and "w2_upper" not in leaf
            if not known or b is None or modulus is None:
                continue
            # A step of one part may refute the modulus of a term, and supports none.
            tried = tried or any(leaf is one for one in own)
            weight = 1 / tau + modulus
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
