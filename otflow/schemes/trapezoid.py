"""The trapezoidal rule on fixed cells: half a step explicit, half a step implicit."""

from __future__ import annotations

from typing import Any

from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal import ProximalSolver
from otflow.schemes.base import Step

__all__ = ["trapezoidal_step"]


def trapezoidal_step(
    solver: ProximalSolver[Any], F: Functional, mu: Measure, dt: float, state: Any
) -> Step:
    r"""Transport by half a step along :math:`-\nabla F'[\mu]`, then half a JKO step.

    Along the path of a particle it is :math:`x^+ = x + \tfrac{dt}2 v[\mu](x) +
    \tfrac{dt}2 v[\mu^+](x^+)`: the old velocity is carried by the particles, as it
    must be for order 2 (taken where they arrive, it leaves order 1).

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
    energy, velocity = F.value_and_velocity(mu)
    middle = mu.transport(velocity, 0.5 * dt)
    result = solver.solve(F, middle, 0.5 * dt, warm=state)
    report = dict(result.certificate)
    before, after = float(energy), report["energy_after"]
    w2 = report["w2"]
    if w2 is not None:
        w2 = 0.5 * dt * float(mu.norm(velocity)) + w2
    report.update(
        energy=energy,
        iterations=result.iterations,
        energy_before=before,
        decrease=None if w2 is None else before - after - w2**2 / (2 * dt),
        w2=w2,
        bound=None,
        guarantee="stages" if report["certified"] else "none",
        stages=(result.certificate,),
    )
    return Step(result.measure, result.warm, report)
