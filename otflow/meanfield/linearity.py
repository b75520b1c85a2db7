"""Whether the outputs of a model are linear in the measure, and what rests on that."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._pairs import tiles
from otflow.meanfield.enclosed import correlation, enclosed_outputs
from otflow.meanfield.losses import Loss, Square
from otflow.meanfield.model import Model, redefined
from otflow.meanfield.network import Network, block_rows
from otflow.measures import Particles
from otflow.numerics.enclosed_operations import times
from otflow.numerics.enclosed_sums import Enclosed, over_columns, over_rows
from otflow.numerics.enclosures import Enclosure

__all__ = ["enclosed_risk", "linear", "why_not_linear", "why_not_quadratic"]


def why_not_linear(network: Model) -> str | None:
    """Return why outputs are not known to be linear in the measure; None if they are.

    Parameters
    ----------
    network : Model
        The function that a measure parametrises.

    Returns
    -------
    str or None
        A clause that begins with "since", with a cure.
    """
    kind = type(network).__name__
    if not isinstance(network, Network):
        return (
            f"since the outputs of {kind} are not known to be linear in the measure: "
            f"if they are, state mixture_curvature in a subclass of Risk"
        )
    if network.scaling != "mean-field":
        return (
            f"since in the scaling {network.scaling!r} the outputs depend on "
            f"the number of atoms: take scaling='mean-field'"
        )
    if (name := redefined(network)) is not None:
        return (
            f"since {kind}.{name} changes the outputs, which need not be linear "
            f"then: state mixture_curvature in a subclass of Risk"
        )
    return None


def linear(network: Model) -> Network:
    """Return a model of which `why_not_linear` has found nothing."""
    assert isinstance(network, Network)
    return network


def why_not_quadratic(network: Model, loss: Loss, changed: str | None) -> str | None:
    """Return why the parts of a risk are not known; None if they are.

    Parameters
    ----------
    network : Model
        The function that a measure parametrises.
    loss : Loss
        The loss.
    changed : str, optional
        What a subclass of the risk evaluates otherwise, e.g. "Steep.value".

    Returns
    -------
    str or None
        A sentence with its cure.
    """
    if not isinstance(loss, Square):
        return (
            f"the risk with loss {loss.name!r} is not quadratic in the measure and "
            f"has no kernel; use loss='square'"
        )
    if not isinstance(network, Network):
        return (
            f"the outputs of {type(network).__name__} are not known to be linear in "
            f"the measure, and F to be quadratic; use F.value and F.velocity"
        )
    if changed is None and (name := redefined(network)) is not None:
        changed = f"{type(network).__name__}.{name}"
    if changed is not None:
        return (
            f"{changed} changes the risk, and its parts are known of the library's own "
            f"classes; state neurons of your own as CustomLayer(sigma)"
        )
    if network.scaling != "mean-field":
        return (
            f"in the scaling {network.scaling!r} the parts depend on the "
            f"number of atoms; use scaling='mean-field'"
        )
    return None


def enclosed_risk(
    network: Network, loss: Loss, inputs: Tensor, y: Tensor, mu: Particles
) -> Enclosed:
    """Return the first variation of a risk as a function of neurons in boxes.

    Parameters
    ----------
    network : Network
        Outputs that are linear in the measure.
    loss : Loss
        The loss.
    inputs : Tensor, shape (n, q)
        Encoded inputs.
    y : Tensor
        Targets, n rows.
    mu : Particles
        Neurons.

    Returns
    -------
    callable
        As that of `Functional.enclosed_variation`.
    """
    inputs = inputs.to(torch.float64)
    slopes = _enclosed_slopes(network, loss, inputs, y, mu)
    mean = times(slopes, 1 / len(inputs)).value

    def features(rows: slice, theta: Enclosure) -> Tensor:
        return network.sigma(inputs[rows], theta)

    def enclosed(x: Enclosure) -> Enclosure:
        closed = correlation(network, inputs, x, mean)
        return over_rows(features, x, mean) if closed is None else closed

    return enclosed


def _enclosed_slopes(
    network: Network, loss: Loss, inputs: Tensor, y: Tensor, mu: Particles
) -> Enclosure:
    """Return the slopes of the losses at the data, with the round-off of f."""
    bare = enclosed_outputs(network, inputs, mu.points, mu.weights)
    if bare is None:
        atoms = Enclosure.of(mu.points, mu.points, 0)
        outputs = [
            over_columns(network.sigma(inputs[rows], atoms), mu.weights)
            for rows in tiles(len(inputs), block_rows(mu.n, mu.points))
        ]
        f = network.add_offset(torch.cat(outputs))
    else:
        f = network.add_offset(bare)
    assert isinstance(f, Enclosure)
    return loss.enclosed_slope(f, y)
