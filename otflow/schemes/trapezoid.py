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

    Along the path of a particle it is :math:`x^+ = x + \tfrac{dt}2 v[\mu](x) +
    \tfrac{dt}2 v[\mu^+](x^+)`: the old velocity is carried by the particles, as it
    must be for order 2 (taken where they arrive, it leaves order 1).

    No theorem keeps such a step from raising F. Where it does, it is thrown away and a
    JKO step of dt is made in its place, of order 1, which dissipates; ``fallback``
    tells. Then the step costs two proximal steps and a velocity. The same is done where
    F has no finite velocity, as an entropy beside empty cells.

    Parameters
    ----------
    solver : ProximalSolver
        Of the representation.
    F : Functional
        What to minimise.
    mu : Measure
        Where to step from; it needs the capability ``transport``.
    dt : float
        Step, > 0.
    state : object
        What the solver wants back.

    Returns
    -------
    Step
        The new measure, the state, the report.

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
    # As far as the energies of cells are known: the velocity is that of `mu`.
    if not after - before <= round_off(before, after, eps):
        return _fallback(solver, F, mu, dt, half.iterations)
    w2 = known.w2
    if w2 is not None:
        w2 = 0.5 * dt * float(mu.norm(velocity)) + w2
    # The solver's own entries are those of its half; they stay in ``stages``.
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
    """Make a step of order 1 in place of one that raised F, or could not be made."""
    whole = solved(solver, F, mu, dt)
    info = whole.certificate.also(fallback=True)
    info = replace(info, iterations=spent + whole.iterations)
    return Step(whole.measure, whole.warm, info)
