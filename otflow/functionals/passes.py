"""Value, velocity and first variation of a functional by one backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from otflow._autodiff import check_finite, grads_if_all
from otflow._graphs import differentiating, leaf, records, value_of
from otflow._typing import Value
from otflow._validation import check_scalar
from otflow.measures import Measure, Particles

__all__ = ["at_once", "by_autodiff", "summed", "times"]

T = TypeVar("T", bound=tuple[Tensor, ...])


def by_autodiff(F: Any, base: type) -> bool:
    """Return whether no class of F has a closed form of a derivative.

    Parameters
    ----------
    F : Functional
        The functional.
    base : type
        The class `Functional`, whose derivatives are those of autodiff.

    Returns
    -------
    bool
        True if velocity and first variation are those of the base.
    """
    names = ("value_and_velocity", "first_variation")
    return all(getattr(type(F), name) is getattr(base, name) for name in names)


def summed(each: Iterable[T]) -> T:
    """Return the sums of values, and of each derivative.

    Parameters
    ----------
    each : iterable of tuple of Tensor
        Tuples of one length.

    Returns
    -------
    tuple of Tensor
        Of the same length; empty if there is none to add.
    """
    sums = (sum(parts[1:], parts[0]) for parts in zip(*each, strict=True))
    return cast("T", tuple(sums))


def times(factor: float, answer: T) -> T:
    """Return a value and its derivatives, each times a number.

    Parameters
    ----------
    factor : float
        The number.
    answer : tuple of Tensor
        The value and the derivatives.

    Returns
    -------
    tuple of Tensor
        Of the same length.
    """
    return cast("T", tuple(factor * part for part in answer))


def at_once(value: Value, mu: Measure) -> tuple[Tensor, Tensor, Tensor] | None:
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
