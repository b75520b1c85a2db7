"""Measures as points of a flat space, where straight lines are couplings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind, check_like
from otflow.errors import NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.metrics import aligned_ends, generalized_geodesic
from otflow.metrics.inputs import check_dimension
from otflow.metrics.kinds import OnLine, line_edges

__all__ = [
    "Chart",
    "chart_of",
    "check_together",
    "in_double",
    "on_the_line",
    "straight",
]


@dataclass(frozen=True)
class Chart:
    r"""A flat space of states, each of which is a measure.

    A straight line of states couples index with index (level with level, node with
    node). Its speed in :math:`W_2`, if the coupling is optimal, is the `square`.

    Parameters
    ----------
    build : callable
        Takes a state to its measure, with the graph of the state. It raises `Diverged`
        if there is none, as between quantiles that cross.
    masses : Tensor or None
        The product of tangents is the sum of masses times both; None if only `own`
        knows it.
    own : callable
        The product of the measure that the chart was made from.
    reach : float
        Size of the positions that a state stands for, beside its own entries.
    scaled : bool
        Whether each entry has the round-off of its own size, as a mass has.
    """

    build: Callable[[Tensor], Measure]
    masses: Tensor | None
    own: Callable[[Tensor, Tensor], Tensor]
    reach: float = 0.0
    scaled: bool = False

    def square(self, v: Tensor) -> Tensor:
        """Return the squared length of a tangent, in float64 if masses are known."""
        if self.masses is None:
            return self.own(v, v)
        return (self.masses.double() * v.double().square()).sum()

    def units(self, x: Tensor) -> Tensor:
        """Return units in the last place, of the largest entry of each column."""
        if self.scaled:
            return torch.finfo(x.dtype).eps * x.abs()
        largest = x.abs().amax(0, keepdim=True).clamp_min(self.reach)
        return torch.finfo(x.dtype).eps * largest.expand_as(x)


def chart_of(mu: Measure) -> tuple[Chart, Tensor]:
    """Return the chart about a measure, and the state of the measure in it."""
    if isinstance(mu, Particles):
        masses = mu.weights[:, None]
        return Chart(mu.with_free_atoms, masses, mu.inner), mu.points
    if isinstance(mu, Quantiles):
        masses = mu.lumped[:, None]
        return Chart(lambda q: mu.moved(q[:, 0]), masses, mu.inner), mu.edges[:, None]
    if isinstance(mu, Gaussian):
        ones = torch.ones_like(mu.state)
        return Chart(mu.with_free_state, ones, mu.inner), mu.state
    # A tangent of any representation leads to a measure.
    origin = torch.zeros_like(mu.displacement_to(mu))
    reach, shape = float(mu.magnitudes(origin).max()), origin.shape
    if origin.ndim > 1:
        return Chart(lambda u: mu.push(u, 1.0), None, mu.inner, reach), origin

    def product(u: Tensor, v: Tensor) -> Tensor:
        return mu.inner(u.reshape(shape), v.reshape(shape))

    def push(u: Tensor) -> Measure:
        return mu.push(u.reshape(shape), 1.0)

    return Chart(push, None, product, reach), _rows(origin)


def _rows(tangent: Tensor) -> Tensor:
    """Return a tangent as rows: a chart adds up what each row bends."""
    return tangent if tangent.ndim > 1 else tangent.reshape(-1, 1)


def check_together(named: Mapping[str, Any]) -> None:
    """Raise unless the arguments are measures of one dimension, dtype and device."""
    (first, mu), *others = named.items()
    check_kind(mu, Measure, first)
    for name, nu in others:
        check_kind(nu, Measure, name)
        if nu.dim != mu.dim:
            check_dimension(nu.points, mu.points, (name, first))
        check_like(nu, mu, name, first)


def straight(
    a: Measure, b: Measure, base: Measure | None = None
) -> tuple[Chart, Tensor, Tensor]:
    """Return a chart, and the states of both ends of a (generalised) geodesic."""
    ends = (a, b) if base is None else (base, a, b)
    if all(isinstance(end, Particles) for end in ends):
        a, b = aligned_ends(a, b) if base is None else _through(base, a, b)  # type: ignore[arg-type]
    elif all(isinstance(end, OnLine) and end.dim == 1 for end in ends):
        a, b = on_the_line(a, b)  # type: ignore[arg-type]
    elif any(isinstance(end, GridDensity) for end in ends):
        msg = (
            "the geodesic of densities on a grid in the plane is remapped to the "
            "cells at each time, and second derivatives see this noise; take "
            "Particles(a.points, a.weights), which are as many atoms as cells"
        )
        raise Unsupported(msg)
    elif any(type(end) is not type(a) for end in ends):
        names = ", ".join(type(end).__name__ for end in ends[:-1])
        every = "both" if base is None else "all"
        msg = (
            f"a geodesic joins measures of one kind, got {names} and "
            f"{type(b).__name__}; take Particles(a.points, a.weights) for {every}"
        )
        raise TypeError(msg)
    elif base is not None:
        if not isinstance(base, Gaussian):
            msg = (
                f"generalised geodesics join Particles, Gaussians and densities on the "
                f"line, not {type(base).__name__}; leave the base out"
            )
            raise Unsupported(msg)
        a, b = _through(base, a, b)
    chart, x = chart_of(a)
    if isinstance(a, Gaussian) and base is not None:
        return chart, x, chart_of(b)[1]
    return chart, x, x + _rows(a.displacement_to(b))


def _through(base: Measure, a: Measure, b: Measure) -> tuple[Measure, Measure]:
    """Return both ends, coupled through the plans from a base."""
    start, end = generalized_geodesic(base, a, b, [0.0, 1.0])  # type: ignore[call-overload]
    return start, end


def on_the_line(a: OnLine, b: OnLine) -> tuple[Quantiles, Quantiles]:
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


def in_double(F: Functional, *measures: Measure) -> tuple[Functional, list[Measure]]:
    """Return F and measures in float64; as they are if F cannot be moved.

    A float32 is a float64 too: nothing is lost, and the round-off of sums inside F
    falls by nine digits.
    """
    found = [mu.detach() for mu in measures]
    if found[0].dtype == torch.float64:
        return F, found
    try:
        G = F.to(torch.float64)
        doubled = [mu.to(torch.float64) for mu in found]
        with torch.no_grad(), suppress(NonFinite):
            G.value(doubled[0])
    # A function of the user may know float32 alone, and say so by any error.
    except Exception:
        return F, found
    return G, doubled
