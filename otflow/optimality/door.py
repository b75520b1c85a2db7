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

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.MMDTo(torch.tensor([[0.25]]), of.kernels.Gaussian(0.5))
    >>> mu = of.Particles(torch.tensor([[0.75]]))
    >>> gap = of.optimality.optimality_gap(F, mu, of.optimality.BoxDomain(0.0, 1.0))
    >>> bool(F.value(mu) <= gap.found)  # the infimum is 0
    True
    """
    check_functional(F)
    check_measure(mu)
    check_kind(domain, Domain, "domain")
    if not F.mixture_convex:
        reason = f"{F!r} is not known to be convex along mixtures"
        return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
    return domain.gap(F, mu, descend)
