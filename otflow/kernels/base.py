"""What a kernel is: kernels of the difference of two points, and their algebra."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from otflow._algebra import (
    Curvature,
    curvature_named,
    inverse,
    sum_of_bounds,
    sum_of_curvatures,
    text_of_multiple,
    text_of_sum,
)
from otflow._graphs import recording
from otflow._typing import Ground
from otflow._validation import check_function, check_kind, check_map, real
from otflow.kernels.pairs import PairKernel
from otflow.numerics.enclosed_sums import combination
from otflow.numerics.enclosures import Enclosure

__all__ = ["Combination", "Function", "Kernel", "as_kernel"]


class Kernel(PairKernel):
    r"""A function W of the difference of two points, with known properties.

    Energies and potentials of a measure read these properties from the kernel alone.
    `as_kernel` wraps a plain function as a `Function`.

    Attributes
    ----------
    singular : bool
        Whether W(0) is infinite. Then sums over atoms omit the pairs i = j.
    smooth : bool
        Whether the slope is known to be bounded at 0.
    is_radial : bool
        Whether W is a function of :math:`|z|`, hence even.
    modulus : float or None
        A :math:`\lambda` such that W is :math:`\lambda`-convex; None if none is known.

    See Also
    --------
    RadialKernel, Function : The two kinds.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.as_kernel(lambda z: z.sum(-1) + z.square().sum(-1))
    >>> W(torch.ones(2)), W.even(torch.ones(2))
    (tensor(4.), tensor(2.))
    """

    is_radial: bool = False

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """Return W(z) for differences z (..., d)."""

    def values(self, z: Tensor) -> Tensor:
        """Return W(z) at differences z (..., d), checked: one number for each.

        Raises
        ------
        InvalidFunctional
            If W returns another shape or dtype.
        """
        what, cure = "an interaction W", "reduce over the last axis: .sum(-1)"
        return check_map(self(z), z, z.shape[:-1], what, "differences z", cure)

    def even(self, z: Tensor) -> Tensor:
        r"""Return :math:`\tfrac12(W(z) + W(-z))`, the part of W that an energy sees."""
        if self.is_radial:
            return self.values(z)
        return 0.5 * (self.values(z) + self.values(-z))

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        return self.values(x - y)

    def even_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        return self.even(x - y)

    @property
    def bare(self) -> Kernel:
        """The kernel that a density sees, whose pairs are not those of atoms."""
        return self

    def key(self) -> tuple[Any, ...] | None:
        """Return what identifies the kernel, or None if its values may change.

        A convolution on a grid is kept for kernels of equal key, dtype and device.
        """
        return None

    def has_graph(self, like: Tensor) -> bool:
        """Return whether parameters of W, as of a network, are being recorded."""
        if not recording() or self.key() is not None:
            return False
        # At a difference other than 0: a user's kernel may be undefined at 0.
        values = self(torch.ones_like(like[:1]).detach())
        # An answer that is no tensor raises later, in `values`.
        return bool(getattr(values, "requires_grad", False))

    def terms(self) -> tuple[tuple[float, Kernel], ...]:
        r"""Return pairs ``(c_k, W_k)`` with :math:`W = \sum_k c_k W_k`.

        A measure integrates each term by the method that is best for it. By default a
        kernel is one term, itself.
        """
        return ((1.0, self),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # Algebra -------------------------------------------------------------------------

    # With an array beside it, the kernel decides: the array does not take it apart.
    __array_ufunc__ = None

    def __add__(self, other: object) -> Kernel:
        """Return the sum of two kernels."""
        if not isinstance(other, Kernel):
            return NotImplemented
        return _combined(*self.terms(), *other.terms())

    def __radd__(self, other: object) -> Kernel:
        """Return the kernel itself for the number 0, with which `sum` begins."""
        return self if type(other) is int and other == 0 else NotImplemented

    def __neg__(self) -> Kernel:
        """Return minus the kernel."""
        return -1.0 * self

    def __sub__(self, other: object) -> Kernel:
        """Return the difference of two kernels."""
        return self + -other if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, factor: object) -> Kernel:
        """Return the kernel times a real number."""
        if isinstance(factor, (Kernel, str)):
            return NotImplemented
        number = real(factor, "the factor of a kernel")
        return _combined(*((number * c, W) for c, W in self.terms()))

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Kernel:
        """Return the kernel over a real number other than 0."""
        if isinstance(divisor, (Kernel, str)):
            return NotImplemented
        return inverse(divisor, "a kernel") * self


class Combination(Kernel):
    r"""A sum of multiples of kernels, :math:`W = \sum_k c_k W_k`.

    ``W + V``, ``W - V``, ``2 * W``, ``-W`` and ``W / 2`` make one. Energies and
    potentials of a measure are linear in the kernel: each term is integrated by itself,
    in closed form if it has one, and the results are added. So each term keeps its own
    rule for pairs i = j. Atoms omit these pairs under a singular term, and count them
    under the others.

    Parameters
    ----------
    parts : tuple of (float, Kernel)
        Factors and kernels.

    Attributes
    ----------
    parts
        As above.
    singular : bool
        Whether one of the kernels is singular.
    smooth, is_radial : bool
        Whether every kernel is.
    modulus : float or None
        The sum of the bounds, each times its factor. It is unknown if a bound is
        unknown or has a negative factor.
    mixture : Curvature or None
        That of the sum; a negative factor turns "convex" into "concave".

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = 2 * of.kernels.Quadratic() + of.kernels.Log()
    >>> W, W.singular, W(torch.ones(1))
    (2 * Quadratic() + Log(), True, tensor(1.))
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> mu.interaction(W)  # 2 (1/2) (1/4 + 1/4) / 2, and log 1
    tensor(0.2500)
    """

    _fixed = frozenset({"parts"})

    def __init__(self, parts: tuple[tuple[float, Kernel], ...]) -> None:
        flat: list[tuple[float, Kernel]] = []
        for c, W in parts:
            factor = real(c, "the factor of a kernel")
            check_kind(W, Kernel, "a part", cure="wrap a function: kernels.Function(W)")
            flat += [(factor * a, V) for a, V in W.terms()]
        if not flat:
            msg = "a Combination has no parts; a kernel that is 0 is 0 * Quadratic()"
            raise ValueError(msg)
        self.parts = tuple(flat)
        _words(self.parts)

    # Of the kernels as they are now: one may be given another width.
    @property
    def singular(self) -> bool:  # type: ignore[override]
        """Whether one of the kernels is singular."""
        return any(W.singular for _, W in self.parts)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """Whether every kernel is smooth."""
        return all(W.smooth for _, W in self.parts)

    @property
    def is_radial(self) -> bool:  # type: ignore[override]
        """Whether every kernel is radial."""
        return all(W.is_radial for _, W in self.parts)

    @property
    def modulus(self) -> float | None:  # type: ignore[override]
        """The sum of the bounds."""
        return sum_of_bounds((c, W.modulus) for c, W in self.parts)

    @property
    def mixture(self) -> Curvature | None:  # type: ignore[override]
        """That of the sum."""
        return sum_of_curvatures(_words(self.parts))

    def why_modulus(self) -> str:
        if self.modulus is not None:
            return "the sum of the bounds of its kernels"
        for c, W in self.parts:
            if c < 0:
                return f"since -{W!r} has no bound that is known"
            if c and W.modulus is None:
                return W.why_modulus()
        return "since the sum of its bounds is infinite"

    def why_mixture(self) -> str:
        if self.mixture is not None:
            return "by the signs of its kernels: " + "; ".join(
                f"{W!r} times {c:g} {W.why_mixture()}" for c, W in self.parts if c
            )
        for c, W in self.parts:
            if c and W.mixture is None:
                return f"because of {W!r}, {W.why_mixture()}"
        return "since one of its kernels is convex and another one is concave"

    def terms(self) -> tuple[tuple[float, Kernel], ...]:
        return self.parts

    def field(
        self, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
    ) -> tuple[Tensor, Tensor]:
        found = [
            (c, W.field(x, points, masses, gradients=gradients)) for c, W in self.parts
        ]
        potentials = sum((c * f[0] for c, f in found), x.new_zeros(()))
        return potentials, sum((c * f[1] for c, f in found), x.new_zeros(()))

    def __call__(self, z: Tensor) -> Tensor:
        return sum((c * W.values(z) for c, W in self.parts), z.new_zeros(()))

    def even(self, z: Tensor) -> Tensor:
        return sum((c * W.even(z) for c, W in self.parts), z.new_zeros(()))

    def enclosed_field(self, x: Enclosure, points: Tensor, masses: Tensor) -> Enclosure:
        fields = ((c, W.enclosed_field(x, points, masses)) for c, W in self.parts)
        return combination(fields, x)

    @property
    def bare(self) -> Kernel:
        return Combination(tuple((c, W.bare) for c, W in self.parts))

    def key(self) -> tuple[Any, ...] | None:
        keys = tuple((c, W.key()) for c, W in self.parts)
        return None if any(k is None for _, k in keys) else (Combination, *keys)

    def __repr__(self) -> str:
        return text_of_sum(
            repr(W) if c == 1 else text_of_multiple(c, repr(W), in_brackets=False)
            for c, W in self.parts
        )


def _combined(*parts: tuple[float, Kernel]) -> Kernel:
    """Return the combination of these parts; one kernel times 1 is itself."""
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    return Combination(parts)


class Function(Kernel):
    r"""A plain function as a kernel.

    Parameters
    ----------
    function : callable
        Takes differences z (..., d) to (...), written with torch operations.
    singular : bool
        Whether sums over atoms omit the pairs i = j; True for a function that is
        infinite at 0.
    modulus : float, optional
        A :math:`\lambda` such that it is :math:`\lambda`-convex.
    mixture : {"convex", "concave", "linear"}, optional
        How its interaction energy bends along mixtures: "convex" for a function that is
        conditionally positive definite. The word is not checked.

    Attributes
    ----------
    function, singular, modulus, mixture
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.Function(lambda z: -z.norm(dim=-1).log(), singular=True)
    >>> of.Particles(torch.tensor([[0.0], [1.0]])).interaction(W)
    tensor(0.)
    """

    _fixed = frozenset({"function"})

    def __init__(
        self,
        function: Ground,
        *,
        singular: bool = False,
        modulus: float | None = None,
        mixture: Curvature | str | None = None,
    ) -> None:
        self.function = function
        self.singular = singular
        self.is_radial = isinstance(function, Kernel) and function.is_radial
        bound = None if modulus is None else real(modulus, "modulus")
        self._declare(Function, bound, curvature_named(mixture, "mixture"))

    @property
    def bare(self) -> Kernel:
        return self.function.bare if isinstance(self.function, Kernel) else self

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", None) or type(self.function).__name__


def _words(
    parts: tuple[tuple[float, Kernel], ...],
) -> list[tuple[float, Curvature | None]]:
    """Return the factors and mixtures of kernels; raise if a mixture is no word."""
    return [(c, curvature_named(W.mixture, f"the mixture of {W!r}")) for c, W in parts]


def as_kernel(W: Ground | PairKernel) -> PairKernel:
    """Return a kernel itself, and a plain function of differences as a `Function`.

    Parameters
    ----------
    W : PairKernel or callable
        A function takes differences z (..., d) to (...).

    Returns
    -------
    PairKernel
        W, or a `Function` of W.

    Raises
    ------
    TypeError
        If W is a class, or not callable, or a function that needs two arguments.

    Examples
    --------
    >>> import otflow as of
    >>> W = of.kernels.Log()
    >>> of.kernels.as_kernel(W) is W, of.kernels.as_kernel(abs)
    (True, abs)
    """
    if isinstance(W, PairKernel):
        return W
    if isinstance(W, type):
        msg = f"W is the class {W.__name__}; write {W.__name__}() with its options"
        raise TypeError(msg)
    check_function(W, "W must be a function (..., d) -> (...)")
    if not _takes_one(W):
        msg = (
            "W must be a function of the difference of two points, one argument; for a "
            "function of both points write kernels.TwoPoint(W)"
        )
        raise TypeError(msg)
    return Function(W)


def _takes_one(function: Ground) -> bool:
    """Return whether a function may be called with one argument, as far as is known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # as of some functions that are written in C
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True
