"""Underdamped Langevin dynamics: particles with velocities, friction and noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from otflow._arrays import added
from otflow._validation import positive
from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step, check_particles
from otflow.schemes.langevin import by_smaller_dt, split_heat

__all__ = ["UnderdampedLangevin"]


class UnderdampedLangevin(Scheme):
    r"""Kinetic Langevin dynamics for :math:`F = G + \tau\,\mathrm{Entropy}`.

    .. math:: dx = v\,dt, \qquad dv = -\nabla G'[\mu](x)\,dt - \gamma v\,dt
        + \sqrt{2\gamma\tau}\,dW.

    Particles have unit masses and velocities v. The velocities start from their law at
    rest, :math:`N(0, \tau I)`. At rest the positions have the Gibbs law :math:`\mu
    \propto e^{-G'[\mu]/\tau}`, as those of `Langevin`. The momentum carries particles
    over flat parts, so that the way to rest is often shorter.

    A step is the splitting BAOAB :cite:p:`leimkuhler2013rational`, of weak order 2:
    half a kick by the force, half a drift, the exact solution of friction and noise,
    half a drift, half a kick. At rest the positions have an error of second order in
    dt, and under a quadratic potential none.

    Parameters
    ----------
    friction : float
        The friction :math:`\gamma > 0`, one over a time. For a large one the flow is
        that of `Langevin`, slower by the factor :math:`\gamma`: the time t is the time
        :math:`t/\gamma` of the gradient flow. Under a spring :math:`\lambda|x|^2/2` the
        mean forgets the start fastest for :math:`\gamma = 2\sqrt\lambda`.

    Attributes
    ----------
    friction
        As above.

    Raises
    ------
    ValueError
        If the friction is not positive, or, from `step`, if the factor of the entropy
        is negative.
    Unsupported
        From `step`, if the measure is not made of particles.
    Diverged
        From `step`, if the new points are not finite: with the curvature L of G' a step
        is stable for dt < :math:`2/\sqrt L`.

    Notes
    -----
    Cost: one value and one velocity of G a step, and O(n d) beside. The recorded energy
    is G(mu), without the entropy and without the kinetic energy. It need not fall.

    The state holds the velocities, and the positions to which they belong. A position
    that another scheme of a chain has changed gets a fresh velocity, and
    ``info["refreshed"]`` counts them. The last half kick of a step is made at the
    beginning of the next one, by the same force as the first half kick there: under
    `Minibatch` both use one draw.

    At temperature 0 there is no noise, and the dynamics is that of a heavy ball with
    friction.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.1 * of.Entropy()
    >>> mu = of.Particles(torch.zeros(4000, 1))
    >>> scheme = of.schemes.UnderdampedLangevin(friction=2.0)
    >>> run = of.flow(F, mu, scheme, dt=0.5, steps=40, generator=0)
    >>> abs(run.final.points.var().item() - 0.1) < 0.01
    True
    """

    order = 2

    def __init__(self, friction: float = 1.0) -> None:
        self.friction = positive(friction, "friction")

    def init(self, F: Functional, mu: Measure) -> Any:
        check_particles(mu, self, instead="JKO()")
        return None

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        check_particles(mu, self, instead="JKO()")
        temperature, rest = split_heat(F)
        energy, force = rest.value_and_velocity(mu)
        own: dict[str, Any] = {"temperature": temperature}
        velocity, owed, own["refreshed"] = _carried(state, mu, temperature, generator)
        if isinstance(owed, float):
            velocity = added(velocity, force, owed + dt / 2)
        else:
            velocity = velocity + (owed + dt / 2) * force
        keep = math.exp(-self.friction * dt)
        try:
            middle = mu.push(velocity, dt / 2)
            noise = torch.empty_like(velocity).normal_(generator=generator)
            # 1 - exp(-2 friction dt) without cancellation at a small dt.
            spread = math.sqrt(-temperature * math.expm1(-2.0 * self.friction * dt))
            velocity = keep * velocity + spread * noise
            moved = middle.push(velocity, dt / 2)
        except Diverged as error:
            raise by_smaller_dt(error, mu) from error
        info = Certificate(float(energy.detach()), entries=own)
        return Step(moved, (moved.points, velocity, dt / 2), info, energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return split_heat(F)[1].value(mu)


def _carried(
    state: Any, mu: Measure, temperature: float, generator: torch.Generator
) -> tuple[Tensor, float | Tensor, int]:
    """Return the velocities, the times of the kick they lack, and how many are fresh.

    A fresh velocity lacks no kick: it is that of an atom at rest in law.
    """
    x, scale = mu.points, math.sqrt(temperature)
    if state is None:
        return scale * torch.empty_like(x).normal_(generator=generator), 0.0, 0
    left, velocity, owed = state
    if left is x or torch.equal(left, x):
        return velocity, owed, 0
    fresh = scale * torch.empty_like(x).normal_(generator=generator)
    if left.shape != x.shape:
        return fresh, 0.0, len(x)
    moved = (left != x).any(-1, keepdim=True)
    kicks = torch.where(moved, 0.0, x.new_tensor(owed))
    return torch.where(moved, fresh, velocity), kicks, int(moved.sum())
