"""An interior method for a step by finite volumes: upwind fluxes, proved gaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from otflow._lazy import lazy_import
from otflow.proximal.finite_volume_faces import Array, Faces, factor

__all__ = ["Interior", "Outcome", "Pointwise", "UpwindStep", "descend"]

# Armijo's share of the slope, and lengths of a step that are tried.
ARMIJO, MAX_TRIALS = 1e-4, 30
# A step goes that share of the way to where a density, or a slack, would be 0.
FRACTION = 0.99
# Fall of the barrier after a step of full length, and after one of half of it.
FALL, SLOW_FALL, GOOD, FAIR = 0.1, 0.4, 0.9, 0.4
# A straight step that gets this share of its slope is taken unseen the other.
SEEN = 0.3
# Multipliers are kept within that factor of what the barrier says.
TRUST = 1e8
# Round-off of the objective, in its size.
ROUND_OFF = 1e-14


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
    """A flow within its constraints, and their multipliers.

    Parameters
    ----------
    ways : ndarray, shape (2, m)
        What passes each face upwards and downwards, as changes of density, both > 0.
    density : ndarray, shape (n,)
        Densities at the end, > 0 and below the bound.
    still : ndarray, shape (2, m)
        Multipliers of the fluxes, > 0.
    empty, pressure : ndarray, shape (n,)
        Multipliers of the densities, > 0; the second is 0 without a bound.
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


class Outcome(NamedTuple):
    """Where the iteration ended."""

    state: Interior
    gap: float  # the objective is at most that far above the least
    moved: float  # density that Newton's next step would move
    steps: int  # linear systems


@dataclass(frozen=True)
class UpwindStep:
    r"""Minimise the energy and the cost of fluxes f through the faces.

    .. math:: \sum_K U(\rho_K) + V_K\rho_K + \sum_f \frac{f^2}{2\,dt\,c_f\,\rho_f},
        \qquad 0 \le \rho = \rho^0 - \operatorname{outflow}(f) \le b,

    :math:`\rho_f` the density upstream and c the conductance. It is convex.

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
    """

    faces: Faces
    source: Array
    potential: Array
    energy: Pointwise
    bound: float
    dt: float

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
    def sides(self) -> Any:
        """The cells that each face takes from, upwards and downwards, (2, m)."""
        return np.stack([self.faces.low, self.faces.high])

    @property
    def count(self) -> int:
        """How many numbers must be positive."""
        return self.faces.n * (2 if self.bounded else 1) + 2 * len(self.faces.low)

    def spread(self) -> Array:
        """Return densities near the source, all of them positive."""
        faces = self.faces
        sparse = lazy_import("scipy.sparse")
        heat = sparse.eye_array(faces.n) + faces.laplacian(np.ones(len(faces.low)))
        rho: Array = np.maximum(factor(heat).solve(self.source), 0.0)
        return rho + 1e-3 * self.source.mean()

    def level(self) -> Array:
        """Return fluxes that level the density in each room: the centre of all flows."""
        faces = self.faces
        laplacian = faces.laplacian(faces.conductance)
        components = lazy_import("scipy.sparse.csgraph").connected_components
        _, labels = components(laplacian, directed=False)
        mean = np.bincount(labels, self.source) / np.bincount(labels)
        # Each room is balanced, so a trace on the diagonal only fixes the constants.
        trace = lazy_import("scipy.sparse").eye_array(faces.n) * 1e-10 * faces.largest
        solver = factor(laplacian + trace)
        flux = np.zeros(len(faces.low))
        for _ in range(3):  # the trace leaves a little
            late = self.source - faces.outflow(flux) - mean[labels]
            phi = solver.solve(late)
            flux += faces.conductance * (phi[faces.low] - phi[faces.high])
        return flux

    def start(self, warm: Interior | None, unit: float) -> Interior:
        """Return a flow within the constraints, whose products sum to about `unit`."""
        flux = self.level()
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
        matrix = faces.matrix(
            1 + faces.at_sides(q),
            np.append(faces.low, faces.high),
            np.append(faces.high, faces.low),
            -q.reshape(-1),
        )
        density = factor(matrix.T).solve(self.source)
        ways = q * density[self.sides]
        if not (np.isfinite(ways).all() and (density > 0).all()):
            return centre
        share = INWARDS
        if self.bounded:
            over = density - self.bound
            room = self.bound - centre.density
            share = max(share, float((1.1 * over / (over + room)).max()))
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

    def objective(self, flux: Array, density: Array) -> float:
        """Return the energy and the cost of fluxes, per unit of cell volume."""
        cells = self.energy.energy(density) + self.potential * density
        return float(cells.sum() + self.kinetic(flux, density).sum())

    def barrier(self, ways: Array, mu: float) -> tuple[float, Array]:
        """Return the objective with logarithmic barriers, and the densities."""
        density = self.after(ways[0] - ways[1])
        if not ((density > 0).all() and (ways > 0).all()):
            return math.inf, density
        if self.bounded and density.max() >= self.bound:
            return math.inf, density
        cells = self.energy.energy(density) + self.potential * density
        cells = cells - mu * np.log(density)
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

    def linearised(self, state: Interior) -> Linearised:
        """Return Newton's system at a flow, without the barriers' targets."""
        return Linearised(self, state)

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
        excess = phi + 0.5 * self.dt * G - self.potential - self.energy.slope(rho)
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


class Targets(NamedTuple):
    """What the products of positive numbers and their multipliers should become."""

    ways: Array | float
    density: Array | float
    slack: Array | float


class Linearised:
    """Newton's system at a flow: one factorisation, any targets of the products.

    In density and flux the objective is convex and the balance of mass linear; of its
    Newton system the potential phi is the multiplier, the only unknown that is left
    after elimination.
    """

    def __init__(self, step: UpwindStep, state: Interior) -> None:
        self.step, self.state = step, state
        faces, rho, ways = step.faces, state.density, state.ways
        sides, reach = step.sides, step.reach
        base = rho[sides]
        stiffness = 1 / (reach * base)
        self.q = ways / base
        self.ease = 1 / (stiffness + state.still / ways)
        self.share = self.ease * stiffness * self.q
        stiff = step.energy.curvature(rho) + state.empty / rho
        if step.bounded:
            stiff = stiff + state.pressure / (step.bound - rho)
        loose = self.q**2 * stiffness - self.q * self.share * stiffness
        self.soft = 1 / (stiff + faces.at_sides(np.maximum(loose, 0.0)))
        self.slope = step.potential + step.energy.slope(rho)
        self.slope -= faces.at_sides(self.q**2 / (2 * reach))
        self.J = faces.matrix(
            1 + faces.at_sides(self.share),
            np.append(faces.low, faces.high),
            np.append(faces.high, faces.low),
            -self.share.reshape(-1),
        )
        diagonal = lazy_import("scipy.sparse").diags_array(self.soft)
        laplacian = faces.laplacian(self.ease.sum(0))
        self.factors = factor(self.J.T @ diagonal @ self.J + laplacian)

    def solve(self, targets: Targets) -> Newton:
        """Return the step that brings the products to their targets, linearised."""
        step, state = self.step, self.state
        faces, rho, ways = step.faces, state.density, state.ways
        slack = step.bound - rho
        push = targets.ways / ways - self.q / step.reach
        slope = self.slope - targets.density / rho
        if step.bounded:
            slope = slope + targets.slack / slack
        wanted = slope - faces.at_sides(self.share * push)
        own = self.ease * push
        rhs = self.J.T @ (self.soft * wanted) - faces.outflow(own[0] - own[1])
        phi = self.factors.solve(rhs)
        change = self.soft * (self.J @ phi - wanted)
        drop = phi[faces.low] - phi[faces.high]
        turn = self.ease * (np.stack([drop, -drop]) + push)
        turn = turn + self.share * change[step.sides]
        change = -faces.outflow(turn[0] - turn[1])
        still = (targets.ways - state.still * turn) / ways - state.still
        empty = (targets.density - state.empty * change) / rho - state.empty
        pressure = np.zeros(faces.n)
        if step.bounded:
            pressure = (targets.slack + state.pressure * change) / slack
            pressure = pressure - state.pressure
        return Newton(turn, change, still, empty, pressure, phi)

    def falls(self, newton: Newton, mu: float) -> float:
        """Return the slope of a barrier's objective along a step."""
        state = self.state
        slope = self.slope - mu / state.density
        if self.step.bounded:
            slope = slope + mu / (self.step.bound - state.density)
        push = mu / state.ways - self.q / self.step.reach
        return float(slope @ newton.density - (push * newton.ways).sum())


def _longest(now: Array, change: Array) -> float:
    """Return the part of a change that keeps positive numbers positive, at most 1."""
    worst = float((-change / now).max(initial=0.0))
    return min(1.0, FRACTION / worst) if worst > 0 else 1.0


def descend(
    step: UpwindStep,
    state: Interior,
    least: float,
    tolerances: tuple[float, float],
    limit: int,
) -> Outcome:
    """Follow the optima of falling barriers, each step shortened until its falls.

    Parameters
    ----------
    step : UpwindStep
        The problem.
    state : Interior
        Where to start.
    least : float
        Factor of the last barrier.
    tolerances : tuple of float
        Stop at the last barrier when the gap is below the first, and Newton's change of
        the densities and of the fluxes sums to less than the second.
    limit : int
        Most Newton steps.

    Returns
    -------
    Outcome
        The last flow with its gap.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused
        return _descend(step, state, least, tolerances, limit)


def _descend(
    step: UpwindStep,
    state: Interior,
    least: float,
    tolerances: tuple[float, float],
    limit: int,
) -> Outcome:
    gap = moved = math.inf
    weight = float(np.abs(step.potential) @ step.source)
    for k in range(1, limit + 1):
        try:
            system = step.linearised(state)
        except RuntimeError:  # singular to round-off
            return Outcome(state, math.inf, math.inf, k)
        affine = system.solve(Targets(0.0, 0.0, 0.0))
        primal, dual = _lengths(step, state, affine)
        product = state.product(step)
        ahead = state.moved(affine, primal, dual).product(step)
        mu = max(product * min((ahead / product) ** POWER, 1.0), least)
        plain = system.solve(Targets(mu, mu, mu))
        newton = plain
        gap = step.gap(state, newton.phi)
        moved = float(max(np.abs(newton.density).sum(), np.abs(newton.flux).sum()))
        if TRACE is not None:
            TRACE.append((k, product, gap, moved, mu))
        if mu <= least and gap <= tolerances[0] and moved <= tolerances[1]:
            break
        directions = [plain]
        if mu > least:
            def target(second):
                return np.clip(mu - second, CLIP * mu, mu / CLIP)
            both = system.solve(
                Targets(
                    target(affine.ways * affine.still),
                    target(affine.density * affine.empty),
                    target(-affine.density * affine.pressure),
                )
            )
            directions = [both, plain]
        found = None
        for direction in directions:
            slope = system.falls(direction, mu)
            if slope < 0 or direction is plain:
                found = _search(step, state, direction, slope, mu, weight)
                if found is not None and (found[1] > 0.1 or direction is plain):
                    break
        if found is None:
            break
        state, length = found
        if TRACE is not None:
            TRACE[-1] += (length,direction is not plain)
    return Outcome(state, gap, moved, k)

TRACE = None
INWARDS = 0.01
CLIP, POWER = 0.1, 1


def _lengths(step: UpwindStep, state: Interior, newton: Newton) -> tuple[float, float]:
    """Return how far the positive numbers, and the multipliers, may follow a step."""
    primal = _longest(state.density, newton.density)
    primal = min(primal, _longest(state.ways, newton.ways))
    dual = _longest(state.empty, newton.empty)
    dual = min(dual, _longest(state.still, newton.still))
    if step.bounded:
        primal = min(primal, _longest(step.bound - state.density, -newton.density))
        dual = min(dual, _longest(state.pressure, newton.pressure))
    return primal, dual


def _search(
    step: UpwindStep,
    state: Interior,
    newton: Newton,
    slope: float,
    mu: float,
    weight: float,
) -> tuple[Interior, float] | None:
    """Return a flow ahead with a lower barrier, and how far; None if none is found."""
    before, _ = step.barrier(state.ways, mu)
    noise = ROUND_OFF * (abs(before) + weight)
    length, dual = _lengths(step, state, newton)
    for _ in range(MAX_TRIALS):
        value, density = step.barrier(state.ways + length * newton.ways, mu)
        if value <= before + ARMIJO * length * min(slope, 0.0) + noise:
            break
        length *= 0.5
    else:
        return None
    return replace(
        state.moved(newton, length, dual), density=density
    ).trusted(step, mu), length
