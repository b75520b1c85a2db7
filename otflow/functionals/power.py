"""Internal energies by a power: porous medium, fast diffusion, hard congestion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._validation import positive
from otflow.errors import NonFinite
from otflow.functionals.internal import Internal
from otflow.measures import Gaussian, GridDensity, Measure
from otflow.numerics.roots import wright_omega

__all__ = ["Congestion", "PowerEntropy"]


class PowerEntropy(Internal):
    r"""Tsallis entropy :math:`F(\mu) = \frac1{m-1}\int \rho^m\, dx`, :math:`m \ne 1`.

    The gradient flow is :math:`\partial_t\rho = \Delta\rho^m`. For m > 1 it is the
    porous medium equation: supports are compact and spread with finite speed
    :cite:p:`otto2001geometry`. For m < 1 it is fast diffusion. The self-similar
    solutions of Barenblatt are in closed form :cite:p:`vazquez2007porous`. F is
    displacement convex where McCann's condition :math:`m \ge 1 - 1/d` holds
    :cite:p:`mccann1997convexity`; it is convex along mixtures for every m. As m tends
    to 1, F tends to `Entropy` up to a
    constant.

    With :math:`U(r) = r^m/(m-1)`: slope :math:`\frac{m}{m-1} r^{m-1}`, curvature
    :math:`m r^{m-2}`, inverse slope :math:`\bigl(\frac{m-1}{m} s_+\bigr)^{1/(m-1)}`,
    where s must be negative for m < 1. On a Gaussian :math:`F =
    \det(2\pi\Sigma)^{(1-m)/2} m^{-d/2}/(m-1)`, from the logarithm of the density alone.

    Parameters
    ----------
    m : float
        Exponent, > 0 and not 1. In dimension d it must exceed (d - 2)/d, else mass
        escapes to infinity.

    Attributes
    ----------
    m
        As above.

    Raises
    ------
    ValueError
        If m is not positive, is 1, or is at most (d - 2)/d for the measure at hand.

    Examples
    --------
    >>> import otflow as of
    >>> of.PowerEntropy(0.6).modulus(3), of.PowerEntropy(0.6).modulus(2)
    (None, 0.0)
    """

    def __init__(self, m: float) -> None:
        self.m = positive(m, "m")
        if self.m == 1.0:
            msg = "m must not be 1: the limit is the entropy; use Entropy()"
            raise ValueError(msg)
        super().__init__(self._per_mass)

    def _per_mass(self, r: Tensor) -> Tensor:
        return r.pow(self.m - 1) / (self.m - 1)

    def check_dimension(self, dim: int) -> None:
        if self.m <= (dim - 2) / dim:
            msg = (
                f"m = {self.m:g} is at most (d - 2)/d = {(dim - 2) / dim:g} in "
                f"dimension {dim}: diffusion so fast loses mass at infinity; take a "
                f"larger m"
            )
            raise ValueError(msg)

    def value(self, mu: Measure) -> Tensor:
        self.check_dimension(mu.dim)
        return super().value(mu)

    def energy(self, mu: Measure) -> Tensor:
        if not isinstance(mu, Gaussian):
            return super().energy(mu)
        logarithm = (1 - self.m) * mu.log_volume() - 0.5 * mu.dim * math.log(self.m)
        return logarithm.exp() / (self.m - 1)

    def modulus(self, dim: int) -> float | None:
        # The round-off of a border such as 2/3 does not count.
        return 0.0 if dim * (1 - self.m) <= 1 + 1e-15 else None

    def why_modulus(self, dim: int) -> str:
        least = f"1 - 1/d = {1 - 1 / dim:g}"
        if self.modulus(dim) is None:
            return f"since McCann's condition m >= {least} fails for m = {self.m:g}"
        return f"by McCann's condition, m = {self.m:g} >= {least}"

    def mixture_curvature(self) -> Curvature:
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        return "since U(r) = r^m/(m - 1) is convex"

    def slope(self, r: Tensor) -> Tensor:
        return r.pow(self.m - 1) * (self.m / (self.m - 1))

    def curvature(self, r: Tensor) -> Tensor:
        return self.m * r.pow(self.m - 2)

    def log_proximal(
        self, rhs: Tensor, entropic: float, strength: float, start: Tensor | None = None
    ) -> Tensor:
        r"""Solve :math:`cz + s \frac{m}{m-1} e^{(m-1)z} = \mathrm{rhs}` in closed form.

        With k = m - 1 and :math:`y = (sm/c)\,e^{kz}` the equation is :math:`y + \log y
        = \log(sm/c) + k\,\mathrm{rhs}/c`, which Wright's omega function solves.
        """
        linear = rhs / entropic
        if strength == 0:
            return linear
        k, ratio = self.m - 1, math.log(strength * self.m / entropic)
        y = wright_omega(ratio + k * linear)
        # Two forms of z: the first loses digits by cancellation for a large y.
        return torch.where(y < 1, linear - y / k, (y.clamp_min(1).log() - ratio) / k)

    def conjugate_slope(self, s: Tensor) -> Tensor:
        if self.m > 1:
            return (s.clamp_min(0) * ((self.m - 1) / self.m)).pow(1 / (self.m - 1))
        if bool((s >= 0).any()):
            msg = (
                f"the conjugate of {self!r} is infinite at potentials >= 0, got "
                f"{float(s.max()):.6g}; fix their additive constant so that they are "
                f"negative"
            )
            raise NonFinite(msg)
        return (s * ((self.m - 1) / self.m)).pow(1 / (self.m - 1))

    def __repr__(self) -> str:
        return f"PowerEntropy({self.m:g})"


class Congestion(Internal):
    r"""Hard congestion: :math:`F(\mu) = 0` if :math:`\rho \le \bar\rho`, else infinite.

    F is the limit of :math:`\int(\rho/\bar\rho)^m` as m grows. A crowd that would
    rather move with velocity :math:`-\nabla V` flows under ``Potential(V) +
    Congestion(1.0)`` :cite:p:`maury2010macroscopic`. The proximal map is the projection
    :math:`\min(\rho, \bar\rho)`. F is displacement convex, modulus 0, and convex along
    mixtures. A value above the bound raises `NonFinite`.

    Parameters
    ----------
    max_density : float
        The bound :math:`\bar\rho > 0`, mass per unit of volume. Measures have mass 1,
        so the free volume must exceed 1/bound.
    tolerance : float
        Relative violation of the bound that is accepted: solvers meet a constraint to a
        tolerance.

    Attributes
    ----------
    max_density, tolerance
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Congestion(2.0)
    >>> F.log_proximal(torch.tensor([0.0, 5.0]), entropic=1.0, strength=1.0).exp()
    tensor([1., 2.])
    """

    def __init__(self, max_density: float, *, tolerance: float = 1e-3) -> None:
        super().__init__(self._nothing)
        self.convexity = 0.0
        self.max_density = positive(max_density, "max_density")
        self.tolerance = positive(tolerance, "tolerance", or_zero=True)

    def modulus(self, dim: int) -> float | None:
        return 0.0

    def why_modulus(self, dim: int) -> str:
        return "since geodesics between densities below a bound stay below it"

    def mixture_curvature(self) -> Curvature:
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        return "since mixtures of densities below a bound stay below it"

    @staticmethod
    def _nothing(r: Tensor) -> Tensor:
        return 0.0 * r

    def value(self, mu: Measure) -> Tensor:
        """Return 0, if the density of `mu` is below the bound.

        Raises
        ------
        NonFinite
            If the density exceeds the bound: the value is infinite.
        ValueError
            If mass 1 does not fit on the grid of `mu` below the bound.
        """
        self._check_room(mu)
        largest = float(mu.density().detach().max())
        if largest > self.max_density * (1 + self.tolerance):
            msg = (
                f"the density reaches {largest:.6g}, above max_density = "
                f"{self.max_density:g}: the energy is infinite; start from a measure "
                f"below the bound, or raise the bound"
            )
            raise NonFinite(msg)
        return super().value(mu)

    def _check_room(self, mu: Measure) -> None:
        if not isinstance(mu, GridDensity):
            return
        room = int(mu.is_free.sum()) * mu.box.cell_volume
        if room * self.max_density * (1 + self.tolerance) < 1:
            msg = (
                f"max_density = {self.max_density:g} is below the mean density "
                f"{1 / room:.6g}: mass 1 does not fit in the free volume {room:.6g}; "
                f"raise the bound or enlarge the box"
            )
            raise ValueError(msg)

    def slope(self, r: Tensor) -> Tensor:
        return torch.zeros_like(r)

    def curvature(self, r: Tensor) -> Tensor:
        return torch.zeros_like(r)

    def log_proximal(
        self, rhs: Tensor, entropic: float, strength: float, start: Tensor | None = None
    ) -> Tensor:
        return (rhs / entropic).clamp_max(math.log(self.max_density))

    def conjugate_slope(self, s: Tensor) -> Tensor:
        return torch.where(s > 0, self.max_density, torch.zeros_like(s))

    def __repr__(self) -> str:
        return f"Congestion({self.max_density:g})"
