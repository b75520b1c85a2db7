"""Internal energies: functions of the density, each with its pointwise maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from otflow._autodiff import entrywise_derivative
from otflow._typing import Ground
from otflow._validation import real
from otflow.errors import NotConverged
from otflow.functionals.base import Functional, Sum
from otflow.measures import Measure

__all__ = ["Entropy", "Internal", "combine"]

MAX_NEWTON = 200


class Internal(Functional):
    r"""Internal energy :math:`F(\mu) = \int e(\rho)\, d\mu = \int U(\rho)\, dx`.

    It is stated by the energy per unit of mass, :math:`e(r) = U(r)/r`. First variation
    :math:`U'(\rho)`, pressure :math:`r U'(r) - U(r) = r^2 e'(r)`. It needs a measure
    with a density. If :math:`r \mapsto r^d\, U(r^{-d})` is convex and non-increasing,
    F is displacement convex in dimension d :cite:p:`mccann1997convexity`: you vouch
    for it by ``modulus=0.0``.

    Proximal solvers ask for the pointwise maps `log_proximal` and `conjugate_slope`,
    which need a convex U; by default they come from U by a safeguarded Newton method.

    Parameters
    ----------
    e : callable
        Energy per unit of mass, (n,) -> (n,) entrywise, of densities > 0 (and at 0 its
        limit, if that is finite), written with torch operations.
    modulus : float, optional
        A bound on the displacement convexity in every dimension; unknown by default.

    Attributes
    ----------
    e, modulus
        As above.
    max_density : float
        Densities above it have infinite energy; ``inf`` for most.

    See Also
    --------
    otflow.Entropy, otflow.PowerEntropy, otflow.Congestion : Those with closed forms.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Internal(lambda r: r)  # U(r) = r^2: the porous medium m = 2
    >>> F.log_proximal(torch.tensor([2.0]), entropic=1.0, strength=1.0)  # z + 2e^z = 2
    tensor([0.])
    """

    max_density: float = math.inf

    def __init__(self, e: Ground, *, modulus: float | None = None) -> None:
        if not callable(e):
            msg = f"e must be a function of the density, got {type(e).__name__}"
            raise TypeError(msg)
        self.e = e
        self.modulus = None if modulus is None else real(modulus, "modulus")

    def value(self, mu: Measure) -> Tensor:
        r"""Return :math:`\int e(\rho)\, d\mu`.

        Raises
        ------
        Unsupported
            If `mu` has no density.
        """
        return mu.internal(self.e)

    @property
    def displacement_modulus(self) -> float | None:
        """The declared modulus."""
        return self.modulus

    # Pointwise maps -------------------------------------------------------------------

    def slope(self, r: Tensor) -> Tensor:
        """Return U'(r) at densities r > 0."""
        return entrywise_derivative(lambda s: s * self.e(s), r)

    def curvature(self, r: Tensor) -> Tensor:
        """Return U''(r) at densities r > 0."""
        h = torch.finfo(r.dtype).eps ** (1 / 3) * r
        return (self.slope(r + h) - self.slope(r - h)) / (2 * h)

    def log_proximal(
        self,
        rhs: Tensor,
        entropic: float,
        strength: float,
        start: Tensor | None = None,
    ) -> Tensor:
        r"""Solve :math:`c\,z + s\,U'(e^z) = \mathrm{rhs}` for :math:`z = \log\rho`.

        It is the proximal map of :math:`s\,U` for the Kullback-Leibler divergence of
        weight c, where rhs = c log q. The bound on the density, if any, is enforced.

        Parameters
        ----------
        rhs : Tensor
            Right-hand sides, of any shape.
        entropic : float
            The weight c > 0 of the logarithm.
        strength : float
            The factor s >= 0.
        start : Tensor, optional
            Where Newton's method starts.

        Returns
        -------
        Tensor
            z, of the shape of rhs.

        Raises
        ------
        NotConverged
            If the safeguarded Newton method does not settle: U is not convex.
        """
        z = rhs / (entropic + strength) if start is None else start

        def function(z: Tensor) -> tuple[Tensor, Tensor]:
            r = z.exp()
            return (
                entropic * z + strength * self.slope(r) - rhs,
                entropic + strength * r * self.curvature(r),
            )

        return bracketed_newton(function, z).clamp_max(math.log(self.max_density))

    def conjugate_slope(self, s: Tensor) -> Tensor:
        r"""Return :math:`(U^*)'(s) = \operatorname{argmax}_{r\ge0}\, s r - U(r)`.

        The density in equilibrium with the potential s: the inverse of U', and 0 below
        U'(0).
        """
        tiny = torch.finfo(s.dtype).tiny ** 0.5
        empty = s <= self.slope(torch.full_like(s, tiny))
        if bool(empty.all()):
            return torch.zeros_like(s)
        target = torch.where(empty, s[~empty].mean(), s)

        def function(z: Tensor) -> tuple[Tensor, Tensor]:
            r = z.exp()
            return self.slope(r) - target, r * self.curvature(r)

        r = bracketed_newton(function, torch.zeros_like(s)).exp()
        return r.clamp_max(self.max_density).masked_fill(empty, 0.0)

    def conjugate(self, s: Tensor) -> Tensor:
        r"""Return the Legendre transform :math:`U^*(s) = \sup_{r\ge0}\, s r - U(r)`."""
        r = self.conjugate_slope(s)
        inside = r > 0
        safe = torch.where(inside, r, 1.0)
        return torch.where(inside, s * r - safe * self.e(safe), 0.0)

    def __repr__(self) -> str:
        return f"Internal({getattr(self.e, '__name__', type(self.e).__name__)})"


class Entropy(Internal):
    r"""Negative differential entropy :math:`F(\mu) = \int \rho \log\rho`.

    It is minimised by spreading out; its gradient flow is the heat equation
    :math:`\partial_t\rho = \Delta\rho` :cite:p:`jordan1998variational`. Displacement
    convex: modulus 0 :cite:p:`mccann1997convexity`. It needs a density; particles have
    none and refuse it, except under `Langevin`, which turns a temperature
    :math:`\tau` into noise of variance :math:`2\tau\,dt`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.1 * of.Entropy()
    >>> F.split_entropy()[0]
    0.1
    """

    def __init__(self) -> None:
        super().__init__(torch.log, modulus=0.0)

    def split_entropy(self) -> tuple[float, Functional]:
        """Return temperature 1 and nothing else."""
        return 1.0, Sum(())

    def slope(self, r: Tensor) -> Tensor:
        """Return log r + 1."""
        return r.log() + 1.0

    def curvature(self, r: Tensor) -> Tensor:
        """Return 1/r."""
        return 1.0 / r

    def log_proximal(
        self,
        rhs: Tensor,
        entropic: float,
        strength: float,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return (rhs - s) / (c + s): the entropy's proximal map is in closed form.

        Parameters
        ----------
        rhs, entropic, strength, start
            As in `Internal.log_proximal`; the start is not needed.

        Returns
        -------
        Tensor
            The logarithm of the density.
        """
        return (rhs - strength) / (entropic + strength)

    def conjugate_slope(self, s: Tensor) -> Tensor:
        """Return exp(s - 1)."""
        return (s - 1.0).exp()

    def conjugate(self, s: Tensor) -> Tensor:
        """Return exp(s - 1)."""
        return (s - 1.0).exp()

    def __repr__(self) -> str:
        return "Entropy()"


class Combined(Internal):
    """A sum of multiples of internal energies as one, with the least of their bounds.

    A single term keeps its own closed forms.
    """

    def __init__(
        self, terms: Sequence[tuple[float, Internal]], max_density: float
    ) -> None:
        super().__init__(self._per_mass)
        self.terms_of_density = tuple(terms)
        self.max_density = max_density

    def _per_mass(self, r: Tensor) -> Tensor:
        total = torch.zeros_like(r)
        for c, term in self.terms_of_density:
            total = total + c * term.e(r)
        return total

    def slope(self, r: Tensor) -> Tensor:
        """Return the sum of the slopes."""
        total = torch.zeros_like(r)
        for c, term in self.terms_of_density:
            total = total + c * term.slope(r)
        return total

    def curvature(self, r: Tensor) -> Tensor:
        """Return the sum of the curvatures."""
        total = torch.zeros_like(r)
        for c, term in self.terms_of_density:
            total = total + c * term.curvature(r)
        return total

    def log_proximal(
        self,
        rhs: Tensor,
        entropic: float,
        strength: float,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return the single term's map, or that of the sum, below the bound."""
        bound = math.log(self.max_density)
        if not self.terms_of_density:
            return (rhs / entropic).clamp_max(bound)
        if len(self.terms_of_density) == 1:
            ((c, term),) = self.terms_of_density
            z = term.log_proximal(rhs, entropic, c * strength, start)
            return z.clamp_max(bound)
        return super().log_proximal(rhs, entropic, strength, start)

    def conjugate_slope(self, s: Tensor) -> Tensor:
        """Return the density in equilibrium with s, below the bound."""
        if not self.terms_of_density:
            return torch.where(s > 0, self.max_density, 0.0)
        if len(self.terms_of_density) == 1:
            ((c, term),) = self.terms_of_density
            return term.conjugate_slope(s / c).clamp_max(self.max_density)
        return super().conjugate_slope(s)


def combine(terms: Sequence[tuple[float, Internal]]) -> Internal | None:
    """Return the sum of multiples of internal energies as one; None if there is none.

    Raises
    ------
    ValueError
        If a factor is negative: the sum need not be convex, and has no proximal map.
    """
    for c, term in terms:
        if c < 0:
            msg = (
                f"{c:g} * {term!r} is concave: an internal energy with a negative "
                f"factor has no proximal map; use a positive factor"
            )
            raise ValueError(msg)
    if not terms:
        return None
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return Combined(
        [(c, term) for c, term in terms if math.isinf(term.max_density)],
        min(term.max_density for _, term in terms),
    )


def bracketed_newton(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor
) -> Tensor:
    """Solve f(z) = 0 entrywise for increasing f; `function` returns f and f'.

    Newton's method within a bracket that shrinks; where a step leaves the bracket, it
    is bisected or, while one end is unknown, widened.
    """
    low, high = torch.full_like(z, -math.inf), torch.full_like(z, math.inf)
    tolerance = 4 * torch.finfo(z.dtype).eps
    reach = 1.0
    for _ in range(MAX_NEWTON):
        f, slope = function(z)
        above = ~(f <= 0)  # NaN comes from an overflow, far above
        high = torch.where(above, z, high)
        low = torch.where(above, low, z)
        new = z - f / slope
        middle = 0.5 * (low + high)
        middle = torch.where(low.isinf(), high - reach, middle)
        middle = torch.where(high.isinf(), low + reach, middle)
        inside = (new > low) & (new < high) & ((new - z).abs() <= 8 * reach)
        moved = torch.where(inside, new, middle)
        settled = (f == 0) | ((moved - z).abs() <= tolerance * (1 + z.abs()))
        z = torch.where(f == 0, z, moved)
        if bool(settled.all()):
            return z
        reach *= 2
    msg = (
        "the pointwise proximal map of an internal energy did not settle: its U must "
        "be convex and its e smooth on densities > 0"
    )
    raise NotConverged(msg)
