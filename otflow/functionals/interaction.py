"""Interaction energy between the points of one measure."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from otflow._algebra import Curvature, curvature_named
from otflow._graphs import records
from otflow._typing import ArrayLike, Ground
from otflow._validation import real
from otflow.functionals.base import Functional
from otflow.kernels import Kernel, PairKernel, as_kernel
from otflow.measures import Measure, Particles
from otflow.measures.sums import pair_slope
from otflow.numerics.enclosed_sums import Enclosed
from otflow.numerics.enclosures import NotEnclosed

__all__ = ["Interaction"]


class Interaction(Functional):
    r"""Interaction energy :math:`F(\mu) = \tfrac12\iint W(x - y)\, d\mu\, d\mu`.

    Mind the factor 1/2. The first variation is :math:`F'[\mu](x) = \int \tfrac12(W(x -
    y) + W(y - x))\, d\mu(y)`; for an even W it is :math:`W * \mu`, and the velocity is
    :math:`-\nabla W * \mu`. If W is :math:`\lambda`-convex, F is :math:`\min(\lambda,
    0)`-convex :cite:p:`mccann1997convexity`: a rigid translation does not change F.

    A kernel of two points, `kernels.TwoPoint`, gives :math:`\tfrac12\iint K(x, y)\,
    d\mu\,d\mu`, of which the symmetric part counts likewise. If K is
    :math:`\lambda`-convex in both points jointly, F is :math:`\lambda`-convex.

    Parameters
    ----------
    W : callable or PairKernel
        Batched kernel of the difference, (..., d) -> (...); a radial kernel of
        `otflow.kernels` is evaluated in closed form, a kernel of two points is a
        `kernels.TwoPoint`. Kernels may be added and scaled;
        then the `terms` are the interactions of the kernels, each times its factor.
    modulus : float, optional
        A :math:`\lambda` such that :math:`W - \tfrac\lambda2|z|^2` is convex; a kernel
        of `otflow.kernels` brings its own.
    mixture : {"convex", "concave", "linear"}, optional
        How F bends along mixtures: "convex" if W is conditionally positive definite, as
        repulsion is, "concave" if -W is, as attraction by :math:`|z|^p` is for
        :math:`0 < p \le 2`. The word is not checked. A kernel of `otflow.kernels`
        brings its own.

    Attributes
    ----------
    W
        As above.
    kernel : PairKernel
        W; a plain function is wrapped.
    convexity : float or None
        The number given as `modulus`, or that of the kernel.
    mixture : Curvature or None
        The word given as `mixture`, or that of the kernel.

    Notes
    -----
    On particles: time O(n^2 d), memory O(n d); the n x n array is never formed. At m
    points away from the atoms first variation and velocity cost O(n m d). With k atoms
    of mass zero the velocity costs O(k n d) more, since these atoms act on nothing. The
    pairs i = j count, unless W is a singular kernel; for a smooth W they add a
    constant.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Interaction(lambda z: z.square().sum(-1) / 2)
    >>> F.value(of.Particles(torch.tensor([[-1.0], [1.0]])))  # half the variance
    tensor(0.5000)
    """

    _fixed = frozenset({"W", "kernel"})

    def __init__(
        self,
        W: Ground | PairKernel,
        *,
        modulus: float | None = None,
        mixture: Curvature | str | None = None,
    ) -> None:
        self.W = W
        self.kernel = as_kernel(W)
        self._modulus = None if modulus is None else real(modulus, "modulus")
        self._mixture = curvature_named(mixture, "mixture")
        self._of_kernel()
        parts = self.kernel.terms()
        whole = len(parts) == 1 and parts[0][0] == 1
        self._parts = () if whole else tuple((c, Interaction(V)) for c, V in parts)

    def _of_kernel(self) -> tuple[float | None, Curvature | None]:
        """Return what the kernel, as it is now, states of itself."""
        bound = self.kernel.modulus
        word = curvature_named(self.kernel.mixture, f"the mixture of {self.kernel!r}")
        return None if bound is None else real(bound, "modulus"), word

    @property
    def convexity(self) -> float | None:
        """The number given as `modulus`, or that of the kernel."""
        return self._of_kernel()[0] if self._modulus is None else self._modulus

    @convexity.setter
    def convexity(self, number: float | None) -> None:
        self._modulus = None if number is None else real(number, "modulus")

    @property
    def mixture(self) -> Curvature | None:
        """The word given as `mixture`, or that of the kernel."""
        return self._of_kernel()[1] if self._mixture is None else self._mixture

    @mixture.setter
    def mixture(self, word: Curvature | str | None) -> None:
        self._mixture = curvature_named(word, "mixture")

    def _terms(self) -> tuple[tuple[float, Functional], ...]:
        return self._parts or ((1.0, self),)

    def value(self, mu: Measure) -> Tensor:
        return mu.interaction(self.kernel)

    def first_variation(self, mu: Measure, x: ArrayLike | None = None) -> Tensor:
        if x is None or not isinstance(mu, Particles):
            return super().first_variation(mu, x)
        probes = mu.check_probes(x)
        live = records(mu.points, mu.weights, probes)
        with nullcontext() if live else torch.no_grad():
            return mu.convolve(self.kernel, probes)

    def value_and_velocity(self, mu: Measure) -> tuple[Tensor, Tensor]:
        empty = mu.weights == 0
        recorded = records(mu.points, mu.weights)
        if not isinstance(mu, Particles) or recorded or not bool(empty.any()):
            return super().value_and_velocity(mu)
        # Atoms without mass act on nothing. So the body moves as if they were absent,
        # and they follow its potential: k of them cost O(k n d), not O((n + k)^2 d).
        body = mu.with_free_atoms(
            mu.points[~empty], mu.weights[~empty], is_uniform=mu.is_uniform
        )
        value, moving = super().value_and_velocity(body)
        velocity = torch.empty_like(mu.points)
        velocity[~empty] = moving
        velocity[empty] = self._velocity_at(body, mu.points[empty])
        return value, velocity

    def _velocity_at(self, mu: Measure, x: Tensor) -> Tensor:
        if not isinstance(mu, Particles):
            return super()._velocity_at(mu, x)
        with nullcontext() if records(mu.points, mu.weights, x) else torch.no_grad():
            return -pair_slope(self.kernel, x, mu.points, mu.weights)

    def enclosed_variation(self, mu: Measure) -> Enclosed:
        if not isinstance(mu, Particles):
            msg = f"{self!r} is enclosed on Particles alone"
            raise NotEnclosed(msg)
        if self._parts:
            return super().enclosed_variation(mu)
        return lambda x: self.kernel.enclosed_field(x, mu.points, mu.weights)

    def modulus(self, dim: int) -> float | None:
        if self.convexity is None or not isinstance(self.kernel, Kernel):
            return self.convexity
        return min(self.convexity, 0.0)

    def why_modulus(self, dim: int) -> str:
        number = "modulus= of W declares" if self._modulus is not None else ""
        reason = f"as {number}" if number else self.kernel.why_modulus()
        if dim == 1 and reason.endswith("every coupling"):
            reason += (
                "; along geodesics on the line, where atoms keep their order, F may be "
                "convex: analysis.falsify tells both apart"
            )
        if self.convexity is None or self.convexity <= 0:
            return reason
        if not isinstance(self.kernel, Kernel):
            return reason
        return f"since a translation does not change F; of W it is {reason}"

    def mixture_curvature(self) -> Curvature | None:
        return self.mixture

    def why_mixture(self) -> str:
        if self._mixture is not None:
            return "as mixture= declares"
        return self.kernel.why_mixture()

    def __repr__(self) -> str:
        return f"Interaction({self.kernel!r})"
