"""The trapezoidal rule on fixed cells: half a step explicit, half a step implicit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from otflow.errors import NonFinite
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal import ProximalSolver
from otflow.proximal.base import solved
from otflow.proximal.certificate import round_off
from otflow.schemes.base import Step
from otflow.schemes.reports import composed

__all__ = ["trapezoidal_step"]


def trapezoidal_step(
    solver: ProximalSolver[Any], F: Functional, mu: Measure, dt: float, state: Any
) -> Step[Any]:
    r"""Transport by half a step along :math:`-\nabla F'[\mu]`, then half a JKO step.

    Along the path of a particle the step is :math:`x^+ = x + \tfrac{dt}2 v[\mu](x) +
    \tfrac{dt}2 v[\mu^+](x^+)`. Order 2 needs the old velocity at the start x of the
    path; at the end it would give order 1.

    No theorem keeps such a step from raising F. A step that raises F is replaced by a
    JKO step of order 1, which dissipates; ``fallback`` is then True, and the cost is
    two proximal steps and a velocity. A step of order 1 is also taken if the velocity
    of F is not finite, as for an entropy beside empty cells.

    Parameters
    ----------
    solver : ProximalSolver
        A solver for the representation.
    F : Functional
        What to minimise.
    mu : Measure
        Where to step from; it needs the capability ``transport``.
    dt : float
        Step, > 0.
    state : object
        Warm start of the solver, or None.

    Returns
    -------
    Step
        The new measure, the next warm start, the report.

    Raises
    ------
    Unsupported
        If `mu` has no ``transport``.
    """
    try:
        energy, velocity = F.value_and_velocity(mu)
    except NonFinite:
        return _fallback(solver, F, mu, dt)
    middle = mu.transport(velocity, 0.5 * dt)
    half = solved(solver, F, middle, 0.5 * dt, state)
    known, eps = half.certificate, torch.finfo(mu.dtype).eps
    before, after = float(energy), known["energy_after"]
    # A rise within round-off does not count.
    if not after - before <= round_off(before, after, eps):
        return _fallback(solver, F, mu, dt, half.iterations)
    w2 = known.w2
    if w2 is not None:
        w2 = 0.5 * dt * float(mu.norm(velocity)) + w2
    # The solver's own entries describe its half of the step; they stay in ``stages``.
    info = composed(
        (known,),
        dt=dt,
        w2=w2,
        eps=eps,
        energy_before=before,
        fallback=False,
        stages=(known,),
    )
    return Step(half.measure, half.warm, info, energy)


def _fallback(
    solver: ProximalSolver[Any], F: Functional, mu: Measure, dt: float, spent: int = 0
) -> Step[Any]:
    """Make a step of order 1 in place of a step that raised F or had no velocity."""
    whole = solved(solver, F, mu, dt)
    info = whole.certificate.also(fallback=True)
    info = replace(info, iterations=spent + whole.iterations)
    return Step(whole.measure, whole.warm, info)
