"""Descent of a free energy on a grid, in the logarithms of the masses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.numerics.anderson import Anderson
from otflow.optimality.densities import ProximalLaw
from otflow.optimality.newton_steps import NewtonSteps
from otflow.optimality.states import State

__all__ = ["FixedPoint", "FreeEnergy"]

MEMORY = 8
SMALLEST = 1e-12
# Round-off of an energy and of the law, in units of the last place.
ENERGY_NOISE = 16
LAW_NOISE = 32
# Newton's method takes over where so many evaluations do not divide the residual by 10.
PATIENCE = 25
# The damping of a Newton step grows by this factor until F falls, to the stiffest.
WIDER = 4.0
STIFFEST = 1e8
# A problem is cold if the slopes vary by more than so many temperatures. Then it is
# solved at higher ones first: their ratio, and the residual to reach there.
COLD = 100.0
COOLING = 2.0
LOOSE = 1e-2
# Largest residual of a converged answer, whatever the round-off of the law.
WIDEST = 1e-3


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
        self.count = 0
        self.steps = NewtonSteps(rest, int(grid.is_free.sum()))

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
        # A stage is for the last one to start from, which takes an evaluation at least.
        cool, before = cool and self.limit > 1, self.limit - 1
        if cool:
            slopes = ProximalLaw.of(self.rest, temperature, self.measure(logs)).slopes
            self.count += 1
            spread = float(slopes.max())
            if spread > COLD * temperature:
                temperature = spread / COOLING
        while temperature > self.temperature and self.count < before:
            logs = self._stage(logs, temperature, LOOSE, before).state.logs
            temperature = max(temperature / COOLING, self.temperature)
        return self._stage(logs, self.temperature, self.tolerance, self.limit)

    def _stage(
        self, logs: Tensor, temperature: float, tolerance: float | None, limit: int
    ) -> FixedPoint:
        """Descend at one temperature, up to a number of evaluations in all."""
        state = best = self._at(logs, temperature)
        least, enough = self._goals(state, tolerance)
        anderson = Anderson(MEMORY, torch.ones_like(state.logs))
        share, damping, newton = 1.0, 0.0, False
        mark, since = state.residual, self.count
        halved, half_at = state.residual, self.count
        while best.residual > least and self.count < limit and share > SMALLEST:
            if best.residual <= halved / 2:
                halved, half_at = best.residual, self.count
            if best.residual <= enough and self.count - half_at >= PATIENCE:
                break  # Nothing but round-off is left.
            if self.count - since >= PATIENCE:
                newton = self.steps.possible and state.residual > 0.1 * mark
                mark, since = state.residual, self.count
            if newton:
                new, damping = self._newton(state, damping, limit)
                if new is None:
                    newton, damping, since = False, 0.0, self.count
                    continue
                anderson.forget()
                share, since = 1 / (1 + damping), self.count
                damping = damping / WIDER if damping > 0.01 else 0.0
            else:
                learnt = anderson.has_learnt
                step = state.step
                new = self._at(anderson.advance(state.logs, share * step), temperature)
                if not state.falls_to(new, share, step):
                    anderson.forget()
                    share = share if learnt else share / 2
                    continue
                share = share if learnt else min(1.0, 2 * share)
            state = new
            # Where F is flat to round-off, the residual tells which state is best.
            if best.residual > enough or state.residual < best.residual:
                best = state
                least, enough = self._goals(best, tolerance)
        done = best.residual <= enough
        return FixedPoint(best, best.residual, share, self.count, done)

    def _newton(
        self, state: State, damping: float, limit: int
    ) -> tuple[State | None, float]:
        """Return the state after a damped Newton step, or None if F falls to none.

        A larger damping makes the step shorter and turns it to the proximal law.
        """
        steps, before = self.steps, self.steps.count
        able = steps.prepare(state, limit - self.count - 1)
        self.count, before = self.count + steps.count - before, steps.count
        # A product more, and the evaluation at the end of the step, are left over.
        while able and damping < STIFFEST and self.count + 3 <= limit:
            step = steps.step(state, damping, limit - self.count - 2)
            self.count, before = self.count + steps.count - before, steps.count
            if step is not None and state.descent(step) > 0:
                new = self._at(state.logs + step, state.law.temperature)
                if state.falls_to(new, 1.0, step):
                    steps.moved(state, new)
                    return new, damping
            damping = max(WIDER * damping, 0.1)
        return None, damping

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
        # A logarithm is off by units of its own size, however small their mean is.
        parts = temperature * float(logs.exp() @ logs.abs() + abs(self.log_volume))
        size = abs(rest) + law.size(measure) + parts
        noise = ENERGY_NOISE * self.eps * size
        return State(logs, measure, rest + heat, noise, law)

    def _goals(self, state: State, tolerance: float | None) -> tuple[float, float]:
        """Return the residual to reach, and one that is enough where none is less."""
        if tolerance is not None:
            return tolerance, tolerance
        least = 1e-5 if state.logs.dtype == torch.float32 else 1e-12
        size = state.law.size(state.measure)
        noise = LAW_NOISE * self.eps * size / state.law.temperature
        return least, max(least, min(noise, WIDEST))
