"""The dual of a JKO step on a grid, as a problem in the pressure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.functionals import Congestion, Internal
from otflow.functionals.combined import Combined
from otflow.measures import GridDensity
from otflow.measures.grid.box import Box
from otflow.numerics.multigrid import blocks
from otflow.proximal.grid.own_energy import OwnEnergy
from otflow.proximal.grid.push_forward import Sweep, lifted, push_forward
from otflow.proximal.terms import Terms

__all__ = ["Iterate", "PressureProblem", "lowest_pressure"]

# A pressure this close to the least one, relative to the largest, counts as the least.
ROUND_OFF = 1e-14
# Relative error of the mass at which a constant is found, and most steps of the search.
EXACT, HALVINGS = 1e-13, 200


@dataclass(frozen=True)
class Iterate:
    """A pressure with the masses that it drives.

    Parameters
    ----------
    pressure : Tensor, shape (n,)
        The pressure.
    masses : Tensor, shape (n,)
        The push-forward.
    wanted : Tensor, shape (n,)
        The masses in equilibrium with the pressure.
    mobility : list of Tensor
        Mass that passes the inner faces of each axis under a shift by one cell.
    sweeps : list of Sweep
        The transport.
    lost : Tensor of bool, shape (n,)
        Cells at the least pressure that win no mass, so that a small change of their
        pressure has no effect.
    residual : float
        Mass at the wrong density: the excess where the pressure is at its least, and
        the difference of the two masses elsewhere.
    """

    pressure: Tensor
    masses: Tensor
    wanted: Tensor
    mobility: list[Tensor]
    sweeps: list[Sweep]
    lost: Tensor
    residual: float

    @property
    def excess(self) -> Tensor:
        """Masses minus those wanted: the gradient of the dual."""
        return self.masses - self.wanted


@dataclass(frozen=True)
class PressureProblem:
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
    def of(cls, terms: Terms, mu: GridDensity, V: Tensor, dt: float) -> PressureProblem:
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

    def potential(self, pressure: Tensor) -> Tensor:
        """Return -V - p, minus infinity in obstacles."""
        return torch.where(self.room > 0, -self.V - pressure, -math.inf)

    def wanted(self, pressure: Tensor) -> Tensor:
        """Return the density in equilibrium with a pressure, the largest if several."""
        # At the pressure 0 congestion allows all densities up to its bound: the least
        # positive pressure picks the bound.
        tiny = torch.finfo(pressure.dtype).tiny
        return self.internal.conjugate_slope(torch.where(pressure == 0, tiny, pressure))

    def at(self, pressure: Tensor) -> Iterate:
        """Return the masses that a pressure drives; round-off above p_0 is dropped."""
        if math.isfinite(self.lowest):
            slack = ROUND_OFF * float(pressure.abs().max())
            at_least = pressure <= self.lowest + slack
            pressure = pressure.masked_fill(at_least, self.lowest)
        phi = self.potential(pressure)
        raised = lifted(phi.reshape(self.box.shape), self.box, self.dt).reshape(-1)
        lost = raised > phi
        if bool(lost.any()):
            pressure = torch.where(lost, -self.V - raised, pressure)
            pressure = pressure.clamp_min(self.lowest)
            lost = lost & (pressure <= self.lowest)
            phi = self.potential(pressure)
        masses, sweeps, mobility = push_forward(self.masses, phi, self.box, self.dt)
        wanted = self.room * self.wanted(pressure)
        excess = masses - wanted
        at_least = pressure <= self.lowest
        residual = torch.where(at_least, excess.clamp_min(0), excess.abs())
        return Iterate(
            pressure, masses, wanted, mobility, sweeps, lost, float(residual.sum())
        )

    def at_rest(self) -> Tensor:
        """Return the pressure of the energy's minimiser: a start for large steps.

        The pressure is c - V, at least the lowest, with c such that the mass is 1.
        """
        V = torch.where(self.room > 0, self.V, 0.0)
        constant = self.constant(-V)
        return (-constant - V).clamp_min(self.lowest)

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

    # Lines ----------------------------------------------------------------------------

    def along(self, axis: int) -> PressureProblem:
        """Return the problem of the marginals along an axis.

        The potential is the mean of V over the other axes, under the marginals of the
        source. Suppose that V is a sum of functions of one coordinate, the source a
        product and the energy the entropy. Then the solution is the sum of those along
        the axes.
        """
        shape = self.box.shape
        others = tuple(a for a in range(self.box.dim) if a != axis)
        V = torch.where(self.room > 0, self.V, 0.0).reshape(shape)
        masses = self.masses.reshape(shape)
        for a in reversed(others):
            rest = tuple(k for k in range(self.box.dim) if k != a)
            share = masses.sum(rest) / masses.sum()
            V = torch.tensordot(V, share, dims=([a], [0]))
        box = Box(
            (self.box.lower[axis],), (self.box.upper[axis],), (self.box.shape[axis],)
        )
        room = torch.full_like(V, box.cell_volume)
        return replace(self, masses=masses.sum(others), V=V, room=room, box=box)

    def joined(self, lines: Sequence[tuple[PressureProblem, Tensor]]) -> Tensor:
        """Return the pressure whose map is the product of those along the axes."""
        phi = torch.zeros(self.box.shape, dtype=self.V.dtype, device=self.V.device)
        for axis, (line, pressure) in enumerate(lines):
            shape = [-1 if a == axis else 1 for a in range(self.box.dim)]
            phi = phi - (line.V + pressure).reshape(shape)
        s = torch.where(self.room > 0, -self.V - phi.reshape(-1), 0.0)
        return (s - self.constant(s)).clamp_min(self.lowest)

    # Coarser grids --------------------------------------------------------------------

    def coarser(self) -> PressureProblem:
        """Return the problem on blocks of two cells along each axis."""
        box = self.box
        shape = tuple((n + 1) // 2 for n in box.shape)
        upper = tuple(
            a + 2 * h * n for a, h, n in zip(box.lower, box.spacing, shape, strict=True)
        )
        room = blocks(self.room.reshape(box.shape))
        weighted = torch.where(self.room > 0, self.V, 0.0) * self.room
        V = blocks(weighted.reshape(box.shape)) / torch.where(room > 0, room, 1.0)
        return replace(
            self,
            masses=blocks(self.masses.reshape(box.shape)).reshape(-1),
            V=V.reshape(-1),
            room=room.reshape(-1),
            box=Box(box.lower, upper, shape),
        )

    def restrict(self, pressure: Tensor) -> Tensor:
        """Return the mean pressure of each block."""
        shape = self.box.shape
        total = blocks((self.room * pressure).reshape(shape))
        room = blocks(self.room.reshape(shape))
        return (total / torch.where(room > 0, room, 1.0)).reshape(-1)

    def prolong(self, coarse: PressureProblem, pressure: Tensor) -> Tensor:
        """Return a pressure of blocks at the cells.

        The Kantorovich potential is interpolated linearly: it must be smooth where the
        pressure acts.
        """
        acts = (pressure > self.lowest).to(pressure.dtype)
        phi = self._interpolate(-coarse.V - pressure, coarse.box)
        near = self._interpolate(acts, coarse.box) > 0
        return torch.where(near, -self.V - phi, self.lowest).clamp_min(self.lowest)

    def _interpolate(self, coarse: Tensor, box: Box) -> Tensor:
        p = coarse.reshape(box.shape)
        for axis, n in enumerate(self.box.shape):
            m = p.shape[axis]
            index = torch.arange(n, device=p.device)
            near = index // 2
            far = (near + 2 * (index % 2) - 1).clamp(0, m - 1)
            p = 0.75 * p.index_select(axis, near) + 0.25 * p.index_select(axis, far)
        return p.reshape(-1)


def lowest_pressure(internal: Internal, like: Tensor) -> float:
    """Return U'(0); minus infinity for energies that fill the vacuum.

    The U' of such an energy falls at least like a logarithm: over the second half of
    the exponents as much as over the first, in any unit of energy. A power that
    vanishes at 0 falls less and less.
    """
    densities = like.new_tensor([1e-300, 1e-150, 1e-75])
    deep, middle, higher = internal.slope(densities).tolist()
    return -math.inf if middle - deep > higher - middle > 0 else deep
