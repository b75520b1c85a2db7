"""Nonlinear functions of an integral: R(int Phi dmu)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from otflow._algebra import Curvature, curvature_named
from otflow._typing import Ground
from otflow._validation import check_function
from otflow.functionals.base import Functional
from otflow.measures import Measure
from otflow.numerics.enclosed_sums import Enclosed, over_columns, over_rows
from otflow.numerics.enclosures import Enclosure, NotEnclosed

__all__ = ["OfExpectation"]


class OfExpectation(Functional):
    r"""A function of an expectation, :math:`F(\mu) = R\bigl(\int \Phi\, d\mu\bigr)`.

    The first variation is :math:`F'[\mu](x) = \nabla R(\int\Phi\,d\mu)\cdot\Phi(x)`. If
    R is convex, F is convex along mixtures. The risk of a two-layer network has this
    form :cite:p:`chizat2018global`.

    Parameters
    ----------
    R : callable
        Function (m,) -> 0-d tensor.
    Phi : callable
        Batched features (n, d) -> (n, m), or (n,) for a 0-d integral.
    mixture : {"convex", "concave", "linear"}, optional
        How R bends, and so F along mixtures; unknown by default. It is not checked.

    Attributes
    ----------
    R, Phi, mixture
        As above.

    Notes
    -----
    Memory O(n m) for the features.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.OfExpectation(lambda m: m.square().sum(), lambda x: x)  # |mean|^2
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]]))
    >>> F.value(mu), F.velocity(mu)
    (tensor(4.), tensor([[-4.],
            [-4.]]))
    """

    def __init__(
        self,
        R: Callable[[Tensor], Tensor],
        Phi: Ground,
        *,
        mixture: Curvature | str | None = None,
    ) -> None:
        check_function(R, "R must be a function")
        check_function(Phi, "Phi must be a function")
        self.R = R
        self.Phi = Phi
        self.mixture = curvature_named(mixture, "mixture")

    @property
    def _fixed(self) -> frozenset[str]:  # type: ignore[override]
        """R is fixed where something is declared of it."""
        declared = vars(self).get("mixture") is not None
        return frozenset({"R"} if declared else ())

    def value(self, mu: Measure) -> Tensor:
        return self.R(mu.expectation(self.Phi))

    def mixture_curvature(self) -> Curvature | None:
        return self.mixture

    def why_mixture(self) -> str:
        if self.mixture is not None:
            return "as mixture= declares of R"
        return (
            'since no shape of R is declared: OfExpectation(R, Phi, mixture="convex")'
        )

    def enclosed_variation(self, mu: Measure) -> Enclosed:
        at = self.Phi(Enclosure.of(mu.points, mu.points, 0))
        scalar = at.ndim == 1
        flat = at[:, None] if scalar else at
        mean = over_columns(flat.mT, mu.weights)
        if not isinstance(mean, Enclosure):
            msg = "the features Phi do not depend on x"
            raise NotEnclosed(msg)
        # The slopes of R, for all means within round-off.
        ends = mean.value[:, None]
        R = self.R(Enclosure.of(ends[0], ends[1], 1)[0, 0 if scalar else slice(None)])
        slopes = R.gradient if isinstance(R, Enclosure) else 0.0 * mean.value

        def features(rows: slice, y: Enclosure) -> Tensor:
            values = self.Phi(y)
            return (values[:, None] if scalar else values).mT[rows]

        return lambda x: over_rows(features, x, slopes)
