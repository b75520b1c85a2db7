"""Potential energy: the linear functional of a measure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._algebra import Curvature
from otflow._arrays import as_points
from otflow._autodiff import gradient
from otflow._typing import ArrayLike, Ground
from otflow._validation import check_function, positive, real
from otflow.errors import Diverged, InvalidFunctional, Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.proximal_maps import (
    ProximalMap,
    as_points_of,
    check_map,
    try_map,
)
from otflow.measures import Measure, Particles
from otflow.numerics.enclosed_sums import Enclosed, as_enclosure

__all__ = ["Potential"]


class Potential(Functional):
    r"""Potential energy :math:`F(\mu) = \int V\, d\mu`.

    The first variation is :math:`F'[\mu] = V`, the velocity :math:`-\nabla V`. If V is
    :math:`\lambda`-convex, F is :math:`\lambda`-convex along every interpolation
    :cite:p:`mccann1997convexity`.

    Parameters
    ----------
    V : callable
        Batched potential (..., d) -> (...), written with torch operations. V must be
        continuous for a velocity: automatic differentiation does not see a jump. On
        particles and quantiles the library does not detect a jump.
    modulus : float, optional
        A :math:`\lambda` such that :math:`V - \tfrac\lambda2|x|^2` is convex; unknown
        by default. The number is not checked, and certificates rest on it.
    prox : callable, optional
        The proximal map of V, ``prox(x, tau)`` with x (n, d), tau > 0, to the
        minimisers

        .. math:: \operatorname{prox}_{\tau V}(x)
            = \operatorname{argmin}_y V(y) + \frac{|y - x|^2}{2\tau}

        row by row, (n, d). Then a JKO step of particles is one call of the map, and
        `schemes.ForwardBackward` treats the term implicitly. The map raises ValueError
        where tau is too large for it. It is tried at random points, in some dimensions
        here, and in that of the particles and with their tau at a step.

    Attributes
    ----------
    V, prox
        As above.
    convexity : float or None
        The number given as `modulus`.

    Raises
    ------
    InvalidFunctional
        If `prox` is not the proximal map of V at a point that is tried. If `modulus` is
        given, two images must be at most :math:`1/(1 + \tau\lambda)` times as far apart
        as their points.

    See Also
    --------
    otflow.functionals.l1_norm : A potential with its map, as `group_norm` and `box`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> F.velocity(of.Particles(torch.tensor([[2.0]])))
    tensor([[-2.]])
    >>> G = of.Potential(
    ...     lambda x: x.abs().sum(-1), prox=lambda x, tau: x - x.clamp(-tau, tau)
    ... )
    >>> mu = of.Particles(torch.tensor([[2.0], [0.25]]))
    >>> of.flow(G, mu, of.JKO(), dt=0.5, steps=1).final.points
    tensor([[1.5000],
            [0.0000]])
    """

    # The library itself states the modulus of some potentials.
    _reason = "as modulus= of V declares"
    prox: ProximalMap | None = None
    _unknown = "since no convexity of V is declared: Potential(V, modulus=...)"

    def __init__(
        self,
        V: Ground,
        *,
        modulus: float | None = None,
        prox: ProximalMap | None = None,
    ) -> None:
        check_function(V, "V must be a function (..., d) -> (...)")
        self.V, self.prox = V, prox
        self.convexity = None if modulus is None else real(modulus, "modulus")
        # Dimensions, dtypes, devices and sizes of tau for which the map was tried.
        self._tried: set[tuple[int | str, ...]] = set()
        if prox is not None:
            check_function(prox, "prox must be a function (n, d), tau -> (n, d)")
            try_map(V, prox, self.convexity, repr(self))

    @property
    def _fixed(self) -> frozenset[str]:  # type: ignore[override]
        """V is fixed where something is declared of it."""
        declared = vars(self).get("convexity") is not None
        return frozenset({"V"} if declared else ())

    def value(self, mu: Measure) -> Tensor:
        value = mu.expectation(self.V)
        if value.ndim:
            msg = (
                f"V must map points (n, d) to n values, got (n, "
                f"{', '.join(map(str, value.shape))}); reduce over the last axis, "
                f"e.g. x.square().sum(-1)"
            )
            raise InvalidFunctional(msg)
        # 0 times infinity: an indicator, which has a map, where there is no mass. Its
        # derivative in the masses is infinite there all the same. The test waits for
        # the value, so a potential without a map is spared it.
        if self.prox and not mu.weights.requires_grad and bool(value.isnan()):
            value = mu.expectation(self._on_mass(mu))
        return value

    def _on_mass(self, mu: Measure) -> Ground:
        """Return V with 0 in place of infinity at the points without mass."""
        empty = mu.weights == 0

        def V(x: Tensor) -> Tensor:
            values: Tensor = self.V(x)
            if values.shape != empty.shape:
                return values
            return values.masked_fill(empty & (values == torch.inf), 0.0)

        return V

    def proximal(self, x: ArrayLike, tau: float) -> Tensor:
        r"""Return :math:`\operatorname{prox}_{\tau V}` at points, by the map given.

        Parameters
        ----------
        x : Tensor or ndarray, shape (n, d)
            Points.
        tau : float
            Step, > 0.

        Returns
        -------
        Tensor, shape (n, d)
            The images, without a graph.

        Raises
        ------
        Unsupported
            If no `prox` was given.
        InvalidFunctional
            If `prox` is not the proximal map of V at a point that is tried.
        Diverged
            If an image is not finite.
        """
        tau, name = positive(tau, "tau"), repr(self)
        if self.prox is None:
            msg = f"{name} has no proximal map; declare one: Potential(V, prox=...)"
            raise Unsupported(msg)
        x = as_points(x)
        with torch.no_grad():
            key = x.shape[1], str(x.dtype), str(x.device)
            if key not in self._tried:
                check_map(self.V, self.prox, self.convexity, name, x)
                self._tried.add(key)
            # A map may be right for some steps alone: one of each size is tried.
            if (own := (*key, math.frexp(tau)[1])) not in self._tried:
                check_map(self.V, self.prox, self.convexity, name, x, (tau,))
                self._tried.add(own)
            y = as_points_of(self.prox(x.clone(), tau), x, name)
        if not bool(torch.isfinite(y).all()):
            msg = f"the prox of {name} left the finite numbers; take a smaller dt"
            raise Diverged(msg)
        return y

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        if not isinstance(mu, Particles):
            return super()._velocity_at(mu, x)
        return -gradient(self.V, x)

    def enclosed_variation(self, mu: Measure) -> Enclosed:
        return lambda x: as_enclosure(self.V(x), x)

    def modulus(self, dim: int) -> float | None:
        return self.convexity

    def why_modulus(self, dim: int) -> str:
        if self.convexity is not None:
            return self._reason
        return self._unknown

    def mixture_curvature(self) -> Curvature:
        return Curvature.LINEAR

    def why_mixture(self) -> str:
        return "as every integral of a function"

    def __repr__(self) -> str:
        return f"Potential({getattr(self.V, '__name__', type(self.V).__name__)})"
