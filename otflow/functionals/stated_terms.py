"""Terms that a class states of itself must sum to its value."""

from __future__ import annotations

import math

import torch

from otflow.errors import Unsupported
from otflow.functionals.base import Functional, Scaled, Sum
from otflow.measures import Measure

__all__ = ["check_terms"]


def check_terms(F: Functional, mu: Measure) -> None:
    """Raise ValueError if the terms that a class states do not sum to it at `mu`.

    Solvers see the terms alone: their certificates rest on this identity. The check
    evaluates F and its terms once; sums and multiples need none. The identity is not
    checked for a random value, nor where F has none, as an entropy of particles.
    """
    if isinstance(F, Sum):
        for part in F.parts:
            check_terms(part, mu)
    elif isinstance(F, Scaled):
        check_terms(F.functional, mu)
    elif type(F).terms is not Functional.terms:
        try:
            value, total, scale = _stated(F, mu)
        except Unsupported:
            return
        # Two formulas of one number may differ by more than the round-off of a sum.
        slack = math.sqrt(torch.finfo(mu.dtype).eps) * scale
        if math.isfinite(scale) and abs(value - total) > slack:
            # A random value, as on minibatches, differs from itself by as much.
            again = _stated(F, mu)
            if max(abs(value - again[0]), abs(total - again[1])) > slack:
                return
            msg = (
                f"the terms of {type(F).__name__} sum to {total:g} at the start, "
                f"where its value is {value:g}; let `terms` return factors and "
                f"functionals that sum to `value`, or leave `terms` out: then F is its "
                f"only term"
            )
            raise ValueError(msg)


def _stated(F: Functional, mu: Measure) -> tuple[float, float, float]:
    """Return the value of F, the sum of its terms, and the size of all of them."""
    value = float(F.value(mu))
    parts = [c * float(term.value(mu)) for c, term in F.terms()]
    return value, sum(parts), abs(value) + sum(map(abs, parts))
