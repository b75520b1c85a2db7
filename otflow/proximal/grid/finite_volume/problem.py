"""A step by finite volumes as a convex problem with a duality gap; its flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from otflow._lazy import lazy_import
from otflow.proximal.grid.finite_volume.coupling import Coupling
from otflow.proximal.grid.finite_volume.faces import Array, Faces, Index
from otflow.proximal.grid.finite_volume.factors import factor, factor_positive

__all__ = ["Interior", "Newton", "Pointwise", "UpwindStep"]

# Multipliers stay within this factor of those of the barrier.
TRUST = 1e8
# A warm start moves towards the centre by at least INWARDS of the way, until it keeps
# at least MARGIN of the centre's distance from the bound.
INWARDS, MARGIN = 0.1, 0.1
# The centre of a warm start lies NEAR of the way from the old density to the level one:
# the cost of the way grows with its square.
NEAR = 0.05


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


@dataclass(frozen=True)
class Interior:
    """A flow strictly within its constraints, and their multipliers.

    Parameters
    ----------
    ways : ndarray, shape (2, m)
        Flux through each face upwards and downwards, as changes of density, both > 0.
    density : ndarray, shape (n,)
        Densities at the end, > 0 and below the bound.
    still : ndarray, shape (2, m)
        Multipliers of the fluxes, > 0.
    empty, pressure : ndarray, shape (n,)
        Multipliers of the densities, > 0. `pressure` is 0 without a bound.
    """

    ways: Array
    density: Array
    still: Array
    empty: Array
    pressure: Array

    def moved(self, newton: Newton, length: float, dual: float) -> Interior:
        """Return the flow ahead, its multipliers by a length of their own."""
        return Interior(
            self.ways + length * newton.ways,
            self.density + length * newton.density,
            self.still + dual * newton.still,
            self.empty + dual * newton.empty,
            self.pressure + dual * newton.pressure,
        )

    def product(self, step: UpwindStep) -> float:
        """Return the mean product of a positive number and its multiplier."""
        total = float((self.ways * self.still).sum() + self.density @ self.empty)
        count = self.ways.size + self.density.size
        if step.bounded:
            total += float((step.bound - self.density) @ self.pressure)
            count += self.density.size
        return total / count

    def trusted(self, step: UpwindStep, mu: float) -> Interior:
        """Return it with multipliers near those of a barrier."""

        def near(multiplier: Array, positive: Array) -> Array:
            centre = mu / positive
            return np.clip(multiplier, centre / TRUST, centre * TRUST)

        pressure = self.pressure
        if step.bounded:
            pressure = near(pressure, step.bound - self.density)
        return replace(
            self,
            still=near(self.still, self.ways),
            empty=near(self.empty, self.density),
            pressure=pressure,
        )

    @property
    def flux(self) -> Array:
        """What passes each face, as a change of density, positive upwards."""
        net: Array = self.ways[0] - self.ways[1]
        return net


class Newton(NamedTuple):
    """Newton's step from a flow."""

    ways: Array
    density: Array  # minus the outflow of these fluxes
    still: Array
    empty: Array
    pressure: Array
    phi: Array  # potential at the end, the multiplier of the balance of mass

    @property
    def flux(self) -> Array:
        """The change of what passes each face."""
        net: Array = self.ways[0] - self.ways[1]
        return net


@dataclass(frozen=True)
class UpwindStep:
    r"""Minimise the energy and the cost of fluxes f through the faces.

    .. math:: \sum_K U(\rho_K) + V_K\rho_K + Q(\rho) + \sum_f
        \frac{f^2}{2\,dt\,c_f\,\rho_f}, \qquad
        0 \le \rho = \rho^0 - \operatorname{outflow}(f) \le b,

    :math:`\rho_f` the density upstream and c the conductance. It is convex
    if Q is.

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
    bound : float
        b, possibly infinite.
    dt : float
        Step.
    coupling : Coupling, optional
        Q, quadratic.
    """

    faces: Faces
    source: Array
    potential: Array
    energy: Pointwise
    bound: float
    dt: float
    coupling: Coupling | None = None

    @property
    def bounded(self) -> bool:
        """Whether there is a bound."""
        return math.isfinite(self.bound)

    @property
    def reach(self) -> Array:
        """Fluxes for a unit of density and of slope."""
        reach: Array = self.dt * self.faces.conductance
        return reach

    @property
    def sides(self) -> Index:
        """The cells that each face takes from, upwards and downwards, (2, m)."""
        return self.faces.sides

    @property
    def count(self) -> int:
        """How many numbers must be positive."""
        return self.faces.n * (2 if self.bounded else 1) + 2 * len(self.faces.low)

    def spread(self) -> Array:
        """Return densities near the source, all of them positive."""
        faces = self.faces
        sparse = lazy_import("scipy.sparse")
        heat = sparse.eye_array(faces.n) + faces.laplacian(np.ones(len(faces.low)))
        rho: Array = np.maximum(factor_positive(heat).solve(self.source), 0.0)
        rho += 1e-3 * self.source.mean()
        return rho

    def level(self) -> Array:
        """Return fluxes that level the density in each room: a central flow."""
        faces = self.faces
        labels = faces.rooms
        mean = np.bincount(labels, self.source) / np.bincount(labels)
        flux = np.zeros(len(faces.low))
        for _ in range(3):  # the trace leaves a little
            late = self.source - faces.outflow(flux) - mean[labels]
            phi = faces.levelling.solve(late)
            flux += faces.conductance * (phi[faces.low] - phi[faces.high])
        return flux

    def start(self, warm: Interior | None, unit: float) -> Interior:
        """Return a flow within the constraints, whose products sum to about `unit`."""
        flux = self.level() if warm is None else NEAR * self.level()
        cost = float(self.kinetic(flux, self.after(flux)).sum())
        state = self.centred(flux, (unit + cost) / self.count)
        if warm is None:
            return state
        return self.resumed(warm, state, unit / self.count)

    def resumed(self, old: Interior, centre: Interior, mu: float) -> Interior:
        """Return the velocities and multipliers of another flow, moved inwards.

        Flows are convex combinations of flows, so the way inwards is straight.
        """
        faces = self.faces
        q = old.ways / old.density[self.sides]
        matrix = faces.normal.matrix(q)
        density = factor(matrix.T).solve(self.source)
        ways = q * density[self.sides]
        if not (np.isfinite(ways).all() and (density > 0).all()):
            return centre
        share = INWARDS
        if self.bounded:
            # So that a tenth of the centre's own distance from the bound is left.
            over = density - self.bound + MARGIN * (self.bound - centre.density)
            above = over > 0
            if above.any():
                way = density[above] - centre.density[above]
                share = max(share, float((over[above] / way).max()))
        if share >= 1:
            return centre
        ways = (1 - share) * ways + share * centre.ways
        density = self.after(ways[0] - ways[1])
        if not (density > 0).all():
            return centre
        pressure = old.pressure
        if self.bounded:
            slack = self.bound - density
            if not (slack > 0).all():
                return centre
            pressure = np.maximum(pressure, mu / slack)
        return Interior(
            ways,
            density,
            np.maximum(old.still, mu / ways),
            np.maximum(old.empty, mu / density),
            pressure,
        )

    def after(self, flux: Array) -> Array:
        """Return the densities after fluxes."""
        return self.source - self.faces.outflow(flux)

    def kinetic(self, flux: Array, density: Array) -> Array:
        """Return the cost of each flux."""
        up, _ = self.faces.upstream(flux)
        cost: Array = flux**2 / (2 * self.dt * self.faces.conductance * density[up])
        return cost

    def cells(self, density: Array) -> Array:
        """Return the energy, of each cell."""
        cells = self.energy.energy(density) + self.potential * density
        if self.coupling is not None:
            cells = cells + 0.5 * density * self.coupling.field(density)
        return cells

    def slope(self, density: Array) -> Array:
        """Return the first variation of the energy."""
        slope = self.potential + self.energy.slope(density)
        if self.coupling is not None:
            slope = slope + self.coupling.field(density)
        return slope

    def barrier(self, ways: Array, mu: float) -> tuple[float, Array]:
        """Return the objective with logarithmic barriers, and the densities."""
        density = self.after(ways[0] - ways[1])
        if not ((density > 0).all() and (ways > 0).all()):
            return math.inf, density
        if self.bounded and density.max() >= self.bound:
            return math.inf, density
        cells = self.cells(density) - mu * np.log(density)
        if self.bounded:
            cells = cells - mu * np.log(self.bound - density)
        cost = ways**2 / (2 * self.reach * density[self.sides]) - mu * np.log(ways)
        return float(cells.sum() + cost.sum()), density

    def centred(self, flux: Array, mu: float) -> Interior:
        """Return a flow with the multipliers of a barrier."""
        density = self.after(flux)
        circling = np.sqrt(mu * self.reach * np.minimum(*density[self.sides]))
        ways = np.stack([np.maximum(flux, 0), np.maximum(-flux, 0)]) + circling
        pressure = mu / (self.bound - density)
        return Interior(ways, density, mu / ways, mu / density, pressure)

    def gap(self, state: Interior, phi: Array) -> float:
        r"""Return a bound on how far a flow is from the least objective.

        For every :math:`\phi` the least objective is at least

        .. math:: \sum_K \rho^0_K\phi_K - U^*\bigl(\phi + \tfrac{dt}2 G(\phi) - V\bigr),
            \qquad G_K = \sum_{L: \phi_L < \phi_K} c\,(\phi_K - \phi_L)^2,

        :math:`U^*` the greatest :math:`\sum z r - U(r)` over densities r of the same
        mass, between the bounds. As U is above its tangents, that is at most the same
        of the tangent at the flow's density, which is linear: a greedy filling.
        """
        faces, rho = self.faces, state.density
        drop = phi[faces.low] - phi[faces.high]
        above, _ = faces.upstream(drop)
        G = faces.sum_at(above, faces.conductance * drop**2)
        # In differences from phi at the flow's own density, small numbers stay small.
        excess = phi + 0.5 * self.dt * G - self.slope(rho)
        order = np.argsort(-excess)
        total = float(rho.sum())
        left = total - np.cumsum(np.full(faces.n, min(self.bound, total)))
        fill = np.clip(left + min(self.bound, total), 0.0, min(self.bound, total))
        most = np.empty(faces.n)
        most[order] = fill
        # P - D with U's tangent: the flow's cost, its slope against phi, the filling.
        up, _ = faces.upstream(state.flux)
        reach = self.dt * faces.conductance
        own = state.flux - reach * rho[up] * drop
        turned = drop * state.flux < 0
        cost = own**2 / (2 * reach * rho[up])
        plain = self.kinetic(state.flux, rho) - drop * state.flux
        # Where flux and slope agree in sign: cost - drop f + reach rho drop^2 / 2 is a
        # square; where they do not, the flux is all loss.
        other = plain + 0.5 * reach * rho[above] * drop**2
        terms = np.where(turned, other, cost)
        return float(terms.sum() + excess @ (most - rho))
