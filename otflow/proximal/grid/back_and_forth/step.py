"""A step by the dual on cells: its measure, its objective between two bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.certificate import Certificate, certify
from otflow.proximal.grid.duality import below_bound, dual_value
from otflow.proximal.grid.pressure import Iterate, PressureProblem
from otflow.proximal.grid.push_forward import squared_diagonal, transport_cost

__all__ = ["Step", "is_full", "step_of"]


# Round-off of an energy, a long sum, in units of that of the dtype.
ROUND_OFF = 64.0


@dataclass(frozen=True)
class Step:
    """A step on cells and its objective between two bounds."""

    measure: GridDensity
    masses: Tensor
    energy: float
    square: float
    primal: float
    dual: float | None
    unseen: float
    relocated: float
    stayed: bool
    drop: float
    size: float

    @property
    def gap(self) -> float | None:
        """The objective less the lower bound of its minimum."""
        return None if self.dual is None else max(self.primal - self.dual, 0.0)

    @property
    def full_gap(self) -> float:
        """The gap with what the minimum over all densities can be lower."""
        return math.inf if self.gap is None else self.gap + self.unseen

    def certificate(self, problem: PressureProblem, **words: Any) -> Certificate:
        """Return the certificate.

        Energies are known to round-off of the measure's dtype, and to what the mass
        at the wrong density, the residual, gains at most by its way through the
        potential. What was moved below the bound may have gone less far than `w2` says.
        """
        loose = self.relocated * squared_diagonal(problem.box) / (2 * problem.dt)
        round_off = ROUND_OFF * torch.finfo(self.measure.dtype).eps
        noise = words["residual"] * self.drop + loose + round_off * self.size
        return certify(
            energy_after=self.energy,
            dt=problem.dt,
            w2=math.sqrt(self.square),
            noise=noise,
            primal=self.primal,
            dual=self.dual,
            gap=self.gap,
            relocated=self.relocated,
            stayed=self.stayed,
            **words,
        )


def step_of(
    F: Functional,
    mu: GridDensity,
    problem: PressureProblem,
    point: Iterate,
    before: float,
    *,
    stay: bool = False,
) -> Step:
    """Return the step of an iterate, or the measure itself where F would not fall."""
    internal, box = problem.internal, mu.box
    masses, relocated = below_bound(point.masses, problem.room, internal.max_density)
    measure = mu.moved(masses.to(mu.dtype))
    after = float(F.value(measure))
    square = transport_cost(point.sweeps, box, relocated)
    stayed = stay or not after < before
    if stayed:
        masses, measure, after, square = problem.masses, mu, before, 0.0
    filled = masses > 0
    energy = internal.e(masses[filled] / box.cell_volume) @ masses[filled]
    primal = float(energy + problem.V @ masses) + square / (2 * problem.dt)
    dual, unseen = dual_value(problem, point.pressure, point.masses)
    moved = 0.0 if stayed else relocated
    phi = (problem.V + point.pressure)[(problem.room > 0) & (point.masses > 0)]
    size = float(problem.masses @ problem.V.abs() + masses @ problem.V.abs())
    return Step(
        measure,
        masses,
        after,
        square,
        primal,
        dual,
        unseen,
        moved,
        stayed,
        drop=float(phi.max() - phi.min()),
        size=size + abs(before) + abs(after),
    )


def is_full(problem: PressureProblem, tolerance: float, slack: float) -> bool:
    """Return whether no more mass fits below the bound, up to a share `tolerance`.

    A share `slack` too much is round-off.

    Raises
    ------
    ValueError
        If the mass does not fit.
    """
    bound, room = problem.internal.max_density, float(problem.room.sum())
    mass = float(problem.masses.sum())
    if mass > bound * room * (1 + slack):
        least = mass / room
        # Rounded up: a bound of six digits that is large enough.
        unit = 10.0 ** (math.floor(math.log10(least)) - 5)
        msg = (
            f"max_density = {bound:g} is below the mean density {least:.6g}: mass 1 "
            f"does not fit in the free volume {room:.6g}; raise the bound to "
            f"{math.ceil(least / unit) * unit:.6g} or more, or enlarge the box"
        )
        raise ValueError(msg)
    return mass >= bound * room * (1 - tolerance)
