"""A functional of laws in coordinates of other units, of which some may be fixed."""

from __future__ import annotations

from torch import Tensor

from otflow._algebra import Curvature
from otflow._typing import ArrayLike
from otflow.functionals.base import Functional, Scaled, Sum
from otflow.functionals.internal import Entropy
from otflow.functionals.partial import partial_modulus, value_and_partial_velocity
from otflow.functionals.wrapped import Wrapped
from otflow.measures import Measure, Particles

__all__ = ["InCoordinates", "in_coordinates"]


class InCoordinates(Wrapped):
    r"""The functional :math:`\nu \mapsto F(S_\#\nu)` of particles, with S diagonal.

    A point z is the point :math:`x = Sz` of F. So the velocity is :math:`S\,v(Sz)`,
    with zeros in coordinates that are fixed. Each derivative costs one of F.

    Parameters
    ----------
    functional : Functional
        The functional F of the points x.
    scales : Tensor, shape (d,)
        The diagonal of S, > 0.
    moving : Tensor of bool, shape (d,)
        Which coordinates move. The others have the scale 1.

    Attributes
    ----------
    functional, scales, moving
        As above.

    Notes
    -----
    If F is :math:`\lambda`-convex, then G is so with :math:`\lambda` times the least of
    the squared scales of coordinates that move, or the largest for :math:`\lambda < 0`:
    along couplings that leave the fixed coordinates as they are.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.functionals.in_coordinates import InCoordinates
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> G = InCoordinates(F, torch.tensor([2.0, 1.0]), torch.tensor([True, False]))
    >>> G.velocity(of.Particles(torch.tensor([[1.0, 3.0]]))), G.modulus(2)
    (tensor([[-4.,  0.]]), 4.0)
    """

    def __init__(self, functional: Functional, scales: Tensor, moving: Tensor) -> None:
        self.functional, self.scales, self.moving = functional, scales, moving
        self._is_unit = bool((scales == 1).all())
        self._is_whole = bool(moving.all())

    def _there(self, nu: Measure) -> Measure:
        """Return the particles of the points x."""
        if self._is_unit or not isinstance(nu, Particles):
            return nu
        return nu.with_free_atoms(nu.points * self.scales)

    def _back(self, velocity: Tensor) -> Tensor:
        """Return the velocity of the points z."""
        if not self._is_whole:
            velocity = velocity.masked_fill(~self.moving, 0.0)
        return velocity if self._is_unit else velocity * self.scales

    def value(self, mu: Measure) -> Tensor:
        return self.functional.value(self._there(mu))

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        probes = None if x is None else mu.check_probes(x) * self.scales
        return self.functional.first_variation(self._there(mu), probes)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        there = self._there(mu)
        if self._is_whole:
            value, velocity = self.functional.value_and_velocity(there)
        else:
            value, velocity = value_and_partial_velocity(
                self.functional, there, self.moving
            )
        return value, velocity if self._is_unit else velocity * self.scales

    def value_and_first_variation(self, mu: Measure) -> tuple[Tensor, Tensor]:
        return self.functional.value_and_first_variation(self._there(mu))

    def value_and_derivatives(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        found = self.functional.value_and_derivatives(self._there(mu))
        value, velocity, variation = found
        return value, self._back(velocity), variation

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        there = x if self._is_unit else x * self.scales
        return self._back(self.functional._velocity_at(self._there(mu), there))

    def modulus(self, dim: int) -> float | None:
        own = partial_modulus(self.functional, dim, self.moving)
        squares = self.scales[self.moving].double().square()
        if own is None:
            return None
        return own * float(squares.min() if own >= 0 else squares.max())

    def mixture_curvature(self) -> Curvature | str | None:
        return self.functional.mixture_curvature()

    def __repr__(self) -> str:
        return f"InCoordinates({self.functional!r})"


def in_coordinates(F: Functional, scales: Tensor, moving: Tensor) -> Functional:
    """Return F in other coordinates, up to a constant; an entropy stays an entropy.

    Parameters
    ----------
    F : Functional
        The functional of the points x.
    scales, moving : Tensor, shape (d,)
        As those of `InCoordinates`.

    Returns
    -------
    Functional
        The entropy in other units is the entropy and a constant, which is left out.
    """
    temperature, rest = F.split_entropy()
    if temperature == 0:
        return InCoordinates(F, scales, moving)
    parts: tuple[Functional, ...] = (Scaled(temperature, Entropy()),)
    if not (isinstance(rest, Sum) and not rest.parts):
        parts = (InCoordinates(rest, scales, moving), *parts)
    return Sum(parts)
