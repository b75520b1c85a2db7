"""The JKO step on grids by finite volumes: no mass crosses an obstacle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._validation import non_negative_int, positive
from otflow.errors import NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import certify
from otflow.proximal.finite_volume_step import Local, Move, room_of
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["FiniteVolume"]


@dataclass(frozen=True)
class Warm:
    """The last move, good for the same cells and any dt."""

    measure: GridDensity
    move: Move
    dt: float

    def for_step(self, mu: GridDensity, cells: Any, dt: float) -> Move | None:
        """Return the move if it fits, with its velocities for a step of length dt."""
        old = self.measure
        if old.box != mu.box or old.device != mu.device:
            return None
        if len(cells) != len(self.move.density):
            return None
        if not torch.equal(old.is_free, mu.is_free):
            return None
        return scaled(self.move, dt / self.dt)


class FiniteVolume(ProximalSolver[GridDensity]):
    r"""Step on a grid by fluxes through the faces between free cells.

    The LJKO scheme of :cite:t:`cances2020variational` in place of
    :math:`W_2^2/(2\,dt)` has the cost of fluxes f, upwind, in one step:

    .. math:: \min_{\rho, f}\; F(\rho) + \sum_f \frac{h_f^2 f^2}{2\,dt\,\rho_f},
        \qquad \rho_K = \rho^0_K - \sum_{f \text{ out of } K} f,

    :math:`\rho_f` the new density of the cell that the flux comes from. There is no
    flux through obstacles, so no mass crosses them, whatever dt. The problem is convex
    where F is. Its first-order conditions are

    .. math:: f = dt\,\rho_f\,(\phi_K - \phi_L)/h^2, \qquad \phi_K = F'_K -
        \frac{dt}2 \sum_{L:\,\phi_L < \phi_K} \frac{(\phi_K - \phi_L)^2}{h^2},

    and Newton's method solves them with one unknown a cell, by a sparse direct solver.
    Each iterate is a flow of the old density: its masses are positive and exactly
    conserved, and the objective falls from one to the next.

    Parameters
    ----------
    tolerance : float
        Stop when the mass that the next Newton step would move is below it.
    max_iterations : int
        Most linear systems, for each attempt at a step.
    max_halvings : int
        How often a step that fails may be halved.

    Attributes
    ----------
    tolerance, max_iterations, max_halvings
        As above.
    """

    def __init__(
        self,
        *,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
        max_halvings: int = 5,
    ) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_iterations = non_negative_int(
            max_iterations, "max_iterations", minimum=1
        )
        self.max_halvings = non_negative_int(max_halvings, "max_halvings")

    def solve(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> ProxResult[GridDensity]:
        """Return the proximal step of length `dt` from `mu`."""
        dt = self._admit(F, mu, dt, GridDensity)
        terms = sort_terms(F, mu.dim)
        if terms.nonlocal_part is not None:
            msg = "FiniteVolume takes local terms"
            raise Unsupported(msg)
        before = float(F.value(mu))
        if not math.isfinite(before):
            msg = f"F is {before} at the measure to step from; start where it is finite"
            raise NonFinite(msg)
        local = _local(terms, mu, dt)
        kept = warm.for_step(mu, local.room.cells, dt) if isinstance(warm, Warm) else None
        moves = self._solve(local, kept, self.max_halvings)
        last = moves[-1]
        flux = sum(move.flux for move in moves)
        nu = _measure(mu, local, last.density)
        after = float(F.value(nu))
        kinetic = sum(move.kinetic for move in moves)
        residual = max(move.residual for move in moves)
        smoothing = local.smoothing()
        noise = smoothing * abs(_entropy(local.source) - _entropy(last.density))
        noise = noise * local.room.volume + residual * local.scale()
        guarantee = "optimal" if len(moves) == 1 else "stages"
        fluxes = torch.zeros(mu.box.n_faces, dtype=torch.float64)
        fluxes[torch.from_numpy(local.room.open_faces)] = torch.from_numpy(
            flux * local.room.volume
        )
        certificate = certify(
            energy_before=before,
            energy_after=after,
            dt=dt,
            w2=None,
            residual=residual,
            converged=all(move.converged for move in moves),
            guarantee=guarantee,
            noise=noise,
            dissipation=kinetic,
            substeps=len(moves),
            smoothing=smoothing,
            fluxes=fluxes.to(mu.weights),
            linear_solver="SciPy, on the CPU",
        )
        kept = Warm(nu, last, dt / len(moves))
        spent = sum(move.spent for move in moves)
        return ProxResult(nu, kept, spent, residual, certificate)

    def _solve(self, local: Local, warm: Move | None, halvings: int) -> list[Move]:
        """Return the move, or those of two halves of the step if it fails."""
        move = local.solve(warm, self.tolerance, self.max_iterations)
        if move.converged or not halvings:
            return [move]
        half = Local(
            local.room,
            local.source,
            local.potential,
            local.internal,
            local.entropy,
            0.5 * local.dt,
            local.device,
        )
        first = self._solve(half, None, halvings - 1)
        rest = Local(
            local.room,
            first[-1].density,
            local.potential,
            local.internal,
            local.entropy,
            0.5 * local.dt,
            local.device,
        )
        return first + self._solve(rest, first[-1], halvings - 1)


def scaled(move: Move, ratio: float) -> Move:
    """Return a move with velocities for a step of another length."""
    from dataclasses import replace

    return replace(move, courant=ratio * move.courant)


def _local(terms: Terms, mu: GridDensity, dt: float) -> Local:
    room = room_of(mu)
    V = terms.V(mu.points.double()).detach().cpu().numpy()[room.cells]
    if not np.isfinite(V).all():
        msg = (
            "the potential must be finite at the centres of the free cells; make the "
            "cells where it is not obstacles"
        )
        raise NonFinite(msg)
    source = mu.weights.detach().double().cpu().numpy()[room.cells] / room.volume
    return Local(
        room, source, V, terms.internal, terms.temperature, dt, mu.weights.device
    )


def _measure(mu: GridDensity, local: Local, density: Any) -> GridDensity:
    weights = torch.zeros(mu.box.n, dtype=torch.float64)
    weights[torch.from_numpy(local.room.cells)] = torch.from_numpy(
        density * local.room.volume
    )
    return mu.moved(_rounded_below(weights.to(mu.weights), local))


def _rounded_below(weights: Tensor, local: Local) -> Tensor:
    """Return masses whose densities obey the bound in the measure's own numbers."""
    zero = torch.zeros_like(weights)
    for _ in range(4):
        above = weights / local.room.volume > local.bound
        weights = torch.where(above, torch.nextafter(weights, zero), weights)
    return weights


def _entropy(density: Any) -> float:
    r = np.maximum(density, 1e-300)
    return float((density * np.log(r)).sum())
