"""A density that is constant on the cells of a regular grid, with walls."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from otflow._autodiff import unmodified, value_and_gradient
from otflow._lazy import lazy_import
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import (
    as_float_tensor,
    as_points,
    check_generator,
    check_like,
    non_negative_int,
    real,
)
from otflow.errors import BoxWarning, Diverged
from otflow.measures.base import Measure
from otflow.measures.box import Box

__all__ = ["GridDensity"]

# Share of the mass in the outermost cells above which a box is too small.
BORDER_SHARE = 1e-3


@dataclass(frozen=True, eq=False, init=False, repr=False)
class GridDensity(Measure):
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
        rho = as_float_tensor(density, "density").detach()
        box = Box.of(lower, upper, tuple(rho.shape))
        free = _free_cells(obstacles, rho)
        _check_density(rho, free)
        weights = rho.reshape(-1) * box.cell_volume
        total = float(weights.sum(dtype=torch.float64))
        if normalize:
            weights = weights / total
        elif abs(total - 1) > (1e-5 if rho.dtype == torch.float32 else 1e-9):
            msg = (
                f"the density must integrate to 1, got {total:.9g}; pass "
                f"normalize=True to divide it by its integral"
            )
            raise ValueError(msg)
        if not bool(free.all()):
            _check_connected(weights.reshape(box.shape), free.reshape(box.shape))
        if not isinstance(walls, bool):
            msg = f"walls must be True or False, got {walls!r}"
            raise TypeError(msg)
        self._set(box.centres(weights), weights, box, free, walls)
        self._check_border()

    def _set(
        self, points: Tensor, weights: Tensor, box: Box, is_free: Tensor, walls: bool
    ) -> None:
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "is_free", is_free)
        object.__setattr__(self, "walls", walls)

    def with_weights(self, weights: Tensor) -> Self:
        """Return a density of other masses on the same grid; nothing is checked.

        Parameters
        ----------
        weights : Tensor, shape (n,)
            Masses of the cells; a graph on them stays alive.

        Returns
        -------
        GridDensity
            It shares the grid with this one.
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
            On the same grid; warns if the box has become too small.

        Raises
        ------
        Diverged
            If a mass is NaN, infinite or negative; the error carries `self`.
        """
        weights = weights.detach()
        if not bool((weights >= 0).all() & weights.sum().isfinite()):
            msg = (
                "cell masses left the non-negative finite numbers; take a smaller dt "
                "or use JKO"
            )
            raise Diverged(msg, measure=self)
        new = self.with_weights(weights)
        new._check_border()
        return new

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
            rho = rho * _free_cells(obstacles, rho).reshape(box.shape)
        return cls(
            rho, lower, upper, obstacles=obstacles, walls=walls, normalize=True
        )

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
        """
        return self.density()[self.box.cell_of(self._probes(x))]

    def check_same_grid(self, other: Measure) -> None:
        """Refuse (ValueError) a measure that does not live on the same cells."""
        if not isinstance(other, GridDensity) or other.box != self.box:
            msg = (
                f"both densities must live on the same grid, got {other!r} beside "
                f"{self!r} on {self.box}"
            )
            raise ValueError(msg)

    def _probes(self, x: ArrayLike) -> Tensor:
        x = as_points(x, "x").detach()
        check_like(x, self.points, "x", "points")
        if x.shape[1] != self.dim:
            msg = f"x must have shape (m, {self.dim}), got {tuple(x.shape)}"
            raise ValueError(msg)
        return x

    # Derivatives ----------------------------------------------------------------------

    def _evaluate(self, value: Value, weights: Tensor) -> Tensor:
        nu = self.with_weights(weights)
        with unmodified(nu.points, nu.weights, by="the functional"):
            return value(nu)

    def value_and_mass_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and :math:`\partial F/\partial w_i`, (n,), in one pass.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.

        Returns
        -------
        value : Tensor
            0-d, detached.
        gradient : Tensor, shape (n,)
            The first variation at the centres; 0 in obstacles.
        """
        f, grad = value_and_gradient(lambda w: self._evaluate(value, w), self.weights)
        return f, torch.where(self.is_free, grad, 0.0)

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`\partial F/\partial w_i`, at the cells or at `x`.

        Between centres it is interpolated linearly along each axis, and beyond the
        outermost ones it is constant.
        """
        gradient = self.value_and_mass_gradient(value)[1]
        if x is None:
            return gradient
        return interpolate(self.box, gradient, self._probes(x))

    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and the slopes of :math:`F'` across inner faces.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.

        Returns
        -------
        value : Tensor
            0-d, detached.
        gradient : Tensor, shape (n_faces,)
            Zero on the faces of obstacles.
        """
        f, grad = self.value_and_mass_gradient(value)
        return f, self.box.gradient(grad) * self.open_faces(grad.dtype)

    def open_faces(self, dtype: torch.dtype) -> Tensor:
        """Return 1 for the faces between two free cells and 0 for the others."""
        below, above = self.box.neighbours(self.is_free)
        return (below & above).to(dtype)

    # Moves ----------------------------------------------------------------------------

    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move mass through the faces by an upwind flux, :math:`v^+ \rho_- - v^-\rho_+`.

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
        self._check_tangent(tangent)
        v = tangent.detach() * (real(dt, "dt") * self.open_faces(self.dtype))
        rho_below, rho_above = self.box.neighbours(self.density())
        flux = v.clamp_min(0) * rho_below + v.clamp_max(0) * rho_above
        outflow = -self.box.divergence(flux) * self.box.cell_volume
        weights = self.weights + outflow
        return self.moved(weights)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        r"""Return :math:`\sum_f |f|\, h\, \bar\rho_f\, u_f v_f`.

        The density of a face is the mean of both sides.
        """
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        below, above = self.box.neighbours(self.weights)
        return (0.5 * (below + above)) @ (u * v * self.open_faces(self.dtype))

    def displacement_to(self, other: Self) -> Tensor:
        raise NotImplementedError

    # Helpers --------------------------------------------------------------------------

    def _check_tangent(self, tangent: Tensor, name: str = "tangent") -> None:
        n = self.box.n_faces
        if not isinstance(tangent, Tensor) or tangent.shape != (n,):
            got = getattr(tangent, "shape", type(tangent).__name__)
            msg = f"{name} must have shape ({n},), one entry a face, got {got}"
            raise ValueError(msg)
        check_like(tangent, self.points, name, "points")

    def _check_border(self) -> None:
        if self.walls or not bool(self.is_free.all()):
            return
        mass = self.weights.detach().reshape(self.shape)
        share = max(
            float(mass.select(axis, end).sum())
            for axis in range(self.dim)
            for end in (0, -1)
        )
        if share > BORDER_SHARE:
            msg = (
                f"{share:.2%} of the mass lies within one cell of the border of the "
                f"box {self.box.lower} to {self.box.upper}: it is too small; enlarge "
                f"it, or pass walls=True if the border is a wall"
            )
            warnings.warn(msg, BoxWarning, stacklevel=3)


def interpolate(box: Box, values: Tensor, x: Tensor) -> Tensor:
    """Return the multilinear interpolation of cell values at points of the box."""
    box.cell_of(x)  # refuses points outside
    result = torch.zeros_like(x[:, 0])
    low, part = [], []
    for axis, (a, h, n) in enumerate(
        zip(box.lower, box.spacing, box.shape, strict=True)
    ):
        t = ((x[:, axis] - a) / h - 0.5).clamp(0, n - 1)
        low.append(t.floor().long().clamp_max(n - 2))
        part.append(t - low[-1])
    for corner in range(2**box.dim):
        index, weight = torch.zeros_like(low[0]), torch.ones_like(result)
        for axis, n in enumerate(box.shape):
            up = corner >> axis & 1
            index = index * n + low[axis] + up
            weight = weight * (part[axis] if up else 1 - part[axis])
        result = result + weight * values[index]
    return result


def _free_cells(obstacles: ArrayLike | None, rho: Tensor) -> Tensor:
    if obstacles is None:
        return torch.ones(rho.numel(), dtype=torch.bool, device=rho.device)
    mask = torch.as_tensor(obstacles, device=rho.device)
    if mask.dtype != torch.bool or mask.shape != rho.shape:
        msg = (
            f"obstacles must be a bool array of shape {tuple(rho.shape)}, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )
        raise (TypeError if mask.dtype != torch.bool else ValueError)(msg)
    if bool(mask.all()):
        msg = "obstacles fill the whole box: no cell is free"
        raise ValueError(msg)
    return ~mask.reshape(-1)


def _check_density(rho: Tensor, free: Tensor) -> None:
    bad = ~(torch.isfinite(rho) & (rho >= 0))
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        kind = "finite" if not bool(torch.isfinite(rho[index])) else "non-negative"
        msg = f"the density must be {kind}, got {float(rho[index]):.6g} at cell {index}"
        raise ValueError(msg)
    if float(rho.sum()) == 0:
        msg = "the density is zero everywhere: a probability measure needs mass 1"
        raise ValueError(msg)
    inside = rho.reshape(-1)[~free]
    if bool((inside > 0).any()):
        msg = (
            f"there is density {float(inside.max()):.6g} inside an obstacle; multiply "
            f"it by ~obstacles and normalise"
        )
        raise ValueError(msg)


def _check_connected(mass: Tensor, free: Tensor) -> None:
    """Refuse mass on both sides of an obstacle that has no way round."""
    ndimage = lazy_import("scipy.ndimage")
    labels, count = ndimage.label(free.cpu().numpy())
    if count < 2:
        return
    labels = torch.from_numpy(labels).to(mass.device)
    shares = [float(mass[labels == k].sum()) for k in range(1, count + 1)]
    if sum(share > 0 for share in shares) > 1:
        msg = (
            f"obstacles disconnect the mass: {count} separate rooms hold the shares "
            f"{', '.join(f'{s:.3g}' for s in shares)}; open a door between them, or "
            f"flow each room by itself"
        )
        raise ValueError(msg)
