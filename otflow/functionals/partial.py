"""Velocities of which some coordinates alone are asked for."""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from otflow.functionals.base import Functional, Scaled, Sum
from otflow.functionals.passes import summed, times
from otflow.measures import Measure

__all__ = ["value_and_partial_velocity"]


@singledispatch
def value_and_partial_velocity(
    F: Functional, mu: Measure, moving: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`F(\mu)` and the velocity, with zeros where coordinates are fixed.

    By default the whole velocity is computed. A functional that knows a shorter way
    registers it for its class.

    Parameters
    ----------
    F : Functional
        The functional.
    mu : Measure
        Particles, where to differentiate.
    moving : Tensor of bool, shape (d,)
        Which coordinates move.

    Returns
    -------
    value : Tensor
        0-d.
    velocity : Tensor, shape (n, d)
        That of F in the coordinates that move, and 0 in the others.

    Raises
    ------
    NonFinite
        If the value or an entry is NaN or infinite.
    """
    value, velocity = F.value_and_velocity(mu)
    return value, velocity.masked_fill(~moving, 0.0)


@value_and_partial_velocity.register
def _(F: Sum, mu: Measure, moving: Tensor) -> tuple[Tensor, Tensor]:
    if not F.parts:
        value, velocity = F.value_and_velocity(mu)
        return value, velocity.masked_fill(~moving, 0.0)
    return summed(value_and_partial_velocity(part, mu, moving) for part in F.parts)


@value_and_partial_velocity.register
def _(F: Scaled, mu: Measure, moving: Tensor) -> tuple[Tensor, Tensor]:
    return times(F.factor, value_and_partial_velocity(F.functional, mu, moving))
