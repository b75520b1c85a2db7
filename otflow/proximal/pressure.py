"""The dual of a JKO step on a grid, in the pressure, by projected Newton steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.functionals import Internal
from otflow.measures.box import Box
from otflow.proximal.multigrid import GridLaplacian, blocks, solve_laplacian
from otflow.proximal.push_forward import Sweep, cut_points, push_forward

__all__ = ["Iterate", "PressureProblem", "lowest_pressure", "maximise"]

# Coarser grids are used down to so many cells along the shortest axis, with so many
# Newton steps each, until the residual is this share of the mass.
SMALLEST, COARSE_STEPS, COARSE_RESIDUAL = 8, 12, 1e-3
# A start whose residual is below it needs no coarser grid.
NEAR = 0.02
# Newton systems are solved to this relative residual, in at most so many iterations.
INEXACT, MAX_INNER = 1e-2, 60
# A trial step may overshoot the maximum along its direction until the slope there is
# minus this share of the slope at the start.
OVERSHOOT, MAX_TRIALS = 0.5, 12
# ... or if it cuts the residual by this factor.
CONTRACTION = 0.9
# Least share of a cell's length that its source is taken to have.
LEAST_STRETCH = 0.05


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
    faces : list of Tensor
        How much mass a unit of pressure drives through the inner faces.
    sweeps : list of Sweep
        The transport.
    residual : float
        Mass in excess, where the pressure is at its least, and by which the two masses
        differ, elsewhere.
    """

    pressure: Tensor
    masses: Tensor
    wanted: Tensor
    mobility: Tensor
    sweeps: list[Sweep]
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
        Step.
    """

    masses: Tensor
    V: Tensor
    room: Tensor
    internal: Internal
    lowest: float
    box: Box
    dt: float

    def potential(self, pressure: Tensor) -> Tensor:
        """Return -V - p, minus infinity in obstacles."""
        return torch.where(self.room > 0, -self.V - pressure, -math.inf)

    def wanted(self, pressure: Tensor) -> Tensor:
        """Return the density in equilibrium with a pressure, the largest if several."""
        tiny = torch.finfo(pressure.dtype).tiny
        return self.internal.conjugate_slope(torch.where(pressure == 0, tiny, pressure))

    def at(self, pressure: Tensor) -> Iterate:
        """Return the masses that a pressure drives."""
        phi = self.potential(pressure)
        masses, sweeps, mobility = push_forward(self.masses, phi, self.box, self.dt)
        wanted = self.room * self.wanted(pressure)
        excess = masses - wanted
        at_least = pressure <= self.lowest
        residual = torch.where(at_least, excess.clamp_min(0), excess.abs())
        return Iterate(
            pressure, masses, wanted, mobility, sweeps, float(residual.sum())
        )

    def laplacian(self, point: Iterate) -> GridLaplacian:
        """Return minus the derivative of the excess in the pressure, nearly."""
        shape, dim = self.box.shape, self.box.dim
        phi = self.potential(point.pressure).reshape(shape)
        is_free = self.room.reshape(shape) > 0
        masses, faces = point.masses.reshape(shape), []
        for axis, h in enumerate(self.box.spacing):
            n = shape[axis]
            low, high = is_free.narrow(axis, 0, n - 1), is_free.narrow(axis, 1, n - 1)
            if axis == dim - 1:
                flow = point.mobility
            else:
                cuts = cut_points(phi, axis, h, self.dt)
                zero = torch.zeros_like(cuts[..., :1])
                ends = torch.cat([zero, cuts, zero + n], -1)
                stretch = ends.diff(dim=-1).movedim(-1, axis).clamp_min(LEAST_STRETCH)
                source = masses / stretch
                flow = source.narrow(axis, 0, n - 1) + source.narrow(axis, 1, n - 1)
                flow = 0.5 * flow
            faces.append(flow.clamp_min(0) * (low & high) * (self.dt / h**2))
        return GridLaplacian.of(faces, self._softness(point).reshape(shape))

    def _softness(self, point: Iterate) -> Tensor:
        """Return how much more mass is wanted for a unit of pressure."""
        room = torch.where(self.room > 0, self.room, 1.0)
        wanted, top = point.wanted / room, self.internal.max_density
        r = torch.maximum(wanted, point.masses / room).clamp_max(top)
        usable = (r > 0) & (wanted < top) & (self.room > 0)
        bend = self.internal.curvature(torch.where(usable, r, 1.0))
        usable = usable & (bend > 0)
        return torch.where(usable, self.room / torch.where(usable, bend, 1.0), 0.0)

    def newton(self, point: Iterate) -> tuple[Iterate | None, int]:
        """Return the next iterate, None if none is better, and the inner iterations."""
        L = self.laplacian(point)
        shape, p, excess = self.box.shape, point.pressure, point.excess
        diagonal = L.diagonal.reshape(-1)
        above = p - self.lowest
        moves = (above * diagonal + excess > 0) & (diagonal > 0)
        # Where the pressure is not needed it drops to its least.
        fixed = torch.where(moves | (diagonal == 0), 0.0, -above).reshape(shape)
        mask = moves.reshape(shape)
        rhs = (excess.reshape(shape) - L.apply(fixed)) * mask
        step, inner = solve_laplacian(L.inside(mask), rhs, INEXACT, MAX_INNER)
        goal = (p + torch.where(mask, step, fixed).reshape(-1)).clamp_min(self.lowest)
        direction = goal - p
        start = float(excess @ direction)
        length = 1.0
        for _ in range(MAX_TRIALS):
            trial = self.at((p + length * direction).clamp_min(self.lowest))
            slope = float(trial.excess @ direction)
            uphill = math.isfinite(slope) and slope >= -OVERSHOOT * abs(start)
            if uphill or trial.residual <= CONTRACTION * point.residual:
                return trial, inner
            share = start / (start - slope) if math.isfinite(slope) else 0.0
            length *= min(max(share, 0.1), 0.9)
        return None, inner

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

    def prolong(self, coarse: Tensor, box: Box) -> Tensor:
        """Return a pressure of blocks at the cells, interpolated linearly."""
        p = coarse.reshape(box.shape)
        for axis, n in enumerate(self.box.shape):
            m = p.shape[axis]
            index = torch.arange(n, device=p.device)
            near = index // 2
            far = (near + 2 * (index % 2) - 1).clamp(0, m - 1)
            p = 0.75 * p.index_select(axis, near) + 0.25 * p.index_select(axis, far)
        return p.reshape(-1).clamp_min(self.lowest)


def maximise(
    problem: PressureProblem, start: Tensor, tolerance: float, limit: int
) -> tuple[Iterate, int, bool]:
    """Take Newton steps until the residual is below a share of the mass.

    Parameters
    ----------
    problem : PressureProblem
        The problem.
    start : Tensor, shape (n,)
        A first pressure.
    tolerance : float
        The share.
    limit : int
        Most Newton steps.

    Returns
    -------
    best : Iterate
        The iterate of least residual.
    steps : int
        Newton steps on this grid.
    converged : bool
        Whether its residual is below the tolerance.
    """
    point = problem.at(start.clamp_min(problem.lowest))
    small = min(problem.box.shape) < 2 * SMALLEST
    if not small and not point.residual <= max(NEAR, tolerance):
        coarse = problem.coarser()
        below, _, _ = maximise(
            coarse, problem.restrict(start), COARSE_RESIDUAL, COARSE_STEPS
        )
        trial = problem.at(problem.prolong(below.pressure, coarse.box))
        if not point.residual <= trial.residual:
            point = trial
    best, steps = point, 0
    while not best.residual <= tolerance and steps < limit:
        found, _ = problem.newton(point)
        steps += 1
        if found is None:
            break
        point = found
        if not best.residual <= point.residual:
            best = point
    return best, steps, best.residual <= tolerance


def lowest_pressure(internal: Internal, like: Tensor) -> float:
    """Return U'(0), minus infinity for energies that spread to everywhere."""
    slope = float(internal.slope(like.new_tensor([1e-300])))
    return slope if slope > -100 else -math.inf
