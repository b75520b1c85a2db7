"""Kernels of two points, K(x, y), that need not be functions of the difference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow._algebra import Curvature, curvature_named
from otflow._graphs import recording
from otflow._typing import Ground
from otflow._validation import check_function, check_map, real
from otflow.kernels.pairs import PairKernel

__all__ = ["TwoPoint"]


class TwoPoint(PairKernel):
    r"""A function of two points as a kernel, :math:`K(x, y) = g(h(x), h(y))`.

    Energies see the symmetric part alone: :math:`\tfrac12\iint K\,d\mu\,d\mu` has the
    first variation :math:`\int\tfrac12(K(x, y) + K(y, x))\,d\mu(y)`. So K need not be
    symmetric.

    Features h are computed once for each point, not once for each pair. They suit a
    kernel that asks for something dear at each point, as the score of a density.

    Parameters
    ----------
    function : callable
        The function g: takes features (..., p) and (..., p) of the same shape to
        (...), written with torch operations. Without `features` these are the points.
    features : callable, optional
        The function h, batched (n, d) -> (n, p). The identity by default.
    singular : bool
        Whether sums over atoms omit the pairs i = j; True for a function that is
        infinite at x = y.
    modulus : float, optional
        A :math:`\lambda` such that K is :math:`\lambda`-convex in both points jointly,
        on :math:`\mathbb R^{2d}`.
    mixture : {"convex", "concave", "linear"}, optional
        How its interaction energy bends along mixtures: "convex" for a K that is
        conditionally positive definite. The word is not checked.

    Attributes
    ----------
    function, features, singular, modulus, mixture
        As above.

    Raises
    ------
    InvalidFunctional
        When it is evaluated, if g or h returns another shape or dtype.

    Notes
    -----
    Sums over particles visit tiles of pairs: time O(n^2 d), memory O(n d), for every
    order of derivative. Other measures sum over the pairs of their points: this is a
    quadrature rule, which sees no detail of K below the spacing of the points.

    Examples
    --------
    >>> import torch, otflow as of
    >>> K = of.kernels.TwoPoint(lambda x, y: 1 + (x * y).sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]]))
    >>> of.Interaction(K).value(mu)  # (1 + |mean|^2) / 2
    tensor(2.5000)
    >>> of.Interaction(K).velocity(mu)  # minus the mean
    tensor([[-2.],
            [-2.]])
    """

    _fixed = frozenset({"features", "function"})

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        *,
        features: Ground | None = None,
        singular: bool = False,
        modulus: float | None = None,
        mixture: Curvature | str | None = None,
    ) -> None:
        check_function(function, "K must be a function (..., d), (..., d) -> (...)")
        if features is not None:
            check_function(features, "features must be a function (n, d) -> (n, p)")
        self.function = function
        self.features = features
        self.singular = singular
        bound = None if modulus is None else real(modulus, "modulus")
        self._declare(TwoPoint, bound, curvature_named(mixture, "mixture"))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return K at points x and y that broadcast, (..., d) to (...)."""
        d = x.shape[-1]
        x, y = _broadcast(x, y)
        flat = (self.rows(z.reshape(-1, d)) for z in (x, y))
        return self.pairs(*flat).reshape(x.shape[:-1])

    def rows(self, points: Tensor) -> Tensor:
        if self.features is None:
            return points
        rows = self.features(points)
        width = rows.shape[-1:] if isinstance(rows, Tensor) else points.shape[-1:]
        shape, cure = points.shape[:-1] + width, "return one row for each point"
        return check_map(rows, points, shape, "the features", "points x", cure)

    def pairs(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = _broadcast(x, y)
        what, cure = "a kernel K(x, y)", "reduce over the last axis: .sum(-1)"
        return check_map(self.function(x, y), x, x.shape[:-1], what, "rows x", cure)

    def even_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (self.pairs(x, y) + self.pairs(y, x))

    def terms(self) -> tuple[tuple[float, PairKernel], ...]:
        return ((1.0, self),)

    def has_graph(self, like: Tensor) -> bool:
        if not recording():
            return False
        # At two different points: a user's kernel may be undefined at x = y.
        y = self.rows(torch.zeros_like(like[:1]).detach()).detach()
        x = self.rows(torch.ones_like(like[:1]).detach()).detach()
        return self.pairs(x, y).requires_grad

    def __repr__(self) -> str:
        function = self.function
        name = getattr(function, "__name__", None) or type(function).__name__
        return f"TwoPoint({name})"


def _broadcast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of one shape."""
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]
    return x, y
