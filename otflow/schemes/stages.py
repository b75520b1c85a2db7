"""Diagonally implicit Runge-Kutta steps, each stage one proximal step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal import ProximalSolver, ProxResult
from otflow.proximal.base import solved
from otflow.schemes.base import Step
from otflow.schemes.reports import composed

__all__ = ["TABLEAUS", "Tableau", "runge_kutta_step"]


@dataclass(frozen=True)
class Tableau:
    r"""A stiffly accurate SDIRK method: its last row is its weights.

    Parameters
    ----------
    rows : tuple of tuple of float
        The lower triangle :math:`a_{ij}` with the diagonal, whose entries are equal.
    companion : tuple of float
        Weights :math:`\hat b_j` of a method of lower order on the same stages.
    companion_order : int
        Order of the companion.

    Attributes
    ----------
    rows, companion, companion_order
        As above.

    Examples
    --------
    >>> from otflow.schemes.stages import TABLEAUS
    >>> two = TABLEAUS[2]
    >>> round(two.gamma, 6), round(sum(two.rows[-1]), 15)
    (0.292893, 1.0)
    """

    rows: tuple[tuple[float, ...], ...]
    companion: tuple[float, ...]
    companion_order: int

    @property
    def gamma(self) -> float:
        """The diagonal: every stage is a proximal step of length gamma dt."""
        return self.rows[0][0]


def _order_two() -> Tableau:
    g = 1 - 1 / math.sqrt(2)
    return Tableau(((g,), (1 - g, g)), companion=(1.0, 0.0), companion_order=1)


def _order_three() -> Tableau:
    # The root of g^3 - 3 g^2 + 3 g / 2 - 1/6 in (1/6, 1/2), for which it is L-stable.
    angle = math.atan(math.sqrt(2) / 4) / 3
    g = 1 - math.sqrt(2) * (math.cos(angle) - math.sqrt(3) * math.sin(angle)) / 2
    middle = (1 + g) / 2
    last = (-(6 * g * g - 16 * g + 1) / 4, (6 * g * g - 20 * g + 5) / 4, g)
    share = (0.5 - g) / (middle - g)
    return Tableau(
        ((g,), (middle - g, g), last),
        companion=(1 - share, share, 0.0),
        companion_order=2,
    )


TABLEAUS = {2: _order_two(), 3: _order_three()}
"""The methods of :cite:t:`alexander1977diagonally` of two and of three stages."""


def runge_kutta_step(
    solver: ProximalSolver[Any],
    F: Functional,
    mu: Measure,
    dt: float,
    tableau: Tableau,
    state: Any,
) -> Step[Any]:
    r"""Step by a stiffly accurate SDIRK method where tangents add up.

    Stage i starts from :math:`z_i = \mu + dt\sum_{j<i} a_{ij} k_j`, reached by `push`.
    It gives :math:`k_i = (y_i - z_i)/(\gamma\,dt)`, where :math:`y_i` is the proximal
    step of length :math:`\gamma\,dt` from :math:`z_i`. The last :math:`y_i` is the new
    measure.

    Parameters
    ----------
    solver : ProximalSolver
        A solver whose ``flat`` is True.
    F : Functional
        What to minimise.
    mu : Measure
        Where to step from.
    dt : float
        Step, > 0.
    tableau : Tableau
        The method.
    state : tuple or None
        Warm starts of the solver, one a stage.

    Returns
    -------
    Step
        The new measure, the warm starts, the report.

    Raises
    ------
    Diverged
        If the start of a stage is not a measure, as where quantiles cross.
    """
    g = tableau.gamma
    warms = state or (None,) * len(tableau.rows)
    moves: list[Tensor] = []  # gamma dt k_i
    results: list[ProxResult[Any]] = []
    for i, (row, warm) in enumerate(zip(tableau.rows, warms, strict=True)):
        base = mu
        if i:
            try:
                base = mu.push(_combine([a / g for a in row[:-1]], moves), 1.0)
            except Diverged as error:
                msg = (
                    f"stage {i + 1} of {len(warms)} would start from a point that is "
                    f"no measure: {error.args[0].split(';')[0]}; take a smaller dt, "
                    f"or JKO(order=1), whose steps exist for every dt"
                )
                raise Diverged(msg, measure=mu) from error
        result = solved(solver, F, base, g * dt, warm)
        moves.append(base.displacement_to(result.measure))
        results.append(result)
    weights = tableau.rows[-1]
    gaps = zip(weights, tableau.companion, strict=True)
    gap = mu.norm(_combine([(b - c) / g for b, c in gaps], moves))
    info = composed(
        [result.certificate for result in results],
        dt=dt,
        w2=float(mu.norm(_combine([b / g for b in weights], moves))),
        eps=torch.finfo(mu.dtype).eps,
        error=float(gap),
        error_order=tableau.companion_order,
        stages=tuple(result.certificate for result in results),
    )
    return Step(results[-1].measure, tuple(result.warm for result in results), info)


def _combine(factors: list[float], tangents: list[Tensor]) -> Tensor:
    """Return the sum of tangents times factors."""
    total = factors[0] * tangents[0]
    for factor, tangent in zip(factors[1:], tangents[1:], strict=True):
        total = total + factor * tangent
    return total
