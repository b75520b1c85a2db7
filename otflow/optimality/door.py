"""The door to optimality gaps: what they need of F and of the domain."""

from __future__ import annotations

import math

from otflow._validation import non_negative_int
from otflow.functionals import Functional
from otflow.functionals.base import check_functional, check_measure
from otflow.functionals.reasons import not_convex
from otflow.measures import Measure
from otflow.optimality.declared import with_words_tried
from otflow.optimality.domains import Domain, check_domain
from otflow.optimality.gap import Gap, GapKind

__all__ = ["optimality_gap"]


def optimality_gap(
    F: Functional, mu: Measure, domain: Domain, *, descend: int = 50
) -> Gap:
    r"""Return a bound on :math:`F(\mu) - \inf F` over a domain.

    .. math:: F(\mu) - \inf_\nu F(\nu) \le \int F'[\mu]\,d\mu - \min_x F'[\mu](x)

    for measures :math:`\nu` on a box, if F is convex along mixtures. The gap is 0 at a
    minimiser, and there alone. A search finds too high a minimum of
    :math:`F'[\mu]`, and so too small a gap. So the gap is "proved" only if the minimum
    is bounded from below by proof; else it is "searched".

    Parameters
    ----------
    F : Functional
        What is minimised.
    mu : Measure
        Where to bound F.
    domain : Domain
        The measures that compete.
    descend : int
        Number of descent steps from each candidate: low atoms of mu, and places that
        fill the domain. In a proof they are Newton steps, of which 12 suffice; in a
        search, projected gradient steps.

    Returns
    -------
    Gap
        The bound and its kind: "none", and infinite, if F is not known to be convex
        along mixtures or the domain is unbounded; `Gap.reason` says what is missing.
        It also names the terms that are convex because their maker says so, as by
        ``mixture="convex"``. Each is tried at two mixtures, half way to a point mass
        where F' is least, and to the atom that is farthest from there. The kind is
        "none" if its values contradict the word.

    Raises
    ------
    ValueError
        If the domain misses a point of mu, does not fit its dimension, or reaches
        beyond the grid of a density.
    TypeError
        If F holds numbers of another dtype than mu: nothing is cast in silence.
    Unsupported
        If F has no first variation at mu, as an internal energy on atoms.

    See Also
    --------
    otflow.Functional.mixture_curvature : What F states of its convexity.
    otflow.Functional.enclosed_variation : What a proof asks of a functional.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.MMDTo(torch.tensor([[0.25]]), of.kernels.Gaussian(0.5))
    >>> mu = of.Particles(torch.tensor([[0.75]]))
    >>> gap = of.optimality.optimality_gap(F, mu, of.optimality.BoxDomain(0.0, 1.0))
    >>> bool(F.value(mu) <= gap.value)  # the infimum is 0
    True
    """
    check_functional(F)
    check_measure(mu)
    check_domain(domain)
    descend = non_negative_int(descend, "descend")
    if not F.mixture_convex:
        reason = not_convex(F, Functional)
        return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
    return with_words_tried(F, mu, domain.gap(F, mu, descend))
