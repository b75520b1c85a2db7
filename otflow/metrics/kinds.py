"""Checks that measures are of one kind that geodesics and means join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._validation import check_like
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.metrics.inputs import clouds
from otflow.metrics.steps import Steps, common_edges

__all__ = [
    "OnLine",
    "check_gaussians",
    "check_particles",
    "in_plane",
    "line_edges",
    "refuse_kind",
]

OnLine: TypeAlias = Quantiles | GridDensity


def check_particles(named: Mapping[str, Any], what: str) -> None:
    """Raise unless these are particles of one space without graphs on weights."""
    names = list(named)
    for name, measure in named.items():
        if not isinstance(measure, Particles):
            refuse_kind(name, measure)
        clouds(named[names[0]], measure, (names[0], name))
        refuse_graph(
            what,
            "the masses of an optimal plan have no derivative here",
            measure.weights,
            cure="Particles(mu.points, mu.weights.detach())",
        )


def line_edges(
    measures: Sequence[Any], names: Sequence[str]
) -> tuple[list[Tensor], Tensor]:
    """Return the quantile functions of densities on the line at common levels."""
    parts = []
    for name, measure in zip(names, measures, strict=True):
        part = Steps.of(measure) if isinstance(measure, OnLine) else None
        if part is None:
            refuse_kind(name, measure)
        check_like(measure.points, measures[0].points, name, names[0])
        refuse_graph(
            "a mean of quantile functions",
            "levels that coincide have no derivative in the masses",
            measure.weights,
            cure=f"{name}.detach()",
        )
        parts.append(part)
    return common_edges(parts)


def check_gaussians(named: Mapping[str, Any]) -> None:
    """Raise unless these are Gaussians of one space and dtype."""
    names = list(named)
    first = named[names[0]]
    for name, mu in named.items():
        if not isinstance(mu, Gaussian):
            refuse_kind(name, mu, "a Gaussian")
        check_like(mu.mean, first.mean, name, names[0])
        if mu.dim != first.dim:
            msg = (
                f"{names[0]} lies in dimension {first.dim} but {name} in dimension "
                f"{mu.dim}; both must lie in one space"
            )
            raise ValueError(msg)


def refuse_kind(name: str, measure: Any, wanted: str = "Particles") -> NoReturn:
    """Raise for a measure that has no geodesics, or is not of the kind of the other."""
    if isinstance(measure, GridDensity):
        msg = (
            f"{name} is a GridDensity in dimension {measure.dim}, and here it meets a "
            f"measure of another kind, or particles are asked for; take "
            f"Particles({name}.points, {name}.weights), up to a cell"
        )
        raise TypeError(msg)
    if isinstance(measure, Measure) and "geodesic" in measure.cures:
        msg = (
            f"{name} must be {wanted}, got {type(measure).__name__}, which has no "
            f"geodesics of one law; {measure.cures['geodesic']}"
        )
        raise TypeError(msg)
    atoms = f"{name}.points, {name}.weights" if isinstance(measure, Measure) else name
    msg = (
        f"{name} must be {wanted}, got {type(measure).__name__}; geodesics join two "
        f"measures of one kind: Particles, Gaussian, densities on the line, or "
        f"GridDensity in the plane or in space; represent all by Particles({atoms})"
    )
    raise TypeError(msg)


def in_plane(mu: Any) -> bool:
    """Return whether this is a grid in the plane or in space."""
    return isinstance(mu, GridDensity) and mu.dim > 1
