"""What every representation of a measure must do, can do, and may refuse."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, final

import torch
from torch import Tensor

from otflow._arrays import as_points, unit_of
from otflow._autodiff import value_and_gradient
from otflow._graphs import (
    keep_immutable,
    records,
    value_of,
)
from otflow._moving import Move
from otflow._svg import figure, harmless
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import (
    check_kind,
    check_like,
    positive,
)
from otflow.errors import Unsupported
from otflow.kernels import Kernel, PairKernel
from otflow.measures.bundle import Bundle
from otflow.measures.portrait import drawn
from otflow.measures.sums import (
    energy_of,
    integrate,
    internal_energy,
    pair_energy,
    pair_potential,
    potential_of,
)

__all__ = ["Measure"]

# The cure of a representation that is no part of another.
_STATE = (
    "define coordinates, with_coordinates and tangent_of, from which its gradient "
    "follows"
)


class Measure(Bundle):
    r"""A quadrature rule plus a tangent space.

    A measure stands for :math:`\mu \approx \sum_i w_i \delta_{x_i}`: nodes `points` (n,
    d) with masses `weights` (n,) of sum 1. The nodes are atoms, centres of cells or
    nodes of a quadrature rule. Functionals see a measure through `expectation`,
    `interaction` and `internal`; schemes move it by `push`. A measure is immutable:
    every verb returns a new one. A measure made of tensors with a graph keeps the
    graph, and so does everything computed from the measure. A verb that cannot keep the
    graph raises `Unsupported`; `detach` drops the graph.

    A new representation is one file. It defines `points` and `weights`, the numbers of
    which it is made (`coordinates`, `with_coordinates`, `tangent_of`), the required
    verbs (`push`, `inner`, `displacement_to`), and the capabilities that it has
    (`density`, `mass_gradient`, `transport`, `diffuse`, `reweight`, `sample`). A
    capability that it lacks raises `Unsupported` with the entry of `cures`. A
    representation whose gradient comes in another way overrides
    `value_and_position_gradient` instead of the three; then it is no part of `Parts`.

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

    if TYPE_CHECKING:
        # Read-only, so that a representation may state them as fields or properties.
        @property
        def points(self) -> Tensor: ...
        @property
        def weights(self) -> Tensor: ...

    cures: ClassVar[Mapping[str, str]] = {}
    """Why a capability is missing and what to use in its place, by its name."""

    as_particles: ClassVar[str] = "Particles(mu.sample(n, generator))"
    """What a scheme that takes particles alone may start from, for its message."""

    _tangent_layout: ClassVar[str] = ""
    flat: ClassVar[bool] = False
    """Whether tangents at different measures of a flow may be added.

    Then ``mu.push(u + v, 1.0)`` is ``mu.push(u, 1.0).push(v, 1.0)``, and `inner` is the
    same at both.
    """

    # Required ------------------------------------------------------------------------

    @property
    def coordinates(self) -> Tensor:
        """The free numbers of which the measure is made, one tensor of any shape.

        They are the points of particles, the edges of quantiles, the mean and the
        factor of a Gaussian, the masses of a grid, and those of all parts of `Parts`.
        They keep the graph of the measure; `with_coordinates` takes others.

        Raises
        ------
        Unsupported
            If the representation overrides `value_and_position_gradient` instead.
        """
        self._refuse("coordinates", "coordinates", _STATE)

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return the measure of other numbers, the argument of a functional; unchecked.

        Parameters
        ----------
        coordinates : Tensor
            Of the shape of `coordinates`; a graph on them stays alive.

        Returns
        -------
        Measure
            It shares everything else with this one. Its masses need not sum to 1.

        Raises
        ------
        Unsupported
            If the representation overrides `value_and_position_gradient` instead.
        """
        self._refuse("coordinates", "coordinates", _STATE)

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        r"""Return the tangent :math:`\nabla F'[\mu]` that partial derivatives make.

        Parameters
        ----------
        partials : Tensor
            The derivatives of F in the `coordinates`, of their shape.
        value : callable
            The functional: maps a measure of this kind to a 0-d tensor. Particles
            without mass need it, since their partial derivatives are 0.

        Returns
        -------
        Tensor
            A tangent at the measure; by default `partials` themselves.
        """
        return partials

    def constants(self) -> tuple[Tensor, ...]:
        """Return tensors beside the `coordinates` whose graphs derivatives keep."""
        return (self.weights,)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that say where the measure is: points, masses and others.

        Writes into them are watched, a flow checks that they are finite, and two runs
        start from equal measures if they are equal.
        """
        return self.points, self.weights

    def value_and_position_gradient(self, value: Value) -> tuple[Tensor, Tensor]:
        r"""Return :math:`F(\mu)` and the tangent :math:`\nabla F'[\mu]`, in one pass.

        The tangent is minus the velocity. It costs one value and one backward pass.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.

        Returns
        -------
        value : Tensor
            0-d.
        gradient : Tensor
            A tangent at the measure, of the shape that `push` takes. Value and gradient
            carry a graph if a tensor of the measure carries one.

        Raises
        ------
        InvalidFunctional
            If `value` does not return a differentiable 0-d tensor.
        NonFinite
            If the value or the gradient is NaN or infinite.
        """
        f, partials = value_and_gradient(
            lambda c: value_of(self.with_coordinates(c), value),
            self.coordinates,
            beside=self.constants(),
        )
        return f, self.tangent_of(partials, value)

    @abstractmethod
    def push(self, tangent: Tensor, dt: float) -> Self:
        r"""Move along a tangent v for a time: the exponential map at :math:`\mu`.

        Parameters
        ----------
        tangent : Tensor
            The velocity v, of the shape that the class states.
        dt : float
            Time, of either sign.

        Returns
        -------
        Measure
            The moved measure, of the same kind. It shares the tensors that do not
            change.

        Raises
        ------
        TypeError, ValueError
            If the dtype, the device or the shape of the tangent differs.
        Diverged
            If the moved measure is not finite, or the representation cannot hold it.
            The error carries the measure before the move.
        """

    @abstractmethod
    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        r"""Return :math:`\langle u, v\rangle_{L^2(\mu)} = \int u\cdot v\, d\mu`.

        Parameters
        ----------
        u, v : Tensor
            Tangents at the measure, of the shape that `push` takes.

        Returns
        -------
        Tensor
            0-d.

        Raises
        ------
        TypeError, ValueError
            If the dtype, the device or the shape of a tangent differs.
        """

    @abstractmethod
    def displacement_to(self, other: Self) -> Tensor:
        """Return the tangent whose `push` for time 1 gives `other`.

        The coupling is the natural one of the representation: index to index, level to
        level, and so on. Optimality is not checked.

        Parameters
        ----------
        other : Measure
            Of the same kind, with the same dtype and device.

        Returns
        -------
        Tensor
            A tangent at this measure, of the shape that `push` takes.

        Raises
        ------
        ValueError
            If the natural coupling does not exist, as between different masses.
        """

    def change_to(self, other: Self) -> float:
        """Return how far a step has led: the length of `displacement_to`.

        On cells that are fixed in space it is half the L1 distance of the masses.

        Parameters
        ----------
        other : Measure
            The end of the step.

        Returns
        -------
        float
            The length, or the share of the mass.

        Raises
        ------
        ValueError
            If the natural coupling does not exist.
        """
        if self.on_fixed_cells:
            return 0.5 * float((self.weights - other.weights).abs().sum())
        return float(self.norm(self.displacement_to(other)))

    # Capabilities --------------------------------------------------------------------

    def density(self) -> Tensor:
        """Return the density at the points of the measure.

        Returns
        -------
        Tensor, shape (n,)
            Mass per unit of volume.

        Raises
        ------
        Unsupported
            If the measure has no density.
        """
        self._refuse("density", "density")

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        r"""Return the first variation :math:`F'[\mu] = \partial F/\partial w_i`.

        The masses are free: they are not renormalised. So the first variation is
        defined up to a constant.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.
        x : Tensor or ndarray, shape (m, d), optional
            Where to evaluate; the points of the measure by default.

        Returns
        -------
        Tensor, shape (n,) or (m,)
            It carries a graph if the measure or `x` carries one.

        Raises
        ------
        Unsupported
            If the masses of the measure are fixed.
        InvalidFunctional
            If `value` does not return a differentiable 0-d tensor.
        NonFinite
            If the value or the gradient is NaN or infinite.
        """
        self._refuse("mass_gradient", "mass gradient")

    def transport(self, tangent: Tensor, dt: float) -> Self:
        r"""Push forward by :math:`x \mapsto x + dt\,v(x)` and remap onto the cells.

        It is for a representation whose points are fixed in space: there `push` is a
        flux, and its time step has a limit. Elsewhere `push` moves the points
        themselves.

        Parameters
        ----------
        tangent : Tensor
            The velocity v, of the shape that `push` takes.
        dt : float
            Time, of either sign and any size.

        Returns
        -------
        Measure
            On the same points.

        Raises
        ------
        Unsupported
            If the points of the measure move.
        """
        cure = "its points move, so that its push is exact for every dt; use push"
        self._refuse("transport", "fixed cells to remap onto", cure)

    def pull_back(self, tangent: Tensor, gradient: Tensor) -> Tensor:
        r"""Return the transposed differential of `push` at a tangent, of a gradient.

        Let :math:`\nu_u` be ``push(u, 1.0)``, t the `tangent` and g the `gradient`, a
        tangent at :math:`\nu_t`. The answer is the tangent p at :math:`\mu` with
        :math:`\langle p, v\rangle_\mu = \langle g,
        \tfrac{d}{ds}\nu_{t+sv}\rangle_{\nu_t}` for every v. If tangents are `flat`, p
        is g. A proximal solver uses this method in place of a derivative of `push`.

        Parameters
        ----------
        tangent : Tensor
            The tangent t at this measure.
        gradient : Tensor
            The tangent g at the measure that t leads to.

        Returns
        -------
        Tensor
            The tangent p at this measure.

        Raises
        ------
        Unsupported
            If the representation is not flat and does not override this method.
        """
        if not self.flat:
            cure = "differentiate value(mu.push(tangent, 1.0)) in the tangent"
            self._refuse("pull_back", "transposed differential of its push", cure)
        return gradient

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Run the heat flow for a time: :math:`\mu * N(0, \mathrm{variance}\, I)`.

        Parameters
        ----------
        variance : float
            Variance that the flow adds along each axis, >= 0: twice the time of
            :math:`\partial_t\rho = \Delta\rho`.
        generator : torch.Generator
            Source of the noise, if the representation draws noise. The global random
            state is not touched.

        Returns
        -------
        Measure
            Of the same kind.

        Raises
        ------
        Unsupported
            If the representation has no heat flow.
        """
        self._refuse("diffuse", "heat flow")

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        r"""Return masses :math:`\propto w_i \exp(dt\, r_i)` on the same points.

        Parameters
        ----------
        log_rate : Tensor, shape (n,)
            Growth rate r of each mass. A constant added to r changes nothing.
        dt : float
            Time.

        Returns
        -------
        Measure
            Of mass 1. A mass of zero stays zero.

        Raises
        ------
        Unsupported
            If the masses of the measure are fixed.
        Diverged
            If a rate is NaN or infinite.
        """
        self._refuse("reweight", "masses of its own to change")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n independent points from the measure.

        Parameters
        ----------
        n : int
            Number of draws, >= 1.
        generator : torch.Generator
            Source of randomness. The global random state is not touched.

        Returns
        -------
        Tensor, shape (n, d)
            The draws.

        Raises
        ------
        Unsupported
            If the masses carry a graph: a draw has no derivative in the masses.
        """
        self._refuse("sample", "sampler")

    # Derived -------------------------------------------------------------------------

    @property
    def on_fixed_cells(self) -> bool:
        """Whether points are fixed in space: then `transport` remaps onto them."""
        return type(self).transport is not Measure.transport

    @property
    def pulls_back(self) -> bool:
        """Whether `pull_back` gives gradients in tangents."""
        return self.flat or type(self).pull_back is not Measure.pull_back

    def magnitudes(self, tangent: Tensor) -> Tensor:
        """Return how large the numbers are that each entry of a tangent moves.

        The round-off of a move is in proportion to them. By default they are those of
        the points, if the tangent has their shape, and else the largest of them.

        Parameters
        ----------
        tangent : Tensor
            A tangent, for its shape.

        Returns
        -------
        Tensor
            Non-negative, of the shape of the tangent.
        """
        x = self.points.detach().abs()
        return x if x.shape == tangent.shape else x.max().expand(tangent.shape)

    def radius(self) -> float:
        r"""Return :math:`(\int |x|^2\, d\mu)^{1/2}`, the size of its round-off."""
        return math.sqrt(float(self.expectation(lambda x: x.square().sum(-1))))

    @final
    def zeros(self, *shape: int) -> Tensor:
        """Return zeros of the dtype and on the device of the measure."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def fault(self) -> str:
        """Return what is wrong with the numbers of the measure; "" if nothing is.

        A file that was read is checked by it.
        """
        x, w = self.points, self.weights
        if x.ndim != 2 or w.shape != x.shape[:1] or x.dtype != w.dtype or not len(w):
            return (
                f"points {tuple(x.shape)} {x.dtype}, weights {tuple(w.shape)} {w.dtype}"
            )
        if x.dtype not in (torch.float32, torch.float64):
            return f"points of {x.dtype}"
        if not bool(x.isfinite().all() & w.isfinite().all()):
            return "points or weights that are not finite"
        total = float(w.double().sum())
        if bool((w < 0).any()) or abs(total - 1) > 1e-3:
            return f"weights that are negative or of sum {total:g}, not 1"
        return ""

    @final
    def position_gradient(self, value: Value) -> Tensor:
        r"""Return the tangent :math:`\nabla F'[\mu]`, minus the velocity.

        Parameters
        ----------
        value : callable
            Maps a measure to a 0-d tensor.

        Returns
        -------
        Tensor
            The second answer of `value_and_position_gradient`.
        """
        return self.value_and_position_gradient(value)[1]

    def expectation(self, f: Ground) -> Tensor:
        r"""Return :math:`\int f\, d\mu = \sum_i w_i f(x_i)`.

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

    def interaction(
        self, W: Ground | PairKernel, *, diagonal: bool | None = None
    ) -> Tensor:
        r"""Return :math:`\tfrac12 \iint W(x - y)\, d\mu\, d\mu`, with the factor 1/2.

        Particles sum over all pairs, tile by tile: time O(n^2 d), memory O(n d). They
        omit the pairs i = j if W is singular. A grid and quantiles integrate W over
        their cells; a Gaussian uses its law. The energy is differentiable to any order.

        Parameters
        ----------
        W : PairKernel or callable
            A function takes differences z (..., d) to (...). Wrap a function that is
            infinite at 0: ``kernels.Function(W, singular=True)``; wrap a function of
            both points: ``kernels.TwoPoint(K)``.
        diagonal : bool, optional
            Deprecated; it goes in the next release. The kernel says whether pairs i = j
            count.

        Returns
        -------
        Tensor
            The energy, 0-d.

        Raises
        ------
        NonFinite, InvalidFunctional, Unsupported
            If W is infinite where the representation cannot integrate it.
        """
        return energy_of(self, W, diagonal, self._pair_energy)

    @final
    def convolve(
        self,
        W: Ground | PairKernel,
        x: ArrayLike | None = None,
        *,
        diagonal: bool | None = None,
    ) -> Tensor:
        r"""Return :math:`\int \tfrac12\bigl(W(x_i - y) + W(y - x_i)\bigr)\, d\mu(y)`.

        This is the potential :math:`(W * \mu)(x_i)` of the even part of W. It is the
        first variation of `interaction`. For an even W it is :math:`\int W(x_i - y)\,
        d\mu(y)`.

        Particles sum over the atoms. A grid uses fast Fourier transforms, and
        interpolates between the centres of its cells. A Gaussian sums over its nodes,
        and has a closed form for `kernels.Gaussian`. Quantiles use the rules of
        `interaction`. The potential is differentiable in x, in the measure and in the
        parameters of W.

        Parameters
        ----------
        W : PairKernel or callable
            A function takes differences z (..., d) to (...).
        x : Tensor or ndarray, shape (m, d), optional
            Where to evaluate; the points of the measure by default. There an atom does
            not act on itself if W is singular.
        diagonal : bool, optional
            Deprecated; it goes in the next release, as in `interaction`.

        Returns
        -------
        Tensor, shape (m,) or (n,)
            Time O(n m d), memory O(n + m).

        Raises
        ------
        NonFinite
            If a potential is infinite, as that of a singular kernel at an atom.
        ValueError
            If x has another dimension, or leaves the box of a grid.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.tensor([[-1.0], [1.0]]))
        >>> mu.convolve(of.kernels.Quadratic(), torch.tensor([[0.0], [1.0]]))
        tensor([0.5000, 1.0000])
        """
        probes = None if x is None else self.check_probes(x)
        return potential_of(self, W, probes, diagonal, self._potential)

    def entropy(self) -> Tensor:
        r"""Return :math:`\int \rho\log\rho\, dx`.

        Returns
        -------
        Tensor
            0-d.

        Raises
        ------
        Unsupported
            If the measure has no density.
        """
        return self.internal(torch.log)

    @final
    def mix(self, other: Measure, share: float) -> Self:
        r"""Return the mixture :math:`(1 - s)\,\mu + s\,\nu` of two of a kind.

        Particles keep the atoms of both measures, those of this one first. If the share
        is 0 or 1 they keep the atoms of one measure alone. Densities on one grid add
        their masses.

        Parameters
        ----------
        other : Measure
            The measure :math:`\nu`, of the same dtype and device. The graphs of both
            stay.
        share : float
            Its share s, from 0 to 1.

        Returns
        -------
        Measure
            Of mass 1.

        Raises
        ------
        Unsupported
            If the mixture is no measure of this kind, as that of two Gaussians.
        ValueError
            If the share is not in [0, 1], or the spaces differ.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu, nu = (of.Particles(torch.tensor([[x]])) for x in (0.0, 1.0))
        >>> mu.mix(nu, 0.25).weights
        tensor([0.7500, 0.2500])
        """
        check_kind(other, Measure, "other")
        if positive(share, "share", or_zero=True) > 1:
            msg = f"share must lie between 0 and 1, got {share:g}"
            raise ValueError(msg)
        if not isinstance(other, type(self)):
            cure = "mix draws of both, each Particles(mu.sample(n, generator))"
            self._refuse("mix", f"mixture with {other!r}", cure)
        check_like(other, self, "other", "self")
        if other.dim != self.dim:
            msg = f"other's points have the shape (m, {other.dim}), not (n, {self.dim})"
            raise ValueError(msg)
        return self._mixture(other, float(share))

    def internal(self, e: Ground) -> Tensor:
        r"""Return :math:`\int e(\rho)\, d\mu = \sum_i w_i\,e(\rho_i)`.

        A node without mass has no energy, even if e is infinite at 0. The derivative in
        its mass is e(0), which may be infinite.

        Parameters
        ----------
        e : callable
            Energy per unit of mass, (n,) -> (n,), entry by entry.

        Returns
        -------
        Tensor
            The energy, 0-d.

        Raises
        ------
        Unsupported
            If the measure has no density.
        InvalidFunctional
            If `e` does not return one value per density, of the dtype of the density.
        """
        return internal_energy(e, self.density(), self.weights)

    @final
    def norm(self, u: Tensor) -> Tensor:
        r"""Return :math:`\|u\|_{L^2(\mu)}`: the W2 speed of the tangent `u`.

        The gradient of the norm at u = 0 is set to 0. Tangents whose squares underflow
        or overflow are measured correctly.

        Parameters
        ----------
        u : Tensor
            A tangent at the measure, of the shape that `push` takes.

        Returns
        -------
        Tensor
            0-d.
        """
        square = self.inner(u, u)
        kind = torch.finfo(u.dtype)
        # Outside of this range squares of entries underflow or overflow: then u is
        # scaled first.
        in_range = kind.tiny / kind.eps**2 < float(square.detach()) < kind.max
        if in_range and not records(square):
            return square.sqrt()
        unit = unit_of(u)
        u = u / unit
        square = self.inner(u, u)
        # The root has an infinite derivative at 0: it is taken at 1 there instead.
        zero = square == 0
        return unit * square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        as_points(self.points)
        return {}

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

    def __len__(self) -> int:
        return self.n

    def __bool__(self) -> bool:
        return True  # a measure is there, however many points it has

    # Beside an array, in `array == mu` for one, a measure is no array.
    __array_ufunc__ = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Raise `Unsupported`: only uniform particles are an array."""
        cure = "use mu.points.numpy() and mu.weights.numpy()"
        self._refuse("array", "form as an array, which would lose its weights", cure)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n={self.n}, d={self.dim}, "
            f"dtype={str(self.dtype).removeprefix('torch.')}, device={self.device})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the measure in words and as a small picture."""

        def picture() -> str:
            svg, caption = drawn(self)
            return figure(repr(self), svg, caption)

        return harmless(self, picture)

    def _pair_energy(self, W: Kernel) -> Tensor:
        """Return `interaction` of a kernel; a grid, for one, overrides it."""
        return pair_energy(W, self.points, self.weights)

    def _mixture(self, other: Self, share: float) -> Self:
        """Return `mix` with another measure of this kind, for a share from 0 to 1."""
        self._refuse("mix", "mixtures")

    def _potential(self, W: Kernel, x: Tensor | None) -> Tensor:
        """Return `convolve` of the even part of W, at checked probes or the points."""
        return pair_potential(W, x, self.points, self.weights)

    # Helpers for the children --------------------------------------------------------

    def _refuse(
        self, capability: str, what: str, cure: str = "use a representation that has it"
    ) -> NoReturn:
        """Raise Unsupported, with the entry of `cures` for the capability."""
        name = type(self).__name__
        cure = self.cures.get(capability, cure)
        msg = f"{name} has no {what}: {cure}"
        raise Unsupported(msg)

    @final
    def check_probes(self, x: ArrayLike) -> Tensor:
        """Return `x` as points (m, d) of the measure's dimension, dtype and device.

        Parameters
        ----------
        x : Tensor or ndarray, shape (m, d)
            Points.

        Returns
        -------
        Tensor, shape (m, d)
            With its graph.

        Raises
        ------
        TypeError, ValueError
            If the shape, the dtype or the device differs, or an entry is not finite.
        """
        x = as_points(x, "x")
        check_like(x, self.points, "x", "points")
        if x.shape[1] != self.dim:
            msg = f"x must have shape (m, {self.dim}), got {tuple(x.shape)}"
            raise ValueError(msg)
        return x

    @property
    def tangent_shape(self) -> tuple[int, ...]:
        """Shape of a tangent: by default that of the points, one row for each."""
        return self.points.shape

    def _check_tangent(self, tangent: Tensor, name: str = "tangent") -> None:
        shape = self.tangent_shape
        if not isinstance(tangent, Tensor) or tangent.shape != shape:
            got = getattr(tangent, "shape", type(tangent).__name__)
            expected = f"{tuple(shape)}{self._tangent_layout}"
            msg = f"{name} must have shape {expected}, got {got}"
            raise ValueError(msg)
        check_like(tangent, self, name, "points")


keep_immutable(Measure, "points", "weights")
