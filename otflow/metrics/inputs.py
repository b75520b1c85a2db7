"""Check the two arguments of a distance; graphs are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._memory import SHARE, total_memory
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.errors import NonFinite
from otflow.measures import Box, ConicParticles, GridDensity, Measure, Particles
from otflow.metrics.lattices import Lattice

__all__ = [
    "Cloud",
    "CloudLike",
    "check_dimension",
    "check_masses",
    "cloud",
    "clouds",
]

CloudLike: TypeAlias = Particles | ArrayLike
"""Particles, or points (n, d) of equal weights 1/n."""


@dataclass(frozen=True)
class Cloud:
    """Points and weights with their graphs; ``weights=None`` stands for 1/n each.

    A grid in the plane or in space is its centres, and has a box.
    """

    points: Tensor
    weights: Tensor | None
    box: Box | None = None

    @property
    def places(self) -> Tensor:
        """The points: float64, on the CPU, with their graph.

        The centres of cells come from the box, without the rounding of their dtype.
        """
        if self.box is not None:
            return self.box.centres(torch.empty(0, dtype=torch.float64))
        return self.points.to("cpu", torch.float64)

    @property
    def lattice(self) -> Lattice | None:
        """The masses on the centres of a grid, None for particles."""
        if self.box is None:
            return None
        axes = self.box.axes(torch.empty(0, dtype=torch.float64))
        return Lattice(tuple(axes), self.masses.reshape(self.box.shape))

    @property
    def masses(self) -> Tensor:
        """The weights over their sum: float64, on the CPU, detached."""
        if self.weights is None or self.is_uniform:
            n = len(self.points)
            return torch.full((n,), 1.0 / n, dtype=torch.float64)
        w = self.weights.detach().to("cpu", torch.float64)
        return w / w.sum()

    @property
    def is_uniform(self) -> bool:
        """Whether every mass is 1/n."""
        w = self.weights
        return w is None or bool((w == w[0]).all())


def cloud(mu: CloudLike | Measure, name: str, *, grids: bool = False) -> Cloud:
    """Return one checked argument of a distance; points and weights keep graphs.

    With `grids`, a density on a grid in dimension 2 or 3 stands for atoms at the
    centres of its cells.
    """
    if isinstance(mu, Particles):
        points = as_points(mu.points, f"{name}.points")
        free = mu.weights.requires_grad or not mu.is_uniform
        return Cloud(points, mu.weights if free else None)
    if grids and isinstance(mu, GridDensity) and mu.dim > 1:
        check_masses(mu)
        return Cloud(mu.points, mu.weights, mu.box)
    if isinstance(mu, GridDensity):
        cells = int((mu.weights > 0).sum())
        cure = f"Particles({name}.sample(2000, generator))"
        # 48 bytes a pair: the memory of `transport_plan`.
        if 48 * cells**2 <= SHARE * total_memory(torch.device("cpu")):
            cure = f"Particles({name}.points, {name}.weights), up to a cell, or {cure}"
        known = (
            "transport_plan, wasserstein2 and wasserstein2_bounds take a grid as atoms "
            "at the centres of its cells"
            if mu.dim > 1
            else "wasserstein2 and semidiscrete_plan take it as a density"
        )
        msg = (
            f"{name} is a GridDensity in dimension {mu.dim}, and this distance takes "
            f"particles ({known}); particles that stand for it: {cure}"
        )
        raise TypeError(msg)
    if isinstance(mu, ConicParticles):
        msg = (
            f"{name} is a ConicParticles of any mass, and distances compare "
            f"probabilities; take {name}.law, over roots and places, or for positive "
            f"masses Particles({name}.places, {name}.masses, normalize=True)"
        )
        raise TypeError(msg)
    if isinstance(mu, Measure) and "distance" in mu.cures:
        msg = (
            f"{name} must be Particles or points (n, d), got {type(mu).__name__}, "
            f"which has no distance as one law; {mu.cures['distance']}"
        )
        raise TypeError(msg)
    if isinstance(mu, Measure):
        msg = (
            f"{name} must be Particles or points (n, d), got {type(mu).__name__}; two "
            f"Gaussians, and densities on the line, have wasserstein2(mu, nu) and "
            f"transport_plan(mu, nu).bracket; for atoms draw them, "
            f"Particles({name}.sample(2000, generator))"
        )
        raise TypeError(msg)
    return Cloud(as_points(mu, name), None)


def check_masses(mu: Measure) -> None:
    """Raise NonFinite if a mass is negative or not a finite number."""
    masses = mu.weights.detach().double()
    least, total = float(masses.min()), float(masses.sum())
    if not (least >= 0 and 0 < total < float("inf")):  # NaN fails too
        msg = (
            f"a {type(mu).__name__} with a mass that is negative or not a finite "
            f"number, or without mass (least {least:g}, sum {total:g}), has no "
            f"distance; look for the step that made it"
        )
        raise NonFinite(msg)


def clouds(
    mu: CloudLike | Measure,
    nu: CloudLike | Measure,
    names: tuple[str, str] = ("mu", "nu"),
    *,
    grids: bool = False,
) -> tuple[Cloud, Cloud]:
    """Check both arguments of a distance: one dtype, one device, one dimension."""
    p, q = (
        cloud(m, name, grids=grids) for m, name in zip((mu, nu), names, strict=True)
    )
    check_like(q.points, p.points, names[1], names[0])
    check_dimension(p.points, q.points, names)
    return p, q


def check_dimension(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Raise ValueError if points (n, d) and (m, d) lie in two spaces."""
    d, e = x.shape[1], y.shape[1]
    if d != e:
        msg = (
            f"{names[0]} lies in dimension {d} but {names[1]} in dimension {e}; "
            f"a distance needs one space for both"
        )
        raise ValueError(msg)
