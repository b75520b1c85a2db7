"""Value, velocity and first variation of a functional by one backward pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from otflow._autodiff import check_finite, grads_if_all
from otflow._graphs import differentiating, leaf, records, value_of
from otflow._typing import Value
from otflow._validation import check_scalar
from otflow.measures import Measure, Particles

__all__ = ["derivatives_at_once", "summed"]


def summed(
    each: Iterable[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of values, of velocities and of first variations.

    Parameters
    ----------
    each : iterable of tuple of Tensor
        One triple or more.

    Returns
    -------
    tuple of Tensor
        One triple.
    """
    value, velocity, variation = (
        sum(parts[1:], parts[0]) for parts in zip(*each, strict=True)
    )
    return value, velocity, variation


def derivatives_at_once(
    value: Value, mu: Measure
) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""Return F, :math:`-\nabla F'` and F' at the atoms of particles, or None.

    Parameters
    ----------
    value : callable
        Maps a measure to a 0-d tensor.
    mu : Measure
        Where to differentiate.

    Returns
    -------
    tuple of Tensor, or None
        Value (0-d), velocity (n, d) and first variation (n,). None where one pass does
        not give all three: off particles, at atoms without mass, with a graph, or if
        the value does not depend on points and weights.
    """
    if not isinstance(mu, Particles) or records(mu.points, mu.weights):
        return None
    kind = torch.finfo(mu.dtype)
    if not bool((mu.weights >= kind.tiny / kind.eps).all()):
        return None
    with differentiating(parameters=False):
        x, w = leaf(mu.points), leaf(mu.weights)
        live = check_scalar(
            value_of(mu.with_free_atoms(x, w), value), mu.points, finite=True
        )
        grads = grads_if_all(live, (x, w))
    if grads is None:
        return None
    velocity, variation = -grads[0] / mu.weights[:, None], grads[1]
    for gradient in (velocity, variation):
        check_finite(gradient, "the functional's gradient")
    return live.detach(), velocity, variation
