"""The fixed-point map of the debiased entropic step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow.functionals import Internal
from otflow.measures import GridDensity
from otflow.numerics.roots import bisect
from otflow.proximal.grid.sinkhorn.kernel import GibbsKernel
from otflow.proximal.terms import Terms

# Round-off of a long sum, in units of that of its terms.
ROUND_OFF = 256.0
# Share of the uniform density in a density that must be positive everywhere: logarithms
# and first variations need one.
SHARE = 1e-6
# Halvings of the search for the mass that fits below the bound on the density: more
# than the digits of a float64.
HALVINGS = 60

__all__ = [
    "SHARE",
    "Iterate",
    "Plan",
    "Scaling",
    "elasticity",
    "obstacle_correction",
    "potential_of",
]


class Iterate(NamedTuple):
    """One evaluation of the fixed-point map T at x; arrays have the box's shape."""

    image: Tensor  # T(x)
    log_density: Tensor  # of the new density
    log_a: Tensor  # scaling on the side of the new density
    change: Tensor  # T(x) - x, 0 where the old density vanishes
    residual: float  # L1 error of the plan's first marginal
    slope: Tensor  # gradient of the dual value in x: second marginal minus first
    dual: float  # value of the concave dual
    noise: float  # its round-off
    lost: float  # mass where numbers underflowed

    def rises_from(self, old: Iterate, way: Tensor) -> bool:
        """Return whether the dual value is no less than that of `old`, at x - way.

        Within round-off the trapezoidal rule gives the difference from the slopes.
        """
        rise = self.dual - old.dual
        if not abs(rise) > self.noise + old.noise:
            mean = 0.5 * (self.slope + old.slope)
            rise = float((mean * way).sum(dtype=torch.float64))
        return rise >= 0


@dataclass(frozen=True)
class Scaling:
    r"""The map of which the debiased entropic JKO step is the fixed point.

    The plan is :math:`a(y) K(x, y) b(x)`. The variable is :math:`x = \log K a` on the
    support of the old density :math:`\mu`, where :math:`b = \mu / K a`:

    .. math:: q = K b, \qquad
        (\tfrac\varepsilon2 + dt\,\kappa) \log\rho + dt\,(U'(\rho) + V + \kappa)
        = \varepsilon \log q, \qquad a = \rho / q .

    The Jacobian of the map is symmetric in :math:`L^2(\mu)`, where vacuum does not
    count. The fixed point is the maximum of the concave dual value

    .. math:: D(x) = -\int x\,d\mu - \int \Psi(\log q)\,dy, \qquad
        \varepsilon\,\Psi = (\tfrac\varepsilon2 + dt\,\kappa)\,\rho
        + dt\,(\rho\,U' - U),

    whose gradient :math:`\mu\,(Ka\,e^{-x} - 1)` is the error of the first marginal. D
    is concave, since log q is convex and the derivative of :math:`\Psi` is
    :math:`\rho`, which is positive and increases. Let R be the largest slope of
    :math:`\log\rho` in log q, but at least 1. A plain step damped by 1/R raises D by
    :math:`\mathrm{KL}(\mu|\mu\,Ka\,e^{-x})/R` or more.
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

    def wider(self, factor: float) -> Scaling:
        """Return the same problem with `factor` times the variance of the kernel."""
        kernel = GibbsKernel(self.kernel.box, factor * self.kernel.eps, self.log_source)
        correction = None
        if self.is_free is not None:
            correction = obstacle_correction(kernel, self.is_free)
        return replace(self, kernel=kernel, correction=correction)

    @property
    def proved_damping(self) -> float:
        """The factor 1/R on a plain step, by which the dual value rises."""
        return min(1.0, self.entropic / self.kernel.eps)

    @cached_property
    def entropic(self) -> float:
        """Coefficient of the logarithm of the density."""
        return 0.5 * self.kernel.eps + self.dt * self.terms.temperature

    def evaluate(self, x: Tensor, start: Tensor | None) -> Iterate:
        """Return T(x) with the quantities on the way; Newton starts from `start`."""
        log_b = self.log_source - x
        log_q, floor_q = self.kernel.log_apply(log_b, safely=self.safely)
        right, volume = self.right_side(log_q), self.kernel.box.cell_volume
        z, total = self._log_density(right, start)
        log_a = z - log_q
        image, floor_a = self.kernel.log_apply(log_a, safely=self.safely)
        change = torch.where(self.log_source > -math.inf, image - x, 0.0)
        old = self.source.weights.reshape(x.shape)
        # A far tail may be off by more than an exponential can hold.
        far = (self.log_source + change + math.log(volume)).exp()
        slope = torch.where(change > 1, far - old, old * change.expm1())
        new = z.exp()
        fixed = old * torch.where(old > 0, x, 0.0)
        if total is None:
            potential, magnitude = self._potential(right, z, new)
        else:
            potential = total * (self.entropic / self.kernel.eps)
            magnitude = potential.abs()
        if self.safely:
            lost = new.new_zeros(())
        else:
            # The floor of the results is also what the sources were cut at.
            lost = old * ((log_b <= floor_q) | (image <= floor_a))
            lost = lost + volume * new * ((log_a <= floor_a) | (log_q <= floor_q))
        parts = (slope.abs(), fixed, fixed.abs(), potential, magnitude, lost)
        residual, first, size, second, more, lost_mass = torch.stack(
            [part.sum(dtype=torch.float64) for part in parts]
        ).tolist()
        noise = ROUND_OFF * torch.finfo(x.dtype).eps * (size + more)
        dual = -first - second
        return Iterate(image, z, log_a, change, residual, slope, dual, noise, lost_mass)

    def _log_density(
        self, right: Tensor, start: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        r"""Return the pointwise proximal map of F and of minus (eps/2) H.

        Without an internal energy the mass fixes an additive constant. This constant is
        returned too, in units in which it is the integral of :math:`\Psi`. Else None is
        returned for it.
        """
        internal = self.terms.internal
        if internal is None:
            z = self._blank(right / self.entropic)
            total = z.logsumexp(tuple(range(z.ndim)))
            total = total + math.log(self.kernel.box.cell_volume)
            return z - total, total
        z = internal.log_proximal(right, self.entropic, self.dt, start)
        return self._blank(z), None

    def _potential(
        self, right: Tensor, z: Tensor, rho: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Return the masses of :math:`\Psi(\log q)` and a bound on their terms.

        The equation for z gives :math:`dt\,(\rho\,U' - U)`; there U' includes the
        multiplier that holds the density below its bound.
        """
        eps, volume = self.kernel.eps, self.kernel.box.cell_volume
        internal = self.terms.internal
        assert internal is not None
        empty = rho <= torch.finfo(rho.dtype).tiny
        r = torch.where(empty, 1.0, rho)
        slope = torch.where(empty, 0.0, right - self.entropic * z) / eps
        energy = (self.dt / eps) * r * internal.e(r)
        entropy = (self.entropic / eps) * rho
        size = volume * (r * slope.abs() + energy.abs() + entropy)
        value = volume * torch.where(empty, entropy, entropy + r * slope - energy)
        return value, torch.where(empty, 0.0, size)

    def right_side(self, log_q: Tensor) -> Tensor:
        """Return eps log q less the terms that do not depend on the new density."""
        right = self.kernel.eps * log_q - self.dt * self.potential
        if self.correction is not None:
            right = right + self.correction
        return right - self.dt * self.terms.temperature

    def implicit_log_density(self, log_q: Tensor) -> Tensor:
        """Return the log density, with the graphs of log q and of the potential."""
        internal, right = self.terms.internal, self.right_side(log_q)
        if internal is None:
            return self._log_density(right, None)[0]
        with torch.no_grad():
            z = self._log_density(right, None)[0]
        slope = self.entropic + self.dt * elasticity(internal, z)
        inside = z < math.log(internal.max_density)
        # A density at its bound or in an obstacle does not move with the data.
        if self.is_free is not None:
            inside &= self.is_free
        return z + torch.where(inside, (right - right.detach()) / slope, 0.0)

    def log_weights(self, image: Tensor, log_a: Tensor) -> Tensor:
        """Return the log masses of the second marginal, if the first is exact."""
        log_q = self.convolve(self.log_source - image)
        return log_a + log_q + math.log(self.kernel.box.cell_volume)

    def convolve(self, log_v: Tensor) -> Tensor:
        """Return log K v."""
        return self.kernel.log_apply(log_v, safely=self.safely)[0]

    def potential_at(self, log_a: Tensor, log_density: Tensor) -> Tensor:
        r"""Return :math:`\varepsilon(\log a - \tfrac12\log\rho)`, 0 in vacuum.

        At the step this is minus dt times the first variation, also where the density
        underflows.
        """
        phi = self.kernel.eps * (log_a - 0.5 * log_density)
        if self.correction is not None:
            phi = phi - self.correction
        return phi.nan_to_num(0.0, 0.0, 0.0)

    def _blank(self, z: Tensor) -> Tensor:
        return z if self.is_free is None else z.masked_fill(~self.is_free, -math.inf)


def elasticity(internal: Internal, z: Tensor) -> Tensor:
    """Return r U''(r) at r = exp(z), or its limit where r underflows."""
    r = z.clamp_min(0.5 * math.log(torch.finfo(z.dtype).tiny)).exp()
    return r * internal.curvature(r)


def potential_of(mu: GridDensity, terms: Terms) -> Tensor:
    """Return the sum of the potentials at the cells, in the box's shape."""
    V = terms.V(mu.points).reshape(mu.shape)
    if not bool(mu.is_free.all()):
        V = torch.where(mu.is_free.reshape(mu.shape), V, 0.0)
    check_finite(V.detach(), "the potential")
    return V


def obstacle_correction(kernel: GibbsKernel, is_free: Tensor) -> Tensor:
    r"""Return eps log s, where s is the scaling with which :math:`s K s` is stochastic.

    Beside an obstacle the kernel loses mass. With this term the uniform density on the
    free cells is at rest, as without obstacles.
    """
    log_s = torch.zeros(is_free.shape, dtype=kernel.dtype, device=is_free.device)
    log_s = log_s.masked_fill(~is_free, -math.inf)
    # Each sweep halves the error at least: 60 sweeps pass the digits of a float64.
    for _ in range(60):
        image = kernel.log_apply(log_s, safely=True)[0]
        log_s = (0.5 * (log_s - image)).masked_fill(~is_free, -math.inf)
    return kernel.eps * torch.where(is_free, log_s, 0.0)


@dataclass(frozen=True)
class Plan:
    r"""The plan :math:`a(y) K(x, y) b(x)` of an iterate, its first marginal exact."""

    problem: Scaling
    iterate: Iterate

    @cached_property
    def potential(self) -> Tensor:
        """The `Scaling.potential_at` of the iterate."""
        return self.problem.potential_at(self.iterate.log_a, self.iterate.log_density)

    @cached_property
    def log_masses(self) -> Tensor:
        """The second marginal: log masses of sum 1 below the bound on the density.

        The density of the iterate is below the bound. The second marginal differs from
        this density by the residual at most, and so does the mass above the bound. This
        mass goes to the cells below the bound, in proportion to what they hold.
        """
        problem, bound = self.problem, self.problem.terms.max_density
        log = problem.log_weights(self.iterate.image, self.iterate.log_a)
        axes = tuple(range(log.ndim))
        log = log - log.logsumexp(axes)
        most = math.log(bound) + math.log(problem.kernel.box.cell_volume)
        if math.isinf(bound) or not bool((log > most).any()):
            return log

        def is_all(raised: Tensor) -> Tensor:
            return (log + raised).clamp_max(most).logsumexp(axes) >= 0

        low, high = log.new_tensor(0.0), log.new_tensor(1.0)
        # There is room in the box, so this ends: no cell holds exactly nothing.
        while not bool(is_all(high)):
            low, high = high, 2 * high
            if not math.isfinite(high):
                return log
        return (log + bisect(is_all, high, low, HALVINGS)[0]).clamp_max(most)

    @cached_property
    def measure(self) -> GridDensity:
        """The second marginal, its mass that of the first to the last bit."""
        mu, weights = self.problem.source, self.log_masses.exp().reshape(-1)
        total = mu.weights.sum(dtype=torch.float64) / weights.sum(dtype=torch.float64)
        return mu.with_free_weights(weights * total.to(weights.dtype))

    def cost(self) -> float:
        r"""Return the debiased cost, up to the costs of both marginals to themselves.

        .. math:: \mathrm{OT}_\varepsilon - \tfrac\varepsilon2(H(\mu) + H(\nu))

        The dual potentials give the cost. K has mass 1, so the constant is right.
        """
        problem, iterate, mu = self.problem, self.iterate, self.problem.source
        old, new = mu.grid, self.measure.grid
        log_new = self.log_masses - math.log(problem.kernel.box.cell_volume)
        phi = iterate.log_a - 0.5 * log_new
        psi = 0.5 * problem.log_source - iterate.image
        if problem.correction is not None:
            # The potential that holds the uniform density at rest costs nothing.
            at_rest = problem.correction / problem.kernel.eps
            phi, psi = phi - at_rest, psi - at_rest
        total = torch.where(new > 0, new * phi, 0.0) + torch.where(
            old > 0, old * psi, 0.0
        )
        volume = problem.kernel.box.cell_volume
        return problem.kernel.eps * volume * float(total.sum(dtype=torch.float64))
