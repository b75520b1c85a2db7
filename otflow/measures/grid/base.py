"""What a density on a grid is: its state, its derivatives, its geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow._graphs import records, refuse_graph, unmodified
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import as_float_tensor, check_like, real
from otflow.errors import Diverged, NonFinite
from otflow.measures.base import Measure, keep_immutable
from otflow.measures.grid.box import Box
from otflow.measures.grid.checks import (
    check_border,
    check_connected,
    check_density,
    check_units,
    free_cells,
    mass_tolerance,
)
from otflow.measures.sums import integrate, internal_energy

__all__ = ["CellMasses"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class CellMasses(Measure):
    """Masses in the cells of a box: what `GridDensity` knows before it can move.

    Attributes
    ----------
    points, weights, box, is_free, walls
        As in `GridDensity`.

    See Also
    --------
    otflow.GridDensity : The class to use.

    Examples
    --------
    >>> import otflow as of
    >>> of.GridDensity.__mro__[2].__name__
    'CellMasses'
    """

    points: Tensor
    weights: Tensor
    box: Box
    is_free: Tensor
    walls: bool

    cures: ClassVar[dict[str, str]] = {}

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
        check_density(rho.detach(), free)
        weights = rho.reshape(-1) * box.cell_volume
        total = float(weights.detach().sum(dtype=torch.float64))
        check_units(box, total, rho.dtype)
        if normalize:
            weights = weights / (weights.sum() if records(weights) else total)
        elif abs(total - 1) > mass_tolerance(rho.dtype):
            msg = (
                f"the density must integrate to 1, got {total:.9g}; pass "
                f"normalize=True to divide it by its integral"
            )
            raise ValueError(msg)
        if not bool(free.all()):
            mass = weights.detach().reshape(box.shape)
            check_connected(mass, free.reshape(box.shape))
        if not isinstance(walls, bool):
            msg = f"walls must be True or False, got {walls!r}"
            raise TypeError(msg)
        self._set(box.centres(weights.detach()), weights, box, free, walls)
        check_border(self.box, self.weights, self.is_free, walls=self.walls)

    def _set(
        self, points: Tensor, weights: Tensor, box: Box, is_free: Tensor, walls: bool
    ) -> None:
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "is_free", is_free)
        object.__setattr__(self, "walls", walls)

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
        check_like(masses, self.weights, "weights", "the density")
        if masses.shape != self.weights.shape:
            msg = (
                f"weights must have shape {tuple(self.weights.shape)}, one mass per "
                f"cell, got {tuple(masses.shape)}; use weights.reshape(-1)"
            )
            raise ValueError(msg)
        check_density(masses.detach(), self.is_free)
        total = float(masses.detach().sum(dtype=torch.float64))
        if abs(total - 1) > mass_tolerance(masses.dtype):
            msg = (
                f"weights must sum to 1, got {total:.9g}; divide them by their sum, or "
                f"use with_free_weights to differentiate in masses of any sum"
            )
            raise ValueError(msg)
        return self.with_free_weights(masses)

    def with_free_weights(self, weights: Tensor) -> Self:
        """Return an argument for a functional whose masses are free: none is checked.

        Parameters
        ----------
        weights : Tensor, shape (n,)
            Masses of the cells, of any sum; a graph on them stays alive.

        Returns
        -------
        GridDensity
            It shares the grid with this one. It is a probability only if `weights` are.
        """
        new = object.__new__(type(self))
        new._set(self.points, weights, self.box, self.is_free, self.walls)
        return new

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
            If a mass is NaN, infinite or negative, or mass was lost or made; the error
            carries `self`.
        """
        if not bool((weights >= 0).all() & weights.sum().isfinite()):
            msg = (
                "cell masses left the non-negative finite numbers; take a smaller dt "
                "or use JKO"
            )
            raise Diverged(msg, measure=self)
        kept, total = (
            float(w.detach().sum(dtype=torch.float64)) for w in (self.weights, weights)
        )
        if abs(total - kept) > mass_tolerance(weights.dtype):
            msg = (
                f"a step changed the mass from {kept:.9g} to {total:.9g}: nothing may "
                f"leave through a wall or an obstacle; stop the velocity there"
            )
            raise Diverged(msg, measure=self)
        new = self.with_free_weights(weights)
        check_border(
            self.box,
            new.weights,
            self.is_free,
            walls=self.walls,
            before=self.weights,
        )
        return new

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
        """Return the density in each cell, (n,)."""
        return self.weights / self.box.cell_volume

    def density_at(self, x: ArrayLike) -> Tensor:
        """Return the density of the cell that holds each point (m, d): (m,).

        Raises
        ------
        ValueError
            If a point lies outside the box.
        Unsupported
            If `x` carries a graph: a density constant on cells has no slope in them.
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
        """Refuse (ValueError) a measure that does not live on the same cells."""
        if not isinstance(other, CellMasses) or other.box != self.box:
            msg = (
                f"both densities must live on the same grid, got {other!r} beside "
                f"{self!r} on {self.box}"
            )
            raise ValueError(msg)

    def expectation(self, f: Ground) -> Tensor:
        r"""Return :math:`\sum_i w_i f(x_i)` over the free cells.

        What f is inside obstacles, where there is no mass, does not count: it may be
        infinite or NaN there.

        Parameters
        ----------
        f : callable
            Batched: (n, d) -> (n,) gives a 0-d tensor, (n, d) -> (n, m) gives (m,).

        Returns
        -------
        Tensor
            The integral.

        Raises
        ------
        InvalidFunctional
            If `f` does not return one value, or one row, per cell.
        """
        if bool(self.is_free.all()):
            return super().expectation(f)

        def inside(x: Tensor) -> Tensor:
            values = f(x)
            if not isinstance(values, Tensor) or values.shape[:1] != x.shape[:1]:
                return values  # which the caller refuses
            full = ~self.is_free.reshape(-1, *[1] * (values.ndim - 1))
            return values.masked_fill(full, 0)

        return integrate(inside, self.points, self.weights)

    def internal(self, e: Ground) -> Tensor:
        r"""Return :math:`\int e(\rho)\, d\mu` over the free cells.

        In an obstacle, where there is never mass, nothing is asked: e may have infinite
        derivatives at 0.
        """
        rho = self.density()
        if bool(self.is_free.all()):
            return internal_energy(e, rho, self.weights)
        return internal_energy(e, rho[self.is_free], self.weights[self.is_free])

    # Derivatives ----------------------------------------------------------------------

    def _evaluate(self, value: Value, weights: Tensor) -> Tensor:
        nu = self.with_free_weights(weights)
        with unmodified(nu.points, nu.weights, by="the functional"):
            return value(nu)

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
            The first variation at the centres; 0 in obstacles. Both carry the graph of
            what they depend on, where that has one.
        """

        def free(w: Tensor) -> Tensor:
            # Inside an obstacle F' may be infinite, as that of the entropy at density
            # 0; nothing is asked there.
            return self._evaluate(value, torch.where(self.is_free, w, 0.0))

        try:
            return value_and_gradient(free, self.weights)
        except NonFinite as error:
            empty = int((self.is_free & (self.weights == 0)).sum())
            if empty == 0:
                raise
            msg = (
                f"{error}. The density vanishes in {empty} cells, where an entropy has "
                f"an infinite slope: flow it by JKO(), or diffuse it a little first"
            )
            raise NonFinite(msg) from error

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`\partial F/\partial w_i`, at the cells or at `x`.

        Between centres it is interpolated linearly along each axis, and beyond the
        outermost ones it is constant.
        """
        gradient = self.value_and_mass_gradient(value)[1]
        if x is None:
            return gradient
        return self.box.interpolate(gradient, self.check_probes(x))

    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and the slopes of :math:`F'` across inner faces.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.

        Returns
        -------
        value : Tensor
            0-d.
        gradient : Tensor, shape (n_faces,)
            Zero on the faces of obstacles.
        """
        f, grad = self.value_and_mass_gradient(value)
        return f, self.box.gradient(grad) * self.open_faces(grad.dtype)

    def open_faces(self, dtype: torch.dtype) -> Tensor:
        """Return 1 for the faces between two free cells and 0 for the others."""
        below, above = self.box.neighbours(self.is_free)
        return (below & above).to(dtype)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        r"""Return :math:`\sum_f |f|\, h\, \bar\rho_f\, u_f v_f`.

        The density of a face is the mean of both sides.
        """
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        below, above = self.box.neighbours(self.weights)
        return (0.5 * (below + above)) @ (u * v * self.open_faces(self.dtype))

    # Helpers --------------------------------------------------------------------------

    def _moves(self, tangent: Tensor, dt: float) -> Tensor:
        """Return the displacements through the faces, 0 at obstacles."""
        self._check_tangent(tangent)
        return tangent * (real(dt, "dt") * self.open_faces(self.dtype))

    def _check_tangent(self, tangent: Tensor, name: str = "tangent") -> None:
        n = self.box.n_faces
        if not isinstance(tangent, Tensor) or tangent.shape != (n,):
            got = getattr(tangent, "shape", type(tangent).__name__)
            msg = f"{name} must have shape ({n},), one entry a face, got {got}"
            raise ValueError(msg)
        check_like(tangent, self.points, name, "points")


keep_immutable(CellMasses, "is_free")
