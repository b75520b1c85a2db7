"""The objective of a JKO step on Gaussians, in coordinates of optimal maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import Diverged, NonFinite, Unsupported
from otflow.functionals import Entropy, Functional, Sum
from otflow.measures import Gaussian
from otflow.numerics.krylov import conjugate_gradients
from otflow.proximal.gaussian.maps import (
    OptimalMaps,
    entropy_gradient,
    entropy_hessian,
    mean_hessian,
    norm,
)
from otflow.proximal.terms import sort_terms

__all__ = ["Point", "Problem", "newton_step"]


@dataclass(frozen=True)
class Point:
    """A Gaussian with the value and the gradient of the objective."""

    measure: Gaussian
    coordinates: Tensor  # of the map from the source, (1 + d, d)
    energy: float  # F
    objective: float  # dt F + half the transport cost
    gradient: Tensor  # of the objective, in coordinates
    slope: Tensor  # of the part of F without entropy: a tangent
    whole: Tensor  # of F: a tangent
    size: float  # norm of the gradient
    is_optimal: bool
    noise: float  # round-off of the objective
    steepness: float  # size of the terms of the gradient of F
    terms: float  # size of the terms of F


@dataclass
class Problem:
    """The objective in coordinates of the maps, with a count of evaluations."""

    functional: Functional
    rest: Functional  # F without entropy
    potentials: Functional  # the terms whose Hessian acts on the mean
    temperature: float
    mu: Gaussian
    dt: float
    maps: OptimalMaps
    used: int = 0
    inside: bool = True  # keep to optimal maps
    stalled: bool = False  # the objective and its gradient stopped falling
    steepest: float = 0.0  # size of the terms of the gradient of F, which cancel
    scale: float = 0.0  # size of the terms of F, which may cancel in it

    @classmethod
    def of(cls, F: Functional, mu: Gaussian, dt: float) -> Problem:
        """Split F into its terms; raise if F has no step on Gaussians."""
        terms = sort_terms(F)
        # Under a bound the density equals the bound on a set, and no Gaussian is
        # constant.
        if terms.max_density < torch.inf:
            msg = (
                "a bound on the density saturates, and no Gaussian does: congestion "
                "needs Quantiles or a GridDensity; or use PowerEntropy(m) with a large "
                "m"
            )
            raise Unsupported(msg)
        temperature, rest = F.split_entropy()
        if temperature < 0:
            msg = (
                f"the entropy has the negative factor {temperature:g}: F has no "
                f"minimum, all mass would collapse; minimise + temperature * Entropy()"
            )
            raise ValueError(msg)
        # Interactions do not change when the law is shifted: the mean feels the Hessian
        # of the potentials alone.
        parts = tuple(c * term for c, term in terms.potentials)
        others = terms.interactions or terms.others or terms.internal is not None
        potentials = Sum(parts) if others else rest
        return cls(F, rest, potentials, temperature, mu, dt, OptimalMaps(mu.factor))

    def at(self, coordinates: Tensor) -> Point:
        """Evaluate the objective and its gradient at a point of the descent."""
        return self.take(self._evaluate(coordinates))

    def take(self, point: Point) -> Point:
        """Return the point, and note the terms that cancel there.

        Trial points that the search rejects do not count: far away, where F is large,
        round-off is large too, and would pass for that of the step.
        """
        self.steepest = max(self.steepest, point.steepness)
        self.scale = max(self.scale, point.terms)
        return point

    def _evaluate(self, coordinates: Tensor) -> Point:
        nu = self.mu.push(self.maps.tangent(coordinates), 1.0)
        # The entropy is added in closed form: the nodes would only add round-off to it.
        value, velocity = self.rest.value_and_velocity(nu)
        self.used += 1
        energy, whole, steepness = float(value), -velocity, norm(velocity)
        size = abs(energy) + norm(velocity) * norm(nu.state)
        if self.temperature:
            heat = self.temperature * float(Entropy().value(nu))
            energy, size = energy + heat, size + abs(heat)
            pressure = self.temperature * entropy_gradient(nu.factor)
            whole, steepness = whole + pressure, steepness + norm(pressure)
        gradient = coordinates + self.dt * self.maps.project(whole)
        half = 0.5 * float((coordinates * coordinates).sum())
        eps = torch.finfo(nu.dtype).eps
        return Point(
            measure=nu,
            coordinates=coordinates,
            energy=energy,
            objective=self.dt * energy + half,
            gradient=gradient,
            slope=-velocity,
            whole=whole,
            size=norm(gradient),
            is_optimal=self.maps.is_optimal(coordinates),
            noise=8 * eps * (self.dt * max(self.scale, size) + half),
            steepness=steepness,
            terms=size,
        )

    def try_at(self, coordinates: Tensor) -> Point | None:
        """Return a trial point; None if F is not finite or the map not optimal."""
        if self.inside and not self.maps.is_optimal(coordinates):
            return None
        try:
            return self._evaluate(coordinates)
        except (Diverged, NonFinite):
            self.used += 1
            return None

    def hessian(self, point: Point, direction: Tensor) -> Tensor:
        """Return the Hessian of the objective times a direction."""
        tangent, nu = self.maps.tangent(direction), point.measure
        # The root of round-off balances the errors of a difference quotient: that of
        # the values over h, and that of the curvature times h.
        h = float(nu.factor.abs().max()) / float(tangent.abs().max())
        h *= torch.finfo(nu.dtype).eps ** 0.5
        try:
            velocity = self.rest.velocity(nu.push(tangent, h))
            change = (-velocity - point.slope) / h
        except (Diverged, NonFinite):
            # F is not finite so close by. The Hessian of cost and entropy remains, and
            # the line search decides.
            change = torch.zeros_like(tangent)
        self.used += 1
        # A difference of velocities also shows how steep F is along this tangent.
        self._met(norm(change) / norm(tangent), nu)
        if self.temperature:
            change = change + self.temperature * entropy_hessian(nu.factor, tangent)
        return direction + self.dt * self.maps.project(change)

    def minimise_model(self, point: Point) -> Tensor | None:
        """Return the minimiser of a quadratic model; None if it has no minimum."""
        nu, dt = point.measure, self.dt
        curvature = mean_hessian(nu.factor, point.slope)
        self._met(float(torch.linalg.matrix_norm(curvature, 2)), nu)
        # Without interactions one Hessian acts on the spread and on the mean.
        if self.potentials is self.rest:
            stiffness = curvature
        else:
            stiffness = mean_hessian(nu.factor, -self.potentials.velocity(nu))
            self.used += 1
        # The model's gradient at 0, from that at the mean.
        force = point.slope[0] - stiffness @ nu.mean
        return self.maps.quadratic_step(
            self.mu.mean, curvature, stiffness, force, dt, dt * self.temperature
        )

    def _met(self, curvature: float, nu: Gaussian) -> None:
        """Note a second derivative: it carries round-off of the state to gradients."""
        self.steepest = max(self.steepest, curvature * norm(nu.state))

    def on(self, mu: Gaussian) -> Problem:
        """Return the same step on another rule; the count of evaluations goes on."""
        # The sizes of the terms are those of the old nodes; the new ones find their
        # own.
        return replace(self, mu=mu, inside=True, steepest=0.0, scale=0.0)

    def floor(self, point: Point) -> float:
        """Return the size of the gradient's round-off."""
        eps = torch.finfo(self.mu.dtype).eps
        scale = norm(self.mu.state) + norm(point.measure.state)
        return 8 * eps * (scale + self.dt * self.steepest)


def newton_step(
    problem: Problem, point: Point, gradient: Tensor, accuracy: float, budget: int
) -> Tensor:
    """Solve H step = -gradient by conjugate gradients, up to negative curvature.

    Parameters
    ----------
    problem, point
        The objective and the place of its Hessian H.
    gradient : Tensor, shape (1 + d, d)
        The gradient that the step cancels.
    accuracy : float
        Relative residual to stop at.
    budget : int
        Most evaluations.

    Returns
    -------
    Tensor, shape (1 + d, d)
        The step; -gradient where the first curvature is not positive.
    """
    # Products come from differences, which hold half of the digits.
    step = conjugate_gradients(
        lambda direction, _: problem.hessian(point, direction),
        lambda residual: residual,
        -gradient,
        max(accuracy, 1e-5),
        min(problem.maps.degrees, budget),
    )
    return step if bool(step.any()) else -gradient
