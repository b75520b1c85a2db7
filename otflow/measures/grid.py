"""A density that is constant on the cells of a regular grid, with walls."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from otflow._typing import ArrayLike, Ground
from otflow._validation import real
from otflow.measures.box import Box
from otflow.measures.grid_base import CellMasses
from otflow.measures.grid_checks import free_cells
from otflow.measures.grid_flux import check_courant, displacement, upwind

__all__ = ["GridDensity"]


class GridDensity(CellMasses):
    r"""A density on a box, constant on the cells of a regular grid, 1-D to 3-D.

    Nothing flows through the walls of the box, nor through obstacles. The first
    variation is :math:`F'[\mu]_i = \partial F/\partial w_i`, w the masses of the
    cells. A tangent is one velocity for each inner face between two cells, (n_faces,):
    :math:`v = -\nabla F'` is minus the difference across the face over the spacing.

    Parameters
    ----------
    density : Tensor or ndarray, shape (n_1, ..., n_d)
        Mass per unit of volume in each cell, non-negative, of integral 1; d <= 3.
    lower, upper : float or sequence of float
        Corners of the box.
    obstacles : Tensor or ndarray of bool, shape (n_1, ..., n_d), optional
        True in the cells that no mass may enter.
    walls : bool
        Whether the border of the box is a wall that is meant. By default the box
        stands for all space, and mass beside its border warns.
    normalize : bool
        Divide by the integral instead of refusing one other than 1.

    Attributes
    ----------
    points : Tensor, shape (n, d)
        Centres of the cells, in C order, obstacles included.
    weights : Tensor, shape (n,)
        Mass of each cell.
    box : Box
        Corners, shape, spacing.
    is_free : Tensor of bool, shape (n,)
        False in obstacles.
    walls : bool
        As above.

    Raises
    ------
    ValueError
        If a shape is wrong, the density is negative or not finite or does not
        integrate to 1, there is mass in an obstacle, or obstacles cut the mass in two.

    Warns
    -----
    BoxWarning
        If more than 0.1 % of the mass lies in the outermost cells.

    Notes
    -----
    Memory O(n d). A measure made by a flow shares its box and obstacles.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.GridDensity.from_function(
    ...     lambda x: torch.exp(-8 * x.square().sum(-1)), lower=-2, upper=2, shape=(80,)
    ... )
    >>> mu
    GridDensity(n=80, d=1, dtype=float32, device=cpu)
    >>> round(float(mu.expectation(lambda x: x.square().sum(-1))), 4)
    0.0625
    """

    # Other ways to make one -----------------------------------------------------------

    @classmethod
    def from_function(
        cls,
        f: Ground,
        lower: Any,
        upper: Any,
        shape: Any,
        *,
        obstacles: ArrayLike | None = None,
        walls: bool = False,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Self:
        r"""Return the density proportional to f at the centres of the cells.

        Parameters
        ----------
        f : callable
            Batched (n, d) -> (n,), non-negative; its integral need not be 1, the
            density is f divided by its integral over the free cells.
        lower, upper : float or sequence of float
            Corners of the box.
        shape : int or tuple of int
            Number of cells along each axis.
        obstacles, walls
            As for the class.
        dtype, device : optional
            Of the masses; torch's defaults if not given.

        Returns
        -------
        GridDensity
            Of mass 1.
        """
        box = Box.of(lower, upper, shape)
        like = torch.empty(0, dtype=dtype, device=device)
        values = f(box.centres(like))
        if not isinstance(values, Tensor) or values.shape != (box.n,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
            msg = (
                f"f must map the centres (n, d) = ({box.n}, {box.dim}) to "
                f"({box.n},), got {got}; reduce over the last axis, e.g. .sum(-1)"
            )
            raise ValueError(msg)
        rho = values.reshape(box.shape)
        if obstacles is not None:
            rho = rho * free_cells(obstacles, rho).reshape(box.shape)
        return cls(rho, lower, upper, obstacles=obstacles, walls=walls, normalize=True)

    # Moves ----------------------------------------------------------------------------

    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move mass by the upwind fluxes :math:`v^+ \rho_- - v^-\rho_+` of the faces.

        Parameters
        ----------
        tangent : Tensor, shape (n_faces,)
            Velocity through each inner face.
        dt : float
            Time, of either sign.

        Returns
        -------
        GridDensity
            Mass is kept to round-off; masses stay non-negative under the CFL condition.

        Raises
        ------
        Diverged
            If dt is above the CFL limit: a cell would lose more mass than it has.
        """
        moves = self._moves(tangent, dt)
        check_courant(self.box, self.weights, moves, real(dt, "dt"), self)
        # Under the CFL condition a mass below zero is round-off.
        return self.moved(upwind(self.box, self.weights, moves).clamp_min(0))

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
            If mass would have to cross empty cells, or more than one cell.
        """
        self.check_same_grid(other)
        return displacement(
            self.box, self.weights, other.weights, self.open_faces(self.dtype)
        )
