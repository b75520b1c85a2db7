"""What every representation of a measure must do, can do, and may refuse."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NoReturn, Self, final

import torch
from torch import Tensor

from otflow._autodiff import pair_sum
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import as_points, check_like
from otflow.errors import InvalidFunctional, Unsupported
from otflow.kernels import RadialKernel

__all__ = ["Measure"]


class Measure(ABC):
    r"""A quadrature rule plus a tangent space.

    A measure stands for :math:`\mu \approx \sum_i w_i \delta_{x_i}`: atoms, cell
    centres or quadrature nodes `points` (n, d) with masses `weights` (n,) of sum 1.
    Functionals
    see it through `expectation`, `interaction` and `internal`; schemes move it by
    `push`. A measure is immutable: every verb returns a new one.

    A new representation is one file: it states `points` and `weights`, the required
    verbs (`value_and_position_gradient`, `push`, `inner`, `displacement_to`), and
    whichever capabilities it has (`density`, `mass_gradient`, `transport`, `diffuse`,
    `reweight`, `sample`). A capability it lacks raises `Unsupported` with the entry of
    `cures`.

    Attributes
    ----------
    points : Tensor, shape (n, d)
        Nodes of the quadrature rule.
    weights : Tensor, shape (n,)
        Masses of the nodes, non-negative, of sum 1.

    See Also
    --------
    otflow.Particles : A weighted sum of Diracs.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0], [2.0]]))
    >>> float(mu.expectation(lambda x: x.square().sum(-1)))
    2.0
    """

    points: Tensor
    weights: Tensor

    cures: ClassVar[dict[str, str]] = {}
    """Why a capability is missing and what to use in its place, by its name."""

    # Required ------------------------------------------------------------------------

    @abstractmethod
    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and the tangent :math:`\nabla F'[\mu]`, in one pass.

        `value` maps a measure to a 0-d tensor; the tangent has the shape that `push`
        takes.
        """

    @abstractmethod
    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move along a tangent for a time: the exponential map at :math:`\mu`."""

    @abstractmethod
    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        r"""Return :math:`\langle u, v\rangle_{L^2(\mu)} = \int u\cdot v\, d\mu`."""

    @abstractmethod
    def displacement_to(self, other: Self) -> Tensor:
        """Return the tangent whose `push` for time 1 gives `other`.

        The coupling is the representation's natural one (own index, own level, ...);
        it is optimal only if the caller made it so.
        """

    # Capabilities --------------------------------------------------------------------

    def density(self) -> Tensor:
        """Return the density at the measure's own points, (n,)."""
        self._refuse("density", "density")

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        r"""Return the first variation :math:`F'[\mu]` at the points, or at `x` (m, d).

        It is :math:`\partial F / \partial w_i`, masses free; defined up to a constant.
        """
        self._refuse("mass_gradient", "mass gradient")

    def transport(self, tangent: Tensor, dt: float) -> Self:
        r"""Push forward by :math:`x + dt\,v(x)` and remap the outcome onto the cells.

        For a representation whose points are fixed in space and whose `push` is a flux
        with a limit on dt; elsewhere `push` moves the points themselves.
        """
        cure = "its points move, so that its push is exact for every dt; use push"
        self._refuse("transport", "fixed cells to remap onto", cure)

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Run the heat flow for a time: :math:`\mu * N(0, \mathrm{variance}\, I)`."""
        self._refuse("diffuse", "heat flow")

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        r"""Multiply masses by :math:`\exp(dt\,\mathrm{log\_rate})` and renormalise."""
        self._refuse("reweight", "masses of its own to change")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n independent points, (n, d)."""
        self._refuse("sample", "sampler")

    # Derived -------------------------------------------------------------------------

    @final
    def position_gradient(self, value: Value) -> Tensor:
        r"""Return the tangent :math:`\nabla F'[\mu]`, minus the velocity."""
        return self.value_and_position_gradient(value)[1]

    def expectation(self, f: Ground) -> Tensor:
        r"""Return :math:`\int f\, d\mu = \sum_i w_i f(x_i)`.

        A representation whose tangents live elsewhere than its points overrides it.

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
            If `f` does not return one value, or one row, per point.
        """
        return integrate(f, self.points, self.weights)

    def interaction(self, W: Ground, *, diagonal: bool = True) -> Tensor:
        r"""Return :math:`\tfrac12 \sum_{ij} w_i w_j W(x_i - x_j)`, with the 1/2.

        Tile by tile and differentiable to any order: time O(n^2 d), memory O(n d). A
        representation with more structure (a regular grid, a density in each cell)
        overrides it by a faster or a sharper rule.

        Parameters
        ----------
        W : callable
            Takes differences z (..., d) to (...).
        diagonal : bool
            Whether the pairs i = j count. A kernel that is infinite at 0 leaves
            them out.

        Returns
        -------
        Tensor
            The energy, 0-d.
        """
        return pair_energy(W, self.points, self.weights, diagonal=diagonal)

    def internal(self, e: Ground) -> Tensor:
        r"""Return :math:`\int e(\rho)\, d\mu`, e the energy per unit of mass.

        Where there is no mass there is no energy, even if e is infinite at 0; the
        derivative in the mass is e(0) there, which may be infinite. A representation
        whose density has a closed form may override it.

        Raises
        ------
        Unsupported
            If the measure has no density.
        InvalidFunctional
            If `e` does not return one value per density, of its dtype.
        """
        rho = self.density()
        empty = rho == 0
        if not bool(empty.any()):
            return self.weights @ check_energy(e, rho)
        at_zero = float(check_energy(e, torch.zeros_like(rho[:1])))
        if math.isfinite(at_zero):
            vacuum = at_zero * self.weights
        else:  # 0 with an infinite derivative of the right sign
            vacuum = torch.special.entr(self.weights)
            vacuum = -vacuum if at_zero < 0 else vacuum
        filled = self.weights * check_energy(e, rho.masked_fill(empty, 1.0))
        return torch.where(empty, vacuum, filled).sum()

    @final
    def norm(self, u: Tensor) -> Tensor:
        r"""Return :math:`\|u\|_{L^2(\mu)}`: the W2 speed of the tangent `u`."""
        return self.inner(u, u).sqrt()

    @property
    def n(self) -> int:
        """Number of points."""
        return self.points.shape[0]

    @property
    def dim(self) -> int:
        """Dimension of the ground space."""
        return self.points.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the points."""
        return self.points.dtype

    @property
    def device(self) -> torch.device:
        """Device that holds the measure."""
        return self.points.device

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n={self.n}, d={self.dim}, "
            f"dtype={str(self.dtype).removeprefix('torch.')}, device={self.device})"
        )

    # Helpers for the children --------------------------------------------------------

    def _refuse(
        self, capability: str, what: str, cure: str = "use a representation that has it"
    ) -> NoReturn:
        name = type(self).__name__
        cure = self.cures.get(capability, cure)
        msg = f"{name} has no {what}: {cure}"
        raise Unsupported(msg)

    @final
    def check_probes(self, x: ArrayLike) -> Tensor:
        """Return `x` as points (m, d) like those of the measure, or refuse it.

        Parameters
        ----------
        x : Tensor or ndarray, shape (m, d)
            Points at which something is asked.

        Returns
        -------
        Tensor, shape (m, d)
            Detached.
        """
        x = as_points(x, "x")
        check_like(x, self.points, "x", "points")
        if x.shape[1] != self.dim:
            msg = f"x must have shape (m, {self.dim}), got {tuple(x.shape)}"
            raise ValueError(msg)
        return x.detach()

    def _check_tangent(self, tangent: Tensor, name: str = "tangent") -> None:
        if not isinstance(tangent, Tensor) or tangent.shape != self.points.shape:
            got = getattr(tangent, "shape", type(tangent).__name__)
            msg = f"{name} must have shape {tuple(self.points.shape)}, got {got}"
            raise ValueError(msg)
        check_like(tangent, self.points, name, "points")


def integrate(f: Ground, points: Tensor, weights: Tensor) -> Tensor:
    r"""Return :math:`\sum_i w_i f(x_i)`, refused unless f is a ground function."""
    values = f(points)
    n = points.shape[0]
    if not isinstance(values, Tensor) or values.ndim < 1 or values.shape[0] != n:
        got = (
            f"shape {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else type(values).__name__
        )
        msg = (
            f"a ground function must map (n, d) = {tuple(points.shape)} to "
            f"({n},) or ({n}, m), got {got}; reduce over the last axis, "
            f"e.g. .sum(-1)"
        )
        raise InvalidFunctional(msg)
    if values.dtype != weights.dtype:
        msg = (
            f"a ground function returned {values.dtype} for points of dtype "
            f"{points.dtype}; build its constants with the dtype of x"
        )
        raise InvalidFunctional(msg)
    return (
        weights @ values
        if values.ndim <= 2
        else torch.tensordot(weights, values, dims=1)
    )


def pair_energy(
    W: Ground, points: Tensor, weights: Tensor, *, diagonal: bool = True
) -> Tensor:
    r"""Return :math:`\tfrac12 \sum_{ij} w_i w_j W(x_i - x_j)` tile by tile."""

    def energy(x: Tensor, a: Tensor, y: Tensor, b: Tensor, is_diagonal: bool) -> Tensor:
        z = x[:, None, :] - y[None, :, :]
        if is_diagonal and not diagonal:
            keep = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            i, j = keep.nonzero(as_tuple=True)
            return 0.5 * (a[i] * b[j] * check_kernel(W, z[i, j])).sum()
        return 0.5 * (a @ check_kernel(W, z) @ b)

    sweep = W.sweep if isinstance(W, RadialKernel) and W.singular != diagonal else None
    return pair_sum(energy, points, weights, sweep=sweep)


def check_kernel(W: Ground, z: Tensor) -> Tensor:
    """Return W(z), refused unless it is one number for each difference."""
    values = W(z)
    if not isinstance(values, Tensor) or values.shape != z.shape[:-1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        msg = (
            f"an interaction W must map differences {tuple(z.shape)} to "
            f"{tuple(z.shape[:-1])}, got {got}; reduce over the last axis: .sum(-1)"
        )
        raise InvalidFunctional(msg)
    if values.dtype != z.dtype:
        msg = (
            f"an interaction W returned {values.dtype} for differences of dtype "
            f"{z.dtype}; build its constants with the dtype of z"
        )
        raise InvalidFunctional(msg)
    return values


def check_energy(e: Ground, rho: Tensor) -> Tensor:
    """Return e(rho), refused unless it is one number for each density."""
    values = e(rho)
    if not isinstance(values, Tensor) or values.shape != rho.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        msg = (
            f"an energy per unit of mass e must map densities {tuple(rho.shape)} to "
            f"{tuple(rho.shape)}, entry by entry, got {got}; a constant c is c + 0 * r"
        )
        raise InvalidFunctional(msg)
    if values.dtype != rho.dtype:
        msg = (
            f"an energy per unit of mass e returned {values.dtype} for densities of "
            f"dtype {rho.dtype}; build its constants with the dtype of r"
        )
        raise InvalidFunctional(msg)
    return values
