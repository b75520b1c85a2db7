"""Weighted particles: a sum of Diracs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from otflow._arrays import added, as_points, as_weights, coordinate_limit
from otflow._autodiff import second_gradient, value_and_gradient
from otflow._graphs import kept, records, value_of
from otflow._typing import ArrayLike, Value
from otflow._validation import alike, check_generator, positive, real
from otflow.errors import Diverged
from otflow.measures.arrays import array_of_points
from otflow.measures.base import Measure
from otflow.measures.sums import check_draw, reweighted

__all__ = ["Particles"]


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Particles(Measure):
    r"""Weighted particles :math:`\mu = \sum_{i=1}^n w_i\, \delta_{x_i}`.

    A tangent is one velocity :math:`v_i` for each atom, (n, d); `push` returns
    :math:`\sum_i w_i\, \delta_{x_i + dt\, v_i}`, and `inner` is :math:`\sum_i w_i\,
    u_i\cdot v_i`. The Wasserstein gradient of F at an atom is :math:`\nabla
    F'[\mu](x_i) = \frac1{w_i}\frac{\partial F}{\partial x_i}`, and the first variation
    is :math:`F'[\mu](x_i) = \partial F/\partial w_i`, masses free
    :cite:p:`ambrosio2008gradient`. At an atom of weight zero the quotient is 0/0; there
    the gradient is that of the first variation. Particles have no density.

    Parameters
    ----------
    points : Tensor or ndarray, shape (n, d)
        Positions, float32 or float64; copied, with their graph.
    weights : Tensor or ndarray, shape (n,), optional
        Masses, non-negative, of sum 1; uniform 1/n by default. A graph is kept.
    normalize : bool
        Divide the weights by their sum. By default a sum other than 1 raises.

    Attributes
    ----------
    points : Tensor, shape (n, d)
        Positions.
    weights : Tensor, shape (n,)
        Masses.
    is_uniform : bool
        Whether every mass is 1/n.

    Raises
    ------
    ValueError
        If a shape is wrong, an entry is not finite, weights are negative or do not sum
        to 1, or the dtype is a half precision.
    TypeError
        If the kind or dtype of an argument is wrong; nothing is cast.

    Notes
    -----
    Memory O(n d).

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> mu.push(torch.ones(2, 2), dt=0.5).points
    tensor([[0.5000, 0.5000],
            [1.5000, 1.5000]])
    """

    points: Tensor
    weights: Tensor
    is_uniform: bool

    flat: ClassVar[bool] = True

    cures: ClassVar[Mapping[str, str]] = {
        "density": (
            "a sum of Diracs is singular, so internal energies such as Entropy, "
            "PowerEntropy and Congestion mean nothing on it; represent the measure by "
            "a density (GridDensity, Quantiles, Gaussian), or smooth the particles by "
            "a width, as in Blob(Entropy(), width), or flow an entropy with "
            "Langevin(), which turns it into noise"
        ),
    }

    def __init__(
        self,
        points: ArrayLike,
        weights: ArrayLike | None = None,
        *,
        normalize: bool = False,
    ) -> None:
        x = as_points(points).clone(memory_format=torch.contiguous_format)
        n = x.shape[0]
        if weights is None:
            w, is_uniform = x.new_full((n,), 1.0 / n), True
        else:
            w = as_weights(weights, x, normalize=normalize).clone()
            is_uniform = bool((w == w[0]).all())
        self._hold(points=x, weights=w, is_uniform=is_uniform)

    def with_free_atoms(
        self,
        points: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        is_uniform: bool = False,
    ) -> Self:
        """Return particles of other atoms, as the argument of a functional; unchecked.

        Parameters
        ----------
        points : Tensor, shape (m, d), optional
            Atoms; those of this measure by default. A graph on them stays alive.
        weights : Tensor, shape (m,), optional
            Masses, of any sum; those of this measure by default.
        is_uniform : bool, optional
            Whether the given `weights` are known to be equal.

        Returns
        -------
        Particles
            They share the given tensors. They are a probability only if `weights` are
            one.

        Examples
        --------
        >>> import torch, otflow as of
        >>> mu = of.Particles(torch.tensor([[1.0], [3.0]]))
        >>> half = mu.with_free_atoms(weights=torch.tensor([0.5, 0.0]))
        >>> float(half.expectation(lambda x: x.sum(-1)))
        0.5
        """
        points = self.points if points is None else points
        if weights is None:
            return self._changed(points=points)
        return self._changed(points=points, weights=weights, is_uniform=is_uniform)

    def _evaluate(self, value: Value, points: Tensor, weights: Tensor) -> Tensor:
        """Return the value at other tensors; a value that writes into them raises."""
        return value_of(self.with_free_atoms(points, weights), value)

    # Derivatives ---------------------------------------------------------------------

    @property
    def coordinates(self) -> Tensor:
        """The points, (n, d)."""
        return self.points

    def with_coordinates(self, coordinates: Tensor) -> Self:
        """Return particles at other points, unchecked: `with_free_atoms`."""
        return self._changed(points=coordinates)

    def tangent_of(self, partials: Tensor, value: Value) -> Tensor:
        """Return the partial derivative of each atom over its mass, (n, d).

        Raises
        ------
        Unsupported
            If the masses carry a graph and some of them are zero.
        """
        points, weights = self.points, self.weights
        if self.is_uniform and not records(weights):
            number = _number(points.shape[0], partials.dtype, partials.device)
            return partials * number
        empty = weights == 0
        if not records(weights):
            # The derivative is a product with the mass. If the mass is close to
            # underflow the product has lost digits, and the division does not restore
            # them.
            kind = torch.finfo(self.dtype)
            empty = weights < kind.tiny / kind.eps
        if not bool(empty.any()):
            return partials / weights[:, None]
        gradient = partials / weights.masked_fill(empty, 1.0)[:, None]
        at_probes = second_gradient(
            lambda x, w: self._evaluate(value, x, w), points, weights, empty
        )
        return gradient.index_put((empty,), at_probes)

    def mass_gradient(self, value: Value, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`\partial F/\partial w_i` at the atoms, or at probes `x`.

        Probes are appended as atoms of mass zero, and F is differentiated in their
        masses. So the answer is exact anywhere.
        """
        points, weights = self.points, self.weights
        if x is not None:
            x = self.check_probes(x)
            points = torch.cat([points, x])
            weights = torch.cat([weights, weights.new_zeros(len(x))])
        grad = value_and_gradient(
            lambda w: self._evaluate(value, points, w), weights, beside=(points,)
        )[1]
        return grad if x is None else grad[self.n :]

    # Moves ---------------------------------------------------------------------------

    def push(self, tangent: Tensor, dt: float) -> Self:
        points = self.points
        if not alike(tangent, points):
            self._check_tangent(tangent)
        return self._moved(added(points, tangent, real(dt, "dt")))

    def diffuse(self, variance: float, generator: torch.Generator) -> Self:
        r"""Add independent noise :math:`N(0, \mathrm{variance}\, I)` to each atom.

        The outcome is a sample of the heat flow.
        """
        check_generator(generator)
        scale = positive(variance, "variance", or_zero=True) ** 0.5
        noise = torch.empty_like(self.points).normal_(generator=generator)
        return self._moved(added(self.points, noise, scale))

    def reweight(self, log_rate: Tensor, dt: float) -> Self:
        weights = reweighted(self.weights, log_rate, dt)
        if not bool(torch.isfinite(weights).all()):
            msg = "reweighting gave NaN: log_rate has a non-finite entry"
            raise Diverged(msg, measure=self)
        return self.with_free_atoms(weights=weights, is_uniform=False)

    def _mixture(self, other: Self, share: float) -> Self:
        points = torch.cat([self.points, self.check_probes(other.points)])
        if share in (0.0, 1.0):
            return self if share == 0 else other
        weights = torch.cat([(1.0 - share) * self.weights, share * other.weights])
        return self.with_free_atoms(points, weights)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n atoms independently by their masses, with replacement, (n, d).

        The draws are differentiable in the positions of the atoms drawn.
        """
        n = check_draw(n, generator, self.weights)
        index = torch.multinomial(
            self.weights, n, replacement=True, generator=generator
        )
        return self.points[index]

    # Geometry ------------------------------------------------------------------------

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        self._check_tangent(u, "u")
        self._check_tangent(v, "v")
        return self.weights @ (u * v).sum(-1)

    def displacement_to(self, other: Self) -> Tensor:
        """Return ``other.points - self.points``: atom i goes to atom i.

        Raises
        ------
        ValueError
            If sizes or weights differ: no map by index carries one to the other.
        """
        self._check_tangent(other.points, "other.points")
        if not torch.equal(self.weights, other.weights):
            msg = (
                "displacement_to goes by index and needs equal weights; for an optimal "
                "coupling use otflow.metrics.transport_plan"
            )
            raise ValueError(msg)
        return other.points - self.points

    # Arrays --------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the points (n, d) of uniform particles, as ``numpy.asarray(mu)`` does.

        The array shares the memory of the points and is read-only, since a measure is
        immutable; ``numpy.array(mu)`` makes a copy that may be written into.

        Raises
        ------
        Unsupported
            If the weights differ, and would be lost; if the points carry a graph, or
            are not on the CPU.
        """
        return array_of_points(self, dtype, copy)

    # Helpers -------------------------------------------------------------------------

    def _moved(self, points: Tensor) -> Self:
        # One reduction catches NaN, infinity and later overflow of squares: with NaN
        # the comparison is False. The sum of squares bounds the largest coordinate, and
        # costs half the time.
        limit, norm = coordinate_limit(points.dtype), torch.linalg.vector_norm
        if not (
            norm(points).item() < limit or norm(points, ord=torch.inf).item() < limit
        ):
            msg = (
                "positions left the finite numbers; take a smaller dt, or use JKO or "
                "ExplicitEuler(backtracking=True)"
            )
            raise Diverged(msg, measure=self)
        return self._changed(points=points)


@kept
def _number(x: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a 0-d tensor: a product with it takes half the time of one with x."""
    return torch.full((), x, dtype=dtype, device=device)
