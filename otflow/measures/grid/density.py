"""A density that is constant on the cells of a regular grid, with walls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor
from otflow._autodiff import value_and_gradient
from otflow._graphs import refuse_graph, value_of
from otflow._moving import Move
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import check_generator, positive, real, true_or_false
from otflow.errors import Diverged, NonFinite
from otflow.kernels import Kernel
from otflow.measures.base import Measure
from otflow.measures.grid.box import Box, check_border, fault_of_step
from otflow.measures.grid.checks import (
    check_masses,
    check_same_box,
    check_same_obstacles,
    explained,
    free_cells,
    masses_of,
)
from otflow.measures.grid.convolution import convolution
from otflow.measures.grid.heat import heat
from otflow.measures.grid.images import (
    brightness,
    counts,
    drawn,
    frame,
    resampled,
    values_at_centres,
)
from otflow.measures.grid.remap import transported
from otflow.measures.grid.upwind import check_courant, displacement, upwind
from otflow.measures.sums import check_draw, integrate, internal_energy, reweighted

__all__ = ["GridDensity"]


@final
@dataclass(frozen=True, eq=False, init=False, repr=False)
class GridDensity(Measure):
    r"""A density on a box, constant on the cells of a regular grid, 1-D to 3-D.

    Nothing flows through the walls of the box, nor through obstacles: every verb moves
    mass through faces between free cells. Proximal solvers whose mass goes along
    straight lines raise where there are obstacles; `proximal.FiniteVolume` does not.
    The first variation is :math:`F'[\mu]_i = \partial F/\partial w_i`, with w the
    masses of the cells; in obstacles it is 0. A tangent is one velocity for each inner
    face between two cells, (n_faces,): :math:`v = -\nabla F'` is minus the difference
    across the face over the spacing, and 0 on the faces of obstacles. `inner` is
    :math:`\sum_f |f|\, h\, \bar\rho_f\, u_f v_f` with :math:`\bar\rho_f` the mean
    density of both sides.

    Parameters
    ----------
    density : Tensor or ndarray, shape (n_1, ..., n_d)
        Mass per unit of volume in each cell, non-negative, of integral 1; d <= 3.
    lower, upper : float or sequence of float
        Corners of the box.
    obstacles : Tensor or ndarray of bool, shape (n_1, ..., n_d), optional
        True in the cells that no mass may enter.
    walls : bool
        Whether the border of the box is a wall on purpose. By default the box stands
        for all space, and mass beside its border warns.
    normalize : bool
        Divide by the integral. By default an integral other than 1 raises.

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
        If a shape is wrong, the density is negative or not finite or does not integrate
        to 1, there is mass in an obstacle, or obstacles cut the mass in two.

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

    points: Tensor
    weights: Tensor
    box: Box
    is_free: Tensor
    walls: bool

    _tangent_layout = ", one entry a face"

    cures: ClassVar[Mapping[str, str]] = {
        "array": "use mu.grid.numpy(), the density on the cells, or mu.weights.numpy()",
    }

    def __init__(
        self,
        density: ArrayLike,
        lower: Any,
        upper: Any,
        *,
        obstacles: ArrayLike | None = None,
        walls: bool = False,
        normalize: bool = False,
    ) -> None:
        rho = as_float_tensor(density, "density")
        box = Box.of(lower, upper, tuple(rho.shape))
        free = free_cells(obstacles, rho)
        weights = masses_of(rho, box, free, normalize=normalize)
        true_or_false(walls, "walls")
        points = box.centres(weights.detach())
        self._hold(points=points, weights=weights, box=box, is_free=free, walls=walls)
        check_border(box, weights, free, walls=walls)

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
        """Return the density proportional to f at the centres of the cells.

        Parameters
        ----------
        f : callable
            Batched (n, d) -> (n,), non-negative, of any integral: f is divided by its
            integral over the free cells.
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

        Raises
        ------
        ValueError
            If f does not map (n, d) to (n,).
        TypeError
            If f returns another dtype than the one that was asked for.
        """
        box = Box.of(lower, upper, shape)
        like = torch.empty(0, dtype=dtype, device=device)
        rho = values_at_centres(f, box, like)
        if dtype is not None and rho.dtype != dtype:
            msg = (
                f"f returned {rho.dtype} for centres x of dtype {dtype}; build its "
                f"constants with the dtype of x, e.g. torch.ones_like(x[:, 0])"
            )
            raise TypeError(msg)
        return cls._in_proportion(rho, box, obstacles, walls)

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
        """Return a picture as a density, x to the right and y up.

        Parameters
        ----------
        image : ndarray or Tensor
            (H, W) grey, (H, W, 3) colours or (H, W, 4) with opacity, the first row on
            top; uint8, bool or floating point. The density is its brightness.
        lower, upper : float or sequence of float, optional
            Corners of the box. By default the box is 1 wide from the origin, and pixels
            are square.
        shape : tuple of int, optional
            Cells along x and y. Each cell takes the average of its pixels. By default
            (W, H), one cell a pixel.
        invert : bool
            Whether the dark parts hold the mass.
        obstacles, walls
            As for the class, but by default the frame is a wall.
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
        box = frame(rho, lower, upper, shape)
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
        """Return the histogram of points, smoothed on request.

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
        box = Box.of(lower, upper, shape)
        mass = counts(box, points)
        free = free_cells(obstacles, mass)
        variance = positive(bandwidth, "bandwidth", or_zero=True) ** 2
        # Mass in an obstacle stays there, and the constructor raises.
        mass = heat(box, mass.reshape(-1), 0.5 * variance, free)
        rho = mass.reshape(box.shape) / box.cell_volume
        return cls(rho, lower, upper, obstacles=obstacles, walls=walls, normalize=True)

    @classmethod
    def _in_proportion(
        cls, rho: Tensor, box: Box, obstacles: ArrayLike | None, walls: bool
    ) -> Self:
        """Return the density of mass 1 proportional to `rho` on the free cells."""
        if obstacles is not None:
            rho = rho * free_cells(obstacles, rho).reshape(box.shape)
        low, high = box.lower, box.upper
        return cls(rho, low, high, obstacles=obstacles, walls=walls, normalize=True)

    def with_weights(self, weights: Tensor) -> Self:
        """Return a density of other masses on the same grid.

        Parameters
        ----------
        weights : Tensor, shape (n,)
            Masses of the cells, >= 0, of sum 1; a graph on them stays alive.

        Returns
        -------
        GridDensity
            It shares the grid with this one.

        Raises
        ------
        ValueError
            If the shape or the device differs, a mass is negative, not finite or in an
            obstacle, or their sum is not 1.
        TypeError
            If the dtype differs.

        See Also
        --------
        otflow.GridDensity.with_free_weights : For derivatives in masses of any sum.
        """
        masses = as_float_tensor(weights, "weights")
        check_masses(masses, self.weights, self.is_free)
        return self.with_free_weights(masses)

    def with_free_weights(self, weights: Tensor) -> Self:
        """Return a density of other masses, the argument of a functional; unchecked.

        Parameters
        ----------
        weights : Tensor, shape (n,)
            Masses of the cells, of any sum; a graph on them stays alive.

        Returns
        -------
        GridDensity
            It shares the grid with this one. It is a probability only if `weights` are
            one.
        """
        return self._changed(weights=weights)

    def moved(self, weights: Tensor) -> Self:
        """Return the outcome of a step: finite, non-negative, of the same total mass.

        Parameters
        ----------
        weights : Tensor, shape (n,)
            Masses of the cells.

        Returns
        -------
        GridDensity
            On the same grid; warns if the box has just become too small.

        Raises
        ------
        Diverged
            If a mass is NaN, infinite or negative, or the total mass changed; the error
            carries `self`.
        """
        fault = fault_of_step(self.weights, weights)
        if fault is not None:
            raise Diverged(fault, measure=self)
        before = self.weights
        check_border(self.box, weights, self.is_free, walls=self.walls, before=before)
        return self.with_free_weights(weights)

    # Density --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each axis."""
        return self.box.shape

    @property
    def grid(self) -> Tensor:
        """The density as an array of shape ``shape``."""
        return self.density().reshape(self.shape)

    def density(self) -> Tensor:
        return self.weights / self.box.cell_volume

    def density_at(self, x: ArrayLike) -> Tensor:
        """Return the density of the cell that holds each point (m, d): (m,).

        Raises
        ------
        ValueError
            If a point lies outside the box.
        Unsupported
            If `x` carries a graph: a density constant on cells has no slope in x.
        """
        x = self.check_probes(x)
        refuse_graph(
            "the density at points",
            "it is constant on the cells, and has no derivative in the points",
            x,
            cure="x.detach()",
        )
        return self.density()[self.box.cell_of(x)]

    def check_same_grid(self, other: Measure) -> None:
        """Raise ValueError unless `other` is a density on the same cells."""
        check_same_box(self, other)

    # Integrals ------------------------------------------------------------------------

    def expectation(self, f: Ground) -> Tensor:
        r"""Return :math:`\sum_i w_i f(x_i)` over the free cells.

        The values of f inside obstacles do not count: they may be infinite or NaN.
        """
        full = None if bool(self.is_free.all()) else ~self.is_free
        return integrate(f, self.points, self.weights, full)

    def internal(self, e: Ground) -> Tensor:
        r"""Return :math:`\int e(\rho)\, d\mu` over the free cells.

        The energy e is not evaluated inside obstacles: its derivative at 0 may be
        infinite.
        """
        rho = self.density()
        if bool(self.is_free.all()):
            return internal_energy(e, rho, self.weights)
        return internal_energy(e, rho[self.is_free], self.weights[self.is_free])

    def _potential(self, W: Kernel, x: Tensor | None) -> Tensor:
        field = convolution(self.box, W, self.weights)(self.weights)
        return field if x is None else self.box.interpolate(field, x)

    def _pair_energy(self, W: Kernel) -> Tensor:
        return 0.5 * (self.weights @ self._potential(W, None))

    def _mixture(self, other: Self, share: float) -> Self:
        self.check_same_grid(other)
        check_same_obstacles(self.is_free, other.is_free)
        return self.moved((1.0 - share) * self.weights + share * other.weights)

    # Derivatives ----------------------------------------------------------------------

    def value_and_mass_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and :math:`\partial F/\partial w_i`, in one pass.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.

        Returns
        -------
        value : Tensor
            0-d.
        gradient : Tensor, shape (n,)
            The first variation at the centres; 0 in obstacles. Value and gradient carry
            a graph if the masses carry one.

        Raises
        ------
        InvalidFunctional
            If `value` does not return a differentiable 0-d tensor.
        NonFinite
            If the value or the gradient is NaN or infinite, as that of an entropy in an
            empty cell.
        """
        at = self.with_coordinates
        try:
            return value_and_gradient(lambda w: value_of(at(w), value), self.weights)
        except NonFinite as error:
            raise explained(error, self.is_free & (self.weights == 0)) from error

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`\partial F/\partial w_i`, at the cells or at `x`.

        Between centres it is interpolated linearly along each axis. Beyond the
        outermost centres it is constant.
        """
        gradient = self.value_and_mass_gradient(value)[1]
        if x is None:
            return gradient
        return self.box.interpolate(gradient, self.check_probes(x))

    @property
    def coordinates(self) -> Tensor:
        """The masses of the cells, (n,)."""
        return self.weights

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return a density of other masses, unchecked, and of none in obstacles."""
        # Inside an obstacle F' may be infinite, as that of the entropy at density 0. A
        # constant 0 there has no gradient.
        return self.with_free_weights(torch.where(self.is_free, coordinates, 0.0))

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        """Return the differences of F' across the open faces, over the spacing."""
        return self.box.gradient(partials) * self.open_faces(partials.dtype)

    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        f, partials = self.value_and_mass_gradient(value)
        return f, self.tangent_of(partials, value)

    def open_faces(self, dtype: torch.dtype) -> Tensor:
        """Return 1 for the faces between two free cells and 0 for the others."""
        below, above = self.box.neighbours(self.is_free)
        return (below & above).to(dtype)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        below, above = self.box.neighbours(self.weights)
        return (0.5 * (below + above)) @ (u * v * self.open_faces(self.dtype))

    # Moves ----------------------------------------------------------------------------

    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move mass by the upwind fluxes :math:`v^+ \rho_- - v^-\rho_+` of the faces.

        The error is of first order in the spacing; that of `transport` is of second
        order. The masses are linear in dt > 0, so that their derivative at 0 is exactly
        that of the energy. Mass is kept to round-off, and masses stay non-negative.

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

        The error is of second order in the spacing where density and velocity are
        smooth; the push-forward is exact in dt. The total mass is kept to round-off,
        and masses stay non-negative for any dt. Where the map folds, and at walls, mass
        sticks together. Time O(n log n), memory O(n).
        """
        moves = self._moves(tangent, dt)
        return self.moved(transported(self.box, self.weights, moves, self.is_free))

    def displacement_to(self, other: Self) -> Tensor:
        """Return the tangent whose `push` for time 1 gives `other`.

        In 1-D its flux is a cumulative sum. In 2-D and 3-D it is the flux of least
        kinetic energy. An upwind step reaches no further than the next cell.

        Raises
        ------
        Unsupported
            If mass would have to cross empty cells, or more than one cell, or if a
            measure carries a graph.
        """
        self.check_same_grid(other)
        refuse_graph(
            "a displacement between grid densities",
            "upwind fluxes have a kink where they vanish",
            self.weights,
            other.weights,
            cure="mu.detach(), or Quantiles",
        )
        is_open = self.open_faces(self.dtype)
        return displacement(self.box, self.weights, other.weights, is_open)

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Run the heat flow :math:`e^{\frac12 s\Delta_h}` for the variance s.

        It is exact in time for the difference Laplacian of the grid, positive and
        deterministic; the generator is not used. No heat leaves through walls and
        obstacles. Time O(n times the cells along an axis); with obstacles O(n deviation
        / h).
        """
        check_generator(generator)
        time = 0.5 * positive(variance, "variance", or_zero=True)
        return self.moved(heat(self.box, self.weights, time, self.is_free))

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        return self.moved(reweighted(self.weights, log_rate, dt, ", one entry a cell"))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n independent points of the density, uniform in each cell, (n, d)."""
        n = check_draw(n, generator, self.weights)
        return drawn(self.box, self.points, self.weights.detach(), n, generator)

    # Helpers --------------------------------------------------------------------------

    def _moves(self, tangent: Tensor, dt: float) -> Tensor:
        """Return the displacements through the faces, 0 at obstacles."""
        self._check_tangent(tangent)
        return tangent * (real(dt, "dt") * self.open_faces(self.dtype))

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        like = self.weights.detach()
        return {"points": move.once(before.points, lambda: self.box.centres(like))}

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        return (self.box.n_faces,)
