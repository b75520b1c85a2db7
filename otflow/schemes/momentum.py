"""Particles with momentum: the kinetic flow of F, and steps by moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otflow._validation import positive, real, true_or_false
from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step, check_particles
from otflow.schemes.langevin import by_smaller_dt

__all__ = ["Adam", "Momentum"]


class Momentum(Scheme):
    r"""The kinetic flow of F: particles with velocities and friction.

    .. math:: \dot x = p, \qquad \dot p = -\nabla F'[\mu](x) - \gamma(t)\,p, \qquad
        \gamma(t) = \gamma \text{ or } 3/t .

    A particle starts at rest, :math:`p = 0`. It rolls over flat parts, where the
    gradient flow is slow. With the falling friction 3/t and a displacement convex F the
    energy falls like :math:`1/t^2`
    :cite:p:`su2016differential,taghvaei2019accelerated`. With a constant friction
    :math:`\gamma = 2\sqrt\lambda` and a :math:`\lambda`-convex F it falls like
    :math:`e^{-\sqrt\lambda\,t}`. A step is

    .. math:: p_{k+1} = \theta_k p_k + dt\,v[\mu_{k+1/2}], \qquad
        x_{k+1} = x_k + dt\,p_{k+1},

    of order 1. The velocity :math:`v = -\nabla F'` is read at the extrapolated points
    :math:`x_k + dt\,\theta_k p_k` for Nesterov's method, at :math:`x_k` for the heavy
    ball. The factors are those of Nesterov: :math:`\theta_k = (1 - \gamma\,dt/2)/(1 +
    \gamma\,dt/2)`, or :math:`\theta_k = t_k/(t_k + 3\,dt)`, where :math:`t_k` is the
    time since the start. With L-smooth F and :math:`dt \le 1/\sqrt L` his bounds hold
    for particles whose F is convex in the points,

    .. math:: F(\mu_k) - F(\mu) \le \frac{2\,\|x_0 - x\|^2}{dt^2\,(k + 1)^2} .

    Parameters
    ----------
    friction : float, optional
        The friction :math:`\gamma \ge 0`, one over a time. By default it is 3/t.
    nesterov : bool
        Whether the velocity is read at the extrapolated points.

    Attributes
    ----------
    friction, nesterov
        As above.

    Raises
    ------
    ValueError
        If the friction is negative; from `step`, if :math:`\gamma\,dt \ge 2`.
    Unsupported
        From `init` and `step`, if the measure is not made of particles.
    Diverged
        From `step`, if the new points are not finite.

    See Also
    --------
    otflow.schemes.UnderdampedLangevin : With noise, of order 2 in dt.

    Notes
    -----
    Cost: one value and one velocity of F a step, and O(n d). With ``nesterov=True`` the
    energy of the incoming measure is one value more, where it is recorded.

    The energy F may rise along a step. The sum of F and of the kinetic energy
    :math:`\int|p|^2/2\,d\mu` falls along the flow. ``info["kinetic"]`` is the kinetic
    energy after the step, and ``info["descends"]`` is False.

    The state holds the momenta, the points to which they belong, and the time since
    the start. Atoms that another scheme of a chain has moved are at rest again, and
    ``info["refreshed"]`` counts them.

    Examples
    --------
    >>> import torch, otflow as of
    >>> flat = of.Potential(lambda x: 0.005 * x.square().sum(-1))  # lambda = 0.01
    >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    >>> def left(scheme):
    ...     return float(of.flow(flat, mu, scheme, dt=1.0, steps=60).final.points)
    >>> left(of.ExplicitEuler()) > 0.5, left(of.schemes.Momentum(friction=0.2)) < 0.02
    (True, True)
    """

    def __init__(self, friction: float | None = None, *, nesterov: bool = True) -> None:
        if friction is not None:
            friction = positive(friction, "friction", or_zero=True)
        self.friction = friction
        self.nesterov = true_or_false(nesterov, "nesterov")

    def init(self, F: Functional, mu: Measure) -> Any:
        check_particles(mu, self, instead="ExplicitEuler()")
        return None

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        check_particles(mu, self, instead="ExplicitEuler()")
        old = _Moving(mu.points, torch.zeros_like(mu.points), 0.0)
        old = old if state is None else _Moving(*state)
        (momentum,), refreshed = _kept(old.points, mu.points, old.momentum)
        kept = self._factor(old.time, dt) * momentum
        try:
            ahead = mu.push(kept, dt) if self.nesterov else mu
            energy, velocity = F.value_and_velocity(ahead)
            momentum = torch.add(kept, velocity, alpha=dt)
            moved = mu.push(momentum, dt)
        except Diverged as error:
            raise by_smaller_dt(error, mu) from error
        own = {
            "kinetic": 0.5 * float(moved.inner(momentum, momentum).detach()),
            "refreshed": refreshed,
            "descends": False,
        }
        now = _Moving(moved.points, momentum, old.time + dt)
        if self.nesterov:
            return Step(moved, tuple(now), Certificate(entries=own))
        before = float(energy.detach())
        return Step(moved, tuple(now), Certificate(before, entries=own), energy)

    def _factor(self, time: float, dt: float) -> float:
        """Return the share of the momentum that friction leaves."""
        if self.friction is None:
            return time / (time + 3 * dt)
        half = self.friction * dt / 2
        if half >= 1:
            msg = (
                f"dt times the friction is {2 * half:g}, and a step needs it below 2; "
                f"take dt < {2 / self.friction:g}, or a smaller friction"
            )
            raise ValueError(msg)
        return (1 - half) / (1 + half)


class Adam(Scheme):
    r"""Steps by the moments of each particle's own velocity, coordinate by coordinate.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1)\,v, \qquad
        s \leftarrow \beta_2 s + (1 - \beta_2)\,v^2, \qquad
        x \leftarrow x + dt\,\frac{m/(1 - \beta_1^k)}
        {\sqrt{s/(1 - \beta_2^k)} + \varepsilon}

    in the k-th step, with :math:`v = -\nabla F'[\mu](x)` :cite:p:`kingma2015adam`. A
    coordinate moves at most about dt in a step. So dt is a learning rate, and not a
    time: the limit of many steps is no gradient flow of F. The velocity of a particle
    does not depend on their number, and neither do the steps. On a mean-field `Risk`
    they are those of ``torch.optim.Adam`` with the gradients times N.

    Parameters
    ----------
    betas : pair of float
        The factors :math:`\beta_1, \beta_2` in [0, 1).
    eps : float
        The number :math:`\varepsilon > 0`, in the units of the velocity.

    Attributes
    ----------
    betas, eps
        As above.

    Raises
    ------
    ValueError, TypeError
        If a factor is not in [0, 1), or eps is not positive.
    Unsupported
        From `init` and `step`, if the measure is not made of particles.

    Notes
    -----
    Cost: one value and one velocity of F a step, and O(n d) memory for two moments.
    The energy may rise: ``info["descends"]`` is False. Atoms that another scheme of a
    chain has moved begin with moments of zero, and ``info["refreshed"]`` counts them.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: (x - 3).square().sum(-1))
    >>> mu = of.Particles(torch.zeros(1, 1))
    >>> of.flow(F, mu, of.schemes.Adam(), dt=0.1, steps=2).final.points
    tensor([[0.1999]])
    """

    def __init__(
        self, betas: Sequence[float] = (0.9, 0.999), *, eps: float = 1e-8
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            msg = f"betas must be two numbers, e.g. (0.9, 0.999), got {betas!r:.80}"
            raise TypeError(msg)
        first, second = (real(beta, "a factor of betas") for beta in betas)
        if not (0 <= first < 1 and 0 <= second < 1):
            msg = f"betas must lie in [0, 1), got {betas!r}; take e.g. (0.9, 0.999)"
            raise ValueError(msg)
        self.betas, self.eps = (first, second), positive(eps, "eps")

    def init(self, F: Functional, mu: Measure) -> Any:
        check_particles(mu, self, instead="ExplicitEuler()")
        return None

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        check_particles(mu, self, instead="ExplicitEuler()")
        energy, velocity = F.value_and_velocity(mu)
        zeros, fresh = torch.zeros_like(velocity), mu.points.new_zeros(mu.n, 1)
        left, *kept = (mu.points, zeros, zeros, fresh) if state is None else state
        (mean, root, count), refreshed = _kept(left, mu.points, *kept)
        first, second = self.betas
        mean = first * mean + (1 - first) * velocity
        # The root of s, of which no square overflows or vanishes.
        root = torch.hypot(math.sqrt(second) * root, math.sqrt(1 - second) * velocity)
        count = count + 1  # of steps of each atom
        # 1 - beta^k without cancellation.
        size = root / _lack(second, count).sqrt() + self.eps
        moved = mu.push(mean / _lack(first, count) / size, dt)
        now = (moved.points, mean, root, count)
        own = {"refreshed": refreshed, "descends": False}
        return Step(
            moved, now, Certificate(float(energy.detach()), entries=own), energy
        )


class _Moving(NamedTuple):
    """Points, their momenta, and the time since the start."""

    points: Tensor
    momentum: Tensor
    time: float


def _lack(beta: float, count: Tensor) -> Tensor:
    """Return 1 - beta^k for each atom."""
    return -torch.expm1(count * math.log(beta)) if beta else torch.ones_like(count)


def _kept(left: Tensor, x: Tensor, *held: Tensor) -> tuple[list[Tensor], int]:
    """Return rows of atoms that stayed, zeros for others, and the number of others.

    If the number of atoms has changed, all are others.
    """
    if left is x or torch.equal(left, x):
        return list(held), 0
    if left.shape != x.shape:
        return [y.new_zeros(len(x), y.shape[1]) for y in held], len(x)
    moved = (left != x).any(-1, keepdim=True)
    return [y.masked_fill(moved, 0.0) for y in held], int(moved.sum())
