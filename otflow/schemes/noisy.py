"""Explicit Euler along the velocity at perturbed points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from otflow._validation import positive
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.schemes.base import Scheme, Step, check_exchangeable, check_particles

__all__ = ["NoisyEuler"]


class NoisyEuler(Scheme):
    r"""Explicit Euler with noise injected into the argument of the velocity.

    .. math:: x_i \leftarrow x_i + dt\, v(x_i + \beta_k u_i), \qquad
        u_i \sim N(0, I), \quad v = -\nabla F'[\mu].

    It lets flows of a maximum mean discrepancy leave laws at which all atoms are at
    rest but the field around them is not zero :cite:p:`arbel2019maximum`. The atoms
    themselves get no noise: at a minimum, where the field vanishes, they rest. With the
    level 0 it is explicit Euler.

    Parameters
    ----------
    level : float or callable
        The level :math:`\beta_k \ge 0`, a length, or a function of the number k = 0,
        1, ... of the step. It should fall to 0, so that the last steps are exact.

    Attributes
    ----------
    level
        As above.

    Raises
    ------
    ValueError
        If the level is negative, here or from `step`.
    Unsupported
        From `step`, if the measure is not made of particles, or if F has no first
        variation, as an entropy.
    Diverged
        From `step`, if the new points are not finite.

    Notes
    -----
    Cost: one field ``F.velocity(mu, x)`` a step. The state is the number of the step.
    ``info["level"]`` is the level.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.25 * (x.square() - 1).square().sum(-1))
    >>> mu = of.Particles(torch.zeros(200, 1))  # at rest, on top of the hill
    >>> scheme = of.schemes.NoisyEuler(lambda k: 0.5 * 0.9**k)
    >>> x = of.flow(F, mu, scheme, dt=0.5, steps=100, generator=0).final.points
    >>> bool((x.abs() - 1).abs().max() < 1e-3)
    True
    """

    def __init__(self, level: float | Callable[[int], float]) -> None:
        number = None if callable(level) else positive(level, "level", or_zero=True)
        self.level = level if number is None else number

    def init(self, F: Functional, mu: Measure) -> int:
        check_particles(mu, self, instead="ExplicitEuler()")
        check_exchangeable(F, self, does="reads velocities away from atoms")
        return 0

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        check_particles(mu, self, instead="ExplicitEuler()")
        count = int(state or 0)
        level = self.level(count) if callable(self.level) else self.level
        level = positive(level, "level", or_zero=True)
        noise = torch.empty_like(mu.points).normal_(generator=generator)
        velocity = F.velocity(mu, mu.points + level * noise)
        return Step(mu.push(velocity, dt), count + 1, {"level": level})

    def __repr__(self) -> str:
        level = self.level
        name = getattr(level, "__name__", None) or type(level).__name__
        return f"NoisyEuler({name if callable(level) else repr(level)})"
