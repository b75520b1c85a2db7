"""Convexity along mixtures: the curvature of a functional as masses fade over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow.analysis.bends import Bends
from otflow.analysis.charts import Chart, check_together, in_double
from otflow.analysis.convexity import ConvexityReport, examined, times_in
from otflow.errors import NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.functionals.base import check_functional
from otflow.functionals.mixtures import ROUND_OFF
from otflow.functionals.order import check_law
from otflow.measures import GridDensity, Measure, Particles

__all__ = ["mixture_convexity"]


def mixture_convexity(
    F: Functional,
    a: Measure,
    b: Measure,
    *,
    times: int | Sequence[float] | ArrayLike = 21,
) -> ConvexityReport:
    r"""Measure the curvature of F along the mixtures of `a` and `b`.

    F is convex along mixtures if for all :math:`\mu, \nu`

    .. math:: \frac{d^2}{dt^2} F\bigl((1 - t)\,\mu + t\,\nu\bigr) \ge 0.

    So one negative number refutes ``F.mixture_convex``. If no number is negative,
    nothing is proved. A linear F has the curvature 0: a number that is not 0 refutes
    it, whatever its sign. For a concave F ask about ``-F``.

    Parameters
    ----------
    F : Functional
        The functional to examine.
    a, b : Measure
        Both `Particles`, or densities on one grid.
    times : int, or sequence of float, Tensor or ndarray of shape (m,)
        Number of equidistant times in [0, 1], or increasing times; three at least.

    Returns
    -------
    ConvexityReport
        Curvatures in the units of F, the least one and its time. `shares` are the parts
        of the atoms of `a`, then of those of `b`; of the cells on a grid. The declared
        modulus is 0 if F is known to be convex, else None.

    Raises
    ------
    ValueError
        If `a` equals `b`, or there are fewer than three increasing times in [0, 1].
    NonFinite
        If F is not finite somewhere on the way.
    TypeError
        If F is no functional, or the dtypes differ.
    Unsupported
        If the measures do not mix, or F is no function of the measure: the value at an
        atom is not that at its two halves, as for a kernel that is infinite at 0.

    See Also
    --------
    displacement_convexity : The curvature as mass moves.
    otflow.Functional.mixture_curvature : What F states.
    otflow.analysis.certify : Tries the word of F at the measures of a run.

    Notes
    -----
    Cost: for each time a value, its derivative in the masses, and a second derivative
    by automatic differentiation; and some hundred derivatives to confirm the minimum.
    The round-off inside of F is estimated as by `displacement_convexity`, where the
    masses take the place of the positions.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.Function(lambda z: z.square().sum(-1), mixture="convex")
    >>> a, b = (of.Particles(torch.tensor([[x]])) for x in (0.0, 2.0))
    >>> report = of.analysis.mixture_convexity(of.Interaction(W), a, b)
    >>> round(report.minimum, 6), report.violates_declared  # 4 t (1 - t)
    (-8.0, True)
    """
    check_functional(F)
    check_law(F, "a mixture", "use displacement_convexity")
    check_together({"a": a, "b": b})
    t, modulus = times_in(times), 0.0 if F.mixture_convex else None
    a.mix(b, 0.5)  # which says why two measures do not mix
    F, (a, b) = in_double(F, a, b)
    for mu in (a, b):
        _check_halves(F, mu)
    chart, start, end = _masses(a, b)
    if bool((start == end).all()):
        msg = "a and b coincide: there is no mixture to look along; change one of them"
        raise ValueError(msg)
    return replace(examined(Bends(F, chart), (start, end), t, modulus), w2=math.nan)


def _masses(a: Measure, b: Measure) -> tuple[Chart, Tensor, Tensor]:
    """Return the chart of masses at fixed places, and those of both ends, (n, 1)."""
    if not isinstance(a, (Particles, GridDensity)):
        msg = (
            f"mixtures are looked along on Particles and on densities on a grid, "
            f"not on {type(a).__name__}; use {a.as_particles}, or for one part "
            f"functionals.InPart(F, mu, part)"
        )
        raise Unsupported(msg)
    u, v = a.weights, b.weights
    if isinstance(a, GridDensity) and isinstance(b, GridDensity):

        def build(w: Tensor) -> Measure:
            return a.with_free_weights(w[:, 0])

    else:
        assert isinstance(a, Particles)
        assert isinstance(b, Particles)
        points = a.points
        if not torch.equal(a.points, b.points):
            points = torch.cat([a.points, b.points])
            u, v = torch.cat([u, 0 * v]), torch.cat([0 * u, v])

        def build(w: Tensor) -> Measure:
            return a.with_free_atoms(points, w[:, 0])

    step = (v - u).double()
    whole = step @ step

    def product(p: Tensor, q: Tensor) -> Tensor:
        return (p.double() * q.double()).sum() / whole

    return Chart(build, None, product, scaled=True), u[:, None], v[:, None]


def _check_halves(F: Functional, mu: Measure) -> None:
    """Raise Unsupported unless the value at an atom is that at its two halves."""
    with torch.no_grad():
        own = float(F.value(mu))
        with suppress(NonFinite):
            halved = float(F.value(mu.mix(mu, 0.5)))
            size = sum(abs(c * float(term.value(mu))) for c, term in F.terms())
            if abs(own - halved) <= ROUND_OFF * torch.finfo(mu.dtype).eps * size:
                return
    msg = (
        f"{F!r} has another value at two halves of an atom than at the atom, so it is "
        f"no function of the measure, and does not know mixtures; weigh all pairs, "
        f"i = j too, and use a kernel that is finite at 0, or take densities on a grid"
    )
    raise Unsupported(msg)
