"""Displacement convexity: the curvature of a functional along a geodesic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from otflow._arrays import as_float_tensor
from otflow._typing import ArrayLike
from otflow._validation import non_negative_int, real
from otflow.analysis.bends import NO_DERIVATIVE, Bend, Bends
from otflow.analysis.charts import check_together, in_double, straight
from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional
from otflow.functionals.base import check_functional
from otflow.functionals.order import check_law
from otflow.measures import Measure, Particles

__all__ = ["ConvexityReport", "displacement_convexity", "examined", "times_in"]

# A second difference of values counts beside slopes if it is lower by this share, and
# by so many times its round-off.
HIDDEN, HIDES = 1e-2, 4.0


@dataclass(frozen=True, eq=False, repr=False)
class ConvexityReport:
    r"""The curvature of a functional along one geodesic, or along one mixture.

    Along a geodesic all numbers are divided by :math:`W_2^2`, its squared length. If F
    is :math:`\lambda`-convex, each of them is at least :math:`\lambda`. Along a mixture
    they are divided by nothing, and at least 0 if F is convex.

    Parameters
    ----------
    times : Tensor, shape (m,)
        Where the derivatives were taken.
    curvature : Tensor, shape (m,)
        Second derivatives of :math:`t \mapsto F(\mu_t)` at these times; NaN where F has
        none by automatic differentiation, or where slopes of F contradict the least.
    between : Tensor, shape (m - 1,)
        Exact means of the curvature between neighbouring times, kinks included: the
        changes of the first derivative over those of the time. A minimum below them
        and the curvatures comes from values that the derivatives do not fit.
    values : Tensor, shape (m,)
        F along the path.
    minimum : float
        The least curvature found: no modulus of F exceeds it, but for round-off. At a
        concave kink the curvature has no lower bound, and the number is the mean over a
        path short beside the times.
    time : float
        Time of the least curvature.
    roundoff : float
        No modulus of F exceeds ``minimum + roundoff``. So much is confirmed by the
        change of the velocity of F between two states near that time, beyond the
        round-off inside F. At the ends of the path it is about the root of the
        round-off of the curvature. Infinite if nothing was confirmed.
    shares : Tensor, shape (n,)
        Where the least curvature comes from: the parts of the atoms, or of the rows of
        another tangent. Zeros where F has values alone.
    w2 : float
        Length of the path in the product `inner` of the measure. On a geodesic it is
        W2, on `Quantiles` by the trapezoidal rule; on a generalised one it is longer.
        NaN along a mixture, where nothing moves.
    declared_modulus : float or None
        The modulus ``F.modulus(d)``, d the dimension of the measures. Along a mixture
        it is 0 for a functional with `mixture_convex`, else None.

    Attributes
    ----------
    times, curvature, between, values, minimum, time, roundoff, shares, w2
        As above.
    declared_modulus
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=-9.0)
    >>> a = of.Particles(torch.tensor([[-1.0]], dtype=torch.float64))
    >>> b = of.Particles(torch.tensor([[1.0]], dtype=torch.float64))
    >>> report = of.analysis.displacement_convexity(F, a, b)
    >>> round(report.minimum, 6), report.time, report.violates_declared
    (-9.0, 0.5, False)
    >>> report.between.min() > -9.0  # a mean over a twentieth of the way
    tensor(True)
    """

    times: Tensor
    curvature: Tensor
    between: Tensor
    values: Tensor
    minimum: float
    time: float
    roundoff: float
    shares: Tensor
    w2: float
    declared_modulus: float | None

    def __repr__(self) -> str:
        return (
            f"ConvexityReport(minimum={self.minimum:.9g} at time {self.time:.4g}, "
            f"roundoff={self.roundoff:.1g}, w2={self.w2:.6g}, "
            f"declared_modulus={self.declared_modulus}, times={len(self.times)})"
        )

    @property
    def violates_declared(self) -> bool:
        """Whether the curvature is below the declared modulus, beyond round-off."""
        if self.declared_modulus is None:
            return False
        return self.minimum + self.roundoff < self.declared_modulus


def displacement_convexity(
    F: Functional,
    a: Measure,
    b: Measure,
    *,
    times: int | Sequence[float] | ArrayLike = 21,
    base: Measure | None = None,
) -> ConvexityReport:
    r"""Measure the curvature of F along the geodesic from `a` to `b`.

    If F is :math:`\lambda`-convex :cite:p:`mccann1997convexity`, then

    .. math:: \frac{d^2}{dt^2} F(\mu_t) \ge \lambda\, W_2^2(a, b)

    wherever the second derivative exists, and between two times

    .. math:: \frac{d}{dt}F(\mu_t) - \frac{d}{ds}F(\mu_s)
        \ge \lambda\,(t - s)\, W_2^2(a, b),

    kinks included. So one number below :math:`\lambda` refutes the modulus
    :math:`\lambda`. If no number is below, nothing is proved; `falsify` searches all
    pairs of measures.

    Parameters
    ----------
    F : Functional
        The functional to examine.
    a, b : Measure
        Ends of the geodesic, of one kind, or two densities on the line. An optimal
        plan joins particles of any numbers and weights. Densities on the line,
        `Quantiles` or a `GridDensity`, are `Quantiles` at the levels of both, and F
        sees these. Gaussians stay Gaussian.
    times : int, or sequence of float, Tensor or ndarray of shape (m,)
        Number of equidistant times in [0, 1], or increasing times; three at least.
    base : Measure, optional
        Then the path is the generalised geodesic through the optimal plans from this
        measure, as by `otflow.metrics.generalized_geodesic`, and its squared length
        takes the place of :math:`W_2^2`.

    Returns
    -------
    ConvexityReport
        Curvatures, the least one, its time, and the parts of the atoms in it.

    Raises
    ------
    ValueError
        If `a` equals `b`, or there are fewer than three increasing times in [0, 1].
    NonFinite
        If F is not finite somewhere on the geodesic.
    TypeError
        If F is no functional, or the measures are of different kinds.
    Unsupported
        If an end is a `GridDensity` in the plane or in space, whose geodesic is
        remapped to the cells; or on the line, if it vanishes between parts of its mass;
        or if ends are particles that F reads by their index.

    See Also
    --------
    otflow.analysis.falsify : Search for the pair of measures of least curvature.

    Notes
    -----
    Cost: one exact transport problem; for each time a value, a velocity and a second
    derivative by automatic differentiation; and some hundred velocities to confirm the
    minimum. Float32 measures are examined in float64 if F can be moved there.

    A modulus that holds along every coupling bounds the mean curvature between any two
    states, so the round-off of positions cannot refute it. The round-off inside of F is
    estimated: as eight times the largest change of the slope of F, term by term, under
    six moves by up to two last places, and as 16 units of round-off of the terms at
    least. All positions are moved, and at random the results of all operations of torch
    in F and in its derivative, each in its own dtype: Monte Carlo arithmetic
    :cite:p:`parker2000monte`. So terms that cancel count, and single precision inside
    of F. Code that is not torch's is judged by sixth differences of the slope on a
    fortieth of the path. They do not see positions that are rounded more coarsely. A
    modulus is refuted only if a mean of the curvature is below it by more, and if the
    values of F do not say otherwise. A functional that is evaluated to a tolerance of
    its own, as a kernel with a tolerance, is judged as it is computed.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[-1.5], [-0.5]], dtype=torch.float64)
    >>> a, b = of.Particles(x), of.Particles(-x)
    >>> double_well = of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1))
    >>> report = of.analysis.displacement_convexity(double_well, a, b)
    >>> report.minimum < 0, report.declared_modulus
    (True, None)
    """
    check_functional(F)
    if isinstance(a, Particles):
        cure = "look along parts, OfPart(0, F) from Parts([a]) to Parts([b]), by index"
        check_law(F, "the geodesic of two clouds", cure)
    named = {"a": a, "b": b} | ({} if base is None else {"base": base})
    check_together(named)
    t = times_in(times)
    modulus = F.modulus(a.dim)
    F, moved = in_double(F, *named.values())
    chart, start, end = straight(*moved)
    if float(chart.square(end - start)) <= 0:
        msg = "a and b coincide: there is no geodesic to look along; move one of them"
        if not torch.equal(start, end):
            msg = "a and b are so close that the square of their distance is 0"
        raise ValueError(msg)
    return examined(Bends(F, chart), (start, end), t, modulus)


def examined(
    bends: Bends, ends: tuple[Tensor, Tensor], t: Tensor, modulus: float | None
) -> ConvexityReport:
    """Return the curvature along the segment of states between two ends.

    Parameters
    ----------
    bends : Bends
        The functional in its chart.
    ends : tuple of Tensor
        The states at the times 0 and 1.
    t : Tensor, shape (m,)
        Increasing times.
    modulus : float or None
        What is declared of F.
    """
    start, end = ends
    step, squared = end - start, float(bends.chart.square(end - start))
    states = [torch.lerp(start, end, float(s)) for s in t]
    values, slopes, second = _derivatives(bends, t, states, step)
    between = slopes.diff() / t.diff() / squared
    if bends.by_values:
        between = _second_differences(t, values) / squared
    curvature = _believed(bends, t, states, second / squared)
    found = _confirmed(bends, t, states, curvature, between)
    known, when = _least(t, curvature, between)
    upper = math.inf
    of_values = _by_values(bends, t, states, values / squared, known)
    if of_values is not None and (found is None or of_values[0].upper < found[0].upper):
        found = of_values
    if found is not None:
        upper, bend = found[0].upper, found[0]
        if upper < known:
            known, when = upper, found[1]
    else:
        bend = bends.mean(start, end, noise=False)
    return ConvexityReport(
        times=t,
        curvature=curvature,
        between=between,
        values=values,
        minimum=known,
        time=when,
        roundoff=max(upper - known, 0.0),
        shares=bend.shares,
        w2=squared**0.5,
        declared_modulus=modulus,
    )


def _derivatives(
    bends: Bends, t: Tensor, states: list[Tensor], step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return F and its derivatives in t; a second one is NaN where there is none."""
    rows = []
    for s, x in zip(t.tolist(), states, strict=True):
        try:
            value = bends.value(x)
        except NonFinite as error:
            msg = (
                f"the functional along the path is not finite at time {s:g}: "
                f"{error}; atoms that meet there, or that the plan splits, coincide: a "
                f"singular kernel is infinite then"
            )
            raise NonFinite(msg) from error
        first = second = math.nan
        try:
            if not bends.by_values:
                first = float((bends.slope(x)[1] * step.double()).sum())
        except (*NO_DERIVATIVE, NonFinite):
            bends.by_values = True
        try:
            second = float(bends.derivatives(x, step)[2])
        except (*NO_DERIVATIVE, NonFinite):
            second = math.nan
        rows.append((value, first, second if math.isfinite(second) else math.nan))
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, 0], table[:, 1], table[:, 2]


def _believed(bends: Bends, t: Tensor, states: list[Tensor], second: Tensor) -> Tensor:
    """Return second derivatives; NaN if slopes contradict the least of them."""
    if bool(second.isnan().all()):
        return second
    k = int(second.nan_to_num(math.inf).argmin())
    i = min(k, len(t) - 2)
    ends, at = (states[i], states[i + 1]), float(k - i)
    if bends.believes(float(second[k]), *ends, at):
        return second
    return torch.full_like(second, math.nan)


def _second_differences(t: Tensor, values: Tensor) -> Tensor:
    """Return the curvature by values alone, as one of each neighbouring intervals."""
    slopes = values.diff() / t.diff()
    inner = 2.0 * slopes.diff() / (t[2:] - t[:-2])
    return torch.minimum(torch.cat([inner[:1], inner]), torch.cat([inner, inner[-1:]]))


def _least(t: Tensor, curvature: Tensor, between: Tensor) -> tuple[float, float]:
    """Return the least curvature at or between times, and its time."""
    every = torch.cat([curvature, between]).nan_to_num(math.inf)
    when = torch.cat([t, 0.5 * (t[1:] + t[:-1])])
    at = int(every.argmin())
    return float(every[at]), float(when[at])


def _confirmed(
    bends: Bends, t: Tensor, states: list[Tensor], curvature: Tensor, between: Tensor
) -> tuple[Bend, float] | None:
    """Return the least mean that is confirmed near both minima, and its time."""
    start, end = states[0], states[-1]
    first, last = float(t[0]), float(t[-1])

    def bend(low: float, high: float, at: float, *, kinks: bool) -> Bend | None:
        u, v = ((s - first) / (last - first) for s in (low, high))
        begin, finish = (torch.lerp(start, end, q) for q in (u, v))
        return bends.confirmed(begin, finish, at, kinks=kinks)

    def at_a_time(k: int) -> tuple[Bend, float] | None:
        # Beyond its ends a path may be no geodesic.
        s, half = float(t[k]), 0.5 * float(t.diff()[max(k - 1, 0) : k + 1].min())
        low, high = max(s - half, first), min(s + half, last)
        least = bend(low, high, (s - low) / (high - low), kinks=False)
        return None if least is None else (least, s)

    def between_times(k: int) -> tuple[Bend, float] | None:
        least = bend(float(t[k]), float(t[k + 1]), 0.5, kinks=True)
        if least is None:
            return None
        square = bends.chart.square
        gone = float(square(least.middle - start) / square(end - start)) ** 0.5
        return least, first + gone * (last - first)

    best: tuple[Bend, float] | None = None
    kinds = ((curvature, at_a_time), (between, between_times))
    lows = [(float(every.nan_to_num(math.inf).min()), every, f) for every, f in kinds]
    for low, every, confirm in sorted(lows, key=lambda entry: entry[0]):
        # The other kind is tried if it may be lower.
        if math.isfinite(low) and (best is None or low < best[0].upper):
            found = confirm(int(every.nan_to_num(math.inf).argmin()))
            if best is None or (found is not None and found[0].upper < best[0].upper):
                best = found
    return best


def _by_values(
    bends: Bends, t: Tensor, states: list[Tensor], values: Tensor, known: float
) -> tuple[Bend, float] | None:
    """Return the least second difference of values, if slopes hide that it is lower.

    So is found what has a slope that is not that of its values, as a function that
    jumps, or one that is detached in part.
    """
    if bends.by_values or not math.isfinite(known):
        return None
    slopes = values.diff() / t.diff()
    inner = 2.0 * slopes.diff() / (t[2:] - t[:-2])
    k = int(inner.nan_to_num(math.inf, math.inf).argmin())
    if not float(inner[k]) < known - HIDDEN * abs(known):
        return None
    low, high = states[k], states[k + 2]
    try:
        bends.feel(low, high)
        bend = bends.of_values(low, high)
    except (NonFinite, Diverged):
        return None
    # Beyond several times the round-off of values, which slopes do not have.
    if not bend.curvature + HIDES * bend.noise < known - HIDDEN * abs(known):
        return None
    return bend, float(t[k + 1])


def times_in(times: int | Sequence[float] | ArrayLike) -> Tensor:
    """Return increasing times in [0, 1], at least three; a number asks for so many."""
    if isinstance(times, (list, tuple)):
        given = [real(t, f"times[{k}]") for k, t in enumerate(times)]
        t = torch.tensor(given, dtype=torch.float64)
    elif isinstance(times, (Tensor, np.ndarray)):
        t = as_float_tensor(times, "times").detach().to("cpu", torch.float64)
    else:
        n = non_negative_int(times, "times", minimum=3)
        t = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    good = t.ndim == 1 and len(t) >= 3 and bool((t.diff() > 0).all())
    if not good or t[0] < 0 or t[-1] > 1:
        msg = "times must be at least three increasing numbers in [0, 1]"
        raise ValueError(msg)
    return t
