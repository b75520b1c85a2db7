"""The convexity along mixtures on which a gap rests, tried by values of F."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from otflow.analysis.findings import Finding, Verdict
from otflow.errors import NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.mixtures import excess, slacks
from otflow.measures import Measure
from otflow.trajectory import Trajectory

__all__ = ["mixture_of"]

NAME = "mixture"


def mixture_of(
    run: Trajectory[Any], F: Functional, nus: Sequence[tuple[str, Measure]]
) -> Finding:
    r"""Try the word of F at mixtures of the end with other measures.

    For a convex F the slack :math:`(1-t)F(\mu) + tF(\nu) - F((1-t)\mu + t\nu)` is not
    negative; for a linear F it is 0, for a concave F not positive.
    """
    word = F.mixture_curvature()
    if word is None:
        text = f"how F bends along mixtures is unknown, {F.why_mixture()}"
        return Finding(NAME, Verdict.UNKNOWN, None, text)
    word, reason = str(word), _reason(F)
    kept = run.snapshots
    others = [("the first snapshot", mu) for mu in kept[:1]]
    others += [("the snapshot in the middle", kept[len(kept) // 2])] if kept else []
    least, count = math.inf, 0
    for name, nu in (*nus, *others):
        try:
            found = list(slacks(F, run.final, nu))
        except (Unsupported, NonFinite, ValueError):
            continue
        for t, slack, noise in found:
            low = excess(word, slack)
            if low < -noise:
                text = (
                    f"F is declared {word} along mixtures{reason}, and that is false: "
                    f"at the mixture of the end, share {1 - t:g}, and {name}, share "
                    f"{t:g}, F is {abs(slack):.3g} {'above' if slack < 0 else 'below'} "
                    f"the mean of its values"
                )
                return Finding(NAME, Verdict.FAILED, slack, text)
            least = min(least, low)
        count += bool(found)
    text = f"F is {word} along mixtures{reason}"
    if not count:
        text += "; no value of F tried that, since F has no values at mixtures here"
        return Finding(NAME, Verdict.UNKNOWN, None, text)
    several = f"{count} other measure{'s' * (count != 1)}"
    text += (
        f"; values at mixtures of the end with {several} do not contradict that, which "
        f"proves nothing of others"
    )
    return Finding(NAME, Verdict.OBSERVED, least, text)


def _reason(F: Functional) -> str:
    """Return why, if F is one term; else the convexities of the report tell it."""
    return f", {F.why_mixture()}" if len(F.terms()) == 1 else ""
