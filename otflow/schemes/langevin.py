"""Langevin dynamics: transport by the smooth part, noise for the entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._validation import true_or_false
from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.functionals.stated_terms import check_terms
from otflow.measures import Measure, Particles
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step

__all__ = ["Langevin", "by_smaller_dt", "split_heat"]


class Langevin(Scheme):
    r"""Euler-Maruyama for :math:`F = G + \tau\,\mathrm{Entropy}`.

    .. math:: x_i \leftarrow x_i + dt\, v_G(x_i) + \sqrt{2\tau\,dt}\;\xi_i,
        \qquad \xi_i \sim N(0, I),

    which discretises :math:`d\theta = -\nabla G'[\rho_t](\theta)\,dt +
    \sqrt{2\tau}\,dW` and the Fokker-Planck equation :math:`\partial_t\rho =
    \nabla\cdot(\rho\nabla G'[\rho]) + \tau\Delta\rho` :cite:p:`mei2018mean`. The scheme
    reads the temperature :math:`\tau` (the inverse of :math:`\beta`) from
    ``F.split_entropy()``. Weak order 1.

    The entropy of particles has no value. So the recorded energy is G(mu), without the
    entropy, and ``info["temperature"]`` holds :math:`\tau`.

    Parameters
    ----------
    remap : bool
        On a grid, whether to move by ``transport``, as in `ExplicitEuler`.

    Attributes
    ----------
    remap
        As above.

    Raises
    ------
    Unsupported
        From `step`, with ``remap=True`` on a measure without fixed cells.
    ValueError
        From `step`, if the factor of the entropy is negative.
    Diverged
        From `step`, if the new points are not finite.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.1 * of.Entropy()
    >>> mu = of.Particles(torch.zeros(4000, 1))
    >>> run = of.flow(F, mu, of.Langevin(), dt=0.05, steps=200, generator=0)
    >>> abs(run.final.points.var().item() - 0.1) < 0.01
    True
    """

    def __init__(self, *, remap: bool = False) -> None:
        self.remap = true_or_false(remap, "remap")

    def init(self, F: Functional, mu: Measure) -> Any:
        check_terms(F, mu)
        return super().init(F, mu)

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        temperature, rest = split_heat(F)
        energy, velocity = rest.value_and_velocity(mu)
        try:
            moved = (mu.transport if self.remap else mu.push)(velocity, dt)
            moved = moved.diffuse(2.0 * temperature * dt, generator)
        except Diverged as error:
            raise by_smaller_dt(error, mu) from error
        before = float(energy.detach())
        info = Certificate(before, entries={"temperature": temperature})
        return Step(moved, state, info, energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return split_heat(F)[1].value(mu)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'remap=True' if self.remap else ''})"


def split_heat(F: Functional) -> tuple[float, Functional]:
    """Return the temperature and the rest; ValueError if the heat runs backwards."""
    temperature, rest = F.split_entropy()
    if temperature < 0:
        msg = (
            f"the entropy has the negative factor {temperature:g}: the flow would "
            f"be a backward heat equation; minimise + temperature * Entropy()"
        )
        raise ValueError(msg)
    return temperature, rest


def by_smaller_dt(error: Diverged, mu: Measure) -> Diverged:
    """Return the error, for particles with a smaller dt as its only cure.

    The other cure, JKO(), raises Unsupported for an entropy of particles.
    """
    if not isinstance(mu, Particles):
        return Diverged(error.args[0], measure=mu)
    msg = error.args[0].split(", or ")[0]
    if "; " not in msg:
        msg = f"{msg}; take a smaller dt"
    return Diverged(msg, measure=mu)
