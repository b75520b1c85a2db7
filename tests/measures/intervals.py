"""A measure of one file that otflow does not know: a step density on the line.

It proves the seam. Everything it needs is in the base class, its tangents have another
shape than its points, and it refuses what it cannot do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow._typing import Value
from otflow.errors import Diverged
from otflow.measures import Measure


@dataclass(frozen=True, eq=False, repr=False)
class Intervals(Measure):
    """n neighbouring intervals of mass 1/n each; a density constant on each of them.

    The state is the n + 1 quantiles that bound them. A tangent moves the quantiles,
    (n + 1, 1); quantile i answers for the half cells on its sides, of mass 1/n (1/2n at
    the ends). The points are the centres of the cells.
    """

    edges: Tensor

    cures: ClassVar[dict[str, str]] = {
        "mass_gradient": "its masses are fixed; move mass with push",
        "diffuse": "minimise Entropy() instead, it has a density",
        "reweight": "its masses are fixed; move mass with push",
        "sample": "draw uniform numbers and interpolate `edges`",
    }

    @property
    def points(self) -> Tensor:
        return 0.5 * (self.edges[1:] + self.edges[:-1])[:, None]

    @property
    def weights(self) -> Tensor:
        n = len(self.edges) - 1
        return self.edges.new_full((n,), 1.0 / n)

    @property
    def lumped(self) -> Tensor:
        """Mass that each quantile answers for, (n + 1,)."""
        masses = self.edges.new_full((len(self.edges),), 1.0 / (len(self.edges) - 1))
        masses[0] *= 0.5
        masses[-1] *= 0.5
        return masses

    def density(self) -> Tensor:
        return self.weights / self.edges.diff()

    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        f, grad = value_and_gradient(lambda q: value(Intervals(q)), self.edges)
        return f, (grad / self.lumped)[:, None]

    def push(self, tangent: Tensor, dt: float) -> Self:
        edges = self.edges + dt * tangent[:, 0]
        if not bool((edges.diff() > 0).all()):
            msg = "quantiles crossed; take a smaller dt"
            raise Diverged(msg, measure=self)
        return type(self)(edges)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        return self.lumped @ (u * v).sum(-1)

    def displacement_to(self, other: Self) -> Tensor:
        return (other.edges - self.edges)[:, None]


def uniform(lower: float, upper: float, n: int = 12, **options) -> Intervals:
    """Return the uniform density on an interval."""
    options = {"dtype": torch.float64, **options}
    return Intervals(torch.linspace(lower, upper, n + 1, **options))


def gaussian(sigma: float, n: int) -> Intervals:
    """Return a Gaussian's quantiles, its tails cut at a quarter of a cell."""
    levels = torch.arange(n + 1, dtype=torch.float64) / n
    levels = levels.clamp(0.25 / n, 1 - 0.25 / n)
    return Intervals(sigma * torch.special.ndtri(levels))
