"""Transport and reaction that read the derivatives of F at one measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from otflow._claims import changed
from otflow.functionals import Functional
from otflow.measures import Measure, Particles
from otflow.schemes.base import Scheme, Step
from otflow.schemes.birth_death import BirthDeath
from otflow.schemes.euler import ExplicitEuler

__all__ = ["by_one_pass", "share_a_pass"]

# What a subclass may define without a change of its steps.
HARMLESS = frozenset(("order", "effects"))


def share_a_pass(pair: Sequence[Scheme], mu: Measure) -> bool:
    """Return whether two schemes read F at the start alone, and atoms keep their index.

    Parameters
    ----------
    pair : sequence of Scheme
        One scheme, or two that follow each other.
    mu : Measure
        Where they start.

    Returns
    -------
    bool
        True for explicit Euler steps without backtracking before birth and death, on
        particles.
    """
    return (
        isinstance(mu, Particles)
        and len(pair) == 2
        and _steps_as(pair[0], ExplicitEuler)
        and _steps_as(pair[1], BirthDeath)
        and not pair[0].backtracking  # type: ignore[attr-defined]
    )


def _steps_as(scheme: Scheme, kind: type[Scheme]) -> bool:
    """Return whether a scheme is of a kind, or a subclass with the same steps.

    A subclass that changes a step may read F anywhere.
    """
    return isinstance(scheme, kind) and changed(type(scheme), kind, HARMLESS) is None


def by_one_pass(
    pair: Sequence[Any],
    F: Functional,
    mu: Measure,
    dt: float,
    states: Sequence[Any],
    generator: torch.Generator,
) -> list[Step[Any]]:
    """Return the steps of transport and of reaction, by one pass of F.

    Parameters
    ----------
    pair : sequence of Scheme
        Two schemes that `share_a_pass`.
    F, mu, dt, generator
        As in `Scheme.step`.
    states : sequence
        The state of each.

    Returns
    -------
    list of Step
        One step of each; the second starts from the measure of the first.
    """
    transport, reaction = pair
    energy, velocity, variation = F.value_and_derivatives(mu)
    first = transport.along(mu, energy, velocity, dt, states[0])
    second = reaction.react(F, mu, first.measure, variation, dt, states[1], generator)
    return [first, second]
