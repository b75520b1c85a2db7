"""What the solvers on a grid share."""

from __future__ import annotations

from otflow._validation import non_negative_int, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.base import ProximalSolver, may_cross_obstacles
from otflow.proximal.terms import Terms, sort_terms

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
    moves_straight : bool
        Whether mass moves along straight lines. Such a solver refuses a grid where
        these lines may meet an obstacle.
    """

    moves_straight = True

    def __init__(self, tolerance: float, max_iterations: int) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_iterations = non_negative_int(
            max_iterations, "max_iterations", minimum=1
        )

    def _admit_cells(
        self, F: Functional, mu: GridDensity, dt: float
    ) -> tuple[float, Terms]:
        """Return dt as a float and the terms of F; raise if they cannot be stepped."""
        dt = self._admit(F, mu, dt, GridDensity)
        if self.moves_straight and may_cross_obstacles(mu):
            msg = (
                f"{type(self).__name__} moves mass along straight lines, which may "
                f"cross an obstacle of this grid; use JKO(FiniteVolume()), which JKO() "
                f"takes by itself"
            )
            raise Unsupported(msg)
        return dt, sort_terms(F, mu.dim)
