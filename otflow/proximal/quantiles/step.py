"""Directions and paths of a descent over quantiles, between walls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.numerics.krylov import conjugate_gradients
from otflow.numerics.tridiagonal import Springs

__all__ = ["Direction", "Path", "Room", "direction", "spread"]

# Conjugate gradients stop at this share of the first residual, or after so many steps.
FORCING = 1e-4
MAX_PRODUCTS = 200
# A gap follows a straight line while its share of change, times its exponent, is at
# most this; beyond, the line leaves the range of the quadratic model.
STRAIGHT = 0.5
# Range of the exponents of a curve. The exponent is a quotient of a spring and a force,
# and meaningless where either is near 0.
EXPONENTS = (0.25, 8.0)
# Share of the way to the pole of a curve that a step may use: at the pole a gap would
# grow without end.
POLE = 0.9
# Share of its slack that a step leaves to a gap under a barrier. A shorter slack would
# make the next model too stiff, and 0 is outside of the domain.
LEFT = 0.05

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Room:
    """The admissible quantiles: walls at the ends and least gaps (n,), 0 for none."""

    least: Tensor
    lower: float
    upper: float

    @property
    def bounded(self) -> bool:
        """Whether gaps have a least length."""
        return bool((self.least > 0).any())

    def slacks(self, q: Tensor) -> Tensor:
        """Return the gaps beyond the least ones, (n,)."""
        return q.diff() - self.least

    def inside(self, q: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantiles and slacks, shifted or squeezed to fit between the walls."""
        if float(q[0]) < self.lower:
            q = q + (self.lower - q[0])
        if float(q[-1]) > self.upper:
            q = q + (self.upper - q[-1])
        # The shift from the upper wall has passed the lower one: only shorter gaps fit.
        if float(q[0]) < self.lower:
            room = self.upper - self.lower - float(self.least.sum())
            slack = slack * (room / float(slack.sum()))
            gaps = self.least + slack
            q = self.lower + torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        return q.clamp(self.lower, self.upper), slack


@dataclass(frozen=True)
class Direction:
    """A step of the quantiles, and the forces >= 0 of the walls on the ends."""

    step: Tensor
    lower: float
    upper: float

    def lost(self, room: Room, q: Tensor) -> float:
        """Return forces times distances of the walls: the complementarity gap."""
        below, above = float(q[0]) - room.lower, room.upper - float(q[-1])
        # Without a wall its force is 0 and its distance infinite.
        ends = (self.lower, below), (self.upper, above)
        return sum(force * gap for force, gap in ends if force)


def spread(forces: Tensor) -> Tensor:
    """Return the forces on quantiles, (n + 1,), of forces between neighbours, (n,)."""
    total = forces.new_zeros(len(forces) + 1)
    total[1:] += forces
    total[:-1] -= forces
    return total


def direction(
    band: Springs, product: Product | None, slope: Tensor, q: Tensor, room: Room
) -> Direction:
    """Minimise the quadratic model with these derivatives, the ends between walls.

    The first solution is without walls. A wall that an end passes then holds this end.
    The band is an M-matrix: a force on one end pushes the other end the same way. So no
    wall that holds is ever released.
    """
    # The unknowns are displacements, so the walls are given as such.
    low, high = room.lower - float(q[0]), room.upper - float(q[-1])
    ends: tuple[float | None, float | None] = (None, None)
    while True:
        step = _solve(band, product, -slope, ends)
        first = low if ends[0] is None and float(step[0]) < low else ends[0]
        last = high if ends[1] is None and float(step[-1]) > high else ends[1]
        if (first, last) == ends:
            break
        ends = (first, last)
    # What keeps a held end in its place is the force of its wall.
    force = slope + band.times(step)
    if product is not None and ends != (None, None):
        force = force + product(step)
    return Direction(
        step,
        0.0 if ends[0] is None else max(0.0, float(force[0])),
        0.0 if ends[1] is None else max(0.0, -float(force[-1])),
    )


def _solve(
    band: Springs,
    product: Product | None,
    rhs: Tensor,
    ends: tuple[float | None, float | None],
) -> Tensor:
    """Solve with given values at the ends; None stands for a free end."""
    first, last = ends
    i, j = int(first is not None), len(rhs) - int(last is not None)
    known = torch.zeros_like(rhs)
    known[0], known[-1] = first or 0.0, last or 0.0
    if i == j:
        return known
    # A held end leaves the system. Its spring pulls the neighbour to the known value.
    rows, load, k = band.rows[i:j].clone(), rhs[i:j].clone(), band.springs
    if first is not None:
        rows[0] += k[0]
        load[0] += k[0] * first
    if last is not None:
        rows[-1] += k[-1]
        load[-1] += k[-1] * last
    inner = Springs(rows, k[i : j - 1])
    found = inner.solve(load)
    # The band of the caller is positive definite, and so is each part of it: only
    # round-off or a number that is not finite can fail here.
    if found is None:
        msg = (
            "the Hessian of the JKO objective on quantiles is drowned in round-off, or "
            "not finite: the step is too long beside the curvature of F; take a "
            "smaller dt"
        )
        raise NonFinite(msg)
    whole = known.clone()
    whole[i:j] = found
    if product is None:
        return whole

    def nonlocal_times(v: Tensor) -> Tensor:
        padded = torch.zeros_like(rhs)
        padded[i:j] = v
        return product(padded)[i:j]

    # The product of the band with a direction is kept and not formed: what the band
    # solves exactly, such as stiff bounds, meets no round-off of a product.
    whole[i:j] += conjugate_gradients(
        lambda v, band_v: band_v + nonlocal_times(v),
        inner.solve,
        -product(whole)[i:j],
        FORCING,
        MAX_PRODUCTS,
    )
    return whole


class Path:
    r"""A curve of quantiles with a given direction at its start; gaps stay positive.

    Let s be the slack of a gap, its length beyond the least one, and x = ds/s the
    share of change. The force of the gap's energy is about :math:`s^{-m}`, with
    :math:`m = s\,k/f` from the force f and the spring k. The slack at time t is

    - :math:`s\,(1 + t\,x)` for small x;
    - :math:`s\,(1 - m\,t\,x)^{-1/m}` for large x. At t = 1 the energy of the gap
      balances a constant force, however far off; a straight step would pass 0;
    - :math:`s \max(1 + t\,x, 1/20)` if the barrier's spring is stiffer than k.

    So a short cell does not shorten the step of the others.

    Parameters
    ----------
    q, step : Tensor, shape (n + 1,)
        Start and direction.
    force, spring : Tensor, shape (n,)
        Force and spring of each gap, outward and >= 0, without the barrier.
    barrier : Tensor, shape (n,)
        Spring of the barrier; 0 without one.
    slack : Tensor, shape (n,)
        Gaps minus the least gaps. They are kept beside q: under a barrier they are
        finer than the last place of the quantiles.
    room : Room
        Least gaps and walls.
    lumped : Tensor, shape (n + 1,)
        Masses of the quantiles. The mean moves along the straight line.

    Attributes
    ----------
    longest : float
        The time to try first, at most 1.
    """

    def __init__(
        self,
        q: Tensor,
        step: Tensor,
        force: Tensor,
        spring: Tensor,
        barrier: Tensor,
        slack: Tensor,
        room: Room,
        lumped: Tensor,
    ) -> None:
        self.q, self.step, self.room, self.lumped = q, step, room, lumped
        self.slack = slack
        self.share = step.diff() / self.slack
        self.exponent = torch.ones_like(self.share)
        # Elsewhere the quotient of spring and force says nothing of the energy's power.
        held = (force > 0) & (spring > 0) & (spring >= barrier)
        exponent = self.slack * spring / torch.where(held, force, 1.0)
        self.exponent = torch.where(held, exponent, 1.0).clamp(*EXPONENTS)
        bend = self.exponent * self.share
        # A short way is the same on the line and on the curve; the line costs no power.
        near = (bend.abs() <= STRAIGHT) & (self.share >= -STRAIGHT)
        self.bent = held & ~near
        self.cut = ~held & (barrier > 0) & (self.share < LEFT - 1)
        # No force keeps the other gaps open: a step ends short of where they close.
        loose = self.share[~held & (barrier <= 0)]
        worst = float(-loose.min()) if len(loose) else 0.0
        self.longest = POLE / worst if worst > POLE else 1.0

    def __call__(self, t: float) -> tuple[Tensor, Tensor]:
        """Return the quantiles and the slacks at time t, from 0 to 1."""
        q, x = self.q + t * self.step, t * self.share
        factor = 1 + x
        if bool((self.bent | self.cut).any()):
            m = self.exponent
            # A gap that is pulled apart has its pole at m t x = 1.
            bent = (1 - (m * x).clamp_max(POLE)).pow(-1 / m)
            factor = torch.where(self.bent, bent, factor)
            factor = torch.where(self.cut, factor.clamp_min(LEFT), factor)
            excess = self.slack * (factor - 1 - x)
            shift = torch.cat([excess.new_zeros(1), excess.cumsum(0)])
            # The gaps differ from the line's; the mean stays that of the line.
            q = q + shift - self.lumped @ shift
        q, slack = self.room.inside(q, self.slack * factor)
        return q, slack if self.room.bounded else q.diff()
