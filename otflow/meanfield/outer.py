"""The velocity of a risk in its outer weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow._graphs import records
from otflow.functionals import Functional
from otflow.functionals.inheritance import redefined as redefined_risk
from otflow.functionals.partial import value_and_partial_velocity
from otflow.meanfield.fused import value_and_outer_gradient
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.network import redefined
from otflow.meanfield.risk import Risk
from otflow.measures import Measure, Particles

__all__ = ["register", "value_and_outer_velocity"]


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
        or not isinstance(network, TwoLayer)
        or bool(moving[network.outputs or 1 :].any())
        or records(mu.points, mu.weights)
        or redefined(network) is not None
        or redefined_risk(F, Risk) is not None
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


def register() -> None:
    """Let `value_and_partial_velocity` of a risk take this way."""
    value_and_partial_velocity.register(Risk, value_and_outer_velocity)
