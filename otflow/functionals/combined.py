"""A sum of internal energies is one internal energy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from otflow._algebra import Curvature, sum_of_bounds, sum_of_curvatures
from otflow.functionals.internal import Internal

__all__ = ["Combined"]


class Combined(Internal):
    r"""A sum of internal energies, :math:`\sum_k c_k F_k` with :math:`c_k > 0`, as one.

    Slopes, curvatures and convexity bounds add up, each times its factor; the least
    bound on the density is enforced. A single term keeps its own closed forms.
    """

    def __init__(
        self, terms: Sequence[tuple[float, Internal]], max_density: float
    ) -> None:
        super().__init__(self._per_mass)
        self.parts = tuple(terms)
        self.max_density = max_density

    def _per_mass(self, r: Tensor) -> Tensor:
        return sum((c * term.e(r) for c, term in self.parts), torch.zeros_like(r))

    def modulus(self, dim: int) -> float | None:
        return sum_of_bounds((c, term.modulus(dim)) for c, term in self.parts)

    def mixture_curvature(self) -> Curvature | None:
        return sum_of_curvatures((c, F.mixture_curvature()) for c, F in self.parts)

    def check_dimension(self, dim: int) -> None:
        for _, term in self.parts:
            term.check_dimension(dim)

    def slope(self, r: Tensor) -> Tensor:
        return sum((c * term.slope(r) for c, term in self.parts), torch.zeros_like(r))

    def curvature(self, r: Tensor) -> Tensor:
        curvatures = (c * term.curvature(r) for c, term in self.parts)
        return sum(curvatures, torch.zeros_like(r))

    def log_proximal(
        self, rhs: Tensor, entropic: float, strength: float, start: Tensor | None = None
    ) -> Tensor:
        bound = math.log(self.max_density)
        if not self.parts:
            return (rhs / entropic).clamp_max(bound)
        if len(self.parts) == 1:
            ((c, term),) = self.parts
            z = term.log_proximal(rhs, entropic, c * strength, start)
            return z.clamp_max(bound)
        return super().log_proximal(rhs, entropic, strength, start)

    def conjugate_slope(self, s: Tensor) -> Tensor:
        if not self.parts:
            return torch.where(s > 0, self.max_density, torch.zeros_like(s))
        if len(self.parts) == 1:
            ((c, term),) = self.parts
            # A single term may have no density for a large s (U* infinite); below the
            # bound there is one for every s.
            if math.isfinite(self.max_density):
                s = s.clamp_max(float(self.slope(s.new_tensor([self.max_density]))))
            return term.conjugate_slope(s / c).clamp_max(self.max_density)
        return super().conjugate_slope(s)

    def __repr__(self) -> str:
        names = [f"{c:g} * {term!r}" for c, term in self.parts]
        if math.isfinite(self.max_density):
            names.append(f"Congestion({self.max_density:g})")
        return " + ".join(names)
