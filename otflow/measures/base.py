"""What every representation of a measure must do, can do, and may refuse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, NoReturn, Self, final

import torch
from torch import Tensor

from otflow._graphs import COUNTER, Immutable, records, refuse_graph
from otflow._typing import ArrayLike, Ground, Value
from otflow._validation import as_points, check_like, unit_of
from otflow.errors import Unsupported
from otflow.measures.sums import integrate, internal_energy, pair_energy

__all__ = ["Measure", "keep_immutable"]


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

    points: Tensor
    weights: Tensor

    cures: ClassVar[dict[str, str]] = {}
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
        return internal_energy(e, self.density(), self.weights)

    @final
    def norm(self, u: Tensor) -> Tensor:
        r"""Return :math:`\|u\|_{L^2(\mu)}`: the W2 speed of the tangent `u`.

        Where it is 0 its gradient is set to 0. Tangents whose squares underflow or
        overflow are measured too.
        """
        square = self.inner(u, u)
        kind = torch.finfo(u.dtype)
        in_range = kind.tiny / kind.eps**2 < float(square) < kind.max
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
        held = self._attributes().values()
        if not any(isinstance(t, Tensor) and t.requires_grad for t in held):
            return self
        return self.map_tensors(Tensor.detach)

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
        for name in self.__dataclass_fields__:
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
