"""Potential energy: the linear functional of a measure."""

from __future__ import annotations

from torch import Tensor

from otflow._algebra import Curvature
from otflow._autodiff import gradient
from otflow._typing import Ground
from otflow._validation import check_function, real
from otflow.errors import InvalidFunctional
from otflow.functionals.base import Functional
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

    Attributes
    ----------
    V
        As above.
    convexity : float or None
        The number given as `modulus`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> F.velocity(of.Particles(torch.tensor([[2.0]])))
    tensor([[-2.]])
    """

    # The library itself states the modulus of some potentials.
    _reason = "as modulus= of V declares"
    _unknown = "since no convexity of V is declared: Potential(V, modulus=...)"

    def __init__(self, V: Ground, *, modulus: float | None = None) -> None:
        check_function(V, "V must be a function (..., d) -> (...)")
        self.V = V
        self.convexity = None if modulus is None else real(modulus, "modulus")

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
        return value

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
