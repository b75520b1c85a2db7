"""The dual of a JKO step on a grid, in the pressure, by projected Newton steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.functionals import Internal
from otflow.measures.box import Box
from otflow.proximal.multigrid import GridLaplacian, blocks, solve_laplacian
from otflow.proximal.push_forward import Sweep, push_forward

__all__ = ["Iterate", "PressureProblem", "lowest_pressure", "maximise"]

# Coarser grids are used down to so many cells along the shortest axis, with so many
# Newton steps each, until the residual is this share of the mass.
SMALLEST, COARSE_STEPS, COARSE_RESIDUAL = 8, 12, 1e-3
# Newton steps that may pass without a lesser residual.
PATIENCE = 16
# Pressures so close to the least, relative to the largest, are the least.
ROUND_OFF = 1e-14
# Anderson mixing, near the solution: steps that it remembers, and its ridge.
MEMORY, RIDGE = 4, 1e-10
# Bisection for a constant: how often, to neighbouring numbers at the latest.
HALVINGS = 100
# A start whose residual is below it needs no coarser grid.
NEAR = 0.02
# A residual above so many tolerances is tried again from the energy's minimiser.
NEARLY = 10.0
# Newton systems are solved to this relative residual, in at most so many iterations.
INEXACT, MAX_INNER = 1e-2, 60
# A trial step may overshoot the maximum along its direction until the slope there is
# minus this share of the slope at the start.
OVERSHOOT, MAX_TRIALS = 0.5, 16
# ... or if it cuts the residual by this factor.
CONTRACTION = 0.9
# It goes on while the slope is more than this share of that at the start.
STEEP = 0.5


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
        How much mass passes the inner faces of each axis for a shift by a cell.
    sweeps : list of Sweep
        The transport.
    residual : float
        Mass in excess, where the pressure is at its least, and by which the two masses
        differ, elsewhere.
    """

    pressure: Tensor
    masses: Tensor
    wanted: Tensor
    mobility: list[Tensor]
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
        """Return the masses that a pressure drives; round-off above p_0 is dropped."""
        if math.isfinite(self.lowest):
            slack = ROUND_OFF * float(pressure.abs().max())
            at_least = pressure <= self.lowest + slack
            pressure = pressure.masked_fill(at_least, self.lowest)
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
        shape = self.box.shape
        is_free = self.room.reshape(shape) > 0
        beside = None if bool(is_free.all()) else self._beside_obstacles(point)
        faces = []
        for axis, (flow, h) in enumerate(
            zip(point.mobility, self.box.spacing, strict=True)
        ):
            n = shape[axis]
            low, high = is_free.narrow(axis, 0, n - 1), is_free.narrow(axis, 1, n - 1)
            least = min(point.residual, 1.0) * self._typical_mass()
            # Far from the solution cells that are empty now may have to pass mass.
            passing = flow.clamp_min(least)
            if beside is not None:
                # Round a corner mass moves diagonally, which faces do not know of.
                both = beside.narrow(axis, 0, n - 1) + beside.narrow(axis, 1, n - 1)
                passing = torch.maximum(passing, 0.5 * both)
            faces.append(passing * (low & high) * (self.dt / h**2))
        return GridLaplacian.of(faces, self._softness(point).reshape(shape))

    def _beside_obstacles(self, point: Iterate) -> Tensor:
        """Return the masses of the cells that touch an obstacle, 0 elsewhere."""
        near = self.room.reshape(self.box.shape) <= 0
        for axis, n in enumerate(self.box.shape):
            wide = near.clone()
            wide.narrow(axis, 0, n - 1).logical_or_(near.narrow(axis, 1, n - 1))
            wide.narrow(axis, 1, n - 1).logical_or_(near.narrow(axis, 0, n - 1))
            near = wide
        return point.masses.reshape(self.box.shape) * near

    def _typical_mass(self) -> float:
        """Return the mass of a well filled cell."""
        most = self.internal.max_density * float(self.room.max())
        return min(most, float(self.masses.max()))

    def _softness(self, point: Iterate) -> Tensor:
        """Return how much more mass is wanted for a unit of pressure."""
        room = torch.where(self.room > 0, self.room, 1.0)
        wanted, top = point.wanted / room, self.internal.max_density
        r = torch.maximum(wanted, point.masses / room).clamp_max(top)
        usable = (r > 0) & (wanted < top) & (self.room > 0)
        bend = self.internal.curvature(torch.where(usable, r, 1.0))
        usable = usable & (bend > 0)
        return torch.where(usable, self.room / torch.where(usable, bend, 1.0), 0.0)

    def newton(self, point: Iterate) -> Tensor:
        """Return the change of the pressure by a projected Newton step."""
        L = self.laplacian(point)
        shape, p, excess = self.box.shape, point.pressure, point.excess
        diagonal = L.diagonal.reshape(-1)
        above = p - self.lowest
        moves = (above * diagonal + excess > 0) & (diagonal > 0)
        # Where the pressure is not needed it drops to its least.
        fixed = torch.where(moves | (diagonal == 0), 0.0, -above).reshape(shape)
        mask = moves.reshape(shape)
        rhs = (excess.reshape(shape) - L.apply(fixed)) * mask
        step, _ = solve_laplacian(L.inside(mask), rhs, INEXACT, MAX_INNER)
        goal = p + torch.where(mask, step, fixed).reshape(-1)
        return goal.clamp_min(self.lowest) - p

    def search(self, point: Iterate, direction: Tensor) -> Iterate | None:
        """Return a point along a direction where the dual has all but turned."""
        start = float(point.excess @ direction)
        length, best = 1.0, None
        for _ in range(MAX_TRIALS):
            goal = point.pressure + length * direction
            trial = self.at(goal.clamp_min(self.lowest))
            slope = float(trial.excess @ direction)
            finite = math.isfinite(slope)
            uphill = finite and slope >= -OVERSHOOT * abs(start)
            if uphill or trial.residual <= CONTRACTION * point.residual:
                best = trial
                if not slope > STEEP * abs(start):
                    return best
                length *= 2.0  # as steep as at the start: go on
            elif best is not None:
                return best
            else:
                share = start / (start - slope) if finite else 0.0
                length *= min(max(share, 0.1), 0.9)
        return best

    def at_rest(self) -> Tensor:
        """Return the pressure of the energy's minimiser: a start for large steps.

        It is (c - V), the constant such that the mass is 1, but at least the lowest.
        """
        V = torch.where(self.room > 0, self.V, 0.0)
        constant = self.constant(-V)
        return (-constant - V).clamp_min(self.lowest)

    def constant(self, s: Tensor) -> float:
        r"""Return the c for which :math:`\int (U^*)'(s - c)` is all the mass.

        With r the mean density it lies between :math:`\min s - U'(r)`, where no cell
        is below the mean, and :math:`\max s - U'(r)`, where none is above it: the
        bracket is known beforehand. The mass at c is never above all the mass, but
        for c at the bracket's end.
        """
        is_free = self.room > 0
        total = float(self.masses.sum())
        mean = min(total / float(self.room.sum()), self.internal.max_density)
        slope = float(self.internal.slope(s.new_tensor([mean])))
        least, most = (float(x) - slope for x in torch.aminmax(s[is_free]))
        for _ in range(HALVINGS):
            middle = 0.5 * (least + most)
            if not least < middle < most:  # neighbouring numbers
                break
            if self._filled(s - middle) > total:
                least = middle
            else:
                most = middle
        return most

    def _filled(self, s: Tensor) -> float:
        """Return the mass in equilibrium with s, infinite above all slopes of U."""
        try:
            density = self.internal.conjugate_slope(s)
        except NonFinite:
            return math.inf
        return float((self.room * density).sum())

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

        The potential is interpolated linearly, as it has to be smooth where the
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
        for guess in (problem.prolong(coarse, below.pressure), problem.at_rest()):
            trial = problem.at(guess)
            if not point.residual <= trial.residual:
                point = trial
    best, steps = _climb(problem, point, tolerance, limit)
    if not best.residual <= NEARLY * tolerance:
        other = problem.at(problem.at_rest())
        other, more = _climb(problem, other, tolerance, limit)
        steps += more
        if not best.residual <= other.residual:
            best = other
    return best, steps, best.residual <= tolerance


def _climb(
    problem: PressureProblem, point: Iterate, tolerance: float, limit: int
) -> tuple[Iterate, int]:
    """Return the best of the Newton iterates from a point, and their number."""
    best, steps, last = point, 0, 0
    memory: list[tuple[Tensor, Tensor]] = []
    while not best.residual <= tolerance and steps < min(limit, last + PATIENCE):
        wasted = steps - last
        if wasted == PATIENCE // 2:  # back to the best, and on without mixing
            point, memory = best, []
        change = problem.newton(point)
        direction = change
        if point.residual < NEAR and wasted < PATIENCE // 2:
            direction = _mixed(point.pressure, change, memory)
            goal = (point.pressure + direction).clamp_min(problem.lowest)
            direction = goal - point.pressure
            memory = [*memory, (point.pressure, change)][-MEMORY:]
        found = None
        if float(point.excess @ direction) > 0:
            found = problem.search(point, direction)
        if found is None and direction is not change:
            found, memory = problem.search(point, change), []
        steps += 1
        if found is None:
            break
        point = found
        if not best.residual <= point.residual:
            best, last = point, steps
    return best, steps


def _mixed(
    pressure: Tensor, change: Tensor, memory: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Return Anderson's mixture of this change and those before.

    Newton's matrix is not the exact derivative, so steps contract by a factor, and
    those of few cells, beside an obstacle for instance, by a poor one.
    """
    if not memory:
        return change
    moves = torch.stack([pressure - p for p, _ in memory])
    differences = torch.stack([change - c for _, c in memory])
    # Scaled to unit length, those of different sizes are solved alike.
    size = differences.norm(dim=-1)
    usable = torch.isfinite(size) & (size > 0)
    if not bool(usable.all()):
        return change
    unit = differences / size[:, None]
    gram = unit @ unit.T + RIDGE * torch.eye(len(memory)).to(unit)
    share = torch.linalg.solve(gram, unit @ change) / size
    mixed: Tensor = change - share @ (moves + differences)
    return mixed


def lowest_pressure(internal: Internal, like: Tensor) -> float:
    """Return U'(0), minus infinity for energies that spread to everywhere."""
    slope = float(internal.slope(like.new_tensor([1e-300])))
    return slope if slope > -100 else -math.inf
