"""The door to optimality gaps: what they need of F and of the domain."""

from __future__ import annotations

import math

from otflow._validation import check_kind
from otflow.functionals import Functional
from otflow.functionals.base import check_functional, check_measure
from otflow.measures import Measure
from otflow.optimality.domains import Domain
from otflow.optimality.gap import Gap, GapKind

__all__ = ["optimality_gap"]


def optimality_gap(
    F: Functional, mu: Measure, domain: Domain, *, descend: int = 50
) -> Gap:
    r"""Return a bound on :math:`F(\mu) - \inf F` over a domain.

    Parameters
    ----------
    F : Functional
        What is minimised.
    mu : Measure
        Where to bound F.
    domain : Domain
        The measures that compete.
    descend : int
        Number of descent steps from each candidate.

    Returns
    -------
    Gap
        The bound and its kind.
    """
    check_functional(F)
    check_measure(mu)
    check_kind(domain, Domain, "domain")
    if not F.mixture_convex:
        reason = f"{F!r} is not known to be convex along mixtures"
        return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
    return domain.gap(F, mu, descend)
