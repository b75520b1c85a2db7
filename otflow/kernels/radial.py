"""Radial kernels: profiles that are safe at zero, with slopes in closed form."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._autodiff import entrywise_derivative
from otflow._graphs import records
from otflow._pairs import Sweep
from otflow._radial import power, power_slope, radial_field, radial_sweep
from otflow._validation import positive, real
from otflow.kernels.base import Kernel
from otflow.kernels.enclosed import power_ranges, radial_enclosure, ranges_of
from otflow.kernels.profiles import OMITTED, finite_or_none, forget_forms, length
from otflow.kernels.taylor import taylor_enclosure
from otflow.numerics.enclosures import Enclosure
from otflow.numerics.exponentials import exp_below_zero_
from otflow.numerics.gauss_transform import gauss_transform
from otflow.numerics.intervals import Interval, elementwise, negative, outward

__all__ = [
    "Energy",
    "Gaussian",
    "InverseMultiquadric",
    "Log",
    "PowerLaw",
    "Quadratic",
    "RadialKernel",
    "Riesz",
]


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
    mixture : Curvature or None
        How its energy bends along mixtures, see `PairKernel`; None if unknown.

    Examples
    --------
    >>> import torch, otflow as of
    >>> W = of.kernels.Gaussian(1.0)
    >>> W(torch.zeros(2))
    tensor(1.)
    """

    smooth: bool = True
    is_radial = True

    def __init_subclass__(cls, **options: Any) -> None:
        """Forget the closed forms of a parent that has another profile."""
        super().__init_subclass__(**options)
        forget_forms(cls, RadialKernel)

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

    def curvature(self, s: Tensor) -> Tensor:
        r"""Return :math:`\varphi''(s)`, by default by automatic differentiation.

        Parameters
        ----------
        s : Tensor
            Squared distances, >= 0, of any shape.

        Returns
        -------
        Tensor
            Of the shape of s; differentiable.
        """
        return entrywise_derivative(self.profile, s, order=2)

    def ranges(self, s: Interval, order: int) -> list[Interval]:
        r"""Return intervals of :math:`\varphi, \varphi', \varphi''` on intervals of s.

        By default `profile` is evaluated on intervals. Proofs of optimality rest on
        the answer.

        Parameters
        ----------
        s : Tensor, shape (2, ...)
            Lower and upper ends of squared distances, in float64.
        order : int
            0, 1 or 2: how many derivatives are wanted.

        Returns
        -------
        list of Tensor, shape (2, ...)
            The first 1 + order of the ranges.

        Raises
        ------
        NotEnclosed
            If `profile` has no interval extension.
        """
        return ranges_of(self.profile, s, order)

    # A bound on each component of the gradient.
    _steepest = torch.inf

    def enclosed_field(self, x: Enclosure, points: Tensor, masses: Tensor) -> Enclosure:
        if not x.is_point:
            return super().enclosed_field(x, points, masses)
        known = type(self) in KNOWN and not self.singular
        # A high power multiplies the round-off of its base.
        mild = getattr(self, "power", 0.0) <= MOST_POWER
        if known and mild and isinstance(self, (Gaussian, InverseMultiquadric)):
            return taylor_enclosure(self, x, points, masses)
        kernel = self if known else None
        return radial_enclosure(self.ranges, x, points, masses, self._steepest, kernel)

    def closed_sweep(self) -> Sweep:
        return self.sweep

    def field(
        self, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
    ) -> tuple[Tensor, Tensor]:
        return radial_field(self, x, points, masses, gradients=gradients)

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
    tolerance : float
        Bound of the error of a sum over particles that suffices, in [0, 1): of a
        potential :math:`\sum_j a_j W(x - y_j)` over :math:`\sum_j |a_j|`, and of each
        component of its gradient over :math:`\sum_j |a_j| / \sigma`. By default all
        pairs are summed.

    Attributes
    ----------
    sigma, tolerance
        As above.
    modulus : float
        :math:`-1/\sigma^2`, the Hessian's least eigenvalue (at z = 0).
    mixture : Curvature
        "convex": the kernel is positive definite.

    Raises
    ------
    ValueError
        If sigma is not in [1e-75, 1e75], or the tolerance not in [0, 1).

    Notes
    -----
    The tolerance holds for every functional and scheme that sums this kernel over
    particles: `Interaction`, `MMDTo`, `Blob`, `schemes.SVGD`. The value of an
    interaction is then wrong by half the tolerance at most. The bound is proved; it
    leaves out round-off, about 1e-13 in float64. With a tolerance of at least 1e-12,
    particles in dimension 1 to 3 are summed by interpolation in boxes of side sigma,
    in time O(n) plus a power of the number of boxes, where that is expected to be
    faster. Else all pairs are summed, and so they are for derivatives of second order.

    Examples
    --------
    >>> import torch, otflow as of
    >>> round(float(of.kernels.Gaussian(2.0)(torch.tensor([2.0]))), 4)
    0.6065
    >>> mu = of.Particles(torch.linspace(0, 1, 2000, dtype=torch.float64)[:, None])
    >>> exact, fast = of.kernels.Gaussian(0.2), of.kernels.Gaussian(0.2, tolerance=1e-6)
    >>> bool((mu.convolve(fast) - mu.convolve(exact)).abs().max() < 1e-6)
    True
    """

    mixture: Curvature | str | None = Curvature.CONVEX

    def __init__(self, sigma: float, *, tolerance: float = 0.0) -> None:
        self.sigma = length(sigma, "sigma")
        self.tolerance = positive(tolerance, "tolerance", or_zero=True)
        if self.tolerance >= 1:
            msg = (
                f"tolerance must lie in [0, 1), got {tolerance:g}: the kernel itself "
                f"is at most 1; try 1e-6"
            )
            raise ValueError(msg)

    @property
    def modulus(self) -> float:  # type: ignore[override]
        """The least eigenvalue of the Hessian."""
        return -1.0 / self.sigma**2

    def why_modulus(self) -> str:
        return "the least eigenvalue of its Hessian, -1/sigma^2, at z = 0"

    def why_mixture(self) -> str:
        return "since the kernel is positive definite"

    def profile(self, s: Tensor) -> Tensor:
        exponents = s * (-0.5 / self.sigma**2)
        return exponents.exp() if records(s) else exp_below_zero_(exponents)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        """Return the profile and its first `order` derivatives at s."""
        found = [exp_below_zero_(s * (-0.5 / self.sigma**2))]
        for _ in range(order):
            found.append(found[-1] * (-0.5 / self.sigma**2))
        return found

    def slope(self, s: Tensor) -> Tensor:
        return self.profile(s) * (-0.5 / self.sigma**2)

    def curvature(self, s: Tensor) -> Tensor:
        return self.profile(s) * (0.25 / self.sigma**4)

    def profile_and_slope(self, s: Tensor) -> tuple[Tensor, Tensor]:
        phi = exp_below_zero_(s.mul_(-0.5 / self.sigma**2))
        return phi, phi * (-0.5 / self.sigma**2)

    def ranges(self, s: Interval, order: int) -> list[Interval]:
        if type(self) is not Gaussian:  # a subclass may have another profile
            return super().ranges(s, order)
        a = -0.5 / self.sigma**2
        phi = elementwise(torch.exp, outward(s.flip(0) * a, 4.0)).clamp_(min=0.0)
        slopes = outward(phi.flip(0) * a, 4.0)
        return [phi, slopes, outward(phi * (a * a), 8.0)][: 1 + order]

    def field(
        self, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
    ) -> tuple[Tensor, Tensor]:
        found = self._transform(x, points, masses, gradients=gradients)
        if found is None:
            return super().field(x, points, masses, gradients=gradients)
        return found

    def sweep(
        self, x: Tensor, w: Tensor, *, gradients: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        found = self._transform(x, x, w[:, None], gradients=gradients)
        if found is None:
            return super().sweep(x, w, gradients=gradients)
        w, potential = w.detach(), found[0][:, 0]
        energy = 0.5 * (w @ potential)
        return energy, (w[:, None] * found[1][:, 0], potential) if gradients else ()

    def _transform(
        self, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Return the sums by interpolation, None where all pairs are to be summed."""
        # A subclass may have another profile.
        if not self.tolerance or type(self) is not Gaussian:
            return None
        return gauss_transform(
            x, points, masses, self.sigma, self.tolerance, gradients=gradients
        )

    def __repr__(self) -> str:
        tolerance = f", tolerance={self.tolerance:g}" if self.tolerance else ""
        return f"{type(self).__name__}(sigma={self.sigma!r}{tolerance})"


class InverseMultiquadric(RadialKernel):
    r"""Inverse multiquadric :math:`W(z) = (1 + |z|^2/c^2)^{-\beta}`, of heavy tails.

    The profile is :math:`\varphi(s) = (1 + s/c^2)^{-\beta}`, its slope
    :math:`\varphi'(s) = -\tfrac\beta{c^2}(1 + s/c^2)^{-\beta-1}`. The base kernel of a
    Stein discrepancy is best of this kind, with :math:`\beta < 1`: then the discrepancy
    controls weak convergence to a large class of laws :cite:p:`gorham2017measuring`.

    Parameters
    ----------
    scale : float
        The length c, > 0.
    power : float
        The exponent :math:`\beta`, > 0.

    Attributes
    ----------
    scale, power
        As above.
    modulus : float or None
        :math:`-2\beta/c^2`, the Hessian's least eigenvalue (at z = 0); None if it is
        too large for a float.
    mixture : Curvature
        "convex": the kernel is a mixture of Gaussians, so positive definite.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.InverseMultiquadric(1.0)(torch.tensor([3.0, 4.0])).square()
    tensor(0.0385)
    """

    mixture: Curvature | str | None = Curvature.CONVEX

    def __init__(self, scale: float, *, power: float = 0.5) -> None:
        self.scale = length(scale, "scale")
        self.power = positive(power, "power")

    @property
    def modulus(self) -> float | None:  # type: ignore[override]
        """The least eigenvalue of the Hessian; None if it overflows."""
        return finite_or_none(-2.0 * self.power / self.scale**2)

    def why_modulus(self) -> str:
        if self.modulus is None:
            return "since the least eigenvalue of its Hessian overflows"
        return "the least eigenvalue of its Hessian, -2 power/scale^2, at z = 0"

    def why_mixture(self) -> str:
        return "since the kernel is positive definite"

    def profile(self, s: Tensor) -> Tensor:
        return (1.0 + s / self.scale**2).pow(-self.power)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        """Return the profile and its first `order` derivatives at s."""
        base = 1.0 + s / self.scale**2
        found = [base.pow(-self.power)]
        for k in range(order):
            found.append(found[-1] / base * (-(self.power + k) / self.scale**2))
        return found

    def slope(self, s: Tensor) -> Tensor:
        base = 1.0 + s / self.scale**2
        return base.pow(-self.power - 1.0) * (-self.power / self.scale**2)

    def curvature(self, s: Tensor) -> Tensor:
        base, factor = 1.0 + s / self.scale**2, self.power * (self.power + 1.0)
        return base.pow(-self.power - 2.0) * (factor / self.scale**4)


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
    Singular if b <= 0; the slope is bounded at 0 if b >= 2. Along mixtures the energy
    is neither convex nor concave: repulsion and attraction bend it up and down.

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

    def why_mixture(self) -> str:
        return "since repulsion bends the energy up and attraction bends it down"

    def profile(self, s: Tensor) -> Tensor:
        return power(s, self.attraction) - power(s, self.repulsion)

    def slope(self, s: Tensor) -> Tensor:
        return power_slope(s, self.attraction) - power_slope(s, self.repulsion)

    def ranges(self, s: Interval, order: int) -> list[Interval]:
        ranges = (power_ranges(s, a, order) for a in (self.attraction, self.repulsion))
        return [outward(p - q.flip(0)) for p, q in zip(*ranges, strict=True)]


class Quadratic(RadialKernel):
    r"""Quadratic attraction :math:`W(z) = |z|^2/2`; the energy is half the variance.

    The profile is :math:`\varphi(s) = s/2`. The energy is concave along mixtures.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Quadratic()(torch.tensor([2.0]))
    tensor(2.)
    """

    modulus = 1.0
    mixture: Curvature | str | None = Curvature.CONCAVE

    def why_modulus(self) -> str:
        return "the eigenvalue of its Hessian"

    def why_mixture(self) -> str:
        return "since the energy is half the variance"

    def profile(self, s: Tensor) -> Tensor:
        return 0.5 * s

    def slope(self, s: Tensor) -> Tensor:
        return torch.full_like(s, 0.5)


class Log(RadialKernel):
    r"""Logarithmic repulsion :math:`W(z) = -\log|z|`, the Coulomb kernel of the plane.

    The profile is :math:`\varphi(s) = -\tfrac12\log s`, its slope :math:`\varphi'(s) =
    -1/2s`. Singular: an atom does not interact with itself. Along mixtures the energy
    is convex between densities, but not between atoms, whose own energy is left out.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Log()(torch.tensor([2.0]))
    tensor(-0.6931)
    """

    singular = True
    smooth = False

    def why_mixture(self) -> str:
        return OMITTED

    def profile(self, s: Tensor) -> Tensor:
        return -power(s, 0.0)

    def slope(self, s: Tensor) -> Tensor:
        return -power_slope(s, 0.0)

    def ranges(self, s: Interval, order: int) -> list[Interval]:
        return [negative(r) for r in power_ranges(s, 0.0, order)]


class Energy(RadialKernel):
    r"""Negative distance :math:`W(z) = -|z|`, the kernel of the energy distance.

    The profile is :math:`\varphi(s) = -\sqrt s`, its slope :math:`\varphi'(s) =
    -1/2\sqrt s`. W is finite at 0 and has a kink there; its gradient at 0 counts as 0.
    The energy is convex along mixtures: W is conditionally positive definite
    :cite:p:`schoenberg1938metric`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.kernels.Energy()(torch.tensor([3.0, 4.0]))
    tensor(-5.)
    """

    smooth = False
    mixture: Curvature | str | None = Curvature.CONVEX

    def why_mixture(self) -> str:
        return "since -|z| is conditionally positive definite"

    def profile(self, s: Tensor) -> Tensor:
        return -power(s, 1.0)

    def slope(self, s: Tensor) -> Tensor:
        return -power_slope(s, 1.0)

    # The gradient has size 1, also beside 0, where the slope in s is infinite.
    _steepest = 1.0

    def ranges(self, s: Interval, order: int) -> list[Interval]:
        root = outward(s.clamp(min=0.0).sqrt()).clamp_(min=0.0)
        inverse = outward(1.0 / root.flip(0))
        slopes, bends = -0.5 * inverse.flip(0), 0.25 * inverse * inverse * inverse
        return [negative(root), slopes, outward(bends, 8.0)][: 1 + order]


class Riesz(RadialKernel):
    r"""Riesz repulsion :math:`W(z) = |z|^{-p}/p`, p > 0.

    The profile is :math:`\varphi(s) = s^{-p/2}/p`, its slope :math:`\varphi'(s) =
    -\tfrac12 s^{-p/2-1}`. In dimension d >= 3 the Coulomb kernel is p = d - 2.
    Singular: an atom does not interact with itself. Along mixtures the energy is convex
    between densities for p < d, but not between atoms, whose own energy is left out.

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

    def why_mixture(self) -> str:
        return OMITTED

    def profile(self, s: Tensor) -> Tensor:
        return -power(s, -self.p)

    def slope(self, s: Tensor) -> Tensor:
        return -power_slope(s, -self.p)

    def ranges(self, s: Interval, order: int) -> list[Interval]:
        return [negative(r) for r in power_ranges(s, -self.p, order)]


# The greatest power of a multiquadric of which Taylor's formula bounds the round-off.
MOST_POWER = 16.0
# The profiles whose round-off is known; a subclass may have another.
KNOWN = (Gaussian, InverseMultiquadric, PowerLaw, Quadratic, Energy)
