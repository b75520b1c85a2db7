"""Internal energies: functions of the density, each with its pointwise maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from otflow._algebra import Curvature, curvature_named
from otflow._autodiff import entrywise_derivative, entrywise_derivatives
from otflow._known import root_of
from otflow._typing import Ground
from otflow._validation import real
from otflow.errors import NonFinite, NotConverged
from otflow.functionals.base import Functional
from otflow.functionals.declared import Checks
from otflow.functionals.inheritance import forget_maps
from otflow.measures import Measure
from otflow.numerics.roots import increasing_root

__all__ = ["Entropy", "Internal"]

# Newton's method starts at |log densities| up to this.
START = 20.0
# Log densities at which U' is evaluated first, to bracket the others.
RUNGS = 128


class Internal(Functional):
    r"""Internal energy :math:`F(\mu) = \int e(\rho)\, d\mu = \int U(\rho)\, dx`.

    It is defined by the energy per unit of mass, :math:`e(r) = U(r)/r`. The first
    variation is :math:`U'(\rho)`, the pressure :math:`r U'(r) - U(r) = r^2 e'(r)`. The
    measure must have a density. If :math:`r \mapsto r^d\, U(r^{-d})` is convex and
    non-increasing, F is displacement convex in dimension d
    :cite:p:`mccann1997convexity`. Declare it by ``modulus=0.0``. F is convex along
    mixtures if and only if U is convex, which McCann's condition implies; declare it
    alone by ``mixture="convex"``. Both declarations are checked where they are used, at
    some hundreds of densities from 1e-9 to 1e9: this refutes and does not prove.

    Proximal solvers use the pointwise maps `log_proximal` and `conjugate_slope`, which
    need a convex U. By default a safeguarded Newton method computes them from U.

    Parameters
    ----------
    e : callable
        Energy per unit of mass, (n,) -> (n,) entrywise, of densities > 0 (and at 0 its
        limit, if that is finite), written with torch operations.
    modulus : float, optional
        A bound on the displacement convexity in every dimension, at most 0 since a
        translation does not change F; unknown by default.
    mixture : {"convex", "concave", "linear"}, optional
        How U bends, and so F along mixtures. By default unknown, and "convex" where
        ``modulus=0.0`` is declared.

    Attributes
    ----------
    e
        As above.
    mixture : Curvature or None
        The word given as `mixture`.
    convexity : float or None
        The number given as `modulus`.
    max_density : float
        Densities above it have infinite energy; ``inf`` for most.

    Raises
    ------
    TypeError
        If `e` is not a function of the density.
    ValueError
        If the modulus is positive, or `mixture` is another word.
    InvalidFunctional
        By `modulus` and `mixture_curvature`, if values of e contradict the declaration.

    See Also
    --------
    otflow.Entropy, otflow.PowerEntropy, otflow.Congestion : Those with closed forms.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Internal(lambda r: r)  # U(r) = r^2: the porous medium m = 2
    >>> F.log_proximal(torch.tensor([2.0]), entropic=1.0, strength=1.0)  # z + 2e^z = 2
    tensor([0.])
    >>> F.convexity_margin(torch.tensor([0.5, 2.0]), dim=3) >= 0  # McCann's condition
    tensor([True, True])
    """

    max_density: float = math.inf

    def __init_subclass__(cls, **options: Any) -> None:
        """Forget the pointwise maps of a parent whose energy is another one."""
        super().__init_subclass__(**options)
        forget_maps(cls, Internal)

    _fixed = frozenset({"e"})

    def __init__(
        self,
        e: Ground,
        *,
        modulus: float | None = None,
        mixture: Curvature | str | None = None,
    ) -> None:
        if not callable(e) or isinstance(e, (type, Functional)):
            msg = (
                f"e must be a function of the density, the energy per unit of mass "
                f"(n,) -> (n,), got {e!r:.80}"
            )
            raise TypeError(msg)
        self.e = e
        self.convexity = None if modulus is None else real(modulus, "modulus")
        if self.convexity is not None and self.convexity > 0:
            msg = (
                f"the modulus of an internal energy is at most 0, since a translation "
                f"does not change it, got {self.convexity:g}; take modulus=0.0"
            )
            raise ValueError(msg)
        self.mixture = curvature_named(mixture, "mixture")
        self._checks = Checks()

    def value(self, mu: Measure) -> Tensor:
        value = self.energy(mu)
        if value.ndim == 0 and not bool(value.detach().isfinite()):
            msg = (
                f"the energy {self!r} is {float(value.detach())}: e(r) is infinite or "
                f"too large for {value.dtype} at a density of the measure; use "
                f"float64, or measure lengths in another unit"
            )
            raise NonFinite(msg)
        return value

    def energy(self, mu: Measure) -> Tensor:
        """Return the energy unchecked; in closed form where the measure has one."""
        return mu.internal(self.e)

    def modulus(self, dim: int) -> float | None:
        """Return the declared bound, after a check of McCann's condition.

        Raises
        ------
        InvalidFunctional
            If 0 was declared and e contradicts McCann's condition in this dimension.
        """
        if self.convexity == 0:
            self._checks.mccann(self, dim)
        return self.convexity

    def why_modulus(self, dim: int) -> str:
        if self.convexity is None:
            return "since McCann's condition is not declared: Internal(e, modulus=0.0)"
        declared = f"as modulus={self.convexity:g} declares"
        if self.convexity < 0:
            return f"{declared}; a negative modulus is not checked"
        return declared + self._checks.of_mccann(dim)

    def mixture_curvature(self) -> Curvature | None:
        """Return how U bends, after a check of what was declared.

        Raises
        ------
        InvalidFunctional
            If e contradicts the declaration.
        """
        if self.mixture is not None:
            self._checks.shape(self, self.mixture)
            return self.mixture
        if self.convexity != 0:
            return None
        self._checks.mccann(self, 1)
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        if self.mixture is not None:
            return "as mixture= declares of U" + self._checks.of_shape(self.mixture)
        if self.convexity == 0:
            return "since modulus=0.0 declares McCann's condition, which makes U convex"
        return 'since no shape of U is declared: Internal(e, mixture="convex")'

    def check_dimension(self, dim: int) -> None:
        """Raise ValueError if the flow does not exist in this dimension.

        Solvers call it. Most flows exist in every dimension.

        Parameters
        ----------
        dim : int
            Dimension of the space.
        """

    # Pointwise maps -------------------------------------------------------------------

    def slope(self, r: Tensor) -> Tensor:
        """Return :math:`U'(r)` at densities r > 0, of any shape."""
        return entrywise_derivative(self._energy, r)

    def curvature(self, r: Tensor) -> Tensor:
        """Return :math:`U''(r)` at densities r > 0, of any shape."""
        return entrywise_derivative(self._energy, r, order=2)

    def pressure(self, r: Tensor) -> Tensor:
        r"""Return :math:`r\,U'(r) - U(r)` at densities r > 0, of any shape."""
        return r * self.slope(r) - self._energy(r)

    def convexity_margin(self, r: Tensor, dim: int) -> Tensor:
        r"""Return the margin of McCann's condition in dimension d at densities r > 0.

        With the pressure :math:`p = rU' - U` it is the lesser of p and :math:`r p' - (1
        - 1/d)\, p`. F is displacement convex in dimension d if both are nowhere
        negative :cite:p:`mccann1997convexity`. Margins at some densities do not prove
        it, but a negative margin refutes it.
        """
        pressure = self.pressure(r)
        return torch.minimum(
            pressure, r * r * self.curvature(r) - (1 - 1 / dim) * pressure
        )

    def log_proximal(
        self, rhs: Tensor, entropic: float, strength: float, start: Tensor | None = None
    ) -> Tensor:
        r"""Solve :math:`c\,z + s\,U'(e^z) = \mathrm{rhs}` for :math:`z = \log\rho`.

        It is the proximal map of :math:`s\,U` for the Kullback-Leibler divergence of
        weight c, where rhs = c log q. The bound on the density, if any, is enforced.

        Parameters
        ----------
        rhs : Tensor
            Right-hand sides, of any shape; a graph on them is kept.
        entropic : float
            The weight c > 0 of the logarithm.
        strength : float
            The factor s >= 0.
        start : Tensor, optional
            Where Newton's method starts. A closed form does not use it.

        Returns
        -------
        Tensor
            z, of the shape of rhs.

        Raises
        ------
        NotConverged
            If the safeguarded Newton method does not settle.
        ValueError
            If U is so concave at the root that there is no proximal map.
        """
        target = rhs.detach()

        def function(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            own, steepness = self._log_slope(z)
            linear, own = entropic * z, strength * own
            size = linear.abs() + own.abs() + target.abs()
            return linear + own - target, entropic + strength * steepness, size

        unit = strength * float(self.slope(target.new_ones(1)))
        z = target / (entropic + strength) if start is None else start.detach()
        z = z.clamp(-START, START)
        typical = target.abs() + entropic * (1 + z.abs()) + abs(unit)
        try:
            z = increasing_root(function, z, typical)
        except NotConverged:
            self._check_convex(target)
            raise
        slope = function(z)[1]
        self._check_increasing(z, slope)
        z = root_of(rhs, z, slope)
        return z.clamp_max(math.log(self.max_density))

    def conjugate_slope(self, s: Tensor) -> Tensor:
        r"""Return :math:`(U^*)'(s) = \operatorname{argmax}_{r\ge0}\, s r - U(r)`.

        It is the density in equilibrium with the potential s: the inverse of U', and 0
        below U'(0).

        Parameters
        ----------
        s : Tensor
            Potentials, of any shape.

        Returns
        -------
        Tensor
            Densities, of the shape of s.

        Raises
        ------
        NonFinite
            If s lies above all slopes of U, where the supremum is infinite.
        """
        limit = _log_limit(s.dtype)
        highest = min(limit, math.log(self.max_density))
        least, most = self.slope(s.new_tensor([-limit, highest]).exp()).tolist()
        if least > most:
            self._check_convex(s)
        if math.isinf(self.max_density) and bool((s >= most).any()):
            msg = (
                f"the conjugate of {self!r} is infinite at {float(s.max()):.6g}, above "
                f"all slopes of its U; fix the additive constant of the potentials so "
                f"that they are smaller"
            )
            raise NonFinite(msg)
        empty, full = s <= least, s >= most
        between = ~(empty | full)
        r = torch.where(full, self.max_density, torch.zeros_like(s))
        if not bool(between.any()):
            return r
        target = s[between].detach()

        def function(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            own, steepness = self._log_slope(z)
            return own - target, steepness, own.abs() + target.abs()

        unit = self.slope(target.new_ones(1)).abs() + torch.finfo(s.dtype).tiny
        z = increasing_root(function, self._near(target, highest), target.abs() + unit)
        slope = function(z)[1]
        self._check_increasing(z, slope)
        z = root_of(s[between], z, slope)
        return r.masked_scatter(between, z.exp().clamp_max(self.max_density))

    def _near(self, s: Tensor, highest: float) -> Tensor:
        """Return log densities at which U' is near s, interpolated from a ladder."""
        limit = _log_limit(s.dtype)
        z = torch.linspace(-limit, highest, RUNGS, dtype=s.dtype, device=s.device)
        # Where U' overflows it is above all s; it increases but for round-off.
        slope = self.slope(z.exp()).nan_to_num(math.inf).cummax(0).values
        above = torch.searchsorted(slope, s.contiguous()).clamp(1, RUNGS - 1)
        low, high = slope[above - 1], slope[above]
        share = ((s - low) / (high - low)).nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)
        return z[above - 1] + share * (z[1] - z[0])

    def conjugate(self, s: Tensor) -> Tensor:
        r"""Return the Legendre transform :math:`U^*(s) = \sup_{r\ge0}\, s r - U(r)`."""
        r = self.conjugate_slope(s)
        inside = r > 0
        r = r[inside]
        return torch.zeros_like(s).masked_scatter(
            inside, s[inside] * r - self._energy(r)
        )

    def _energy(self, r: Tensor) -> Tensor:
        """Return U(r)."""
        return r * self.e(r)

    def _log_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return U'(e^z) and its derivative in z, linear in z at extreme densities."""
        limit = _log_limit(z.dtype)
        near = z.clamp(-limit, limit)
        r = near.exp()
        slope, curvature = self._derivatives(r)
        steepness = r * curvature
        return slope + steepness * (z - near), steepness

    def _derivatives(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return U' and U'', from one evaluation if both come from autograd."""
        own = type(self)
        if own.slope is Internal.slope and own.curvature is Internal.curvature:
            return entrywise_derivatives(self._energy, r)[1:]
        return self.slope(r), self.curvature(r)

    def _check_convex(self, like: Tensor) -> None:
        """Raise ValueError if U' falls between two densities of a ladder."""
        limit = _log_limit(like.dtype)
        ladder = torch.linspace(-limit, limit, RUNGS, dtype=like.dtype)
        z = ladder.to(like.device)
        self._check_increasing(z[1:], self.slope(z.exp()).diff())

    def _check_increasing(self, z: Tensor, slope: Tensor) -> None:
        bad = ~(slope >= 0)  # NaN is bad
        if bool(bad.any()):
            r = float(z[bad][0].exp())
            msg = (
                f"the U of {self!r} is not convex at density {r:.6g}, so it has no "
                f"proximal map there; proximal solvers need a convex U: flow it with "
                f"ExplicitEuler(), or add a convex term"
            )
            raise ValueError(msg)

    def __repr__(self) -> str:
        return f"Internal({getattr(self.e, '__name__', type(self.e).__name__)})"


def _log_limit(dtype: torch.dtype) -> float:
    """Return the |log density| up to which 1/r^3 and r^3 do not overflow."""
    return 0.32 * math.log(torch.finfo(dtype).max)


class Entropy(Internal):
    r"""Negative differential entropy :math:`F(\mu) = \int \rho \log\rho`.

    F is minimised by spreading out; its gradient flow is the heat equation
    :math:`\partial_t\rho = \Delta\rho` :cite:p:`jordan1998variational`. F is
    displacement convex: modulus 0 :cite:p:`mccann1997convexity`. F is convex along
    mixtures too. On a Gaussian it is in
    closed form. Particles have no density, and F raises `Unsupported` on them.
    `Langevin` flows particles under F: it turns a temperature :math:`\tau` into noise
    of variance :math:`2\tau\,dt`.

    With :math:`U(r) = r\log r`: slope :math:`\log r + 1`, curvature :math:`1/r`,
    proximal map :math:`z = (\mathrm{rhs} - s)/(c + s)`, and :math:`U^*(s) = (U^*)'(s) =
    e^{s-1}`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.1 * of.Entropy()
    >>> F.split_entropy()[0]
    0.1
    """

    def __init__(self) -> None:
        super().__init__(torch.log)
        self.convexity = 0.0

    def modulus(self, dim: int) -> float | None:
        return 0.0

    def why_modulus(self, dim: int) -> str:
        return "since e = log r obeys McCann's condition in every dimension"

    def mixture_curvature(self) -> Curvature:
        return Curvature.CONVEX

    def why_mixture(self) -> str:
        return "since U(r) = r log r is convex"

    def energy(self, mu: Measure) -> Tensor:
        return mu.entropy()

    def slope(self, r: Tensor) -> Tensor:
        return r.log() + 1.0

    def curvature(self, r: Tensor) -> Tensor:
        return 1.0 / r

    def log_proximal(
        self, rhs: Tensor, entropic: float, strength: float, start: Tensor | None = None
    ) -> Tensor:
        return (rhs - strength) / (entropic + strength)

    def conjugate_slope(self, s: Tensor) -> Tensor:
        return (s - 1.0).exp()

    def conjugate(self, s: Tensor) -> Tensor:
        return (s - 1.0).exp()

    def __repr__(self) -> str:
        return "Entropy()"


Functional._entropy = Entropy()
