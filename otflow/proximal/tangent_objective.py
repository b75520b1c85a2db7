"""The objective of a JKO step over the tangents of any measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._autodiff import value_and_gradient
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.numerics.krylov import gmres
from otflow.numerics.lbfgs import Point, last_places

__all__ = ["Objective", "Place"]

M = TypeVar("M", bound=Measure)

# Error of the gradient in last places of the points. A bound adds it: the gradient sums
# many terms, each with an error of its own.
SUMS = 8.0
# Most products with the metric that turn a derivative into a tangent. A diagonal metric
# needs one.
PRODUCTS = 200


@dataclass(frozen=True)
class Place(Point, Generic[M]):
    """A measure that a tangent reaches, with the objective and its gradient there."""

    measure: M
    energy: float  # F
    displacement: Tensor  # the tangent
    moved: float  # its norm
    velocity: Tensor | None = None  # minus the gradient of F'; None if not computed


@dataclass(frozen=True)
class Objective(Generic[M]):
    """The objective dt F(mu.push(u, 1)) + (|u|^2 + constant) / 2 over tangents u."""

    functional: Functional
    source: M
    dt: float
    constant: float = 0.0

    def start(self) -> Place[M]:
        """Return the objective at the source itself."""
        return self.at(self.source, self.source.displacement_to(self.source))

    def at(self, nu: M, u: Tensor) -> Place[M]:
        """Return the objective at the measure `nu` that the tangent `u` reaches."""
        mu = self.source
        # One pass of F gives the velocity; a backward pass through push costs more.
        if mu.pulls_back:
            value, velocity = self.functional.value_and_velocity(nu)
            slope = -mu.pull_back(u, velocity)
        else:
            value, slope = _derivative(self.functional, mu, u)
        return self.place(nu, u, float(value), u + self.dt * slope)

    def place(
        self,
        nu: M,
        u: Tensor,
        energy: float,
        gradient: Tensor,
        half: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> Place[M]:
        """Return the place; `half` replaces half the cost, (|u|^2 + constant) / 2."""
        moved = self.norm(u)
        cost = 0.5 * (moved * moved + self.constant) if half is None else float(half)
        return Place(
            objective=self.dt * energy + cost,
            gradient=gradient,
            size=self.norm(gradient),
            measure=nu,
            energy=energy,
            displacement=u,
            moved=moved,
            velocity=velocity,
        )

    def final(self, start: Place[M], nu: M) -> M:
        """Return the measure to report for a step to `nu`; `nu` itself by default."""
        return nu

    # What a descent asks for ----------------------------------------------------------

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the product of two tangents at the source."""
        return self.source.inner(u, v)

    def norm(self, u: Tensor) -> float:
        """Return the length of a tangent at the source."""
        return float(self.source.norm(u))

    def move(self, point: Place[M], vector: Tensor, length: float) -> Place[M]:
        """Return the place whose tangent is that of `point` plus length * vector."""
        u = point.displacement + length * vector
        return self.at(self.source.push(u, 1.0), u)

    def difference(self, start: Place[M], end: Place[M]) -> Tensor:
        """Return the difference of two tangents."""
        return end.displacement - start.displacement

    def unit(self, point: Place[M]) -> Tensor:
        """Return a unit in the last place of each coordinate, of mixed signs."""
        return last_places(self._size(point))

    def places(self, point: Place[M]) -> Tensor:
        """Return a unit in the last place of each coordinate."""
        size = self._size(point)
        return torch.finfo(size.dtype).eps * size

    def floor(self, point: Place[M]) -> float:
        """Return a lower bound of the error of the gradient."""
        return SUMS * self.norm(self.places(point))

    def _size(self, point: Place[M]) -> Tensor:
        u = point.displacement
        return torch.maximum(u.abs(), point.measure.magnitudes(u))


def _derivative(F: Functional, mu: Measure, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return F(mu.push(u, 1)) and its gradient in the tangent, by autodiff."""

    def value(tangent: Tensor) -> Tensor:
        nu = mu.push(tangent, 1.0)
        if not any(tensor.requires_grad for tensor in nu.tensors()):
            msg = (
                f"{type(mu).__name__}.push loses the graph of its tangent, so that no "
                f"gradient of F passes through it; write it with torch operations, "
                f"or add the verb pull_back"
            )
            raise Unsupported(msg)
        return F.value(nu)

    energy, slopes = value_and_gradient(value, u)

    def metric(v: Tensor) -> Tensor:
        """Return the derivative of w -> <w, v>: the metric times v."""
        tangent = v.reshape(u.shape)
        product = value_and_gradient(lambda w: mu.inner(w, tangent), u, unused=True)
        return product[1].flatten()

    # A tangent at an atom without mass has length 0 and slope 0: any preconditioner > 0
    # leaves that entry 0.
    diagonal = metric(torch.ones_like(u))
    diagonal = diagonal.masked_fill(diagonal == 0, 1.0)
    # GMRES squares its vectors: a unit keeps large slopes from overflowing.
    unit = unit_of(slopes)
    right = slopes.flatten() / unit
    tolerance = 64 * torch.finfo(u.dtype).eps
    found, residual = gmres(
        metric, lambda r: r / diagonal, right, tolerance, min(PRODUCTS, len(right))
    )
    # GMRES may stop above its tolerance at round-off; half of the digits are enough.
    if not residual <= tolerance**0.5:
        msg = (
            f"the product of tangents of {type(mu).__name__} is so ill-conditioned "
            f"that no gradient was found; add the verb pull_back, which gives it"
        )
        raise Unsupported(msg)
    return energy, unit * found.reshape(u.shape)
