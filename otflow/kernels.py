"""Interaction kernels: radial profiles that are safe at zero, and plain functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, final

import torch
from torch import Tensor

from otflow._algebra import inverse, sum_of_bounds, text_of_multiple, text_of_sum
from otflow._graphs import recording
from otflow._moving import Move, move_of, moved_attributes
from otflow._pairs import Sweep
from otflow._radial import power, power_slope, radial_sweep
from otflow._typing import Ground
from otflow._validation import (
    check_function,
    check_kind,
    check_map,
    positive,
    real,
)

__all__ = [
    "Combination",
    "Energy",
    "Function",
    "Gaussian",
    "Kernel",
    "Log",
    "PowerLaw",
    "Quadratic",
    "RadialKernel",
    "Riesz",
    "as_kernel",
]


def __dir__() -> list[str]:
    return __all__


class Kernel(ABC):
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

    singular: bool = False
    smooth: bool = False
    is_radial: bool = False
    modulus: float | None = None

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

    def closed_sweep(self) -> Sweep | None:
        """Return a closed form of the sums over pairs, or None to use autodiff."""
        return None

    def terms(self) -> tuple[tuple[float, Kernel], ...]:
        r"""Return pairs ``(c_k, W_k)`` with :math:`W = \sum_k c_k W_k`.

        A measure integrates each term by the method that is best for it. By default a
        kernel is one term, itself.
        """
        return ((1.0, self),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # Copies --------------------------------------------------------------------------

    @final
    def to(self, *place: Any, dtype: Any = None, device: Any = None) -> Self:
        """Return the kernel with its tensors in another dtype or on another device.

        A kernel made of numbers is returned itself: it follows the measure.

        Parameters
        ----------
        *place
            A dtype, a device, both, or a tensor that has them.
        dtype, device : optional
            The same by name.

        Returns
        -------
        Kernel
            Itself if nothing changes.

        Raises
        ------
        Unsupported
            If a tensor that a function holds would have to move.
        TypeError, ValueError
            If the dtype is not float32 or float64.
        """
        return self.carry(move_of(*place, dtype=dtype, device=device))

    def carry(self, move: Move) -> Self:
        """Return the kernel after a move: what `to` does, for a kernel of your own."""
        return moved_attributes(self, move)

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
        kernels = [W for _, W in self.parts]
        self.singular = any(W.singular for W in kernels)
        self.smooth = all(W.smooth for W in kernels)
        self.is_radial = all(W.is_radial for W in kernels)
        self.modulus = sum_of_bounds((c, W.modulus) for c, W in self.parts)

    def terms(self) -> tuple[tuple[float, Kernel], ...]:
        return self.parts

    def __call__(self, z: Tensor) -> Tensor:
        return sum((c * W.values(z) for c, W in self.parts), z.new_zeros(()))

    def even(self, z: Tensor) -> Tensor:
        return sum((c * W.even(z) for c, W in self.parts), z.new_zeros(()))

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

    Attributes
    ----------
    function, singular, modulus
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.Function(lambda z: -z.norm(dim=-1).log(), singular=True)
    >>> of.Particles(torch.tensor([[0.0], [1.0]])).interaction(W)
    tensor(0.)
    """

    def __init__(
        self, function: Ground, *, singular: bool = False, modulus: float | None = None
    ) -> None:
        self.function = function
        self.singular = singular
        self.is_radial = isinstance(function, Kernel) and function.is_radial
        self.modulus = None if modulus is None else real(modulus, "modulus")

    @property
    def bare(self) -> Kernel:
        return self.function.bare if isinstance(self.function, Kernel) else self

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", None) or type(self.function).__name__


def as_kernel(W: Ground) -> Kernel:
    """Return a kernel itself, and a plain function of differences as a `Function`.

    Parameters
    ----------
    W : Kernel or callable
        Takes differences z (..., d) to (...).

    Returns
    -------
    Kernel
        W, or a `Function` of W.

    Raises
    ------
    TypeError
        If W is a class, or not callable.

    Examples
    --------
    >>> import otflow as of
    >>> W = of.kernels.Log()
    >>> of.kernels.as_kernel(W) is W, of.kernels.as_kernel(abs)
    (True, abs)
    """
    if isinstance(W, Kernel):
        return W
    if isinstance(W, type):
        msg = f"W is the class {W.__name__}; write {W.__name__}() with its options"
        raise TypeError(msg)
    check_function(W, "W must be a function (..., d) -> (...)")
    return Function(W)


class RadialKernel(Kernel):
    r"""A kernel :math:`W(z) = \varphi(|z|^2)` with its slope in closed form.

    A subclass states `profile` :math:`\varphi(s)` and `slope` :math:`\varphi'(s)`, with
    s the squared distance: :math:`\nabla W(z) = 2\varphi'(|z|^2)\,z`. A slope that is
    infinite at 0 counts as 0 there: by symmetry two coincident points exert no force on
    each other. A kernel that is infinite at 0 is `singular`: an atom does not interact
    with itself.

    Attributes
    ----------
    singular : bool
        Whether W(0) is infinite. Then sums over atoms omit the pairs i = j.
    smooth : bool
        Whether the slope is bounded at 0.
    modulus : float or None
        A :math:`\lambda` such that W is :math:`\lambda`-convex; None if none is known.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.Gaussian(1.0)
    >>> W(torch.zeros(2))
    tensor(1.)
    """

    smooth: bool = True
    is_radial = True

    @abstractmethod
    def profile(self, s: Tensor) -> Tensor:
        r"""Return :math:`\varphi(s)`.

        Parameters
        ----------
        s : Tensor
            Squared distances, >= 0, of any shape.

        Returns
        -------
        Tensor
            Of the shape of s; differentiable.
        """

    @abstractmethod
    def slope(self, s: Tensor) -> Tensor:
        r"""Return :math:`\varphi'(s)`, with 0 in place of an infinity at s = 0.

        Parameters
        ----------
        s : Tensor
            Squared distances, >= 0, of any shape.

        Returns
        -------
        Tensor
            Of the shape of s.
        """

    def profile_and_slope(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return `profile` and `slope` at s; a kernel overrides it to share work.

        The tensor `s` may be overwritten.
        """
        return self.profile(s), self.slope(s)

    def __call__(self, z: Tensor) -> Tensor:
        return self.profile(z.square().sum(-1))

    def key(self) -> tuple[Any, ...] | None:
        held = vars(self)
        numbers = all(isinstance(value, (int, float)) for value in held.values())
        return (type(self), *sorted(held.items())) if numbers else None

    def closed_sweep(self) -> Sweep:
        return self.sweep

    def sweep(
        self, x: Tensor, w: Tensor, *, gradients: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        r"""Return :math:`\tfrac12\sum_{ij} w_i w_j W(x_i - x_j)` and its gradients.

        The sum visits each unordered pair of tiles once. Time O(n^2 d), memory O(n d).

        Parameters
        ----------
        x : Tensor, shape (n, d)
            Points.
        w : Tensor, shape (n,)
            Masses.
        gradients : bool
            Whether to compute the gradients too.

        Returns
        -------
        energy : Tensor
            0-d.
        gradients : tuple of Tensor
            In x (n, d) and in w (n,); empty if not asked for.
        """
        return radial_sweep(self, x, w, gradients=gradients)

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({values})"


class Gaussian(RadialKernel):
    r"""Gaussian kernel :math:`W(z) = \exp(-|z|^2 / 2\sigma^2)`.

    The profile is :math:`\varphi(s) = e^{-s/2\sigma^2}`, its slope
    :math:`\varphi'(s) = -e^{-s/2\sigma^2}/2\sigma^2`.

    Parameters
    ----------
    sigma : float
        Standard deviation, > 0.

    Attributes
    ----------
    modulus : float
        :math:`-1/\sigma^2`, the Hessian's least eigenvalue (at z = 0).

    Examples
    --------
    >>> import torch, otflow as of
    >>> round(float(of.kernels.Gaussian(2.0)(torch.tensor([2.0]))), 4)
    0.6065
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = positive(sigma, "sigma")

    @property
    def modulus(self) -> float:  # type: ignore[override]
        """The least eigenvalue of the Hessian."""
        return -1.0 / self.sigma**2

    def profile(self, s: Tensor) -> Tensor:
        return (s * (-0.5 / self.sigma**2)).exp()

    def slope(self, s: Tensor) -> Tensor:
        return self.profile(s) * (-0.5 / self.sigma**2)

    def profile_and_slope(self, s: Tensor) -> tuple[Tensor, Tensor]:
        phi = s.mul_(-0.5 / self.sigma**2).exp_()
        return phi, phi * (-0.5 / self.sigma**2)


class PowerLaw(RadialKernel):
    r"""Attraction-repulsion :math:`W(z) = |z|^a/a - |z|^b/b`.

    The profile is :math:`\varphi(s) = s^{a/2}/a - s^{b/2}/b`, its slope
    :math:`\varphi'(s) = \tfrac12(s^{a/2-1} - s^{b/2-1})`. The power 0 stands for the
    logarithm, :math:`|z|^0/0 := \log|z|`. Points attract each other from afar and repel
    each other at close range, as :math:`a > b`. For the powers (2, 0) the minimiser in
    the plane is uniform on the unit disk; on the line it is Wigner's semicircle of
    radius :math:`\sqrt2`. For (4, 2) on the line it is two atoms at distance 1.

    Parameters
    ----------
    attraction : float
        Exponent a > b.
    repulsion : float
        Exponent b.

    Notes
    -----
    Singular if b <= 0; the slope is bounded at 0 if b >= 2.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.PowerLaw(4, 2)
    >>> W(torch.tensor([1.0]))
    tensor(-0.2500)
    """

    def __init__(self, attraction: float, repulsion: float) -> None:
        self.attraction = real(attraction, "attraction")
        self.repulsion = real(repulsion, "repulsion")
        if self.attraction <= self.repulsion:
            msg = (
                f"attraction must exceed repulsion, got {self.attraction:g} <= "
                f"{self.repulsion:g}: the energy would be unbounded below; swap them"
            )
            raise ValueError(msg)

    @property
    def singular(self) -> bool:  # type: ignore[override]
        """Whether W is infinite at 0."""
        return self.repulsion <= 0

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """Whether the slope is bounded at 0."""
        return self.repulsion >= 2

    def profile(self, s: Tensor) -> Tensor:
        return power(s, self.attraction) - power(s, self.repulsion)

    def slope(self, s: Tensor) -> Tensor:
        return power_slope(s, self.attraction) - power_slope(s, self.repulsion)


class Quadratic(RadialKernel):
    r"""Quadratic attraction :math:`W(z) = |z|^2/2`; the energy is half the variance.

    The profile is :math:`\varphi(s) = s/2`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Quadratic()(torch.tensor([2.0]))
    tensor(2.)
    """

    modulus = 1.0

    def profile(self, s: Tensor) -> Tensor:
        return 0.5 * s

    def slope(self, s: Tensor) -> Tensor:
        return torch.full_like(s, 0.5)


class Log(RadialKernel):
    r"""Logarithmic repulsion :math:`W(z) = -\log|z|`, the Coulomb kernel of the plane.

    The profile is :math:`\varphi(s) = -\tfrac12\log s`, its slope :math:`\varphi'(s) =
    -1/2s`. Singular: an atom does not interact with itself.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Log()(torch.tensor([2.0]))
    tensor(-0.6931)
    """

    singular = True
    smooth = False

    def profile(self, s: Tensor) -> Tensor:
        return -power(s, 0.0)

    def slope(self, s: Tensor) -> Tensor:
        return -power_slope(s, 0.0)


class Energy(RadialKernel):
    r"""Negative distance :math:`W(z) = -|z|`, the kernel of the energy distance.

    The profile is :math:`\varphi(s) = -\sqrt s`, its slope :math:`\varphi'(s) =
    -1/2\sqrt s`. W is finite at 0 and has a kink there; its gradient at 0 counts as 0.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Energy()(torch.tensor([3.0, 4.0]))
    tensor(-5.)
    """

    smooth = False

    def profile(self, s: Tensor) -> Tensor:
        return -power(s, 1.0)

    def slope(self, s: Tensor) -> Tensor:
        return -power_slope(s, 1.0)


class Riesz(RadialKernel):
    r"""Riesz repulsion :math:`W(z) = |z|^{-p}/p`, p > 0.

    The profile is :math:`\varphi(s) = s^{-p/2}/p`, its slope :math:`\varphi'(s) =
    -\tfrac12 s^{-p/2-1}`. In dimension d >= 3 the Coulomb kernel is p = d - 2.
    Singular: an atom does not interact with itself.

    Parameters
    ----------
    p : float
        Exponent, > 0.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Riesz(1.0)(torch.tensor([0.0, 0.0, 2.0]))
    tensor(0.5000)
    """

    singular = True
    smooth = False

    def __init__(self, p: float) -> None:
        self.p = positive(p, "p")

    def profile(self, s: Tensor) -> Tensor:
        return -power(s, -self.p)

    def slope(self, s: Tensor) -> Tensor:
        return -power_slope(s, -self.p)
