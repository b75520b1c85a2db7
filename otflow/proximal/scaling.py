"""The scaling iteration of the debiased entropic step, as a fixed-point map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow.functionals import Internal
from otflow.measures import GridDensity
from otflow.proximal.gibbs import GibbsKernel
from otflow.proximal.terms import Terms

__all__ = [
    "Iterate",
    "Scaling",
    "normalised",
    "obstacle_correction",
    "potential_of",
]


class Iterate(NamedTuple):
    """One evaluation of the fixed-point map at x, arrays in the box's shape."""

    image: Tensor  # T(x)
    log_density: Tensor  # of the new density
    log_a: Tensor  # scaling on the side of the new density
    change: Tensor  # T(x) - x, 0 where the old density vanishes
    residual: float  # L1 error of the plan's first marginal
    size: float  # of the change, in L2 of the old density
    lost: float  # mass where numbers underflowed


@dataclass(frozen=True)
class Scaling:
    r"""The map of which the debiased entropic JKO step is the fixed point.

    The plan is :math:`a(y) K(x, y) b(x)`. The variable is :math:`x = \log K a` on the
    support of the old density :math:`\mu`, where :math:`b = \mu / K a`:

    .. math:: q = K b, \qquad
        (\tfrac\varepsilon2 + dt\,\kappa) \log\rho + dt\,(U'(\rho) + V + \kappa)
        = \varepsilon \log q, \qquad a = \rho / q .

    Its Jacobian is symmetric in :math:`L^2(\mu)`, where vacuum does not count.
    """

    kernel: GibbsKernel
    source: GridDensity
    log_source: Tensor  # log mu in the box's shape, minus infinity in vacuum
    terms: Terms
    dt: float
    potential: Tensor  # V plus first variations, in the box's shape
    correction: Tensor | None  # of obstacles, times eps
    is_free: Tensor | None  # None: everywhere
    safely: bool  # in the log domain

    @property
    def entropic(self) -> float:
        """Coefficient of the logarithm of the density."""
        return 0.5 * self.kernel.eps + self.dt * self.terms.temperature

    def evaluate(self, x: Tensor, start: Tensor | None) -> Iterate:
        """Return T(x) and what was met on the way."""
        log_b = self.log_source - x
        log_q, floor_q = self._convolve(log_b)
        z = self.log_density(log_q, start)
        log_a = z - log_q
        image, floor_a = self._convolve(log_a)
        change = torch.where(self.log_source > -math.inf, image - x, 0.0)
        old = self.source.weights.reshape(x.shape)
        # A far tail may be off by more than an exponential can hold.
        far = (self.log_source + change + math.log(self.kernel.box.cell_volume)).exp()
        error = torch.where(change > 1, far, old * change.expm1().abs_())
        sums = [error.sum(), (old * change.square()).sum()]
        if not self.safely:
            # The floor of the results is also what the sources were cut at.
            lost = ((log_b <= floor_q) | (image <= floor_a)).to(old.dtype)
            lost_new = ((log_a <= floor_a) | (log_q <= floor_q)).to(old.dtype)
            new = z.exp().mul_(self.kernel.box.cell_volume)
            sums.append((old * lost).sum() + (new * lost_new).sum())
        residual, square, lost_mass = (*torch.stack(sums).tolist(), 0.0)[:3]
        return Iterate(image, z, log_a, change, residual, square**0.5, lost_mass)

    def log_density(self, log_q: Tensor, start: Tensor | None) -> Tensor:
        """Return the pointwise proximal map of F and of minus (eps/2) H."""
        right = self.right_side(log_q)
        internal = self.terms.internal
        if internal is None:
            z = self._blank(right / self.entropic)
            # The additive constant is free: the mass fixes it.
            volume = math.log(self.kernel.box.cell_volume)
            return z - (z.logsumexp(tuple(range(z.ndim))) + volume)
        return self._blank(internal.log_proximal(right, self.entropic, self.dt, start))

    def right_side(self, log_q: Tensor) -> Tensor:
        """Return eps log q minus what does not depend on the new density."""
        right = self.kernel.eps * log_q - self.dt * self.potential
        if self.correction is not None:
            right = right + self.correction
        return right - self.dt * self.terms.temperature

    def implicit_log_density(self, log_q: Tensor) -> Tensor:
        """Return `log_density`, differentiable in log q and in the potential."""
        internal = self.terms.internal
        if internal is None:
            return self.log_density(log_q, None)
        with torch.no_grad():
            z = self.log_density(log_q, None)
        slope = self.entropic + self.dt * elasticity(internal, z)
        inside = z < math.log(internal.max_density)
        if self.is_free is not None:
            inside &= self.is_free
        right = self.right_side(log_q)
        return z + torch.where(inside, (right - right.detach()) / slope, 0.0)

    def log_weights(self, image: Tensor, log_a: Tensor) -> Tensor:
        """Return the plan's second marginal, its first being exact: log masses."""
        log_q = self._convolve(self.log_source - image)[0]
        return log_a + log_q + math.log(self.kernel.box.cell_volume)

    def convolve(self, log_v: Tensor) -> Tensor:
        """Return log K v."""
        return self._convolve(log_v)[0]

    def _blank(self, z: Tensor) -> Tensor:
        return z if self.is_free is None else z.masked_fill(~self.is_free, -math.inf)

    def _convolve(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        """Return log K v and the floor of the results."""
        if self.safely:
            return self.kernel.log_apply_safely(log_v), log_v.new_tensor(-math.inf)
        return self.kernel.log_apply(log_v)


def elasticity(internal: Internal, z: Tensor) -> Tensor:
    """Return r U''(r) at r = exp(z), its limit where r underflows."""
    r = z.clamp_min(0.5 * math.log(torch.finfo(z.dtype).tiny)).exp()
    return r * internal.curvature(r)


def normalised(z: Tensor) -> Tensor:
    """Return exp(z) over its sum: the masses of a log density, or of log masses."""
    return (z - z.logsumexp(tuple(range(z.ndim)))).exp()


def potential_of(mu: GridDensity, terms: Terms) -> Tensor:
    """Return the sum of the potentials at the cells, in the box's shape."""
    V = terms.V(mu.points).reshape(mu.shape)
    if not bool(mu.is_free.all()):
        V = torch.where(mu.is_free.reshape(mu.shape), V, 0.0)
    check_finite(V.detach(), "the potential")
    return V


def obstacle_correction(kernel: GibbsKernel, is_free: Tensor) -> Tensor:
    r"""Return eps log s, s the scaling that makes :math:`s K s` stochastic.

    Beside an obstacle the kernel loses mass. With this term the uniform density on the
    free cells is at rest, as it is without obstacles.
    """
    log_s = torch.zeros(is_free.shape, dtype=kernel.dtype, device=is_free.device)
    log_s = log_s.masked_fill(~is_free, -math.inf)
    for _ in range(60):
        image = kernel.log_apply_safely(log_s)
        log_s = (0.5 * (log_s - image)).masked_fill(~is_free, -math.inf)
    return kernel.eps * torch.where(is_free, log_s, 0.0)
