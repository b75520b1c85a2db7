"""A density that is constant on the cells of a regular grid, with walls."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._typing import ArrayLike, Ground
from otflow._validation import as_points, positive
from otflow.measures.grid.box import Box
from otflow.measures.grid.checks import free_cells
from otflow.measures.grid.convolution import convolution
from otflow.measures.grid.heat import heat
from otflow.measures.grid.images import brightness, counts, resampled
from otflow.measures.grid.moves import MovingCells

__all__ = ["GridDensity"]


class GridDensity(MovingCells):
    r"""A density on a box, constant on the cells of a regular grid, 1-D to 3-D.

    Nothing flows through the walls of the box, nor through obstacles: every verb moves
    mass through faces between free cells, and proximal solvers whose mass goes along
    straight lines refuse obstacles (`proximal.FiniteVolume` does not). The first
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
        If along an axis more than 0.1 % of the mass lies in the outermost cells, or
        within 1/40 of the side from its ends.

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
        return cls._in_proportion(values.reshape(box.shape), box, obstacles, walls)

    @classmethod
    def from_image(
        cls,
        image: Any,
        lower: Any = None,
        upper: Any = None,
        *,
        shape: Any = None,
        invert: bool = False,
        obstacles: ArrayLike | None = None,
        walls: bool = True,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Self:
        r"""Return a picture as a density, x to the right and y up.

        Parameters
        ----------
        image : ndarray or Tensor
            (H, W) grey, (H, W, 3) colours or (H, W, 4) with opacity, the first row on
            top; uint8, bool or floating point. The density is its brightness.
        lower, upper : float or sequence of float, optional
            Corners of the box; without both, it is 1 wide from the origin and pixels
            are square.
        shape : tuple of int, optional
            Cells along x and y, of which each takes the average of the pixels in it; by
            default (W, H), one cell a pixel.
        invert : bool
            Whether the dark parts hold the mass.
        obstacles, walls
            As for the class, but that by default the frame is a wall.
        dtype, device : optional
            Of the masses; torch's defaults if not given.

        Returns
        -------
        GridDensity
            Of mass 1, on W x H cells.

        Raises
        ------
        TypeError, ValueError
            If the image is no such array.
        """
        dtype = dtype or torch.get_default_dtype()
        rho = brightness(image, invert=invert, dtype=dtype, device=device)
        if lower is None and upper is None:
            width, height = rho.shape
            lower, upper = 0.0, (1.0, height / width)
        box = Box.of(lower, upper, tuple(rho.shape) if shape is None else shape)
        return cls._in_proportion(resampled(rho, box.shape), box, obstacles, walls)

    @classmethod
    def from_samples(
        cls,
        points: ArrayLike,
        lower: Any,
        upper: Any,
        shape: Any,
        *,
        bandwidth: float = 0.0,
        obstacles: ArrayLike | None = None,
        walls: bool = False,
    ) -> Self:
        r"""Return the histogram of points, smoothed on request.

        Parameters
        ----------
        points : Tensor or ndarray, shape (m, d)
            Samples inside the box; they give dtype and device.
        lower, upper : float or sequence of float
            Corners of the box.
        shape : int or tuple of int
            Number of cells along each axis.
        bandwidth : float
            Standard deviation, along each axis, of a heat flow after counting; >= 0.
        obstacles, walls
            As for the class.

        Returns
        -------
        GridDensity
            Each sample has the mass 1/m.

        Raises
        ------
        ValueError
            If a sample lies outside the box or in an obstacle.
        """
        x = as_points(points)
        refuse_graph(
            "a histogram",
            "counts have no derivative in the points",
            x,
            cure="points.detach()",
        )
        box = Box.of(lower, upper, shape)
        if x.shape[1] != box.dim:
            msg = f"points must have shape (m, {box.dim}), got {tuple(x.shape)}"
            raise ValueError(msg)
        mass = counts(box, x)
        free = free_cells(obstacles, mass.reshape(box.shape))
        inside = mass.masked_fill(free, 0.0)
        variance = positive(bandwidth, "bandwidth", or_zero=True) ** 2
        if float(inside.sum()) == 0:  # else the class says so
            mass = heat(box, mass, 0.5 * variance, free)
        rho = mass.reshape(box.shape) / box.cell_volume
        return cls(rho, lower, upper, obstacles=obstacles, walls=walls, normalize=True)

    @classmethod
    def _in_proportion(
        cls, rho: Tensor, box: Box, obstacles: ArrayLike | None, walls: bool
    ) -> Self:
        """Return the density of mass 1 in proportion to `rho` on the free cells."""
        if obstacles is not None:
            rho = rho * free_cells(obstacles, rho).reshape(box.shape)
        return cls(
            rho,
            box.lower,
            box.upper,
            obstacles=obstacles,
            walls=walls,
            normalize=True,
        )

    # Interactions ---------------------------------------------------------------------

    def convolve(self, W: Ground, *, diagonal: bool = True) -> Tensor:
        r"""Return :math:`W * \mu` at the centres, (n,), W standing for its even part.

        It is the gradient of `interaction` in the masses. To convolve many densities
        with one kernel, make a `otflow.measures.Convolution`.

        Parameters
        ----------
        W : callable
            Takes differences z (..., d) to (...).
        diagonal : bool
            Whether a finite kernel counts between a cell and itself.

        Returns
        -------
        Tensor, shape (n,)
            Differentiable in the masses.
        """
        kernel = convolution(self.box, W, self.weights, diagonal=diagonal)
        return kernel(self.weights)

    def interaction(self, W: Ground, *, diagonal: bool = True) -> Tensor:
        r"""Return :math:`\tfrac12\sum_{ij} w_i w_j \bar W_{i-j}`, with the 1/2.

        By fast Fourier transforms. A kernel that is infinite at 0 is averaged over each
        pair of cells, a cell with itself included: see `otflow.measures.Convolution`.

        Parameters
        ----------
        W : callable
            Takes differences z (..., d) to (...).
        diagonal : bool
            Whether a finite kernel counts between a cell and itself; an infinite one
            does, by its average.

        Returns
        -------
        Tensor
            The energy, 0-d.

        Notes
        -----
        Time O(n log n), memory O(2^d n).
        """
        return 0.5 * (self.weights @ self.convolve(W, diagonal=diagonal))
