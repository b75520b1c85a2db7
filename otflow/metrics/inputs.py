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
from otflow.measures import GridDensity, Measure, Particles

__all__ = ["Cloud", "CloudLike", "cloud", "clouds"]

CloudLike: TypeAlias = Particles | ArrayLike
"""Particles, or points (n, d) of equal weights 1/n."""


@dataclass(frozen=True)
class Cloud:
    """Points and weights with their graphs; ``weights=None`` stands for 1/n each."""

    points: Tensor
    weights: Tensor | None

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


def cloud(mu: CloudLike | Measure, name: str) -> Cloud:
    """Return one checked argument of a distance; points and weights keep graphs."""
    if isinstance(mu, Particles):
        points = as_points(mu.points, f"{name}.points")
        free = mu.weights.requires_grad or not mu.is_uniform
        return Cloud(points, mu.weights if free else None)
    if isinstance(mu, GridDensity):
        cells = int((mu.weights > 0).sum())
        cure = f"Particles({name}.sample(2000, generator))"
        # 48 bytes a pair: the memory of `transport_plan`.
        if 48 * cells**2 <= SHARE * total_memory(torch.device("cpu")):
            cure = f"Particles({name}.points, {name}.weights), up to a cell, or {cure}"
        known = (
            "wasserstein2 between densities is known on the line only"
            if mu.dim > 1
            else "only wasserstein2 compares densities on the line, two of them"
        )
        msg = (
            f"{name} is a GridDensity in dimension {mu.dim}, and this distance takes "
            f"particles ({known}); particles that stand for it: {cure}"
        )
        raise TypeError(msg)
    if isinstance(mu, Measure):
        msg = (
            f"{name} must be Particles or points (n, d), got {type(mu).__name__}; "
            f"for the distance between its quadrature nodes use "
            f"Particles({name}.points, {name}.weights)"
        )
        raise TypeError(msg)
    return Cloud(as_points(mu, name), None)


def clouds(
    mu: CloudLike | Measure,
    nu: CloudLike | Measure,
    names: tuple[str, str] = ("mu", "nu"),
) -> tuple[Cloud, Cloud]:
    """Check both arguments of a distance: one dtype, one device, one dimension."""
    p, q = cloud(mu, names[0]), cloud(nu, names[1])
    check_like(q.points, p.points, names[1], names[0])
    d, e = p.points.shape[1], q.points.shape[1]
    if d != e:
        msg = (
            f"{names[0]} lies in dimension {d} but {names[1]} in dimension {e}; "
            f"a distance needs one space for both"
        )
        raise ValueError(msg)
    return p, q
