"""What every representation of a measure must do, can do, and may refuse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, final

import torch
from torch import Tensor

from otflow._arrays import as_points, unit_of
from otflow._graphs import (
    keep_assigned_immutable,
    keep_fields_immutable,
    keep_immutable,
    records,
    refuse_graph,
    without_counters,
)
from otflow._moving import Move, move_of
from otflow._svg import figure, harmless
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import (
    check_kind,
    check_like,
    positive,
)
from otflow.errors import Unsupported
from otflow.kernels import Kernel, PairKernel
from otflow.measures.moving import carried
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


class Measure(ABC):
    r"""A quadrature rule plus a tangent space.

    A measure stands for :math:`\mu \approx \sum_i w_i \delta_{x_i}`: nodes `points` (n,
    d) with masses `weights` (n,) of sum 1. The nodes are atoms, centres of cells or
    nodes of a quadrature rule. Functionals see a measure through `expectation`,
    `interaction` and `internal`; schemes move it by `push`. A measure is immutable:
    every verb returns a new one. A measure made of tensors with a graph keeps the
    graph, and so does everything computed from the measure. A verb that cannot keep the
    graph raises `Unsupported`; `detach` drops the graph.

    A new representation is one file. It defines `points` and `weights`, the required
    verbs (`value_and_position_gradient`, `push`, `inner`, `displacement_to`), and the
    capabilities that it has (`density`, `mass_gradient`, `transport`, `diffuse`,
    `reweight`, `sample`). A capability that it lacks raises `Unsupported` with the
    entry of `cures`.

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

    _tangent_layout: ClassVar[str] = ""
    __dataclass_fields__: ClassVar[dict[str, Any]]
    flat: ClassVar[bool] = False
    """Whether tangents at different measures of a flow may be added.

    Then ``mu.push(u + v, 1.0)`` is ``mu.push(u, 1.0).push(v, 1.0)``, and `inner` is the
    same at both.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Let tensors of a representation of your own raise after a write into them."""
        super().__init_subclass__(**options)
        keep_fields_immutable(cls)

    if not TYPE_CHECKING:  # it would allow any attribute

        def __setattr__(self, name: str, value: Any) -> None:
            keep_assigned_immutable(self, name, value)
            super().__setattr__(name, value)

    # Required ------------------------------------------------------------------------

    @abstractmethod
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
        check_like(other.weights, self.weights, "other", "self")
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

    def detach(self) -> Self:
        """Return the same measure without the graph of its tensors.

        Nothing is copied. A measure without a graph is returned itself.

        Examples
        --------
        >>> import torch, otflow as of
        >>> x = torch.ones(3, 2, requires_grad=True)
        >>> of.Particles(x).detach().points.requires_grad
        False
        """
        for value in self._held():
            if isinstance(value, Tensor) and value.requires_grad:
                return self.map_tensors(Tensor.detach)
        return self

    @final
    def to(self, *place: Any, dtype: Any = None, device: Any = None) -> Self:
        """Return the same measure in another dtype or on another device.

        The arguments are those of ``Tensor.to``: a dtype, a device, both, or a tensor
        or measure that has them. Graphs stay. What follows from other tensors, such as
        the centres of cells, is computed again in the new dtype.

        From float32 to float64 the weights are renormalised. In float32 they sum to 1
        to about 1e-7 only, in float64 to round-off: equal weights become 1/n, others
        are divided by their sum, which counts as a constant in derivatives. From
        float64 to float32 each weight is rounded, and the sum is 1 to round-off of
        float32; a mass below 1e-45 becomes 0. Weights that are no probability, such as
        those of `with_free_atoms`, are never renormalised.

        Parameters
        ----------
        *place
            A dtype, a device, both, or a tensor or a measure that has them.
        dtype, device : optional
            The same by name.

        Returns
        -------
        Measure
            Of the same kind; itself if nothing changes.

        Raises
        ------
        ValueError
            If the dtype is a half precision, or float32 cannot hold the measure: points
            are too large, quantiles coincide, a covariance becomes singular.
        TypeError
            If the dtype is not real floating-point, or the device holds no numbers.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.zeros(3, 2)).to(torch.float64)
        >>> mu, float(mu.weights.sum())
        (Particles(n=3, d=2, dtype=float64, device=cpu), 1.0)
        """
        return self.carry(move_of(*place, dtype=dtype, device=device))

    def carry(self, move: Move) -> Self:
        """Return the measure after a move: what `to` does.

        By default every attribute is moved, and then replaced by that of `_retyped`.
        """
        return carried(self, move)

    def _retyped(self, before: Self, move: Move) -> dict[str, Any]:
        """Return the attributes that follow from others, after a change of dtype.

        It raises ValueError if the new dtype cannot hold the measure.
        """
        as_points(self.points)
        return {}

    @final
    def clone(self) -> Self:
        """Return the same measure, with its graph, in tensors of its own.

        A moved measure shares the tensors that did not change, such as weights. A clone
        shares nothing.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.zeros(3, 2))
        >>> mu.clone().points.data_ptr() == mu.points.data_ptr()
        False
        """
        return self.map_tensors(Tensor.clone)

    @final
    def refuse_graph(self, what: str, why: str, cure: str) -> None:
        """Raise `Unsupported` if a tensor of this measure carries a graph.

        A verb calls it before it would lose the graph.

        Parameters
        ----------
        what, why : str
            What would lose the graph, and why.
        cure : str
            What to use in its place.
        """
        tensors = (value for value in self._held() if isinstance(value, Tensor))
        refuse_graph(what, why, *tensors, cure=cure)

    def _hold(self, **attributes: Any) -> None:
        """Set the attributes of the measure; from then on it is immutable."""
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _changed(self, **attributes: Any) -> Self:
        """Return a copy with these attributes replaced; nothing is checked."""
        new = object.__new__(type(self))
        for name in _field_names(type(self)):
            value = attributes[name] if name in attributes else getattr(self, name)
            object.__setattr__(new, name, value)
        return new

    @final
    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same measure with each tensor replaced; nothing is checked.

        Parameters
        ----------
        change : callable
            Takes a tensor of the measure to the tensor that replaces it.

        Returns
        -------
        Measure
            Of the same kind.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.zeros(3, 2)).map_tensors(torch.Tensor.double)
        >>> mu.dtype
        torch.float64
        """
        new = object.__new__(type(self))
        held = self._attributes().items()
        new._hold(**{k: change(v) if isinstance(v, Tensor) else v for k, v in held})
        return new

    def _held(self) -> list[Any]:
        """Return what the attributes hold, slots and counters of writes too."""
        held = list(vars(self).values())
        for name in _slots(type(self)):
            held.append(getattr(self, name, None))
        return held

    def _attributes(self) -> dict[str, Any]:
        """Return all attributes, slots too, without the counters of writes."""
        # A copy has new counters: a tensor that was written into must raise here.
        names = (*without_counters(vars(self)), *_slots(type(self)))
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def __getstate__(self) -> Any:
        return self._attributes()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._hold(**state)  # writes are counted from now on

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
    def _tangent_shape(self) -> tuple[int, ...]:
        return self.points.shape

    def _check_tangent(self, tangent: Tensor, name: str = "tangent") -> None:
        shape = self._tangent_shape
        if not isinstance(tangent, Tensor) or tangent.shape != shape:
            got = getattr(tangent, "shape", type(tangent).__name__)
            expected = f"{tuple(shape)}{self._tangent_layout}"
            msg = f"{name} must have shape {expected}, got {got}"
            raise ValueError(msg)
        check_like(tangent, self.points, name, "points")


@lru_cache
def _field_names(kind: type[Measure]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@lru_cache
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(s for k in kind.__mro__ for s in getattr(k, "__slots__", ()))


keep_immutable(Measure, "points", "weights")
