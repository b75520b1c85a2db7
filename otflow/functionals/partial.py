"""What is known of a functional if some coordinates alone move."""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from otflow._algebra import sum_of_bounds
from otflow.functionals.base import Functional, Scaled, Sum
from otflow.functionals.inheritance import redefined
from otflow.functionals.passes import summed, times
from otflow.measures import Measure

__all__ = ["partial_modulus", "value_and_partial_velocity"]


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
    if not F.parts or redefined(F, Sum):
        return value_and_partial_velocity.dispatch(Functional)(F, mu, moving)
    return summed(value_and_partial_velocity(part, mu, moving) for part in F.parts)


@value_and_partial_velocity.register
def _(F: Scaled, mu: Measure, moving: Tensor) -> tuple[Tensor, Tensor]:
    if redefined(F, Scaled):
        return value_and_partial_velocity.dispatch(Functional)(F, mu, moving)
    return times(F.factor, value_and_partial_velocity(F.functional, mu, moving))


@singledispatch
def partial_modulus(
    F: Functional,
    dim: int,
    moving: Tensor,  # noqa: ARG001  # for those that register
) -> float | None:
    r"""Return a :math:`\lambda` such that F is :math:`\lambda`-convex where some move.

    That is along couplings that leave the fixed coordinates of each atom as they are.
    By default it is the modulus along all couplings. A functional that knows more
    registers it for its class.

    Parameters
    ----------
    F : Functional
        The functional.
    dim : int
        The dimension d.
    moving : Tensor of bool, shape (d,)
        Which coordinates move.

    Returns
    -------
    float or None
        None if no number is known.
    """
    return F.modulus(dim)


@partial_modulus.register
def _(F: Sum, dim: int, moving: Tensor) -> float | None:
    if redefined(F, Sum):
        return F.modulus(dim)
    return sum_of_bounds((1.0, partial_modulus(one, dim, moving)) for one in F.parts)


@partial_modulus.register
def _(F: Scaled, dim: int, moving: Tensor) -> float | None:
    if redefined(F, Scaled):
        return F.modulus(dim)
    inner = partial_modulus(F.functional, dim, moving)
    return sum_of_bounds([(F.factor, inner)])
