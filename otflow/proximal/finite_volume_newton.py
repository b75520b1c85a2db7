"""Newton's method for a step by finite volumes: upwind fluxes through open faces."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from otflow._lazy import lazy_import
from otflow.proximal.finite_volume_faces import Array, Faces, Index, factor, sweep

__all__ = ["Flow", "Pointwise", "UpwindStep", "descend"]

# Empty cells count as filled to this share of the fullest, and no density as less than
# the second share: logarithms stay finite.
DUST, LEAST = 1e-60, 1e-100
# Armijo's share of the slope, and lengths of a step that are tried.
ARMIJO, MAX_TRIALS = 1e-4, 20
# Round-off of the objective, in its size.
ROUND_OFF = 1e-12
# A straight step that gets this share of its slope is taken unseen the other.
GOOD = 0.3
# A straight step may leave a cell this share of its density, and multiply a velocity.
KEPT, LEAP = 0.1, 10.0


@dataclass(frozen=True)
class Pointwise:
    """A convex energy of the density, U, with its derivatives, entrywise.

    Parameters
    ----------
    energy, slope, curvature : callable
        U, U' and U'' of arrays of densities > 0.
    """

    energy: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array]

    def bounded(self, most: float, pressure: Array, stiffness: float) -> Pointwise:
        """Return it with the bound as an augmented Lagrangian of these multipliers."""

        def excess(r: Array) -> Array:
            return np.maximum(pressure + stiffness * (r - most), 0.0)

        def energy(r: Array) -> Array:
            gain = (excess(r) ** 2 - pressure**2) / (2 * stiffness)
            return self.energy(r) + gain

        def curvature(r: Array) -> Array:
            return self.curvature(r) + stiffness * (excess(r) > 0)

        return Pointwise(energy, lambda r: self.slope(r) + excess(r), curvature)


@dataclass(frozen=True)
class Flow:
    """Densities that are reached by given velocities through the faces.

    Parameters
    ----------
    courant : ndarray, shape (m,)
        Signed velocity through each face, times the time over the spacing.
    density : ndarray, shape (n,)
        The densities at the end, > 0.
    objective : float
        Energy and kinetic cost per unit of cell volume.
    """

    courant: Array
    density: Array
    objective: float


class Newton(NamedTuple):
    """Newton's step from a flow: where it leads, and what it changes."""

    velocity: Array  # new velocities, by the slopes of phi
    change: Array  # of the densities
    flux: Array  # change of the fluxes
    order: Index  # of the cells, by falling phi
    slope: float  # of the objective

    @property
    def size(self) -> float:
        """How much density it would change, or move around in circles."""
        return float(max(np.abs(self.change).sum(), np.abs(self.flux).sum()))


@dataclass(frozen=True)
class UpwindStep:
    r"""Minimise the energy and the cost of a flow q through the faces.

    .. math:: \sum_K U(\rho_K) + V_K\rho_K + \sum_f \frac{q_f^2\rho_f}{2\,dt\,c_f},

    :math:`\rho_f` the density upstream and c the conductance.

    Parameters
    ----------
    faces : Faces
        The open faces.
    source : ndarray, shape (n,)
        Densities before.
    potential : ndarray, shape (n,)
        V.
    energy : Pointwise
        U.
    dt : float
        Step.
    """

    faces: Faces
    source: Array
    potential: Array
    energy: Pointwise
    dt: float

    @property
    def floor(self) -> float:
        """The least density that is told from zero."""
        return LEAST * float(self.source.max())

    def transport(self, courant: Array) -> Any:
        r"""Return J: transposed, it takes new densities to the old ones.

        :math:`\rho_K (1 + \sum q_{out}) = \rho^0_K + \sum q_{in}\rho_L`. It is an
        M-matrix with rows of sum 1, so densities are positive and mass is kept.
        """
        up, down = self.faces.upstream(courant)
        size = np.abs(courant)
        diagonal = 1 + self.faces.sum_at(up, size)
        return self.faces.matrix(diagonal, up, down, -size)

    @property
    def filled(self) -> Array:
        """The densities before, no cell quite empty."""
        filled: Array = np.maximum(self.source, DUST * self.source.max())
        return filled

    def arrive(self, courant: Array, source: Array) -> Array:
        """Return the densities that velocities make of others, by a direct solve."""
        density: Array = factor(self.transport(courant).T).solve(source)
        return density

    def at(self, courant: Array, order: Index | None = None) -> Flow:
        """Return the flow of these velocities with its objective.

        `order` is an order of the cells in which most faces lead forwards.
        """
        density = None
        if not np.isfinite(courant).all():
            return Flow(courant, self.filled, math.inf)
        if order is not None:
            density = sweep(self.faces, courant, self.filled, order)
        if density is None:
            density = self.arrive(courant, self.filled)
        if not (np.isfinite(density).all() and (density > 0).all()):
            return Flow(courant, density, math.inf)
        up, _ = self.faces.upstream(courant)
        kinetic = courant**2 * density[up] / (2 * self.dt * self.faces.conductance)
        cells = self.energy.energy(np.maximum(density, self.floor))
        total = float(cells.sum() + self.potential @ density + kinetic.sum())
        return Flow(courant, density, total)

    def newton(self, flow: Flow) -> Newton | None:
        """Return Newton's step from a flow, None if its system is singular.

        In density and flux the objective is convex and the constraint linear; of its
        Newton system the potential phi is the multiplier, the only unknown that is left
        after elimination, and the velocities are its slopes.
        """
        faces, q, rho = self.faces, flow.courant, flow.density
        J = self.transport(q)
        up, _ = faces.upstream(q)
        reach = self.dt * faces.conductance
        speed = faces.sum_at(up, q**2 / (2 * reach))
        r = np.maximum(rho, self.floor)
        soft = 1 / self.energy.curvature(r)
        slope = self.potential + self.energy.slope(r)
        diagonal = lazy_import("scipy.sparse").diags_array(soft)
        system = J.T @ diagonal @ J + faces.laplacian(reach * rho[up])
        rhs = self.filled - rho + J.T @ (soft * (slope + speed))
        try:
            phi = factor(system).solve(rhs)
        except RuntimeError:  # singular to round-off
            return None
        change = soft * (J @ phi - slope - speed)
        velocity = reach * (phi[faces.low] - phi[faces.high])
        turn = velocity - q
        along = slope @ change + (q * rho[up] * turn / reach).sum()
        along += (q**2 * change[up] / (2 * reach)).sum()
        flux = rho[up] * turn + q * change[up]
        return Newton(velocity, change, flux, np.argsort(-phi), float(along))

    def straight(self, flow: Flow, newton: Newton, length: float) -> Flow:
        """Return the flow ahead that is straight in density and flux.

        On this path a full step meets what is linear exactly; where it would empty a
        cell it turns into the steady one.
        """
        up, _ = self.faces.upstream(flow.courant)
        steady = flow.courant + length * (newton.velocity - flow.courant)
        density = flow.density + length * newton.change
        flux = flow.courant * flow.density[up] + length * newton.flux
        up, _ = self.faces.upstream(flux)
        base = density[up]
        sound = base > KEPT * flow.density[up]
        courant = flux / np.where(sound, base, 1.0)
        most = np.maximum(np.abs(flow.courant), np.abs(newton.velocity))
        sound &= np.abs(courant) <= LEAP * most
        return self.at(np.where(sound, courant, steady), newton.order)

    def steady(self, flow: Flow, newton: Newton, length: float) -> Flow:
        """Return the flow ahead that is straight in velocity: no cell empties."""
        courant = flow.courant + length * (newton.velocity - flow.courant)
        return self.at(courant, newton.order)

    def spread(self) -> Array:
        """Return velocities that bring a little mass to every cell: a first guess."""
        typical = self.source + 1e-3 * self.source.max()
        scale = float(np.ptp(self.potential) + np.ptp(self.energy.slope(typical)))
        share = np.minimum(self.dt * self.faces.conductance * scale, 1.0)
        sparse = lazy_import("scipy.sparse")
        heat = sparse.eye_array(self.faces.n) + self.faces.laplacian(share)
        rho = factor(heat).solve(self.filled)
        flux = share * (rho[self.faces.low] - rho[self.faces.high])
        up, _ = self.faces.upstream(flux)
        courant: Array = flux / rho[up]
        return courant

    def with_energy(self, energy: Pointwise) -> UpwindStep:
        """Return the step with another energy."""
        return replace(self, energy=energy)


def descend(
    step: UpwindStep, courant: Array, tolerance: float, limit: int
) -> tuple[Flow, float, int]:
    """Take Newton steps, each shortened until the objective falls.

    Parameters
    ----------
    step : UpwindStep
        The problem.
    courant : ndarray, shape (m,)
        Velocities to start from.
    tolerance : float
        Stop when Newton's change of the densities, and of the fluxes, sums to less.
    limit : int
        Most Newton steps.

    Returns
    -------
    flow : Flow
        The last flow.
    residual : float
        The larger sum of Newton's last change.
    steps : int
        Linear systems solved.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused
        return _descend(step, courant, tolerance, limit)


def _descend(
    step: UpwindStep, courant: Array, tolerance: float, limit: int
) -> tuple[Flow, float, int]:
    flow, residual = step.at(courant), math.inf
    weight = float(np.abs(step.potential) @ step.source)
    for k in range(1, limit + 1):
        newton = step.newton(flow)
        residual = math.inf if newton is None else newton.size
        if newton is None or not math.isfinite(residual):
            return flow, math.inf, k
        if residual <= tolerance:
            break
        size = abs(flow.objective) + weight
        found = search(step, flow, newton, size)
        if found is None:
            break
        flow = found
    return flow, residual, k


def search(step: UpwindStep, flow: Flow, newton: Newton, size: float) -> Flow | None:
    """Return a flow ahead whose objective is lower, None if there seems to be none."""
    length = 1.0
    for _ in range(MAX_TRIALS):
        wanted = flow.objective + ARMIJO * length * min(newton.slope, 0.0)
        trial = step.straight(flow, newton, length)
        if not trial.objective <= flow.objective + GOOD * length * newton.slope:
            other = step.steady(flow, newton, length)
            trial = min(trial, other, key=lambda found: found.objective)
        if trial.objective <= wanted + ROUND_OFF * size:
            return trial
        # The minimum of the parabola through what is known, not too near either end.
        excess = trial.objective - flow.objective - length * newton.slope
        share = 0.1
        if math.isfinite(excess) and excess > 0:
            share = min(max(-0.5 * length * newton.slope / excess, 0.1), 0.5)
        length *= share
    return None
