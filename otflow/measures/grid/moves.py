"""How a density on a grid moves: by fluxes, by a map, by heat, by growth."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._validation import (
    check_generator,
    check_like,
    non_negative_int,
    positive,
    real,
)
from otflow.measures.grid.base import CellMasses
from otflow.measures.grid.heat import heat
from otflow.measures.grid.remap import remap
from otflow.measures.grid.upwind import check_courant, displacement, upwind
from otflow.measures.sums import refuse_to_draw, reweighted

__all__ = ["MovingCells"]


class MovingCells(CellMasses):
    """Masses in cells with the verbs that move them; `GridDensity` adds constructors.

    See Also
    --------
    otflow.GridDensity : The class to use.

    Examples
    --------
    >>> import otflow as of
    >>> of.GridDensity.__mro__[1].__name__
    'MovingCells'
    """

    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move mass by the upwind fluxes :math:`v^+ \rho_- - v^-\rho_+` of the faces.

        First order in the spacing; linear in dt > 0, so that its derivative at 0 is
        exactly that of the energy. `transport` is sharper.

        Parameters
        ----------
        tangent : Tensor, shape (n_faces,)
            Velocity through each inner face.
        dt : float
            Time, of either sign.

        Returns
        -------
        GridDensity
            Mass is kept to round-off; masses stay non-negative.

        Raises
        ------
        Diverged
            If dt is above the CFL limit: a cell would send out more mass than it has.
        """
        moves = self._moves(tangent, dt)
        check_courant(self.box, self.weights, moves, real(dt, "dt"), self)
        # Under the CFL condition a mass below zero is round-off.
        return self.moved(upwind(self.box, self.weights, moves).clamp_min(0))

    def transport(self, tangent: Tensor, dt: float) -> Self:
        r"""Return the push-forward by :math:`x \mapsto x + dt\,v(x)`; no CFL limit.

        Masses are kept to round-off and stay non-negative for any dt. Second order in
        the spacing where density and velocity are smooth, and exact in dt.

        Parameters
        ----------
        tangent : Tensor, shape (n_faces,)
            Velocity through each inner face.
        dt : float
            Time, of either sign.

        Returns
        -------
        GridDensity
            Where the map folds, and at walls, mass sticks together.

        Notes
        -----
        Time O(n log n), memory O(n).
        """
        moves = self._moves(tangent, dt)
        return self.moved(remap(self.box, self.weights, moves, self.is_free))

    def displacement_to(self, other: Self) -> Tensor:
        r"""Return the tangent whose `push` for time 1 gives `other`.

        Its flux is a cumulative sum in 1-D and, otherwise, that of least kinetic
        energy. An upwind step reaches no further than the next cell.

        Parameters
        ----------
        other : GridDensity
            On the same grid.

        Returns
        -------
        Tensor, shape (n_faces,)
            Velocities through the faces.

        Raises
        ------
        Unsupported
            If mass would have to cross empty cells, or more than one cell; or if one
            of the two carries a graph.
        """
        self.check_same_grid(other)
        refuse_graph(
            "a displacement between grid densities",
            "upwind fluxes have a kink where they vanish",
            self.weights,
            other.weights,
            cure="mu.detach(), or Quantiles",
        )
        return displacement(
            self.box, self.weights, other.weights, self.open_faces(self.dtype)
        )

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Run the heat flow :math:`e^{\frac12 s\Delta_h}` for the variance s.

        No heat leaves through walls and obstacles. Exact in time for the difference
        Laplacian of the grid, positive, deterministic.

        Parameters
        ----------
        variance : float
            Variance per axis that it adds away from the walls, >= 0.
        generator : torch.Generator
            Not used: the same call serves measures for which noise is drawn.

        Returns
        -------
        GridDensity
            Of the same mass.

        Notes
        -----
        O(n times the cells along an axis); with obstacles O(n deviation / h).
        """
        check_generator(generator)
        time = 0.5 * positive(variance, "variance", or_zero=True)
        return self.moved(heat(self.box, self.weights, time, self.is_free))

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        r"""Return masses :math:`\propto w_i \exp(dt\, r_i)`.

        Parameters
        ----------
        log_rate : Tensor, shape (n,)
            Growth rate r of each cell; a constant added to it changes nothing.
        dt : float
            Time.

        Returns
        -------
        GridDensity
            Mass is 1 again; empty cells stay empty.

        Raises
        ------
        Diverged
            If a rate is NaN or infinite.
        """
        if not isinstance(log_rate, Tensor) or log_rate.shape != self.weights.shape:
            got = getattr(log_rate, "shape", type(log_rate).__name__)
            msg = f"log_rate must have shape ({self.n},), one entry a cell, got {got}"
            raise ValueError(msg)
        check_like(log_rate, self.weights, "log_rate", "weights")
        return self.moved(reweighted(self.weights, log_rate, real(dt, "dt")))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points independently from the density, uniform within each cell.

        Parameters
        ----------
        n : int
            Number of draws, >= 1.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        Tensor, shape (n, d)
            The draws.
        """
        check_generator(generator)
        refuse_to_draw(self.weights)
        n = non_negative_int(n, "n", minimum=1)
        uniform = self.points.new_empty(n, self.dim + 1).uniform_(generator=generator)
        sums = self.weights.detach().cumsum(0)
        cell = torch.searchsorted(sums, uniform[:, 0] * sums[-1], right=True)
        # A draw of the very total, by rounding, belongs to the last cell with mass.
        cell = cell.clamp_max(int((self.weights > 0).nonzero()[-1]))
        spacing = uniform.new_tensor(self.box.spacing)
        return self.points[cell] + (uniform[:, 1:] - 0.5) * spacing
