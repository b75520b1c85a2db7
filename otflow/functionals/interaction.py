"""Interaction energy between the points of one measure."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._autodiff import check_finite, value_and_gradient
from otflow._graphs import records
from otflow._pairs import tiles
from otflow._typing import ArrayLike, Ground
from otflow._validation import real
from otflow.functionals.base import Functional
from otflow.kernels import RadialKernel
from otflow.measures import Measure, Particles
from otflow.measures.sums import check_kernel

__all__ = ["Interaction"]


class Interaction(Functional):
    r"""Interaction energy :math:`F(\mu) = \tfrac12\iint W(x - y)\, d\mu\, d\mu`.

    Mind the 1/2. For even W the first variation is :math:`F'[\mu] = W * \mu` and the
    velocity :math:`-\nabla W * \mu`; for any W it is that of its even part. If W is
    :math:`\lambda`-convex, F is :math:`\min(\lambda, 0)`-convex
    :cite:p:`mccann1997convexity`: a rigid translation is free.

    Parameters
    ----------
    W : callable
        Batched kernel of the difference, (..., d) -> (...); a kernel of
        `otflow.kernels` is evaluated in closed form.
    modulus : float, optional
        A :math:`\lambda` such that :math:`W - \tfrac\lambda2|z|^2` is convex; a kernel
        of `otflow.kernels` brings its own.

    Attributes
    ----------
    W
        As above.
    convexity : float or None
        The number given as `modulus`, or that of the kernel.

    Notes
    -----
    Time O(n^2 d), memory O(n d): the n x n array is never formed. The pairs i = j count
    (they add a constant for smooth W) unless W is a singular kernel.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Interaction(lambda z: z.square().sum(-1) / 2)
    >>> F.value(of.Particles(torch.tensor([[-1.0], [1.0]])))  # half the variance
    tensor(0.5000)
    """

    def __init__(self, W: Ground, *, modulus: float | None = None) -> None:
        if isinstance(W, type):
            msg = f"W is the class {W.__name__}; write {W.__name__}() with its options"
            raise TypeError(msg)
        if not callable(W):
            msg = f"W must be a function (..., d) -> (...), got {type(W).__name__}"
            raise TypeError(msg)
        self.W = W
        if modulus is None and isinstance(W, RadialKernel):
            modulus = W.modulus
        self.convexity = None if modulus is None else real(modulus, "modulus")

    def value(self, mu: Measure) -> Tensor:
        r"""Return :math:`\tfrac12\sum_{ij} w_i w_j W(x_i - x_j)`."""
        singular = isinstance(self.W, RadialKernel) and self.W.singular
        return mu.interaction(self.W, diagonal=not singular)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        r"""Return :math:`\tfrac12\sum_j w_j (W(x - x_j) + W(x_j - x))`.

        At m points away from the atoms in time O(n m d), tile by tile.
        """
        if x is None or not isinstance(mu, Particles):
            return super().first_variation(mu, x)
        probes = mu.check_probes(x)
        if records(mu.points, mu.weights, probes):
            return super().first_variation(mu, probes)
        potential = mu.weights.new_zeros(len(probes))
        with torch.no_grad():
            for i in tiles(len(probes)):
                for j in tiles(mu.n):
                    potential[i] += self._field(probes[i], mu.points[j], mu.weights[j])
        check_finite(potential, "the first variation")
        return potential

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        r"""Return the energy and :math:`-\sum_j w_j \nabla W(x_i - x_j)`.

        Atoms of mass zero act on nothing: k of them beside n with mass cost O(k n d)
        more, and nothing is differentiated twice for them.
        """
        empty = mu.weights == 0
        recorded = records(mu.points, mu.weights)
        if not isinstance(mu, Particles) or recorded or not bool(empty.any()):
            return super().value_and_velocity(mu)
        body = mu.with_free_atoms(
            mu.points[~empty], mu.weights[~empty], is_uniform=mu.is_uniform
        )
        value, moving = super().value_and_velocity(body)
        velocity = torch.empty_like(mu.points)
        velocity[~empty] = moving
        velocity[empty] = -self._slope(mu.points[empty], body)
        return value, velocity

    def _field(self, x: Tensor, y: Tensor, masses: Tensor) -> Tensor:
        """Return the potential at `x` of masses at `y`, in one block."""
        z = x[:, None, :] - y
        if isinstance(self.W, RadialKernel):
            return check_kernel(self.W, z) @ masses
        return 0.5 * ((check_kernel(self.W, z) + check_kernel(self.W, -z)) @ masses)

    def _slope(self, x: Tensor, mu: Particles) -> Tensor:
        """Return the gradient of the potential of `mu` at `x`, tile by tile."""
        slope = torch.zeros_like(x)
        for i in tiles(len(x)):
            for j in tiles(mu.n):

                def total(at: Tensor, j: slice = j) -> Tensor:
                    return self._field(at, mu.points[j], mu.weights[j]).sum()

                slope[i] += value_and_gradient(total, x[i], unused=True)[1]
        return slope

    def modulus(self, dim: int) -> float | None:
        r"""Return :math:`\min(\lambda, 0)`, None if unknown."""
        return None if self.convexity is None else min(self.convexity, 0.0)

    def __repr__(self) -> str:
        name = self.W if isinstance(self.W, RadialKernel) else None
        return (
            f"Interaction({name or getattr(self.W, '__name__', type(self.W).__name__)})"
        )
