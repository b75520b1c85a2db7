"""Langevin steps that are accepted or rejected, so that the law at rest is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._arrays import coordinate_limit
from otflow.errors import Diverged, NonFinite, Unsupported
from otflow.functionals import Functional, Potential
from otflow.measures import Measure, Particles
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step, check_particles
from otflow.schemes.langevin import split_heat

__all__ = ["MALA"]


class MALA(Scheme):
    r"""Metropolis-adjusted Langevin steps for a potential V and the entropy.

    For :math:`F = \int V\,d\mu + \tau\,\mathrm{Entropy}` each atom is proposed a move,

    .. math:: y_i = x_i - dt\,\nabla V(x_i) + \sqrt{2\tau\,dt}\;\xi_i, \qquad
        \alpha_i = \min\Bigl(1,\; \frac{e^{-V(y_i)/\tau}\, q(x_i|y_i)}
        {e^{-V(x_i)/\tau}\, q(y_i|x_i)}\Bigr),

    with the Gaussian density q of the proposal. The atom moves to :math:`y_i` with
    probability :math:`\alpha_i`, and else stays :cite:p:`roberts1996exponential`. So
    each atom is a Markov chain of which :math:`e^{-V/\tau}` is the law at rest, exactly
    and for every dt, where the law of `Langevin` has an error of order dt. The masses
    are those of the start.

    Raises
    ------
    ValueError
        From `step`, if F holds no positive multiple of the entropy.
    Unsupported
        From `step`, if the measure is not made of particles, or if the rest of F is not
        linear in the measure: then it has no fixed density.
    NonFinite
        From `step`, if V is not finite at an atom.
    Diverged
        From `step`, if V is NaN or minus infinity at a proposal, or has no gradient
        there.

    Notes
    -----
    ``info["acceptance"]`` is the share of the atoms that moved. A rate near 0.57 is
    best for many coordinates :cite:p:`roberts1998optimal`; near 0 the atoms stand
    still, and a smaller dt helps. A proposal too large for its dtype is rejected, and
    so is one at which V is infinite: the density is 0 there, as beyond the walls of
    `otflow.functionals.box`.
    Where the steps are many and short the time is that of the flow; at a low rate the
    flow is slower. The recorded energy is the integral of V.

    Cost: two values and two gradients of V a step.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.KL(lambda x: 0.5 * x.square().sum(-1))  # the density N(0, 1)
    >>> mu = of.Particles(torch.zeros(4000, 1))
    >>> run = of.flow(F, mu, of.schemes.MALA(), dt=1.0, steps=40, generator=0)
    >>> abs(run.final.points.var().item() - 1.0) < 0.1  # by Langevin it is 2
    True
    >>> run.info[-1]["acceptance"] > 0.5
    True
    """

    def init(self, F: Functional, mu: Measure) -> Any:
        self._checked(F, mu)
        return None

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        temperature, rest = self._checked(F, mu)
        assert isinstance(mu, Particles)
        x = mu.points
        energy, drift = rest.value_and_velocity(mu)
        noise = torch.empty_like(x).normal_(generator=generator)
        chance = torch.rand(mu.n, generator=generator, dtype=x.dtype, device=x.device)
        y = x + dt * drift + (2.0 * temperature * dt) ** 0.5 * noise
        inside = y.abs().amax(-1) < coordinate_limit(x.dtype)
        y = torch.where(inside[:, None], y, x)
        here = rest.first_variation(mu)
        try:
            there, back = _at(rest, mu, y)
        except NonFinite as first:
            inside &= ~_beyond_walls(rest, y)
            y = torch.where(inside[:, None], y, x)
            try:
                there, back = _at(rest, mu, y)
            except NonFinite:
                msg = (
                    f"V or its gradient is not finite at a proposal of {self!r} "
                    f"({first}); take a smaller dt, or a V that is finite everywhere"
                )
                raise Diverged(msg, measure=mu) from first
        rise = there - here
        # Both logarithms of q, without their constant.
        ahead = (y - x - dt * drift).square().sum(-1)
        behind = (x - y - dt * back).square().sum(-1)
        ratio = (ahead - behind) / (4.0 * temperature * dt) - rise / temperature
        # The chance may be 0, but not 1: of 1 - chance the logarithm is finite.
        accepted = inside & (torch.log1p(-chance) <= ratio)
        moved = mu.with_free_atoms(torch.where(accepted[:, None], y, x))
        own = {
            "temperature": temperature,
            "acceptance": float(accepted.to(x).mean()),
        }
        info = Certificate(float(energy.detach()), entries=own)
        return Step(moved, state, info, energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return split_heat(F)[1].value(mu)

    def _checked(self, F: Functional, mu: Measure) -> tuple[float, Functional]:
        """Return the temperature and the rest of an F that has a fixed density."""
        check_particles(mu, self, instead="JKO()")
        temperature, rest = split_heat(F)
        if temperature == 0:
            msg = (
                "F holds no entropy, so there is no density to sample; add "
                "temperature * Entropy(), or use ExplicitEuler()"
            )
            raise ValueError(msg)
        if rest.mixture_curvature() is not Curvature.LINEAR:
            msg = (
                f"MALA samples a fixed density, and {rest!r} is not known to be linear "
                f"in the measure; use Langevin(), or UnderdampedLangevin()"
            )
            raise Unsupported(msg)
        return temperature, rest


def _at(rest: Functional, mu: Measure, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return V and minus its gradient at proposals."""
    return rest.first_variation(mu, y), rest.velocity(mu, y)


def _beyond_walls(rest: Functional, y: Tensor) -> Tensor:
    """Return at which points (n, d) a potential is infinite, (n,)."""
    beyond = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for c, term in rest.terms():
        if isinstance(term, Potential) and c > 0:
            with torch.no_grad():
                beyond |= term.V(y) == torch.inf
    return beyond
