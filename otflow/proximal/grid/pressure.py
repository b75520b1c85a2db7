"""The dual problem of a JKO step on a grid: the transport that a pressure drives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.measures.grid.box import Box
from otflow.numerics.multigrid import blocks
from otflow.proximal.grid.duality import DualProblem
from otflow.proximal.grid.push_forward import Sweep, lifted, push_forward

__all__ = ["Iterate", "PressureProblem"]

# A pressure this close to the least one, relative to the largest, counts as the least.
ROUND_OFF = 1e-14


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
class PressureProblem(DualProblem):
    """A dual problem with the masses that a pressure drives, and its coarser grids."""

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
        # Where phi wins no mass, it is raised until it is about to win some.
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
        return (-self.constant(-V) - V).clamp_min(self.lowest)

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
        # From the last axis on, so that the axes still to come keep their numbers.
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
        # If the number of cells is odd, the last block reaches beyond the box. There it
        # has no room.
        shape = tuple((n + 1) // 2 for n in box.shape)
        upper = tuple(
            a + 2 * h * n for a, h, n in zip(box.lower, box.spacing, shape, strict=True)
        )
        return replace(
            self,
            masses=blocks(self.masses.reshape(box.shape)).reshape(-1),
            V=self.restrict(torch.where(self.room > 0, self.V, 0.0)),
            room=blocks(self.room.reshape(box.shape)).reshape(-1),
            box=Box(box.lower, upper, shape),
        )

    def restrict(self, f: Tensor) -> Tensor:
        """Return the mean of a function of the free cells over each block."""
        shape = self.box.shape
        total = blocks((self.room * f).reshape(shape))
        room = blocks(self.room.reshape(shape))
        return (total / torch.where(room > 0, room, 1.0)).reshape(-1)

    def prolong(self, coarse: PressureProblem, pressure: Tensor) -> Tensor:
        """Return a pressure of blocks at the cells.

        The Kantorovich potential is interpolated linearly: it must be smooth where the
        pressure acts.
        """
        acts = (pressure > self.lowest).to(pressure.dtype)
        x = self.box.centres(pressure)
        phi = coarse.box.interpolate(-coarse.V - pressure, x)
        near = coarse.box.interpolate(acts, x) > 0
        return torch.where(near, -self.V - phi, self.lowest).clamp_min(self.lowest)
