"""What every representation of a measure must do, can do, and may refuse."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, final

import torch
from torch import Tensor

from otflow._graphs import COUNTER, Immutable, records, refuse_graph
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import (
    as_points,
    check_finite,
    check_kind,
    check_like,
    positive,
    unit_of,
)
from otflow.errors import Unsupported
from otflow.kernels import Function, Kernel, as_kernel
from otflow.measures.sums import integrate, internal_energy, pair_energy, pair_potential

__all__ = ["Measure", "keep_immutable", "kernel_at_the_door"]


class Measure(ABC):
    r"""A quadrature rule plus a tangent space.

    A measure stands for :math:`\mu \approx \sum_i w_i \delta_{x_i}`: atoms, cell
    centres or quadrature nodes `points` (n, d) with masses `weights` (n,) of sum 1.
    Functionals
    see it through `expectation`, `interaction` and `internal`; schemes move it by
    `push`. A measure is immutable: every verb returns a new one. Made of tensors with a
    graph it keeps the graph, and so does all that is made of it; a verb that cannot
    raises `Unsupported`. `detach` leaves it behind.

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

    def pull_back(self, tangent: Tensor, gradient: Tensor) -> Tensor:
        r"""Return the transposed differential of `push` at a tangent, of a gradient.

        With :math:`\nu_u` for ``push(u, 1.0)`` and a tangent g at :math:`\nu_t`, it is
        the tangent p at :math:`\mu` with :math:`\langle p, v\rangle_\mu = \langle g,
        \tfrac{d}{ds}\nu_{t+sv}\rangle_{\nu_t}` for every v: g itself where tangents
        are `flat`. A proximal solver that has it needs no derivative of `push`.
        """
        if not self.flat:
            cure = "differentiate value(mu.push(tangent, 1.0)) in the tangent"
            self._refuse("pull_back", "transposed differential of its push", cure)
        return gradient

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

    def interaction(self, W: Ground, *, diagonal: bool | None = None) -> Tensor:
        r"""Return :math:`\tfrac12 \iint W(x - y)\, d\mu\, d\mu`, with the 1/2.

        On particles the double sum, tile by tile and differentiable to any order, in
        time O(n^2 d) and memory O(n d); pairs i = j are left out if W is singular. A
        density integrates W over its cells, or by its law. A representation with more
        structure may override it.

        Parameters
        ----------
        W : Kernel or callable
            Takes differences z (..., d) to (...). A function that is infinite at 0 is
            ``kernels.Function(W, singular=True)``.
        diagonal : bool, optional
            Goes in the next release: the kernel says whether pairs i = j count.

        Returns
        -------
        Tensor
            The energy, 0-d.
        """
        return self._pair_energy(kernel_at_the_door(W, diagonal))

    @final
    def convolve(
        self,
        W: Ground,
        x: ArrayLike | None = None,
        *,
        diagonal: bool | None = None,
    ) -> Tensor:
        r"""Return the potential :math:`(W * \mu)(x_i) = \int W(x_i - y)\, d\mu(y)`.

        W stands for its even part, so that it is the first variation of `interaction`.
        On particles the sum over the atoms; on a grid by fast Fourier transforms at the
        cells, and interpolated between their centres; a Gaussian by its nodes, or in
        closed form for `kernels.Gaussian`; quantiles by the rules of `interaction`.
        Differentiable in x, in the measure and in parameters of W.

        Parameters
        ----------
        W : Kernel or callable
            Takes differences z (..., d) to (...).
        x : Tensor or ndarray, shape (m, d), optional
            Where; at the points of the measure by default, where an atom does not act
            on itself if W is singular.
        diagonal : bool, optional
            Goes in the next release, as in `interaction`.

        Returns
        -------
        Tensor, shape (m,) or (n,)
            Time O(n m d), memory O(n + m).

        Raises
        ------
        NonFinite
            If a potential is infinite, as that of a singular kernel at an atom.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.tensor([[-1.0], [1.0]]))
        >>> mu.convolve(of.kernels.Quadratic(), torch.tensor([[0.0], [1.0]]))
        tensor([0.5000, 1.0000])
        """
        kernel = kernel_at_the_door(W, diagonal)
        probes = None if x is None else self.check_probes(x)
        potential = self._potential(kernel, probes)
        check_finite(potential, f"the potential of {kernel!r}")
        return potential

    def entropy(self) -> Tensor:
        r"""Return :math:`\int \rho\log\rho\, dx`, 0-d; where there is none it raises.

        Raises
        ------
        Unsupported
            If the measure has no density.
        """
        return self.internal(torch.log)

    @final
    def mix(self, other: Measure, share: float) -> Self:
        r"""Return the mixture :math:`(1 - s)\,\mu + s\,\nu` of two of a kind.

        Particles have the atoms of both, this measure's first, and of a share 0 or 1
        those of one alone; densities on one grid have the sum of their masses. What is
        no measure of the kind any more, as a mixture of Gaussians, raises.

        Parameters
        ----------
        other : Measure
            The measure :math:`\nu`, of the same dtype and device. Graphs of both stay.
        share : float
            Its share s, from 0 to 1.

        Returns
        -------
        Measure
            Of mass 1.

        Raises
        ------
        Unsupported
            If there is no such measure of this kind.
        ValueError
            If the share is no share, or the spaces differ.

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
        return self._mixture(other, float(share))

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
        return internal_energy(e, self.density(), self.weights)

    @final
    def norm(self, u: Tensor) -> Tensor:
        r"""Return :math:`\|u\|_{L^2(\mu)}`: the W2 speed of the tangent `u`.

        Where it is 0 its gradient is set to 0. Tangents whose squares underflow or
        overflow are measured too.
        """
        square = self.inner(u, u)
        kind = torch.finfo(u.dtype)
        in_range = kind.tiny / kind.eps**2 < float(square.detach()) < kind.max
        if in_range and not records(square):
            return square.sqrt()
        unit = unit_of(u)
        u = u / unit
        square = self.inner(u, u)
        zero = square == 0
        return unit * square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)

    def detach(self) -> Self:
        """Return the same measure without the graph of its tensors.

        Nothing is copied, and a measure without a graph is returned itself.

        Examples
        --------
        >>> import torch, otflow as of
        >>> x = torch.ones(3, 2, requires_grad=True)
        >>> of.Particles(x).detach().points.requires_grad
        False
        """
        slots = (getattr(self, name, None) for name in _slots(type(self)))
        for held in (*vars(self).values(), *slots):
            if isinstance(held, Tensor) and held.requires_grad:
                return self.map_tensors(Tensor.detach)
        return self

    @final
    def clone(self) -> Self:
        """Return the same measure, with its graph, in tensors of its own.

        Moves of a measure share what they do not change, such as weights; a clone
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
        """Raise `Unsupported` where `what` would lose a graph of this measure.

        Parameters
        ----------
        what, why : str
            What would lose it, and why.
        cure : str
            What to use in its place.
        """
        held = self._attributes().values()
        tensors = (value for value in held if isinstance(value, Tensor))
        refuse_graph(what, why, *tensors, cure=cure)

    def _hold(self, **attributes: Any) -> None:
        """Set what the measure is made of; from then on it is immutable."""
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _changed(self, **attributes: Any) -> Self:
        """Return a copy that holds these in place of its own, unchecked."""
        new = object.__new__(type(self))
        for name in _field_names(type(self)):
            value = attributes[name] if name in attributes else getattr(self, name)
            object.__setattr__(new, name, value)
        return new

    @final
    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same measure with each of its tensors replaced; none is checked.

        Parameters
        ----------
        change : callable
            Takes each tensor that the measure holds to the one in its place.

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

    def _attributes(self) -> dict[str, Any]:
        """Return what the measure holds, in slots too; not the counters of writes."""
        state = _without_counters(vars(self))
        for name in _slots(type(self)):
            if hasattr(self, name):
                state[name] = getattr(self, name)
        return state

    def __getstate__(self) -> Any:
        return _without_counters(vars(self))

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

    def _pair_energy(self, W: Kernel) -> Tensor:
        return pair_energy(W, self.points, self.weights)

    def _mixture(self, other: Self, share: float) -> Self:
        self._refuse("mix", "mixtures")

    def _potential(self, W: Kernel, x: Tensor | None) -> Tensor:
        return pair_potential(W, x, self.points, self.weights)

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
            With its graph.
        """
        x = as_points(x, "x")
        check_like(x, self.points, "x", "points")
        if x.shape[1] != self.dim:
            msg = f"x must have shape (m, {self.dim}), got {tuple(x.shape)}"
            raise ValueError(msg)
        return x

    @property
    def _tangent_shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape)

    def _check_tangent(self, tangent: Tensor, name: str = "tangent") -> None:
        shape = self._tangent_shape
        if not isinstance(tangent, Tensor) or tangent.shape != shape:
            got = getattr(tangent, "shape", type(tangent).__name__)
            msg = f"{name} must have shape {shape}{self._tangent_layout}, got {got}"
            raise ValueError(msg)
        check_like(tangent, self.points, name, "points")


def kernel_at_the_door(W: Ground, diagonal: bool | None) -> Kernel:
    """Return the kernel of a function, and of the option of the last release."""
    kernel = as_kernel(W)
    if diagonal is None:
        return kernel
    msg = (
        "diagonal= goes in the next release: a kernel is singular or not; leave the "
        "pairs i = j out by kernels.Function(W, singular=True)"
    )
    warnings.warn(msg, DeprecationWarning, stacklevel=3)
    same = kernel.singular != diagonal
    return kernel if same else Function(kernel, singular=not diagonal)


@lru_cache
def _field_names(kind: type[Measure]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@lru_cache
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(s for k in kind.__mro__ for s in getattr(k, "__slots__", ()))


def _without_counters(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in state.items() if not name.startswith(COUNTER)
    }


def keep_immutable(kind: type[Any], *names: str) -> None:
    """Watch these attributes of a class of measures, which hold tensors, for writes."""
    for name in names:
        setattr(kind, name, Immutable(name))


keep_immutable(Measure, "points", "weights")
