"""Displacement convexity: search a geodesic for a counterexample."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor
from otflow._validation import check_kind, non_negative_int
from otflow.errors import InvalidFunctional, NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity, Measure, Particles, Quantiles
from otflow.metrics import aligned_ends
from otflow.metrics.kinds import OnLine, line_edges
from otflow.numerics.lbfgs import last_places

__all__ = ["ConvexityReport", "displacement_convexity"]


@dataclass(frozen=True, eq=False)
class ConvexityReport:
    r"""Second differences of a functional along one geodesic.

    Parameters
    ----------
    times : Tensor, shape (m,)
        Times of the curvatures: the middle of each triple of times.
    curvature : Tensor, shape (m,)
        Second differences of F divided by :math:`W_2^2`. If F is
        :math:`\lambda`-convex, each is at least :math:`\lambda`.
    values : Tensor, shape (m + 2,)
        F along the geodesic, ends included.
    w2 : float
        Length of the geodesic in the product `inner` of the measure: W2, on
        `Quantiles` by the trapezoidal rule.
    declared_modulus : float or None
        The modulus ``F.modulus(d)``, d the dimension of the measures.
    roundoff : float
        Bound on the error of a curvature by round-off.

    Attributes
    ----------
    times, curvature, values, w2, declared_modulus, roundoff
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: (3 * x).cos().sum(-1), modulus=-9.0)
    >>> a = of.Particles(torch.tensor([[-1.0]], dtype=torch.float64))
    >>> b = of.Particles(torch.tensor([[1.0]], dtype=torch.float64))
    >>> report = of.analysis.displacement_convexity(F, a, b)
    >>> round(report.minimum, 1), round(report.time, 6), report.violates_declared
    (-8.9, 0.5, False)
    """

    times: Tensor
    curvature: Tensor
    values: Tensor
    w2: float
    declared_modulus: float | None
    roundoff: float

    @property
    def minimum(self) -> float:
        """The least curvature found: no modulus of F exceeds it."""
        return float(self.curvature.min())

    @property
    def time(self) -> float:
        """Time of the least curvature."""
        return float(self.times[self.curvature.argmin()])

    @property
    def violates_declared(self) -> bool:
        """Whether a curvature is below the declared modulus, beyond round-off."""
        if self.declared_modulus is None:
            return False
        return self.minimum < self.declared_modulus - self.roundoff


def displacement_convexity(
    F: Functional, a: Measure, b: Measure, *, times: int | Tensor = 21
) -> ConvexityReport:
    r"""Measure the curvature of F along the geodesic from `a` to `b`.

    If F is :math:`\lambda`-convex, every second divided difference obeys

    .. math:: \frac{F(\mu_{t+h}) - 2F(\mu_t) + F(\mu_{t-h})}{h^2}
        \ge \lambda W_2^2(a, b)

    exactly, without truncation error :cite:p:`mccann1997convexity`. So one difference
    below :math:`\lambda W_2^2` refutes the modulus :math:`\lambda`. If no difference is
    below, nothing is proved.

    Parameters
    ----------
    F : Functional
        The functional to examine.
    a, b : Measure
        Ends of the geodesic, of one kind, or two densities on the line. An optimal
        plan joins particles of any numbers and weights. Densities on the line,
        `Quantiles` or a `GridDensity`, are `Quantiles` at the levels of both, and F
        sees these. Gaussians stay Gaussian.
    times : int or Tensor, shape (m + 2,)
        Number of equidistant times in [0, 1], or increasing times.

    Returns
    -------
    ConvexityReport
        Curvatures, their minimum and its time.

    Raises
    ------
    ValueError
        If `a` equals `b`, or there are fewer than three increasing times in [0, 1].
    NonFinite
        If F is not finite somewhere on the geodesic.
    TypeError
        If F is no functional, or the ends are of different kinds.
    Unsupported
        If an end is a `GridDensity` in the plane or in space, whose geodesic is
        remapped to the cells; or on the line, if it vanishes between parts of its mass.

    Notes
    -----
    Cost: three values and one velocity of F for each time, and one exact transport
    problem. ``roundoff`` bounds to first order the error of a second difference by the
    round-off of the value of F, and of the positions times the slope of F. A modulus is
    refuted only beyond this bound. Use float64 and points near the origin: otherwise
    the round-off, divided by h^2, exceeds most curvatures.

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
    check_kind(F, Functional, "F")
    for measure, name in ((a, "a"), (b, "b")):
        check_kind(measure, Measure, name)
    t = _times(times)
    at, squared = _geodesic(a, b)
    if squared <= 0:
        msg = "a and b coincide: there is no geodesic to look along; move one of them"
        raise ValueError(msg)
    values = torch.stack([_value(F, at, float(s)) for s in t])
    slopes = values.diff() / t.diff()
    curvature = 2.0 * slopes.diff() / (t[2:] - t[:-2]) / squared
    # Coefficients of a second difference add up to 4 / h^2.
    noise = max(
        _noise(F, at(float(s)), float(v)) for s, v in zip(t, values, strict=True)
    )
    step = float(t.diff().min())
    size = float(torch.linalg.vector_norm(curvature, ord=torch.inf))
    return ConvexityReport(
        times=t[1:-1],
        curvature=curvature,
        values=values,
        w2=squared**0.5,
        declared_modulus=F.modulus(a.dim),
        roundoff=4.0 * noise / step**2 / squared + _lengths(a, squared) * size,
    )


def _noise(F: Functional, mu: Measure, value: float) -> float:
    """Return the effect of round-off on the value of F at a measure.

    The round-off of positions changes F, to first order, by the norm of the velocity
    times that round-off. The round-off inside F is measured by a change of the
    positions by one unit in their last place.
    """
    eps = torch.finfo(mu.dtype).eps
    # The factors are margins: the value is a sum, and two points of many are tried.
    noise = 4 * eps * abs(value)
    x = mu.points
    with suppress(NonFinite, InvalidFunctional):
        speed = float(mu.norm(F.velocity(mu)))
        reach = float((mu.weights @ x.square().sum(-1)).sqrt())
        noise += 2 * eps * speed * reach
    if isinstance(mu, Particles):
        unit = last_places(x)
        for side in (1.0, -1.0):
            with torch.no_grad(), suppress(NonFinite):
                beside = float(F.value(mu.push(unit, side)))
                noise = max(noise, 2 * abs(beside - value))
    return noise


def _lengths(a: Measure, squared: float) -> float:
    """Return the relative round-off of the squared length of the geodesic."""
    reach = float((a.weights @ a.points.square().sum(-1)).sqrt())
    eps = torch.finfo(a.dtype).eps
    return 8 * eps * (1 + reach / math.sqrt(squared))


def _times(times: int | Tensor) -> Tensor:
    if isinstance(times, Tensor):
        t = as_float_tensor(times, "times").detach().to("cpu", torch.float64)
    else:
        n = non_negative_int(times, "times", minimum=3)
        t = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
    good = t.ndim == 1 and len(t) >= 3 and bool((t.diff() > 0).all())
    if not good or t[0] < 0 or t[-1] > 1:
        msg = "times must be at least three increasing numbers in [0, 1]"
        raise ValueError(msg)
    return t


def _value(F: Functional, at: Callable[[float], Measure], s: float) -> Tensor:
    """Return F at the time s of the geodesic."""
    try:
        with torch.no_grad():
            return F.value(at(s)).double().cpu()
    except NonFinite as error:
        msg = (
            f"the functional along the geodesic is not finite at time {s:g}: {error}; "
            f"atoms that meet there, or that the plan splits, coincide: a singular "
            f"kernel is infinite then"
        )
        raise NonFinite(msg) from error


def _geodesic(a: Measure, b: Measure) -> tuple[Callable[[float], Measure], float]:
    """Return the map from times to measures, and the squared length."""
    if isinstance(a, Particles) and isinstance(b, Particles):
        a, b = aligned_ends(a, b)
    elif isinstance(a, OnLine) and isinstance(b, OnLine) and a.dim == b.dim == 1:
        a, b = _at_common_levels(a, b)
    elif isinstance(a, GridDensity) or isinstance(b, GridDensity):
        msg = (
            "the geodesic of densities on a grid in the plane is remapped to the "
            "cells at each time, and second differences see this noise; take "
            "Particles(a.points, a.weights), which are as many atoms as cells"
        )
        raise Unsupported(msg)
    elif type(a) is not type(b):
        msg = (
            f"a geodesic joins two measures of one kind, got {type(a).__name__} and "
            f"{type(b).__name__}; take Particles(a.points, a.weights) for both"
        )
        raise TypeError(msg)
    tangent = a.displacement_to(b)
    return lambda t: a.push(tangent, t), float(a.inner(tangent, tangent))


def _at_common_levels(a: OnLine, b: OnLine) -> tuple[Quantiles, Quantiles]:
    """Return densities on the line as quantiles at the levels of both."""
    ends, masses = line_edges([a.detach(), b.detach()], ["a", "b"])
    first, second = (
        Quantiles(_rising(q, a.dtype), masses.to(a.dtype), normalize=True) for q in ends
    )
    return first, second


def _rising(edges: Tensor, dtype: torch.dtype) -> Tensor:
    """Return edges in a dtype; those that coincide there are moved by some last places.

    To join them would move the mass of long cells of the other end.
    """
    q = edges.to(dtype)
    if bool((q.diff() > 0).all()):
        return q
    unit = 4 * torch.finfo(dtype).eps * float(q.abs().max())
    steps = unit * torch.arange(len(q), dtype=dtype, device=q.device)
    return (q - steps).cummax(0).values + steps
