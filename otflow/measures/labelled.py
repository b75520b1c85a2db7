"""Particles of which some coordinates are labels: no verb moves these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from otflow.measures.particles import Particles

__all__ = ["LabelledParticles"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class LabelledParticles(Particles):
    r"""Particles of which some coordinates are fixed.

    In the metric the distance of points of other labels is infinite. So a coupling of
    finite cost carries each atom to one of its label.

    Parameters
    ----------
    mu : Particles
        The particles.
    fixed : Tensor of bool, shape (d,)
        Which coordinates are labels.

    Attributes
    ----------
    points, weights, is_uniform
        As those of `Particles`.
    fixed : Tensor of bool, shape (d,)
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.measures.labelled import LabelledParticles
    >>> mu = of.Particles(torch.zeros(1, 2))
    >>> nu = LabelledParticles(mu, torch.tensor([False, True]))
    >>> nu.push(torch.ones(1, 2), dt=0.5).points
    tensor([[0.5000, 0.0000]])
    """

    fixed: Tensor

    def __init__(self, mu: Particles, fixed: Tensor) -> None:
        self._hold(
            points=mu.points,
            weights=mu.weights,
            is_uniform=mu.is_uniform,
            fixed=fixed,
        )

    def push(self, tangent: Tensor, dt: float) -> Self:
        self._check_tangent(tangent)
        return super().push(tangent.masked_fill(self.fixed, 0.0), dt)

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        """Add noise to each atom, in the coordinates that move."""
        noisy = super().diffuse(variance, generator)
        return self._moved(torch.where(self.fixed, self.points, noisy.points))

    def groups(self) -> Tensor:
        """Return the number of the label of each atom; equal labels share one, (n,).

        Returns
        -------
        Tensor of int64, shape (n,)
            Numbers from 0.
        """
        labels = self.points.detach()[:, self.fixed]
        # Most often one coordinate tells all: that is a sort of numbers, not of rows.
        found: Tensor = torch.unique(labels[:, 0], return_inverse=True)[1]
        if int(found.max()) + 1 < self.n:
            found = torch.unique(labels, dim=0, return_inverse=True)[1]
        return found
