"""Finite-volume steps with terms outside of Newton's method: rounds of local steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.grid.finite_volume.faces import Array
from otflow.proximal.grid.finite_volume.problem import Interior
from otflow.proximal.grid.finite_volume.step import TINY, Local, Move
from otflow.proximal.grid.rounds import LocalStep, minimise_nonlocal

__all__ = ["measure_of", "solve_in_rounds"]

# Log density of cells that mass cannot reach: finite, as `minimise_nonlocal` asks, and
# exp of it is a positive float64.
EMPTY = -500.0


def solve_in_rounds(
    G: Functional,
    mu: GridDensity,
    local: Local,
    kept: Interior | None,
    *,
    tolerance: float,
    limit: int,
    budget: int,
) -> tuple[Move, int]:
    """Return the move under local and other terms, and the number of linearisations.

    Parameters
    ----------
    G : Functional
        The other terms.
    mu : GridDensity
        The measure to step from.
    local : Local
        The local terms.
    kept : Interior or None
        A start.
    tolerance : float
        Largest residual.
    limit : int
        Most linear systems in a round.
    budget : int
        Most linear systems in all rounds.

    Returns
    -------
    Move, int
        The move of the last round, with the residual of all terms, and the rounds.
    """
    cells = local.room.cells
    # The rounds have energies of size 1, whatever the units of length.
    unit, step = local.unit, local.step

    def solve(V: Tensor, L: float, start: Any, aim: float, most: int) -> LocalStep:
        p = V.detach().double().cpu().numpy().reshape(-1)[cells]
        energy = replace(step.energy, entropy=step.energy.entropy + unit * L)
        posed = replace(step, potential=step.potential + unit * p, energy=energy)
        first = kept if start is None else start.state
        own = replace(local, step=posed)
        move = own.solve(first, aim, min(most, limit))
        return LocalStep(
            log_density=_log_density(mu, local, move.density, TINY),
            objective=local.objective(move) / unit,
            residual=move.residual,
            converged=move.converged,
            spent=move.spent,
            state=move,
        )

    outcome = minimise_nonlocal(
        (1 / unit) * G,
        mu,
        solve,
        start=_log_density(mu, local, step.spread(), math.exp(EMPTY)),
        scale=unit * step.dt * step.faces.largest,
        tolerance=tolerance,
        budget=budget,
    )
    move = replace(
        outcome.step.state,
        residual=outcome.residual,
        converged=outcome.converged,
        spent=outcome.spent,
    )
    return move, outcome.rounds


def _log_density(mu: GridDensity, local: Local, density: Array, least: float) -> Tensor:
    """Return the logarithm of densities of the room, in the box's shape."""
    log = torch.full((mu.box.n,), EMPTY, dtype=torch.float64)
    log[torch.from_numpy(local.room.cells)] = torch.from_numpy(
        np.log(np.maximum(density, least))
    )
    return log.to(mu.weights).reshape(mu.shape)


def measure_of(mu: GridDensity, local: Local, density: Array) -> GridDensity:
    """Return densities of the room as a measure, below the bound in its own dtype."""
    masses = torch.zeros(mu.box.n, dtype=torch.float64)
    masses[torch.from_numpy(local.room.cells)] = torch.from_numpy(
        density * local.room.volume
    )
    weights = masses.to(mu.weights)
    # The product above and the quotient below may round up: a few last places of the
    # masses bring the densities below the bound.
    for _ in range(4):
        above = weights / local.room.volume > local.step.bound
        down = torch.nextafter(weights, torch.zeros_like(weights))
        weights = torch.where(above, down, weights)
    return mu.with_free_weights(weights)
