r"""The fixed point :math:`\rho \propto e^{-G'[\rho]/T}` of a free energy on a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from otflow._validation import non_negative_int, positive
from otflow._warn import warn
from otflow.errors import FixedPointWarning, NotConvergedWarning, Unsupported
from otflow.functionals import Functional, Internal
from otflow.functionals.reasons import not_convex
from otflow.functionals.stated_terms import check_terms
from otflow.measures import GridDensity
from otflow.optimality.declared import with_words_tried
from otflow.optimality.densities import check_grid, heat_of
from otflow.optimality.free_energy import FixedPoint, FreeEnergy
from otflow.optimality.gap import Gap, GapKind

__all__ = ["GibbsResult", "check_unbounded", "gibbs"]

# Fixed points whose masses differ by more than this in sum are two.
APART = 1e-5


@dataclass(frozen=True, eq=False)
class GibbsResult:
    r"""A fixed point of the Gibbs map, and how it was found.

    Parameters
    ----------
    measure : GridDensity
        The density :math:`\rho`.
    energy : float
        :math:`F(\rho)`.
    residual : float
        :math:`\sum_i|w_i - p_i|` between the masses of :math:`\rho` and those of its
        proximal law :math:`p_\rho`.
    damping : float
        The share :math:`\eta` of the last step.
    iterations : int
        Evaluations of F', and products with F'', from the start that led here.
    converged : bool
        Whether the residual is at most the tolerance.
    others : tuple of GibbsResult
        Further fixed points, of higher energy, which other starts led to. Empty for an
        F that is convex along mixtures, whose fixed point is unique.
    uniqueness : GapKind
        "proved" for an F that is convex along mixtures: there is no other fixed point,
        if what is declared of F is true. "searched" if further starts looked for
        others. "none" if nothing was examined, as with ``starts=0``, or if values of F
        at the fixed point contradict what is declared.
    reason : str
        Why the uniqueness is what it is. It names each convexity that is only declared.

    Attributes
    ----------
    measure, energy, residual, damping, iterations, converged, others, uniqueness
        As above.
    reason : str
        As above.

    See Also
    --------
    gibbs : Computes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1)) + 0.5 * of.Entropy()
    >>> rho = of.GridDensity.from_function(
    ...     lambda x: torch.ones(len(x)), -4, 4, 80, walls=True
    ... )
    >>> found = of.optimality.gibbs(F, rho)
    >>> found.others, found.uniqueness
    ((), 'proved')
    """

    measure: GridDensity
    energy: float
    residual: float
    damping: float
    iterations: int
    converged: bool
    others: tuple[GibbsResult, ...] = field(default=(), repr=False)
    uniqueness: GapKind = GapKind.NONE
    reason: str = field(default="not examined", repr=False)


def gibbs(
    F: Functional,
    rho: GridDensity,
    *,
    tolerance: float | None = None,
    max_iterations: int = 4000,
    starts: int = 8,
) -> GibbsResult:
    r"""Return the density with :math:`\rho \propto e^{-G'[\rho]/T}` on a grid.

    It is the minimiser of :math:`F = G + T\int\rho\log\rho` where G is convex along
    mixtures, and then unique :cite:p:`hu2021meanfield`. If G is not
    known to be convex there may be several; further starts look for them, a warning
    tells their energies, and the one of least energy is returned. That is a search, and
    no proof that there is none below it.

    Parameters
    ----------
    F : Functional
        A functional with a positive multiple T of the entropy; G is the rest.
    rho : GridDensity
        It gives the grid, the dtype, and where to start. Its empty cells are filled.
    tolerance : float, optional
        Largest residual :math:`\sum_i|w_i - p_i|` of a converged answer. By default
        1e-12, in single precision 1e-5. Where the round-off of G'/T is larger, it
        suffices that the residual is below that round-off and no longer falls.
    max_iterations : int
        Most evaluations of F', and products with F'', from one start.
    starts : int
        Number of further starts for a G that is not known to be convex: the uniform
        density and bumps at places spread over the box. With 0 the result tells that
        its ``uniqueness`` was not examined.

    Returns
    -------
    GibbsResult
        The fixed point, the residual, the energy, and other fixed points.

    Raises
    ------
    ValueError
        If F holds no entropy, or a negative multiple.
    TypeError
        If `rho` is no `GridDensity`.
    Unsupported
        If F bounds the density, as by `Congestion`.

    Warns
    -----
    NotConvergedWarning
        If the residual stays above the tolerance.
    FixedPointWarning
        If several fixed points were found.
    BoxWarning
        If the fixed point has mass beside the border of a box without walls, where the
        start has none.

    See Also
    --------
    entropic_gap : How far a density is from the minimum, without the minimiser.

    Notes
    -----
    A step moves the logarithm of the density a share :math:`\eta` of the way to that of
    its proximal law. This is mirror descent, and F falls for a small :math:`\eta`,
    since :math:`dF/d\eta = -T\,\mathrm{Var}_\rho(\log p_\rho - \log\rho)`. The share is
    halved until F has fallen by a part of this, and doubled after success. Anderson
    acceleration :cite:p:`walker2011anderson` proposes a point first; it counts only if
    it passes the same test. Where this is slow, as at a low temperature, Newton's
    method takes over, by conjugate gradients on products with the second derivative of
    G, under the same test. With a damping c its step :math:`\delta` of the logarithms
    solves :math:`(1 + c)\,\delta + G''[\rho\,\delta]/T = \log p_\rho - \log\rho`. For a
    convex G it is a direction of descent, and for a large c a short step of mirror
    descent. So c is raised until F falls, and lowered after success. Where F is flat to
    its last digits, the divergence from the proximal law must fall instead. So no step
    is accepted that makes F larger than its round-off. If G is convex and T small
    beside its slopes, the problem is solved at higher temperatures first, to a few
    digits.

    Each iteration costs a value and a first variation of F, or a product with the
    second derivative of G, and O(n) beside.

    Examples
    --------
    >>> import torch, otflow as of
    >>> square = lambda z: z.square().sum(-1)
    >>> F = of.Potential(square) + of.Interaction(square) + 0.5 * of.Entropy()
    >>> rho = of.GridDensity.from_function(
    ...     lambda x: (-square(x - 1)).exp(), -5, 5, 100, dtype=torch.float64
    ... )
    >>> found = of.optimality.gibbs(F, rho)  # the Gaussian of variance T / (2 + 2)
    >>> found.converged, round(float(found.measure.expectation(square)), 6)
    (True, 0.125)
    """
    temperature, rest = heat_of(F)
    check_grid(rho, "rho")
    check_terms(F, rho)
    if tolerance is not None:
        tolerance = positive(tolerance, "tolerance")
    limit = non_negative_int(max_iterations, "max_iterations", minimum=1)
    starts = non_negative_int(starts, "starts")
    check_unbounded(rest)
    rho = rho.detach()
    convex = bool(rest.mixture_convex)
    problem = FreeEnergy(rest, temperature, rho, tolerance, limit)
    first = problem.solve(problem.filled(rho.weights), cool=convex)
    kind, reason = _uniqueness(rest, first, starts)
    found = [_result(first, kind, reason)]
    for masses in [] if kind == GapKind.PROVED else problem.starts(starts):
        other = _result(problem.solve(masses), kind, reason)
        if not any(_same(other, known) for known in found):
            found.append(other)
    found.sort(key=lambda result: result.energy)
    return _warned(_best(found), rho, tolerance, limit)


def _uniqueness(
    rest: Functional, found: FixedPoint, starts: int
) -> tuple[GapKind, str]:
    """Return what is known of other fixed points, and why.

    A declared convexity is tried at the fixed point, where the slope is least.
    """
    reason = "F is convex along mixtures"
    if rest.mixture_convex:
        rho = found.state.measure
        slopes = rest.first_variation(rho).detach()
        place = rho.points[int(slopes.masked_fill(~rho.is_free, math.inf).argmin())]
        told = with_words_tried(rest, rho, Gap(0.0, place, GapKind.PROVED, reason, 0.0))
        if told.kind == GapKind.PROVED:
            return GapKind.PROVED, told.reason
        reason = told.reason
    else:
        reason = not_convex(rest, Functional)
    if starts:
        return GapKind.SEARCHED, f"{reason}; {starts} further starts looked for others"
    return GapKind.NONE, reason


def check_unbounded(rest: Functional) -> None:
    """Raise Unsupported if a term bounds the density: then no Gibbs law is reached."""
    for _, term in rest.terms():
        if isinstance(term, Internal) and math.isfinite(term.max_density):
            msg = (
                f"{term!r} bounds the density, so the minimiser is no Gibbs law of its "
                f"first variation; minimise F by a flow with JKO() on the grid"
            )
            raise Unsupported(msg)


def _result(found: FixedPoint, uniqueness: GapKind, reason: str) -> GibbsResult:
    """Return what was found as a result."""
    state = found.state
    return GibbsResult(
        state.measure,
        state.energy,
        found.residual,
        found.share,
        found.count,
        found.converged,
        uniqueness=uniqueness,
        reason=reason,
    )


def _same(one: GibbsResult, other: GibbsResult) -> bool:
    apart = float((one.measure.weights - other.measure.weights).abs().sum())
    return apart <= max(APART, 1e3 * (one.residual + other.residual))


def _best(found: list[GibbsResult]) -> GibbsResult:
    """Return the fixed point of least energy, with the others beside it."""
    best = found[0]
    others = tuple(result for result in found[1:] if result.converged)
    if others and best.converged:
        energies = ", ".join(f"{other.energy:.9g}" for other in others)
        msg = (
            f"the Gibbs map has several fixed points: this one of energy "
            f"{best.energy:.9g}, others of {energies} (in `others`); F is not known to "
            f"be convex along mixtures, and further starts may find a lower one: give "
            f"starts=..."
        )
        warn(msg, FixedPointWarning)
    return replace(best, others=others)


def _warned(
    result: GibbsResult, start: GridDensity, tolerance: float | None, limit: int
) -> GibbsResult:
    """Return the result; warn if it did not converge, or of a box too small."""
    start.moved(result.measure.weights)
    if not result.converged:
        asked = "" if tolerance is None else f" {tolerance:g}"
        cures = [f"tolerance={2 * result.residual:.2g}"]
        if result.iterations >= limit:
            why, cures = "", [f"max_iterations={10 * limit}", *cures]
        else:
            why = ", where no step makes F fall beyond its round-off"
            if start.dtype == torch.float32:
                cures.append("a density in float64")
        msg = (
            f"the Gibbs fixed point stopped after {result.iterations} iterations at "
            f"the residual {result.residual:.3g}, above the tolerance{asked}{why}; "
            f"take {' or '.join(cures)}"
        )
        warn(msg, NotConvergedWarning)
    return result
