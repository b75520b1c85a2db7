"""Descent of a free energy on a grid, in the logarithms of the masses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._autodiff import value_gradient_product
from otflow._graphs import value_of
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson
from otflow.numerics.krylov import conjugate_gradients
from otflow.optimality.densities import ProximalLaw

__all__ = ["FixedPoint", "FreeEnergy", "State"]

MEMORY = 8
# Least share of the predicted decrease that a step must reach.
ARMIJO = 1e-4
SMALLEST = 1e-12
# Round-off of an energy and of the law, in units of the last place.
ENERGY_NOISE = 16
LAW_NOISE = 32
# Newton's method takes over where so many evaluations do not divide the residual by 10.
PATIENCE = 25
PRODUCTS = 100
# A problem is cold if the slopes vary by more than so many temperatures. Then it is
# solved at higher ones first: their ratio, and the residual to reach there.
COLD = 100.0
COOLING = 2.0
LOOSE = 1e-2
# Largest residual of a converged answer, whatever the round-off of the law.
WIDEST = 1e-3


@dataclass(frozen=True, eq=False)
class State:
    """A density by the logarithms of its masses, its energy and its proximal law."""

    logs: Tensor
    measure: GridDensity
    energy: float
    noise: float
    law: ProximalLaw

    @property
    def step(self) -> Tensor:
        """The way to the proximal law, in the logarithm."""
        return self.law.logs - self.logs

    @property
    def residual(self) -> float:
        """The sum of the differences of masses to those of the proximal law."""
        return self.law.distance(self.measure)

    def descent(self, step: Tensor) -> float:
        """Return how fast the energy falls along a step of the logarithms."""
        w, g = self.logs.exp(), self.step
        return self.law.temperature * float(w @ ((g - w @ g) * (step - w @ step)))

    def falls_to(self, new: State, share: float, step: Tensor) -> bool:
        """Return whether the energy falls to a state, or the residual if it is flat."""
        least = ARMIJO * share * self.descent(step)
        if new.energy <= self.energy - max(least, self.noise):
            return True
        if new.energy > self.energy + self.noise:
            return False
        return new.law.energy_to(new.measure) < self.law.energy_to(self.measure)


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """Where the descent stopped."""

    state: State
    residual: float
    share: float
    count: int
    converged: bool


class FreeEnergy:
    """The free energy of a rest and a temperature, on one grid."""

    def __init__(
        self,
        rest: Functional,
        temperature: float,
        grid: GridDensity,
        tolerance: float | None,
        limit: int,
    ) -> None:
        self.rest, self.temperature = rest, temperature
        self.grid, self.tolerance, self.limit = grid, tolerance, limit
        self.eps = torch.finfo(grid.dtype).eps
        self.log_volume = math.log(grid.box.cell_volume)
        self.count, self.bends = 0, True

    def filled(self, masses: Tensor) -> Tensor:
        """Return logarithms of masses on the free cells; empty cells get a little."""
        w = masses[self.grid.is_free]
        w = w.clamp_min(self.eps * float(w.max()) / len(w))
        return w.log()

    def starts(self, count: int) -> list[Tensor]:
        """Return starts: the uniform density, and bumps at places spread evenly."""
        box, free = self.grid.box, self.grid.is_free
        points = self.grid.points[free]
        uniform = points.new_zeros(len(points))
        lower = points.new_tensor(box.lower)
        sides = points.new_tensor(box.upper) - lower
        # The first Sobol point is a corner.
        engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
            box.dim
        )
        draws = engine.draw(max(count, 2), dtype=points.dtype).to(points)
        centres = lower + sides * draws[1:]
        bumps = [-((points - c) / (0.1 * sides)).square().sum(-1) / 2 for c in centres]
        return [uniform, *bumps][:count]

    def solve(self, logs: Tensor, *, cool: bool = False) -> FixedPoint:
        """Return the fixed point that steps from a density lead to.

        With `cool` those of higher temperatures come first; where several fixed points
        exist this would leave the basin of the start.
        """
        self.count = 0
        temperature = self.temperature
        if cool:
            slopes = ProximalLaw.of(self.rest, temperature, self.measure(logs)).slopes
            self.count += 1
            spread = float(slopes.max())
            if spread > COLD * temperature:
                temperature = spread / COOLING
        while temperature > self.temperature:
            logs = self._stage(logs, temperature, LOOSE).state.logs
            temperature = max(temperature / COOLING, self.temperature)
        return self._stage(logs, self.temperature, self.tolerance)

    def _stage(
        self, logs: Tensor, temperature: float, tolerance: float | None
    ) -> FixedPoint:
        """Descend at one temperature."""
        state = self._at(logs, temperature)
        anderson = Anderson(MEMORY, torch.ones_like(state.logs))
        share, residual = 1.0, state.residual
        mark, since, newton = residual, self.count, False
        while (
            residual > self._goal(state, tolerance)
            and self.count < self.limit
            and share > SMALLEST
        ):
            if self.count - since >= PATIENCE:
                newton = self.bends and residual > 0.1 * mark
                mark, since = residual, self.count
            if newton:
                new, size = self._newton(state, residual)
                if new is None:
                    newton, since = False, self.count
                    continue
                anderson.forget()
                state, residual, share, since = new, new.residual, size, self.count
                continue
            learnt = anderson.has_learnt
            step = state.step
            new = self._at(anderson.advance(state.logs, share * step), temperature)
            if state.falls_to(new, share, step):
                share = share if learnt else min(1.0, 2 * share)
                state, residual = new, new.residual
                continue
            anderson.forget()
            share = share if learnt else share / 2
        goal = self._goal(state, tolerance)
        return FixedPoint(state, residual, share, self.count, residual <= goal)

    def _newton(self, state: State, residual: float) -> tuple[State | None, float]:
        """Return the state after a Newton step, or None if no step makes F fall."""
        step = self._newton_step(state, residual)
        if step is None or not state.descent(step) > 0:
            return None, 0.0
        share = 1.0
        while share > 1e-6 and self.count < self.limit:
            new = self._at(state.logs + share * step, state.law.temperature)
            if state.falls_to(new, share, step):
                return new, share
            share /= 4
        return None, 0.0

    def _newton_step(self, state: State, residual: float) -> Tensor | None:
        r"""Return the step :math:`\delta` with :math:`\delta + G''[w\,\delta]/T = g`.

        Here g is the way to the proximal law, and :math:`w\delta` is made of mass zero.
        With :math:`s = \sqrt w\,\delta` the equation is symmetric.
        """
        self.count += 2
        free, root = self.grid.is_free, (0.5 * state.logs).exp()
        masses = state.measure.weights
        try:
            _, _, product = value_gradient_product(
                lambda w: value_of(state.measure.with_free_weights(w), self.rest.value),
                masses,
            )

            def bend(s: Tensor) -> Tensor:
                self.count += 1
                v = torch.zeros_like(masses)
                v[free] = root * _without_mass(s, root)
                return product(v)[free] / state.law.temperature

            right = _without_mass(root * state.step, root)
            s = conjugate_gradients(
                lambda p, _: p + _without_mass(root * bend(p), root),
                lambda r: r,
                right,
                min(0.1, residual),
                min(PRODUCTS, max(1, self.limit - self.count)),
            )
            return state.step - bend(s)
        except (RuntimeError, Unsupported):
            # A value that torch cannot differentiate twice: go on without.
            self.bends = False
            return None

    def measure(self, logs: Tensor) -> GridDensity:
        """Return the density of masses with given logarithms, up to their sum."""
        masses = self.grid.weights.new_zeros(self.grid.n)
        masses[self.grid.is_free] = torch.softmax(logs, 0)
        return self.grid.with_free_weights(masses)

    def _at(self, logs: Tensor, temperature: float) -> State:
        """Return the state of the density in proportion to exponentials."""
        self.count += 1
        logs = torch.log_softmax(logs, 0)
        measure = self.measure(logs)
        law = ProximalLaw.of(self.rest, temperature, measure)
        rest = float(self.rest.value(measure))
        heat = temperature * float(logs.exp() @ (logs - self.log_volume))
        size = abs(rest) + law.size(measure) + abs(heat)
        noise = ENERGY_NOISE * self.eps * size
        return State(logs, measure, rest + heat, noise, law)

    def _goal(self, state: State, tolerance: float | None) -> float:
        """Return the residual to reach."""
        if tolerance is not None:
            return tolerance
        least = 1e-5 if state.logs.dtype == torch.float32 else 1e-12
        size = state.law.size(state.measure)
        noise = LAW_NOISE * self.eps * size / state.law.temperature
        return max(least, min(noise, WIDEST))


def _without_mass(s: Tensor, root: Tensor) -> Tensor:
    """Return the part of s that is orthogonal to the roots of the masses."""
    return s - root * (root @ s)
