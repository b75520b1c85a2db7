"""Internal energies of particles, through the density of Gaussian blobs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._autodiff import entrywise_derivative
from otflow._graphs import records
from otflow._typing import ArrayLike
from otflow._validation import check_energy, check_finite, check_kind, positive
from otflow.functionals.base import Functional
from otflow.functionals.internal import Internal
from otflow.functionals.power import PowerEntropy
from otflow.kernels import Gaussian
from otflow.measures import Measure, Particles

__all__ = ["Blob"]


class Blob(Functional):
    r"""An internal energy of a measure smoothed by a Gaussian, finite on particles.

    .. math:: F_\sigma(\mu) = \int e(\varphi_\sigma * \mu)\, d\mu, \qquad
        \varphi_\sigma(z) = (2\pi\sigma^2)^{-d/2}\, e^{-|z|^2/2\sigma^2},

    for the energy :math:`\int e(\rho)\,d\mu` of an `Internal`
    :cite:p:`carrillo2019blob`. So particles carry an entropy or a porous medium, and
    remain particles. As :math:`\sigma \to 0`, F tends to the internal energy. The first
    variation and the velocity are, with :math:`\rho = \varphi_\sigma * \mu`,

    .. math:: F'[\mu] = e(\rho) + \varphi_\sigma * (e'(\rho)\mu), \qquad
        v(x) = -\int \bigl(e'(\rho(x)) + e'(\rho(y))\bigr)
        \nabla\varphi_\sigma(x - y)\, d\mu(y) .

    Parameters
    ----------
    internal : Internal
        The energy, such as ``Entropy()`` or ``PowerEntropy(2.0)``.
    width : float
        The standard deviation :math:`\sigma` > 0 of a blob, a length. A width of 1 to 2
        spacings of the particles resolves both: blobs must overlap, and the error of
        the smoothing is of order :math:`\sigma^2`.
    tolerance : float
        Error of the sums over blobs that suffices, as that of `kernels.Gaussian`: of
        the density, in units of the height of a blob of mass 1. All pairs by default.
        For an entropy take it far below 1/n, the height of the blob of one particle.

    Attributes
    ----------
    internal, width
        As above.
    kernel : kernels.Gaussian
        A blob of height 1.

    Raises
    ------
    TypeError
        If `internal` is no internal energy.
    ValueError
        If the width is not positive, the tolerance not in [0, 1), or the energy bounds
        the density.
    NonFinite
        When it is evaluated, if the smoothed density vanishes in the dtype where e is
        infinite, as an entropy at a probe far away.

    See Also
    --------
    otflow.Langevin : Turns an entropy of particles into noise.

    Notes
    -----
    Time O(n^2 d), memory O(n d). With the sum of squares :math:`e(r) = r` it is an
    `Interaction`, convex along mixtures. Otherwise its convexities are unknown. Where
    particles are sparse, as in the tails of a heat flow, the blobs do not overlap and
    the energy is that of separate blobs.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Blob(of.PowerEntropy(2.0), width=0.5)
    >>> mu = of.Particles(torch.tensor([[0.0], [0.5]]))
    >>> F.velocity(mu)  # blobs repel each other
    tensor([[-0.9679],
            [ 0.9679]])
    """

    _fixed = frozenset({"kernel", "width"})

    def __init__(
        self, internal: Internal, width: float, *, tolerance: float = 0.0
    ) -> None:
        cure = "give e.g. Entropy() or PowerEntropy(2.0), or wrap e: Internal(e)"
        check_kind(internal, Internal, "internal", cure=cure)
        if math.isfinite(internal.max_density):
            msg = (
                f"{internal!r} is infinite above a density, so it has no slope there; "
                f"for blobs approach it by PowerEntropy(m) with a large m"
            )
            raise ValueError(msg)
        self.internal = internal
        self.width = positive(width, "width")
        self.kernel = Gaussian(self.width, tolerance=tolerance)

    def value(self, mu: Measure) -> Tensor:
        return mu.weights @ check_energy(self.internal.e, self.density(mu))

    def mixture_curvature(self) -> Curvature | None:
        # With e(r) = r, F is twice the interaction of blobs, a positive definite one.
        F = self.internal
        square = type(F) is PowerEntropy and F.m == 2.0
        return Curvature.CONVEX if square else None

    def why_mixture(self) -> str:
        if self.mixture_curvature() is None:
            return "since it is known for Blob(PowerEntropy(2.0), width) alone"
        return "since the interaction of Gaussian blobs is positive definite"

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        if not isinstance(mu, Particles):
            return super().first_variation(mu, x)
        probes = mu.points if x is None else mu.check_probes(x)
        with torch.set_grad_enabled(records(mu.points, mu.weights, probes)):
            rho = self.density(mu)
            own = rho if x is None else self.density(mu, probes)
            masses = mu.weights * entrywise_derivative(self.internal.e, rho)
            pull = self.density(mu.with_free_atoms(weights=masses), probes)
            return check_energy(self.internal.e, own) + pull

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        if not isinstance(mu, Particles) or records(mu.points, mu.weights):
            return super().value_and_velocity(mu)
        with torch.no_grad():
            rho = self.density(mu)
            value = mu.weights @ check_energy(self.internal.e, rho)
            return value, self._field(mu, mu.points, rho)

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        if not isinstance(mu, Particles) or records(mu.points, mu.weights, x):
            return super()._velocity_at(mu, x)
        with torch.no_grad():
            return self._field(mu, x, self.density(mu))

    def _field(self, mu: Measure, x: Tensor, rho: Tensor) -> Tensor:
        """Return the velocity at x, from the smoothed density at the atoms."""
        e, w = self.internal.e, mu.weights
        masses = torch.stack([w, w * entrywise_derivative(e, rho)], dim=1)
        # One sweep gives the density at x, its slope, and that of the other term.
        W, factor = self.kernel, self._factor(mu)
        sums, slopes = W.field(x, mu.points, masses, gradients=True)
        own = entrywise_derivative(e, factor * sums[:, 0])
        velocity = -factor * (own[:, None] * slopes[:, 0] + slopes[:, 1])
        check_finite(velocity, f"the velocity of {self!r}")
        return velocity

    def density(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        r"""Return the smoothed density :math:`\varphi_\sigma * \mu`.

        Parameters
        ----------
        mu : Measure
            The measure.
        x : Tensor or ndarray, shape (m, d), optional
            Where to evaluate; the points of `mu` by default.

        Returns
        -------
        Tensor, shape (n,) or (m,)
            Differentiable, as `Measure.convolve`.
        """
        check_kind(mu, Measure, "mu")
        return self._factor(mu) * mu.convolve(self.kernel, x)

    def _factor(self, mu: Measure) -> float:
        return math.pow(2.0 * math.pi * self.width**2, -0.5 * mu.dim)

    def __repr__(self) -> str:
        tolerance = self.kernel.tolerance
        end = f", tolerance={tolerance:g}" if tolerance else ""
        return f"Blob({self.internal!r}, width={self.width:g}{end})"
