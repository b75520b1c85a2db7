"""Langevin dynamics: transport by the smooth part, noise for the entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._validation import true_or_false
from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.functionals.base import sum_of
from otflow.functionals.stated_terms import check_terms
from otflow.measures import Measure, Particles
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step

__all__ = ["Langevin", "by_smaller_dt", "split_heat", "split_noise"]


class Langevin(Scheme):
    r"""Euler-Maruyama for :math:`F = G + \tau\,\mathrm{Entropy}`.

    .. math:: x_i \leftarrow x_i + dt\, v_G(x_i) + \sqrt{2\tau\,dt}\;\xi_i,
        \qquad \xi_i \sim N(0, I),

    which discretises :math:`d\theta = -\nabla G'[\rho_t](\theta)\,dt +
    \sqrt{2\tau}\,dW` and the Fokker-Planck equation :math:`\partial_t\rho =
    \nabla\cdot(\rho\nabla G'[\rho]) + \tau\Delta\rho` :cite:p:`mei2018mean`. The scheme
    reads the temperature :math:`\tau` (the inverse of :math:`\beta`) from
    ``F.split_entropy()``. Weak order 1. Entropies of parts of a measure, as
    `~otflow.functionals.OfPart` makes them, give each part noise of its own factor.

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
        temperature, noise, rest = split_noise(F)
        energy, velocity = rest.value_and_velocity(mu)
        try:
            moved = (mu.transport if self.remap else mu.push)(velocity, dt)
            if temperature or not noise:
                moved = moved.diffuse(2.0 * temperature * dt, generator)
            for factor, entropy in noise:
                moved = entropy.heated(moved, 2.0 * factor * dt, generator)
        except Diverged as error:
            raise by_smaller_dt(error, mu) from error
        before = float(energy.detach())
        info = Certificate(before, entries={"temperature": temperature})
        return Step(moved, state, info, energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return split_noise(F)[2].value(mu)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'remap=True' if self.remap else ''})"


def split_heat(F: Functional) -> tuple[float, Functional]:
    """Return the temperature and the rest; ValueError if the heat runs backwards."""
    temperature, rest = F.split_entropy()
    if temperature < 0:
        raise ValueError(_backward(temperature, "Entropy()"))
    return temperature, rest


def split_noise(
    F: Functional,
) -> tuple[float, list[tuple[float, Functional]], Functional]:
    """Return the temperature, entropies of parts with their factors, and the rest."""
    temperature, rest = split_heat(F)
    terms = rest.terms()
    noise = [(c, term) for c, term in terms if term.entropic]
    if not noise:
        return temperature, [], rest
    for c, term in noise:
        if c < 0:
            raise ValueError(_backward(c, repr(term)))
    return temperature, noise, sum_of(pair for pair in terms if not pair[1].entropic)


def _backward(factor: float, entropy: str) -> str:
    return (
        f"the entropy has the negative factor {factor:g}: the flow would be a backward "
        f"heat equation; minimise + temperature * {entropy}"
    )


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
