r"""Values of F at mixtures: what they say of its convexity, beyond round-off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from otflow.functionals.base import Functional
from otflow.measures import Measure

__all__ = ["SHARES", "excess", "slacks"]

SHARES = (0.1, 0.5, 0.9)
# Units of round-off in a value. A change of the order of a sum shows a part of it.
ROUND_OFF, ORDERS = 256.0, 8.0


def excess(word: str, slack: float) -> float:
    """Return a slack, negative if it contradicts the word of a functional."""
    return {"linear": -abs(slack), "concave": -slack}.get(word, slack)


def slacks(
    F: Functional, mu: Measure, nu: Measure, shares: Sequence[float] = SHARES
) -> Iterator[tuple[float, float, float]]:
    r"""Yield shares t, slacks :math:`(1-t)F(\mu) + tF(\nu) - F(\mu_t)`, and round-off.

    Nothing, if F is no function of mixtures: its value at a measure must be that at the
    mixture of the measure with itself.
    """
    with torch.no_grad():
        ends = [float(F.value(end)) for end in (mu, nu)]
        halves = [float(F.value(end.mix(end, 0.5))) for end in (mu, nu)]
        size = sum(
            abs(c * float(term.value(end))) for c, term in F.terms() for end in (mu, nu)
        )
        rows = [
            (t, float(F.value(mu.mix(nu, t))), float(F.value(nu.mix(mu, 1 - t))))
            for t in shares
        ]
    eps = torch.finfo(mu.dtype).eps
    size = max(size, *(abs(value) for row in rows for value in row[1:]))
    noise = ROUND_OFF * eps * size + ORDERS * max(abs(a - b) for _, a, b in rows)
    # F that sees copies of an atom, as one without the diagonal, says nothing of
    # mixtures.
    off = max(abs(a - b) for a, b in zip(ends, halves, strict=True))
    if not math.isfinite(noise) or off > noise:
        return
    for t, value, _ in rows:
        yield t, (1 - t) * ends[0] + t * ends[1] - value, noise
