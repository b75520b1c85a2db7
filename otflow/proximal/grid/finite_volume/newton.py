"""An interior method for a step by finite volumes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from otflow.proximal.grid.finite_volume.coupling import Response
from otflow.proximal.grid.finite_volume.faces import Array
from otflow.proximal.grid.finite_volume.problem import Interior, Newton

__all__ = ["Outcome", "descend"]

# Armijo's constant, and most trial lengths of a step.
ARMIJO, MAX_TRIALS = 1e-4, 30
# Share of the way to the boundary, where a density, a flux or a slack is 0, that a step
# may go.
FRACTION = 0.99
# The next products fall by the share that a step to products of 0 would leave. After a
# step of at least the length GOOD they fall by this share to the power BOLD.
GOOD, BOLD = 0.9, 4
# Second-order corrections change a product by this factor at most. A corrected step
# shorter than SHORT gives way to the plain step.
CLIP, SHORT = 0.1, 0.1
# Solves of a direction: the second solves for the residual of the first, since the
# products that make the matrix lose digits.
SOLVES = 2
# With the gap met, so many steps that do not halve Newton's change end the iteration:
# the rest is round-off, along which the objective is flat.
STALL = 5
# Round-off of the objective, relative to its size.
ROUND_OFF = 1e-14


class Outcome(NamedTuple):
    """The end of the iteration."""

    state: Interior
    gap: float  # bound on the objective minus its least value
    moved: float  # density that the next Newton step would move
    steps: int  # linear systems
    settled: bool = False  # the gap is met and nothing more moves, up to round-off


class Linearised:
    """Newton's system at a flow: one factorisation for any targets of the products.

    The objective is convex in density and flux, and the balance of mass is linear. The
    potential phi is the multiplier of the balance. It is the only unknown that is left
    after elimination.
    """

    def __init__(self, state: Interior) -> None:
        self.state, self.step = state, state.step
        step, rho = state.step, state.density
        faces, reach = step.faces, step.reach
        still, empty, tight = step.parts(state.multipliers / state.numbers)
        base = rho[faces.sides]
        stiffness = 1 / (reach * base)
        self.q = state.ways / base
        self.ease = 1 / (stiffness + still)
        self.share = self.ease * stiffness * self.q
        stiff = step.energy.curvature(rho) + empty
        stiff[: len(tight)] += tight
        loose = self.q**2 * stiffness - self.q * self.share * stiffness
        self.soft = 1 / (stiff + faces.at_sides(np.maximum(loose, 0.0)))
        self.slope = step.slope(rho) - faces.at_sides(self.q**2 / (2 * reach))
        self.factors = faces.normal.factor(self.share, self.soft, self.ease.sum(0))
        self.response = None
        if step.coupling is not None and step.coupling.modes is not None:
            modes = step.coupling.modes
            self.response = Response(modes, self._answers(modes.columns))

    def solve(self, targets: Array | float, solves: int = SOLVES) -> Newton:
        """Return the step to the targets of the products, linearised."""
        step, x, z = self.step, self.state.numbers, self.state.multipliers
        push, pull, press = step.parts(targets / x)
        push = push - self.q / step.reach
        slope = self.slope - pull
        slope[: len(press)] += press
        turn, change, phi = self._local(slope, push, solves)
        if self.response is not None:
            amplitudes = None
            for _ in range(solves):
                amplitudes = self.response.amplitudes(change, amplitudes)
                field = self.response.R @ amplitudes
                turn, change, phi = self._local(slope + field, push, solves)
        moved = step.joined(turn, change, -change)
        return Newton(step, moved, (targets - z * moved) / x - z, phi)

    def _local(
        self, slope: Array, push: Array, solves: int
    ) -> tuple[Array, Array, Array]:
        """Return the changes of the ways and of the density, and the potential.

        The changes answer a slope of the energy and a push of the ways. Only local
        terms count.
        """
        step = self.step
        faces = step.faces
        wanted = slope - faces.at_sides(self.share * push)
        own = self.ease * push
        soft = self.soft * wanted
        phi = np.zeros(faces.n)
        for _ in range(solves):
            drops, change = self._forward(phi)
            left = soft - self.soft * change
            back = self.share * left[faces.sides] - own - self.ease * drops
            phi = phi + self.factors.solve(left + faces.outflow(back[0] - back[1]))
        drops, change = self._forward(phi)
        change = self.soft * (change - wanted)
        turn = self.ease * (drops + push)
        turn = turn + self.share * change[faces.sides]
        return turn, -faces.outflow(turn[0] - turn[1]), phi

    def _answers(self, slopes: Array) -> Array:
        """Return minus the changes of the density by slopes, one in each column.

        The changes are outflows of fluxes, so they conserve mass.
        """
        faces = self.step.faces
        J, out = faces.normal.matrix(self.share), faces.incidence
        phi = self.factors.solve(J.T @ (self.soft[:, None] * slopes))
        left = self.soft[:, None] * (slopes - J @ phi)
        low, high = self.share[0][:, None], self.share[1][:, None]
        flux = self.ease.sum(0)[:, None] * (out.T @ phi)
        flux = flux - low * left[faces.low] + high * left[faces.high]
        answers: Array = out @ flux
        return answers

    def _forward(self, phi: Array) -> tuple[Array, Array]:
        """Return the drops of a potential along each way, and J phi."""
        faces = self.step.faces
        drop = phi[faces.low] - phi[faces.high]
        drops = np.stack([drop, -drop])
        return drops, phi + faces.at_sides(self.share * drops)

    def falls(self, newton: Newton, mu: float) -> float:
        """Return the slope of objective plus barrier along a step."""
        barrier = mu * float((newton.numbers / self.state.numbers).sum())
        cost = float((self.q / self.step.reach * newton.ways).sum())
        return float(self.slope @ newton.density) + cost - barrier


def _longest(now: Array, change: Array) -> float:
    """Return the share of a change that keeps positive numbers positive, at most 1."""
    worst = float((-change / now).max(initial=0.0))
    return min(1.0, FRACTION / worst) if worst > 0 else 1.0


@np.errstate(all="ignore")  # a value that is not finite fails the search
def descend(
    state: Interior,
    least: float,
    tolerances: tuple[float, float],
    limit: int,
) -> Outcome:
    """Follow the minima of falling barriers by steps that lower objective plus barrier.

    Parameters
    ----------
    state : Interior
        The start.
    least : float
        Factor of the last barrier.
    tolerances : tuple of float
        Stop when the gap is below the first, and Newton's change of the densities and
        of the fluxes sums to less than the second or falls no more.
    limit : int
        Most Newton steps.

    Returns
    -------
    Outcome
        The last flow with its gap.
    """
    step, gap, moved = state.step, math.inf, math.inf
    length, best, stalled = 0.0, math.inf, 0
    # The terms of the objective may cancel: its round-off has their size.
    weight = float(np.abs(step.potential) @ step.source)
    if step.coupling is not None:
        weight += float(np.abs(step.coupling.field(step.source)) @ step.source)
    for k in range(1, limit + 1):
        try:
            system = Linearised(state)
        except RuntimeError:  # singular to round-off
            return Outcome(state, math.inf, math.inf, k)
        # Mehrotra's predictor: a step to products of 0 shows how far they can fall.
        affine = system.solve(0.0, 1)
        ahead = state.moved(affine, *_lengths(state, affine)).product
        share = ahead / state.product
        mu = state.product * min(share ** (BOLD if length >= GOOD else 1), 1.0)
        mu = max(mu, least)
        plain = system.solve(mu)
        gap = step.gap(state, plain.phi)
        moved = float(max(np.abs(plain.density).sum(), np.abs(plain.flux).sum()))
        if gap <= tolerances[0]:
            stalled = 0 if moved < 0.5 * best else stalled + 1
            best = min(best, moved)
            if moved <= tolerances[1] or stalled >= STALL:
                return Outcome(state, gap, moved, k, settled=True)
        # The corrected direction may rise; the plain one falls by construction.
        directions = [plain]
        if mu > least:
            # Targets that make up for the second-order error of the products.
            products = mu - affine.numbers * affine.multipliers
            targets = np.clip(products, CLIP * mu, mu / CLIP)
            directions.insert(0, system.solve(targets))
        found = None
        for direction in directions:
            slope = system.falls(direction, mu)
            if slope < 0 or direction is plain:
                found = _search(state, direction, slope, mu, weight)
                if found is not None and (found[1] > SHORT or direction is plain):
                    break
        if found is None:
            break
        state, length = found
    return Outcome(state, gap, moved, k)


def _lengths(state: Interior, newton: Newton) -> tuple[float, float]:
    """Return the longest steps of the numbers and of the multipliers."""
    primal = _longest(state.numbers, newton.numbers)
    return primal, _longest(state.multipliers, newton.multipliers)


def _search(
    state: Interior, newton: Newton, slope: float, mu: float, weight: float
) -> tuple[Interior, float] | None:
    """Return a flow of lower objective plus barrier and its length; None if none."""
    step = state.step
    before = step.barrier(state.numbers, mu)
    noise = ROUND_OFF * (abs(before) + weight)
    length, dual = _lengths(state, newton)
    for _ in range(MAX_TRIALS):
        x = step.numbers(state.ways + length * newton.ways)
        if step.barrier(x, mu) <= before + ARMIJO * length * min(slope, 0.0) + noise:
            ahead = replace(state.moved(newton, length, dual), numbers=x)
            return ahead.trusted(mu), length
        # Multipliers are no part of the objective: their length stays.
        length *= 0.5
    return None
