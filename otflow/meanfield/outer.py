"""A risk of which the outer weights alone move: its velocity, its convexity."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow._graphs import records
from otflow.functionals import Curvature, Functional
from otflow.functionals.inheritance import redefined as redefined_risk
from otflow.functionals.partial import partial_modulus, value_and_partial_velocity
from otflow.meanfield.fused import value_and_outer_gradient
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.model import redefined
from otflow.meanfield.risk import Risk
from otflow.measures import Measure, Particles

__all__ = ["outer_modulus", "register", "value_and_outer_velocity"]


def value_and_outer_velocity(
    F: Risk, mu: Measure, moving: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return the risk and its velocity, by the outer weights alone if no other moves.

    Parameters
    ----------
    F : Risk
        The risk.
    mu : Measure
        The neurons.
    moving : Tensor of bool, shape (p,)
        Which parameters move.

    Returns
    -------
    value : Tensor
        0-d.
    velocity : Tensor, shape (N, p)
        With zeros in the parameters that are fixed.

    Raises
    ------
    NonFinite
        If the value or an entry is NaN or infinite.
    """
    network, general = F.network, value_and_partial_velocity.dispatch(Functional)
    if (
        not isinstance(mu, Particles)
        or records(mu.points, mu.weights)
        or not isinstance(network, TwoLayer)
        or not _is_linear(F, moving)
    ):
        return general(F, mu, moving)
    F._check(mu)
    masses = network.masses(mu.weights)
    with torch.no_grad():
        value, outer = value_and_outer_gradient(
            network, F._loss, F._inputs, F.y, mu.points, masses
        )
        velocity = torch.zeros_like(mu.points)
        network.split(velocity)[0].copy_(outer.mul_(-network.scale(mu.weights)))
    check_finite(value, "the functional's value")
    check_finite(velocity, "the functional's gradient")
    return value, velocity.masked_fill_(~moving, 0.0)


def outer_modulus(F: Risk, dim: int, moving: Tensor) -> float | None:
    """Return 0 if F is convex in the coordinates that move, else its modulus.

    The outputs in the mean field are linear in the outer weights.

    Parameters
    ----------
    F : Risk
        The risk.
    dim : int
        The dimension p of neurons.
    moving : Tensor of bool, shape (p,)
        Which parameters move.

    Returns
    -------
    float or None
        None if no number is known.
    """
    convex = F.mixture_curvature() is Curvature.CONVEX
    return 0.0 if convex and _is_linear(F, moving) else F.modulus(dim)


def _is_linear(F: Risk, moving: Tensor) -> bool:
    """Return whether outer weights alone move, of a network that is linear in these."""
    network = F.network
    return (
        isinstance(network, TwoLayer)
        and not bool(moving[network.outputs or 1 :].any())
        and redefined(network) is None
        and redefined_risk(F, Risk) is None
    )


def register() -> None:
    """Let what is known of partial moves be known of a risk."""
    value_and_partial_velocity.register(Risk, value_and_outer_velocity)
    partial_modulus.register(Risk, outer_modulus)
