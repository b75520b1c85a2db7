"""What the solvers on a grid share."""

from __future__ import annotations

from otflow._validation import non_negative_int, positive
from otflow.measures import GridDensity
from otflow.proximal.base import ProximalSolver

__all__ = ["GridProximal"]


class GridProximal(ProximalSolver[GridDensity]):
    """A solver on a grid, by iterations until a residual meets a tolerance.

    Parameters
    ----------
    tolerance : float
        Largest residual, > 0.
    max_iterations : int
        Most iterations, >= 1.

    Attributes
    ----------
    tolerance, max_iterations
        As above.
    """

    def __init__(self, tolerance: float, max_iterations: int) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_iterations = non_negative_int(
            max_iterations, "max_iterations", minimum=1
        )
