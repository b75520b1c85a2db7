"""A step by finite volumes as a convex problem with a duality gap; its flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.functionals import Internal
from otflow.proximal.grid.finite_volume.coupling import Coupling
from otflow.proximal.grid.finite_volume.faces import Array, Faces
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
    r"""The energy :math:`U(r) + c\,r\log r` of densities r > 0, entrywise.

    Parameters
    ----------
    internal : Internal or None
        U.
    entropy : float
        c, the factor of the entropy.
    device : torch.device
        Device on which U is evaluated.
    """

    internal: Internal | None
    entropy: float
    device: torch.device

    def energy(self, r: Array) -> Array:
        """Return the energy per volume."""
        own = self.entropy * r * np.log(r)
        return own if self.internal is None else own + r * self._on(self.internal.e, r)

    def slope(self, r: Array) -> Array:
        """Return the first derivative."""
        own = self.entropy * (np.log(r) + 1)
        return own if self.internal is None else own + self._on(self.internal.slope, r)

    def curvature(self, r: Array) -> Array:
        """Return the second derivative."""
        own, U = self.entropy / r, self.internal
        return own if U is None else own + self._on(U.curvature, r)

    def _on(self, function: Callable[[Tensor], Tensor], r: Array) -> Array:
        values: Array = function(torch.from_numpy(r).to(self.device)).cpu().numpy()
        return values


@dataclass(frozen=True)
class Pairs:
    """Numbers of a step, each with its multiplier.

    Parameters
    ----------
    step : UpwindStep
        The step.
    numbers : ndarray, shape (2 m + n,) or (2 m + 2 n,)
        The fluxes upwards, the fluxes downwards (both as changes of density), and the
        densities at the end. With a bound also the bound minus the densities.
    multipliers : ndarray
        The multiplier of each number.
    """

    step: UpwindStep
    numbers: Array
    multipliers: Array

    @property
    def ways(self) -> Array:
        """The fluxes upwards and downwards, (2, m)."""
        return self.step.parts(self.numbers)[0]

    @property
    def density(self) -> Array:
        """The densities, (n,)."""
        return self.step.parts(self.numbers)[1]

    @property
    def flux(self) -> Array:
        """What passes each face, as a change of density, positive upwards."""
        net: Array = self.ways[0] - self.ways[1]
        return net


class Interior(Pairs):
    """A flow strictly within its constraints: all numbers and multipliers are > 0."""

    @property
    def product(self) -> float:
        """The mean product of a number and its multiplier."""
        return float(self.numbers @ self.multipliers) / len(self.numbers)

    def moved(self, newton: Newton, length: float, dual: float) -> Interior:
        """Return the flow at shares of a step: of the numbers, of the multipliers."""
        return Interior(
            self.step,
            self.numbers + length * newton.numbers,
            self.multipliers + dual * newton.multipliers,
        )

    def trusted(self, mu: float) -> Interior:
        """Return the flow with multipliers within a factor of mu over the numbers."""
        centre = mu / self.numbers
        near = np.clip(self.multipliers, centre / TRUST, centre * TRUST)
        return replace(self, multipliers=near)


@dataclass(frozen=True)
class Newton(Pairs):
    """Newton's step from a flow: changes of the numbers and of their multipliers.

    Parameters
    ----------
    step, numbers, multipliers
        As of `Pairs`.
    phi : ndarray, shape (n,)
        Potential at the end, the multiplier of the balance of mass.
    """

    phi: Array


@dataclass(frozen=True)
class UpwindStep:
    r"""Minimise the energy and the cost of fluxes f through the faces.

    .. math:: \sum_K U(\rho_K) + V_K\rho_K + Q(\rho) + \sum_f
        \frac{f^2}{2\,dt\,c_f\,\rho_f}, \qquad
        0 \le \rho = \rho^0 - \operatorname{outflow}(f) \le b.

    :math:`\rho_f` is the density of the cell that the flux leaves, and
    :math:`c_f` the conductance. The problem is convex if Q is.

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
        """The fluxes that a unit slope drives through a unit density, (m,)."""
        reach: Array = self.dt * self.faces.conductance
        return reach

    def parts(self, numbers: Array) -> tuple[Array, Array, Array]:
        """Return views of numbers or multipliers: fluxes, densities, distances.

        The fluxes are (2, m), the densities (n,). The distances from the bound are
        (n,), or empty without a bound.
        """
        m, n = 2 * len(self.faces.low), self.faces.n
        return numbers[:m].reshape(2, -1), numbers[m : m + n], numbers[m + n :]

    def joined(self, ways: Array, density: Array, left: Array) -> Array:
        """Return fluxes, densities and distances as numbers, the inverse of `parts`.

        Without a bound the distances are left out.
        """
        below = [left] if self.bounded else []
        return np.concatenate([ways.reshape(-1), density, *below])

    def numbers(self, ways: Array) -> Array:
        """Return the numbers of the flow of these fluxes."""
        density = self.after(ways[0] - ways[1])
        return self.joined(ways, density, self.bound - density)

    def spread(self) -> Array:
        """Return densities near the source, all of them positive."""
        # One implicit step of heat reaches every cell of a room. Its far tail is too
        # small to start from, so a share of the mean is added.
        faces = self.faces
        sparse = lazy_import("scipy.sparse")
        heat = sparse.eye_array(faces.n) + faces.laplacian(np.ones(len(faces.low)))
        rho: Array = np.maximum(factor_positive(heat).solve(self.source), 0.0)
        rho += 1e-3 * self.source.mean()
        return rho

    def level(self) -> Array:
        """Return fluxes that level the density in each room, far from all bounds."""
        faces = self.faces
        labels = faces.rooms
        mean = np.bincount(labels, self.source) / np.bincount(labels)
        flux = np.zeros(len(faces.low))
        # The addition to the diagonal leaves a small error: it is solved for again.
        for _ in range(3):
            late = self.source - faces.outflow(flux) - mean[labels]
            phi = faces.levelling.solve(late)
            flux += faces.conductance * (phi[faces.low] - phi[faces.high])
        return flux

    def start(self, warm: Interior | None, unit: float) -> Interior:
        """Return a flow within the constraints, whose products sum to about `unit`."""
        flux = self.level() if warm is None else NEAR * self.level()
        density = self.after(flux)
        count = 2 * len(flux) + len(density) * (2 if self.bounded else 1)
        mu = (unit + float(self.kinetic(flux, density).sum())) / count
        # A flux that circles through a face moves nothing and keeps both ways positive.
        # Alone it costs at most mu / 2 each way.
        circling = np.sqrt(mu * self.reach * np.minimum(*density[self.faces.sides]))
        ways = np.stack([np.maximum(flux, 0), np.maximum(-flux, 0)]) + circling
        x = self.joined(ways, density, self.bound - density)
        centre = Interior(self, x, mu / x)
        return centre if warm is None else self.resumed(warm, centre, unit / len(x))

    def resumed(self, old: Interior, centre: Interior, mu: float) -> Interior:
        """Return a flow between the flow of another's velocities and `centre`.

        The result is `centre` itself if the velocities give no positive densities.
        """
        # Fluxes are velocities times the new densities, which solve a linear system.
        sides = self.faces.sides
        q = self.dt / old.step.dt * old.ways / old.density[sides]
        density = factor(self.faces.normal.matrix(q).T).solve(self.source)
        ways = q * density[sides]
        if not (np.isfinite(ways).all() and (density > 0).all()):
            return centre
        # A tenth of the centre's own distance from the bound is left.
        way = density - centre.density
        over = way - (1 - MARGIN) * (self.bound - centre.density)
        above = over > 0
        share = max(INWARDS, float((over[above] / way[above]).max(initial=0.0)))
        x = self.numbers((1 - share) * ways + share * centre.ways)
        if share >= 1 or not (x > 0).all():
            return centre
        z = mu / x
        # The other flow may have had no bound, or one that is gone.
        known = old.multipliers[: len(z)]
        z[: len(known)] = np.maximum(z[: len(known)], known)
        return Interior(self, x, z)

    def after(self, flux: Array) -> Array:
        """Return the densities after fluxes."""
        return self.source - self.faces.outflow(flux)

    def kinetic(self, flux: Array, density: Array) -> Array:
        """Return the cost of each flux."""
        up, _ = self.faces.upstream(flux)
        cost: Array = flux**2 / (2 * self.reach * density[up])
        return cost

    def cells(self, density: Array) -> Array:
        """Return the energy of each cell, per volume."""
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

    def barrier(self, numbers: Array, mu: float) -> float:
        """Return the objective with logarithmic barriers."""
        if not (numbers > 0).all():
            return math.inf
        ways, density, _ = self.parts(numbers)
        cost = ways**2 / (2 * self.reach * density[self.faces.sides])
        barriers = mu * float(np.log(numbers).sum())
        return float(self.cells(density).sum() + cost.sum()) - barriers

    def gap(self, state: Interior, phi: Array) -> float:
        r"""Return a bound on the objective of a flow minus the least objective.

        For every :math:`\phi` the least objective is at least

        .. math:: \sum_K \rho^0_K\phi_K - U^*\bigl(\phi + \tfrac{dt}2 G(\phi) - V\bigr),
            \qquad G_K = \sum_{L: \phi_L < \phi_K} c\,(\phi_K - \phi_L)^2.

        :math:`U^*(z)` is the greatest :math:`\sum z r - U(r)` over densities r of the
        same mass within the bounds. U lies above its tangent at the flow's density. So
        the tangent in place of U gives a lower bound too. Its :math:`U^*` fills the
        cells in the order of z, each up to the bound.
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
        reach = self.reach
        own = state.flux - reach * rho[up] * drop
        turned = drop * state.flux < 0
        cost = own**2 / (2 * reach * rho[up])
        plain = self.kinetic(state.flux, rho) - drop * state.flux
        # Where flux and slope agree in sign: cost - drop f + reach rho drop^2 / 2 is a
        # square; where they do not, the flux is all loss.
        other = plain + 0.5 * reach * rho[above] * drop**2
        terms = np.where(turned, other, cost)
        return float(terms.sum() + excess @ (most - rho))
