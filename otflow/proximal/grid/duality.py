"""The dual of a JKO step between densities that are constant on cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.functionals import Congestion, Internal
from otflow.functionals.combined import Combined
from otflow.measures import GridDensity
from otflow.measures.grid.box import Box
from otflow.proximal.grid.c_transform import c_transform
from otflow.proximal.grid.own_energy import OwnEnergy
from otflow.proximal.terms import Terms

__all__ = [
    "DualProblem",
    "below_bound",
    "cell_extremes",
    "cell_means",
    "distance_bound",
    "dual_value",
    "lowest_pressure",
]

# A cell counts as empty below this share of the largest mass of a cell. The dual value
# is a lower bound for any pressure, so the share changes its tightness only.
DUST = 1e-9
# Relative error of the mass at which a constant is found, about the round-off of a sum
# over many cells; and most steps of the search.
EXACT, HALVINGS = 1e-13, 200


@dataclass(frozen=True)
class DualProblem:
    r"""Maximise :math:`\int(-V - p)^c d\mu - \int U^*(p)` over pressures p >= p_0.

    Parameters
    ----------
    masses : Tensor, shape (n,)
        Masses of the cells of the source.
    V : Tensor, shape (n,)
        The potential at the centres.
    room : Tensor, shape (n,)
        Free volume of each cell, 0 in obstacles.
    internal : Internal
        The energy U.
    lowest : float
        The least pressure p_0 = U'(0).
    box : Box
        The grid.
    dt : float
        Length of the step in time.
    without_energy : bool
        Whether F has no internal energy. Then U is a bound on the density that no
        density of mass 1 reaches on the grid.
    """

    masses: Tensor
    V: Tensor
    room: Tensor
    internal: Internal
    lowest: float
    box: Box
    dt: float
    without_energy: bool = False

    @classmethod
    def of(cls, terms: Terms, mu: GridDensity, V: Tensor, dt: float) -> Self:
        """Return the problem of the local terms in a potential (n,), in float64."""
        masses, volume = mu.weights.double(), mu.box.cell_volume
        # Without an internal energy: a bound that no density of mass 1 reaches.
        internal = terms.energy or Congestion(2.0 / volume)
        room, lowest = volume * mu.is_free.double(), lowest_pressure(internal, masses)
        V, is_alone = V.double(), terms.energy is None
        return cls(masses, V, room, internal, lowest, mu.box, dt, is_alone)

    @property
    def is_summed(self) -> bool:
        """Whether only the sum of U over cells is known, as of a user's term."""
        energy = self.internal
        parts = energy.parts if isinstance(energy, Combined) else ((1.0, energy),)
        return any(isinstance(part, OwnEnergy) for _, part in parts)

    def constant(self, s: Tensor) -> float:
        r"""Return the c for which :math:`\int (U^*)'(s - c)` is all the mass.

        Let r be the mean density. Then c lies between :math:`\min s - U'(r)`, where no
        cell is below the mean, and :math:`\max s - U'(r)`, where no cell is above it.
        Within this bracket Newton's method solves for the logarithm of the mass, which
        is linear in c for the entropy. The bracket is halved if a Newton step leaves
        it, or if three steps have not halved it. The mass at c exceeds all the mass by
        round-off at most, except for c at the end of the bracket.
        """
        is_free = self.room > 0
        total = float(self.masses.sum())
        # In a full room round-off may put the mean above the bound.
        mean = min(total / float(self.room.sum()), self.internal.max_density)
        slope = float(self.internal.slope(s.new_tensor([mean])))
        least, most = (float(x) - slope for x in torch.aminmax(s[is_free]))
        middle, width = 0.5 * (least + most), math.inf
        for step in range(HALVINGS):
            # Both ends are neighbouring numbers.
            if not least < middle < most:
                break
            mass, rate = self._filled(s - middle)
            if abs(mass - total) <= EXACT * total:
                return middle
            if mass > total:
                least = middle
            else:
                most = middle
            new = math.nan
            if 0 < mass < math.inf and rate > 0:
                new = middle + math.log(mass / total) * mass / rate
            halves = step % 3 < 2 or most - least <= 0.5 * width
            width = most - least if step % 3 == 2 else width
            middle = 0.5 * (least + most)
            if halves and least < new < most:
                middle = new
        return most

    def _filled(self, s: Tensor) -> tuple[float, float]:
        """Return the mass in equilibrium with s, and its derivative in s.

        The mass is infinite above all slopes of U.
        """
        try:
            density = self.internal.conjugate_slope(s)
        except NonFinite:
            return math.inf, 0.0
        between = (density > 0) & (density < self.internal.max_density)
        bend = self.internal.curvature(torch.where(between, density, 1.0))
        rate = torch.where(between & (bend > 0), self.room / bend, 0.0)
        return float((self.room * density).sum()), float(rate.sum())


def below_bound(masses: Tensor, room: Tensor, bound: float) -> tuple[Tensor, float]:
    """Return masses below a bound on the density, and the mass that was moved.

    The excess goes to the cells that hold mass already, in proportion to their
    remaining capacity. Other free cells receive mass only if those are full.

    Parameters
    ----------
    masses : Tensor, shape (n,)
        Masses of the cells.
    room : Tensor, shape (n,)
        Free volume of the cells.
    bound : float
        Bound on the density, possibly infinite.
    """
    if math.isinf(bound):
        return masses, 0.0
    most = bound * room
    kept = torch.minimum(masses, most)
    excess = float((masses - kept).sum())
    for allowed in (masses > 0, room > 0):
        left = torch.where(allowed, most - kept, 0.0)
        total = float(left.sum())
        if total > 0:
            share = min(excess, total)
            kept = kept + left * (share / total)
            excess -= share
    return torch.minimum(kept, most), float((masses - kept).clamp_min(0).sum())


def dual_value(
    problem: DualProblem, pressure: Tensor, masses: Tensor | None = None
) -> tuple[float | None, float]:
    r"""Return a lower bound of :math:`\int V d\nu + \int U(\nu) + W_2^2/(2\,dt)`.

    The bound holds for all densities that are constant on cells, for any pressure. Let
    :math:`\psi = \phi^c` and :math:`\phi = \psi^c` be potentials at the centres. Then
    :math:`\psi - |x|^2/(2\,dt)` and :math:`\phi - |y|^2/(2\,dt)`, interpolated linearly
    along each axis, satisfy :math:`\psi(x) + \phi(y) \le |x - y|^2/(2\,dt)` everywhere,
    since :math:`x \cdot y` is linear in each. Their means over cells have a closed
    form. The additive constant is the best one. For the distance of a density to itself
    the bound is too low by :math:`\sum_a h_a^2/(6\,dt)`.

    A bound for all densities, constant on cells or not, needs the integral of
    :math:`U^*` over each cell; the bound above takes :math:`U^*` at the mean of its
    argument. :math:`U^*` is convex. So its mean is at most the mean of the chord over
    the range of the argument in the cell.

    Parameters
    ----------
    problem : DualProblem
        The step.
    pressure : Tensor, shape (n,)
        Any pressure.
    masses : Tensor, shape (n,), optional
        The new masses, approximately. Far from them the pressure is lowered a little:
        this costs nothing and keeps :math:`U^*` zero there.

    Returns
    -------
    dual : float or None
        The bound; None if :math:`U^*` is infinite.
    unseen : float
        Loss of the bound if it is to hold for all densities. Infinite if U is known
        only by its sum over cells.
    """
    box, dt, room = problem.box, problem.dt, problem.room
    is_free = room > 0
    unit = sum(h * h for h in box.spacing) / dt
    if masses is not None:
        near = (masses > DUST * masses.max()).to(masses.dtype).reshape(box.shape)
        for axis in range(box.dim):
            near = _spread(near, axis)
        pressure = pressure - unit / 4 * (near == 0).reshape(-1)
    # A cell reaches half a spacing beyond its centre: the border gives the
    # interpolation there.
    phi, wide = _with_border(problem, -problem.V - pressure)
    # Any phi gives a bound. The second transform makes it the best one for this psi.
    psi = c_transform(phi.reshape(-1), wide, dt)[0]
    phi = c_transform(psi, wide, dt)[0].reshape(phi.shape)
    means = cell_means(psi.reshape(phi.shape)).reshape(-1)
    gain = float(problem.masses @ (means - unit / 12))
    mean = cell_means(-phi).reshape(-1) + unit / 12
    s = torch.where(is_free, mean - problem.V, 0.0)
    V, _ = _with_border(problem, problem.V)
    ends = [x.reshape(-1)[is_free] for x in cell_extremes(-phi - V)]
    mass = float(problem.masses.sum())
    # V may lie lower between the centres than its interpolation.
    more = _between(_inner(V)).reshape(-1)[is_free]
    mean = (mean - cell_means(V).reshape(-1))[is_free] + more
    low = torch.minimum(ends[0] + more, mean)
    high = torch.maximum(ends[1] + more + unit / 8, mean)
    width = high - low
    share = ((mean - low) / torch.where(width > 0, width, 1.0)).clamp(0.0, 1.0)
    chords = torch.cat([1 - share, share]) * room[is_free].repeat(2)
    try:
        dual = _best(problem, s, gain)
        if not math.isfinite(dual):
            return None, math.inf
        if problem.is_summed:
            return dual, math.inf
        # Without an energy U* is 0 for arguments <= 0 and infinite above.
        if problem.without_energy:
            full = gain - mass * float(high.max())
        else:
            # U* at both ends of the range in a cell, with shares that give the mean.
            full = _best(replace(problem, room=chords), torch.cat([low, high]), gain)
    except NonFinite:
        return None, math.inf
    return dual, max(dual - full, 0.0)


def _best(problem: DualProblem, s: Tensor, gain: float) -> float:
    r"""Return the gain less :math:`\int U^*(s - c)` and c, with the best constant c.

    The bound is concave in c, and the best c makes the mass 1. Any c gives a bound.
    """
    c = problem.constant(s)
    is_free = problem.room > 0
    loss = float(problem.room[is_free] @ problem.internal.conjugate(s[is_free] - c))
    return gain - c * float(problem.masses.sum()) - loss


def distance_bound(
    gap: float, masses: Tensor, V: Tensor, modulus: float | None, dt: float
) -> float | None:
    r"""Return a bound on the W2 distance to the exact step, from a duality gap.

    The objective is :math:`(1/dt + \lambda)`-convex along generalised geodesics. So a
    measure whose objective is within a gap of the minimum is within
    :math:`\sqrt{2\,\mathrm{gap}/(1/dt + \lambda)}` of the minimiser. Both sides of the
    gap read V at the centres of cells. The mean of V over a cell is above this value by
    a 24th of the second difference of V, and the least value of V in a cell is below it
    by up to an eighth. A sixth is added for both.

    Parameters
    ----------
    gap : float
        Objective at the measure minus a lower bound of the minimum.
    masses, V : Tensor
        Masses of the new density and the potential, in the box's shape. V may be
        infinite or NaN in obstacles.
    modulus : float or None
        The :math:`\lambda`, if known.
    dt : float
        Length of the step in time.

    Returns
    -------
    float or None
        The bound. None if the modulus is unknown or :math:`1 + dt\,\lambda \le 0`.
    """
    if modulus is None or 1 + dt * modulus <= 0:
        return None
    unseen = 0.0
    for axis, n in enumerate(V.shape):
        if n > 2:
            bend = _bend(V, axis).clamp_min(0)
            unseen += float((masses * bend).sum(dtype=torch.float64)) / 6
    return math.sqrt(2 * dt * (max(gap, 0.0) + unseen) / (1 + dt * modulus))


def _with_border(problem: DualProblem, f: Tensor) -> tuple[Tensor, Box]:
    """Return a function of cells, extended by one cell around the box and obstacles."""
    box = problem.box
    is_free = (problem.room > 0).reshape(box.shape)
    phi = torch.where(is_free, f.reshape(box.shape), 0.0)
    if not bool(is_free.all()):
        total, count = phi, is_free.to(phi.dtype)
        for axis in range(box.dim):
            total, count = _spread(total, axis), _spread(count, axis)
        near = total / count.clamp_min(1)
        phi = torch.where(is_free, phi, torch.where(count > 0, near, -math.inf))
    for axis, n in enumerate(box.shape):
        # Linear extrapolation needs two cells: on an axis of one cell it is constant.
        inner = min(1, n - 1)
        first, second = phi.narrow(axis, 0, 1), phi.narrow(axis, inner, 1)
        last, other = phi.narrow(axis, n - 1, 1), phi.narrow(axis, n - 1 - inner, 1)
        low = torch.where(torch.isfinite(second), 2 * first - second, first)
        high = torch.where(torch.isfinite(other), 2 * last - other, last)
        phi = torch.cat([low, phi, high], axis)
    return phi, Box(
        tuple(a - h for a, h in zip(box.lower, box.spacing, strict=True)),
        tuple(b + h for b, h in zip(box.upper, box.spacing, strict=True)),
        tuple(n + 2 for n in box.shape),
    )


def _spread(x: Tensor, axis: int) -> Tensor:
    """Return the sum of each entry and its two neighbours along an axis."""
    n = x.shape[axis]
    out = x.clone()
    out.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1))
    out.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1))
    return out


def cell_means(f: Tensor) -> Tensor:
    """Return means over inner cells of a function that is linear between centres."""
    # Over half a cell the mean of a linear function is 3/4 of the value at the centre
    # plus 1/4 of that at the next centre. The two halves of a cell share the first.
    for axis in range(f.ndim):
        n = f.shape[axis] - 2
        sides = f.narrow(axis, 0, n) + f.narrow(axis, 2, n)
        f = 0.75 * f.narrow(axis, 1, n) + 0.125 * sides
    return f


def cell_extremes(f: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds on inner cells of a function that is linear between centres."""
    # Linear along each axis between centres, so the extremes lie at the centre and at
    # the middles towards the neighbours.
    low = high = f
    for axis in range(f.ndim):
        n = f.shape[axis] - 2
        least = below = low.narrow(axis, 1, n)
        most = above = high.narrow(axis, 1, n)
        for k in (0, 2):
            least = torch.minimum(least, 0.5 * (below + low.narrow(axis, k, n)))
            most = torch.maximum(most, 0.5 * (above + high.narrow(axis, k, n)))
        low, high = least, most
    return low, high


def _inner(f: Tensor) -> Tensor:
    """Return f without the outermost entries along each axis."""
    for axis, n in enumerate(f.shape):
        f = f.narrow(axis, 1, n - 2)
    return f


def _between(V: Tensor) -> Tensor:
    """Return the most by which V lies below its linear interpolation in each cell.

    Between centres it is an eighth of a positive second difference. Beyond the
    outermost centres the interpolation is a straight line, and it is three eighths of
    minus a negative second difference.
    """
    total = torch.zeros_like(V)
    for axis, n in enumerate(V.shape):
        if n > 2:
            bend = _bend(V, axis)
            total += bend.clamp_min(0) / 8
            for place in (0, n - 1):
                end = bend.narrow(axis, place, 1)
                total.narrow(axis, place, 1).add_(3 * (-end).clamp_min(0) / 8)
    return total


def _bend(V: Tensor, axis: int) -> Tensor:
    """Return second differences along an axis; an end has that of its neighbour.

    Beside obstacles, where V has no value, they are 0.
    """
    bend = V.diff(n=2, dim=axis).nan_to_num(0.0, 0.0, 0.0)
    first, last = bend.narrow(axis, 0, 1), bend.narrow(axis, -1, 1)
    return torch.cat([first, bend, last], axis)


def lowest_pressure(internal: Internal, like: Tensor) -> float:
    """Return U'(0); minus infinity for energies that fill the vacuum.

    The U' of such an energy falls at least like a logarithm: over the second half of
    the exponents as much as over the first, in any unit of energy. A power that
    vanishes at 0 falls less and less.
    """
    # Nearly the least float64, with its exponent halved and halved again.
    densities = like.new_tensor([1e-300, 1e-150, 1e-75])
    deep, middle, higher = internal.slope(densities).tolist()
    return -math.inf if middle - deep > higher - middle > 0 else deep
