"""A step by finite volumes: from a density and terms to arrays, solved, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.functionals import Congestion, Internal
from otflow.measures import GridDensity
from otflow.proximal.finite_volume_faces import Array, Faces, factor
from otflow.proximal.finite_volume_newton import Flow, Pointwise, UpwindStep, descend
from otflow.proximal.terms import Terms

__all__ = ["Local", "Move", "Room", "below", "room_of"]

# Entropy that makes the optimum unique, in units of the potential's mean difference
# between neighbours and of its range, and of the internal energy's slope.
SMOOTHING, LEAST_SMOOTHING, SMOOTHING_OF_U = 1e-3, 1e-9, 1e-6
# Stiffness of the bound in units of the energy over the density: cold, warm, its growth
# and the rounds, at most.
STIFFNESS, WARM_STIFFNESS, GROWTH, ROUNDS = 10.0, 10.0, 30.0, 12


@dataclass(frozen=True)
class Room:
    """The free cells that mass can reach, and the faces between them.

    Parameters
    ----------
    cells : ndarray of int, shape (m,)
        Indices of the cells in the grid.
    open_faces : ndarray of int
        Indices in a tangent of the faces between them.
    faces : Faces
        These faces.
    volume : float
        Of a cell.
    """

    cells: Any
    open_faces: Any
    faces: Faces
    volume: float


@dataclass(frozen=True)
class Move:
    """What a step did.

    Parameters
    ----------
    density : ndarray, shape (m,)
        New densities of the cells of the room.
    flux : ndarray
        What passed each open face, as a change of density, positive upwards.
    courant : ndarray
        Velocity through each face, in cells a step.
    pressure : ndarray, shape (m,)
        Multiplier of the bound, 0 without one.
    kinetic : float
        Cost of the motion.
    residual : float
        Mass that Newton's next step would move, and that is off the bound.
    converged : bool
        Whether that met the tolerance.
    spent : int
        Linear systems solved.
    """

    density: Array
    flux: Array
    courant: Array
    pressure: Array
    kinetic: float
    residual: float
    converged: bool
    spent: int


@dataclass(frozen=True)
class Local:
    r"""The local part of F: :math:`\int V + c \log\rho\,d\nu + \int U` and a bound.

    Parameters
    ----------
    room : Room
        Where.
    source : ndarray, shape (m,)
        Densities before.
    potential : ndarray, shape (m,)
        V.
    internal : Internal or None
        U, and the bound.
    entropy : float
        c >= 0.
    smoothing : float
        Added to it.
    dt : float
        Step.
    device : torch.device
        Where U is computed.
    """

    room: Room
    source: Array
    potential: Array
    internal: Internal | None
    entropy: float
    smoothing: float
    dt: float
    device: torch.device

    @classmethod
    def of(
        cls,
        room: Room,
        source: Array,
        potential: Array,
        terms: Terms,
        dt: float,
        device: torch.device,
    ) -> Local:
        """Return the local part of these terms, smoothed as much as it needs."""
        new = cls(
            room,
            source,
            potential,
            terms.internal,
            terms.temperature,
            0.0,
            dt,
            device,
        )
        return replace(new, smoothing=new._smoothing())

    @property
    def bound(self) -> float:
        """The bound on the density, possibly infinite."""
        return math.inf if self.internal is None else self.internal.max_density

    def _smoothing(self) -> float:
        """Return the entropy that is added so that no cell is left undetermined."""
        faces, rho, V = self.room.faces, self.source, self.potential
        steps = np.abs(V[faces.low] - V[faces.high]) * (
            rho[faces.low] + rho[faces.high]
        )
        typical = float(steps.sum() / (2 * rho.sum()))
        wanted = max(SMOOTHING * typical, LEAST_SMOOTHING * self.scale())
        wanted = max(wanted, SMOOTHING_OF_U * self._steepness())
        return max(wanted - self.entropy, 0.0)

    def scale(self) -> float:
        """Return a typical difference of the energy's first variation."""
        scale = float(np.ptp(self.potential)) + self._steepness()
        # Where nothing acts: what a move by a cell costs.
        return scale or 1 / (self.dt * self.room.faces.largest)

    def _steepness(self) -> float:
        """Return the change of U' between the largest density and half of it."""
        most = np.array([1.0, 0.5]) * self.source.max()
        top, half = self.pointwise(self.entropy).slope(most)
        return float(top - half)

    def pointwise(self, entropy: float) -> Pointwise:
        """Return U plus an entropy, without the bound."""
        U = None if isinstance(self.internal, Congestion) else self.internal

        def on(r: Array) -> Tensor:
            return torch.from_numpy(r).to(self.device)

        def energy(r: Array) -> Array:
            own = entropy * r * np.log(r)
            return own if U is None else own + r * U.e(on(r)).cpu().numpy()

        def slope(r: Array) -> Array:
            own = entropy * (np.log(r) + 1)
            return own if U is None else own + U.slope(on(r)).cpu().numpy()

        def curvature(r: Array) -> Array:
            own = entropy / r
            return own if U is None else own + U.curvature(on(r)).cpu().numpy()

        return Pointwise(energy, slope, curvature)

    def solve(self, warm: Move | None, tolerance: float, limit: int) -> Move:
        """Minimise; from the velocities and the pressure of a move before.

        The bound is met by multipliers, in rounds of growing stiffness.
        """
        base = self.pointwise(self.entropy + self.smoothing)
        faces, volume = self.room.faces, self.room.volume
        step = UpwindStep(faces, self.source, self.potential, base, self.dt)
        bounded = math.isfinite(self.bound)
        pressure = np.zeros(faces.n) if warm is None else warm.pressure
        courant = step.spread() if warm is None else warm.courant
        unit = self.scale() / self.bound
        stiffness = unit * (STIFFNESS if warm is None else WARM_STIFFNESS)
        spent, residual, off = 0, math.inf, 0.0
        for _ in range(ROUNDS if bounded else 1):
            if bounded:
                energy = base.bounded(self.bound, pressure, stiffness)
                step = step.with_energy(energy)
            flow, residual, used = descend(
                step, courant, 0.5 * tolerance / volume, limit - spent
            )
            spent += used
            courant = flow.courant
            if bounded:
                above = flow.density - self.bound
                pressure = np.maximum(pressure + stiffness * above, 0.0)
                off = float(np.abs(above[pressure > 0]).sum() * volume)
                stiffness *= GROWTH
            if spent >= limit or (off <= 0.5 * tolerance):
                break
        residual = residual * volume + off
        return self._read(step, flow, pressure, residual, tolerance, spent)

    def spread(self) -> Array:
        """Return positive densities near the source."""
        base = self.pointwise(self.entropy + self.smoothing)
        step = UpwindStep(self.room.faces, self.source, self.potential, base, self.dt)
        return step.arrive(step.spread(), step.filled)

    def objective(self, move: Move) -> float:
        """Return the local energy, smoothed, and the cost of a move."""
        base = self.pointwise(self.entropy + self.smoothing)
        r = np.maximum(move.density, np.finfo(np.float64).tiny)
        cells = base.energy(r) + self.potential * move.density
        return float(cells.sum() * self.room.volume) + move.kinetic

    def _read(
        self,
        step: UpwindStep,
        flow: Flow,
        pressure: Array,
        residual: float,
        tolerance: float,
        spent: int,
    ) -> Move:
        """Return the move of a flow from the true source, empty cells included."""
        faces, volume = self.room.faces, self.room.volume
        density = step.arrive(flow.courant, self.source)
        up, _ = faces.upstream(flow.courant)
        flux = flow.courant * density[up]
        kinetic = flow.courant**2 * density[up] / (2 * self.dt * faces.conductance)
        if math.isfinite(self.bound):
            density, correction = below(self.room, density, self.bound)
            flux = flux + correction
        return Move(
            density,
            flux,
            flow.courant,
            pressure,
            float(kinetic.sum() * volume),
            residual,
            residual <= tolerance,
            spent,
        )


def below(room: Room, density: Array, bound: float) -> tuple[Array, Array]:
    """Return densities below a bound, and the flux that takes the excess elsewhere.

    The excess goes to the cells with mass in proportion to the room they have left, by
    the flux of least square through the open faces.
    """
    faces = room.faces
    excess = np.maximum(density - bound, 0.0)
    if not excess.any():
        return density, np.zeros(len(faces.low))
    kept = density - excess
    left = (bound - kept) * (density > 0)
    gain = left * (excess.sum() / left.sum()) if left.sum() > 0 else excess
    laplacian = faces.laplacian(np.ones(len(faces.low)))
    # The balance is zero, so a trace on the diagonal only fixes the constant.
    trace = lazy_import("scipy.sparse").eye_array(faces.n) * 1e-10
    phi = factor(laplacian + trace).solve(excess - gain)
    return np.minimum(kept + gain, bound), phi[faces.low] - phi[faces.high]


def room_of(mu: GridDensity) -> Room:
    """Return the cells that are connected to mass by free cells."""
    box = mu.box
    free = mu.is_free.reshape(mu.shape).cpu().numpy()
    mass = mu.weights.detach().cpu().numpy()
    labels, _ = lazy_import("scipy.ndimage").label(free)
    labels = labels.reshape(-1)
    filled = np.unique(labels[mass > 0])
    reached = np.isin(labels, filled) & (labels > 0)
    index = np.full(box.n, -1)
    cells = np.flatnonzero(reached)
    index[cells] = np.arange(len(cells))
    low, high = (s.numpy() for s in box.neighbours(torch.from_numpy(index)))
    ones = torch.ones(box.n_faces, dtype=torch.float64)
    conductance = box.over_spacing(box.over_spacing(ones)).numpy()
    is_open = np.flatnonzero((low >= 0) & (high >= 0))
    faces = Faces(low[is_open], high[is_open], conductance[is_open], len(cells))
    return Room(cells, is_open, faces, box.cell_volume)
