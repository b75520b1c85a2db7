"""A step by finite volumes: from a density and terms to arrays, solved, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from otflow._lazy import lazy_import
from otflow.measures import GridDensity
from otflow.proximal.grid.finite_volume.faces import Array, Faces
from otflow.proximal.grid.finite_volume.factors import factor_positive
from otflow.proximal.grid.finite_volume.newton import descend
from otflow.proximal.grid.finite_volume.problem import Interior, UpwindStep

__all__ = ["Local", "Move", "Room", "below", "room_of"]

# The products of the last barrier sum to this share of the largest gap allowed: the
# rest of the gap is left to Newton's error.
LAST = 0.25
# The barrier keeps to a bound above the true one by this share of a tolerance, so that
# a full room has an interior. `below` moves the excess elsewhere at the end.
SPARE = 1e-3
# First products, in units of the energy: for a cold start, and from a step before.
COLD, WARM = 0.1, 1.0
# Density that replaces 0 in logarithms.
TINY = float(np.finfo(np.float64).tiny)
# Round-off of an energy, relative to its size.
ROUND_OFF = 1e-12
# Cells below this share of the largest density count as empty.
FILLED = 1e-9


@dataclass(frozen=True)
class Room:
    """The free cells that mass can reach, and the faces between them.

    Parameters
    ----------
    cells : ndarray of int, shape (m,)
        Indices of the cells in the grid.
    open_faces : ndarray of int
        Indices in a tangent of the faces between these cells.
    faces : Faces
        These faces.
    volume : float
        Volume of a cell.
    """

    cells: Any
    open_faces: Any
    faces: Faces
    volume: float


@dataclass(frozen=True)
class Move:
    """The result of a step.

    Parameters
    ----------
    density : ndarray, shape (m,)
        New densities of the cells of the room.
    flux : ndarray
        Flux through each open face, as a change of density, positive upwards.
    state : Interior
        The last flow of the iteration, and its multipliers.
    kinetic : float
        Cost of the motion.
    gap : float
        Bound on the objective minus its least value.
    residual : float
        The gap in units of the energy. Without convergence, the mass that the next
        Newton step would move, if this is larger.
    converged : bool
        Whether the residual met the tolerance.
    spent : int
        Linear systems solved.
    """

    density: Array
    flux: Array
    state: Interior
    kinetic: float
    gap: float
    residual: float
    converged: bool
    spent: int


@dataclass(frozen=True)
class Local:
    r"""The local part of F, :math:`\int V + c \log\rho\,d\nu + \int U`, and a bound.

    Interactions belong to it if they have few modes.

    Parameters
    ----------
    room : Room
        The cells that mass can reach.
    step : UpwindStep
        The minimisation.
    unit : float
        A typical difference of the energy's first variation.
    """

    room: Room
    step: UpwindStep
    unit: float = 0.0

    def scale(self) -> float:
        """Return a typical difference of the energy's first variation.

        The difference is taken over the cells where there is mass or may come. Mass
        climbs at most above the highest filled cell by the pressure of its density.
        """
        step, source = self.step, self.step.source
        # The pressure of a density is its slope above that of half the density, since
        # the slope at 0 may be infinite.
        most = np.array([1.0, 0.5]) * source.max()
        top, half = step.energy.slope(most)
        steepness, field = float(top - half), step.potential
        if step.coupling is not None:
            field = field + step.coupling.field(source)
        filled = source > FILLED * source.max()
        highest = min(float(field[filled].max()) + steepness, float(field.max()))
        scale = highest - float(field.min()) + steepness
        # Without forces the cost of a move by a cell is the only energy.
        return scale or 1 / (step.dt * step.faces.largest)

    def solve(self, warm: Interior | None, tolerance: float, limit: int) -> Move:
        """Minimise, from the velocities and the multipliers of an earlier move.

        A move in another room is not used.
        """
        volume, bound, coupling = self.room.volume, self.step.bound, self.step.coupling
        step = replace(self.step, bound=bound * (1 + SPARE * tolerance))
        # The fluxes of another room belong to other faces.
        if warm is not None and warm.step.faces is not step.faces:
            warm = None
        unit = self.unit * float(step.source.sum())
        state = step.start(warm, (COLD if warm is None else WARM) * unit)
        least = LAST * tolerance * unit / len(state.numbers)
        outcome = descend(state, least, (tolerance * unit, tolerance / volume), limit)
        residual = outcome.gap / unit
        if not outcome.settled:
            residual = max(residual, outcome.moved * volume)
        flux = outcome.state.flux
        # Differences of nearly equal numbers: round-off may make them negative.
        density = np.maximum(step.after(flux), 0.0)
        kinetic = float(step.kinetic(flux, outcome.state.density).sum())
        if step.bounded:
            density, correction = below(self.room, density, bound)
            flux = flux + correction
        return Move(
            density,
            flux,
            outcome.state,
            kinetic * volume,
            outcome.gap * volume + (coupling.doubt if coupling else 0.0),
            residual,
            outcome.settled and residual <= tolerance,
            outcome.steps,
        )

    def energy(self, density: Array) -> float:
        """Return the local energy of densities, which may be 0."""
        cells = self.step.cells(np.maximum(density, TINY))
        return float(cells.sum() * self.room.volume)

    def objective(self, move: Move) -> float:
        """Return the local energy plus the cost of a move."""
        return self.energy(move.density) + move.kinetic

    def rises(self, move: Move) -> bool:
        """Whether a move ends above the old density, by more than round-off."""
        before = self.energy(self.step.source)
        noise = ROUND_OFF * abs(before) + move.residual * self.unit
        return self.objective(move) > before + noise

    @property
    def convex(self) -> bool:
        """Whether the energy is convex."""
        coupling = self.step.coupling
        return coupling is None or coupling.convex


def below(room: Room, density: Array, bound: float) -> tuple[Array, Array]:
    """Return densities below a bound, and the flux that moves the excess.

    The excess goes to the cells with mass, in proportion to the capacity that they have
    left. The flux through the open faces has the least square.
    """
    faces = room.faces
    excess = np.maximum(density - bound, 0.0)
    if not excess.any():
        return density, np.zeros(len(faces.low))
    kept = density - excess
    left = (bound - kept) * (density > 0)
    gain = left * (excess.sum() / left.sum()) if left.sum() > 0 else excess
    laplacian = faces.laplacian(np.ones(len(faces.low)))
    # The Laplacian is singular, but the right side sums to 0: a trace on the diagonal
    # only fixes the constant.
    trace = lazy_import("scipy.sparse").eye_array(faces.n) * 1e-10
    phi = factor_positive(laplacian + trace).solve(excess - gain)
    # Round-off may lift a sum above the bound.
    return np.minimum(kept + gain, bound), phi[faces.low] - phi[faces.high]


def room_of(mu: GridDensity, old: Room | None = None) -> Room:
    """Return the cells that free cells connect to mass.

    The room `old`, of the same box, is returned itself if its cells are the same.
    """
    box = mu.box
    free = mu.is_free.reshape(mu.shape).cpu().numpy()
    mass = mu.weights.detach().cpu().numpy()
    labels, _ = lazy_import("scipy.ndimage").label(free)
    labels = labels.reshape(-1)
    filled = np.unique(labels[mass > 0])
    reached = np.isin(labels, filled) & (labels > 0)
    # Cells outside of the room keep the index -1, which closes their faces.
    index = np.full(box.n, -1)
    cells = np.flatnonzero(reached)
    if old is not None and np.array_equal(cells, old.cells):
        return old
    index[cells] = np.arange(len(cells))
    low, high = (s.numpy() for s in box.neighbours(torch.from_numpy(index)))
    ones = torch.ones(box.n_faces, dtype=torch.float64)
    conductance = box.over_spacing(box.over_spacing(ones)).numpy()
    is_open = np.flatnonzero((low >= 0) & (high >= 0))
    faces = Faces(low[is_open], high[is_open], conductance[is_open], len(cells))
    return Room(cells, is_open, faces, box.cell_volume)
