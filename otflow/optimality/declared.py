"""A convexity along mixtures that is only declared, tried where a gap is least."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.functionals.mixtures import ROUND_OFF, excess, slacks
from otflow.functionals.reasons import unchecked
from otflow.measures import GridDensity, Measure, Particles
from otflow.optimality.gap import Gap, GapKind

__all__ = ["with_words_tried"]


def with_words_tried(F: Functional, mu: Measure, gap: Gap) -> Gap:
    """Return a gap that names what is declared; no gap, if values contradict that."""
    trusted = unchecked(F, Functional)
    if gap.kind == GapKind.NONE or not trusted:
        return gap
    for term, why in trusted:
        wrong = contradiction(term, mu, gap.argmin)
        if wrong is not None:
            reason = f"{why}, and that is false: {wrong}"
            return Gap(math.inf, gap.argmin, GapKind.NONE, reason, math.inf)
    words = "; ".join(why for _, why in trusted)
    return replace(gap, reason=f"{gap.reason}; not proved but declared: {words}")


def contradiction(term: Functional, mu: Measure, place: Tensor | None) -> str | None:
    r"""Return how values contradict the word of a term, or None.

    The value half way between a measure and a point mass is compared with the mean of
    both. The place of the least F' is where a false word makes a gap false. There it
    may bend nothing, as attraction at the mean. So the atom that is farthest from the
    place counts too.

    Parameters
    ----------
    term : Functional
        A functional with a word.
    mu : Measure
        Any measure.
    place : Tensor, shape (d,), or None
        The point; without one nothing is tried.

    Returns
    -------
    str or None
        The contradiction, beyond round-off.
    """
    mu = mu.detach()
    # A functional may know measures of one size alone, and say so by any error.
    try:
        with torch.no_grad():
            value = float(term.value(mu))
            for nu in _points(mu, place):
                slack = _slack(term, mu, value, nu)
                if slack is not None:
                    where = nu.points[nu.weights > 0][0].tolist()
                    side = "above" if slack < 0 else "below"
                    return (
                        f"half way between mu and a point mass at {where} its value "
                        f"is {abs(slack):.3g} {side} the mean of both"
                    )
    except Exception:
        return None
    return None


def _slack(term: Functional, mu: Measure, value: float, nu: Any) -> float | None:
    """Return the slack half way, if it contradicts the word of a term."""
    word = str(term.mixture_curvature())
    other, middle = float(term.value(nu)), float(term.value(mu.mix(nu, 0.5)))
    slack = 0.5 * (value + other) - middle
    size = max(abs(value), abs(other), abs(middle))
    if not excess(word, slack) < -ROUND_OFF * torch.finfo(mu.dtype).eps * size:
        return None
    # Now the round-off is measured, at more cost.
    for _, slack, noise in slacks(term, mu, nu, (0.5,)):
        if excess(word, slack) < -noise:
            return slack
    return None


def _points(mu: Measure, place: Tensor | None) -> Iterator[Measure]:
    """Yield point masses at a place and at the atom far from it, of a measure's kind.

    One that is the measure itself would show nothing.
    """
    if place is None or place.shape != (mu.dim,):
        return
    x = place.detach().to(mu.points)
    held = mu.points[mu.weights > 0]
    far = held[int((held - x).square().sum(1).argmax())]
    for y in (x, far):
        if bool((held == y).all()):
            continue
        if isinstance(mu, Particles):
            yield Particles(y[None])
        elif isinstance(mu, GridDensity):
            gone = (mu.points - y).square().sum(1).masked_fill(~mu.is_free, torch.inf)
            masses = torch.zeros_like(mu.weights)
            masses[int(gone.argmin())] = 1.0
            yield mu.with_free_weights(masses)
