"""The problem of a debiased entropic step: its variance eps and its fixed-point map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._autodiff import check_finite
from otflow._bounds import at_least, at_most
from otflow.functionals import Internal
from otflow.measures import GridDensity
from otflow.proximal.grid.sinkhorn.kernel import GibbsKernel
from otflow.proximal.terms import Terms

__all__ = [
    "MARGIN",
    "SHARE",
    "Iterate",
    "Scaling",
    "elasticity",
    "largest_blur",
    "least_eps",
    "pose",
    "potential_of",
    "variance_of",
]

# Round-off of a long sum, in units of that of its terms.
ROUND_OFF = 256.0
# Share of the uniform density in a density that must be positive everywhere: logarithms
# and first variations need one.
SHARE = 1e-6
# Default and least variance of the kernel, in squares of the spacing. A narrower kernel
# does not reach the next cell and pins the mass.
DEFAULT_EPS, LEAST_EPS = 0.6, 0.4
# On finer grids: eps over dt times an energy (the temperature, or the deviation of F'
# of the other terms), and the largest stiffness of the iteration.
SHARE_OF_DT, MAX_STIFFNESS = 0.02, 100.0
# Largest standard deviation of the kernel in sides of the box: given, and by default.
MAX_BLUR, DEFAULT_BLUR = 0.25, 1 / 12
# Default eps for an entropy of negative factor, in units of dt times the factor. The
# step has a minimiser above 2.
MARGIN = 4.0


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
    safely: bool  # in the log domain

    def wider(self, factor: float) -> Scaling:
        """Return the same problem with `factor` times the variance of the kernel."""
        own, eps = self.kernel, factor * self.kernel.eps
        kernel = GibbsKernel(own.box, eps, self.log_source, own.is_free)
        return replace(self, kernel=kernel)

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
        z, total = self.log_density(right, start)
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

    def log_density(
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
        if self.kernel.correction is not None:
            right = right + self.kernel.correction
        return right - self.dt * self.terms.temperature

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
        if self.kernel.correction is not None:
            phi = phi - self.kernel.correction
        return phi.nan_to_num(0.0, 0.0, 0.0)

    def _blank(self, z: Tensor) -> Tensor:
        is_free = self.kernel.is_free
        return z if is_free is None else z.masked_fill(~is_free, -math.inf)


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


def pose(
    terms: Terms, mu: GridDensity, dt: float, eps: float, old: Scaling | None
) -> Scaling:
    """Return the problem of a step with its local terms; `old` may lend its kernel."""
    if old is not None and old.kernel.eps == eps:
        kernel = old.kernel
    else:
        is_free = None if bool(mu.is_free.all()) else mu.is_free.reshape(mu.shape)
        kernel = GibbsKernel(mu.box, eps, mu.weights, is_free)
    return Scaling(
        kernel=kernel,
        source=mu,
        log_source=mu.grid.log(),
        terms=terms,
        dt=dt,
        potential=potential_of(mu, terms),
        safely=old is not None and old.safely,
    )


# The variance -------------------------------------------------------------------------


def variance_of(mu: GridDensity, dt: float, terms: Terms, eps: float | None) -> float:
    """Return the given or the default eps; raise `ValueError` out of range."""
    least, side = least_eps(mu), _lengths(mu)[1]
    # In a box as narrow as a cell is long, the least eps exceeds the share of the side.
    most = max(least, (MAX_BLUR * side) ** 2)
    if eps is None:
        heat = SHARE_OF_DT * max(terms.temperature, 0.0)
        wanted = dt * max(heat, _stiffness(mu, terms) / MAX_STIFFNESS)
        wanted = max(wanted, _for_what_moves(mu, dt, terms))
        wanted = min(wanted, largest_blur(mu))
        wanted = min(max(wanted, -MARGIN * dt * terms.temperature, least), most)
        # eps is rounded to a power of root 2 times the least one, so that the kernel
        # seldom changes along a flow. The 1e-5 keeps round numbers off the jumps.
        steps = 2 * math.log2(wanted / least) + 1e-5
        eps = least * 2 ** (round(steps) / 2)
        if eps > most:
            eps = least * 2 ** (math.floor(steps) / 2)
    if eps < LEAST_EPS / DEFAULT_EPS * least:
        msg = (
            f"eps = {eps:.3g} is too small for the grid: a kernel so narrow does "
            f"not reach the next cell and pins the mass; take at least "
            f"{DEFAULT_EPS:g} squares of the spacing, {at_least(least, 3)}, "
            f"or a finer grid"
        )
        raise ValueError(msg)
    if eps > most:
        msg = (
            f"eps = {eps:.3g} is too large for the box: its kernel spans more than "
            f"{MAX_BLUR:g} of the shortest side, {side:g}; take at most "
            f"{at_most(most, 3)}"
        )
        raise ValueError(msg)
    if 0.5 * eps + dt * terms.temperature <= 0:
        msg = (
            f"the entropy's total factor is negative: temperature "
            f"{terms.temperature:g} + eps/(2 dt) = {0.5 * eps / dt:.3g}; the step "
            f"has no minimiser; take a smaller dt or a larger eps, above "
            f"{at_least(-2 * dt * terms.temperature, 3)} if the box bears it: at most "
            f"{at_most(most, 3)}"
        )
        raise ValueError(msg)
    return eps


def largest_blur(mu: GridDensity) -> float:
    """Return the largest default eps that the sides of the box allow."""
    return (DEFAULT_BLUR * _lengths(mu)[1]) ** 2


def least_eps(mu: GridDensity) -> float:
    """Return the least default eps: its kernel reaches the next cell."""
    return DEFAULT_EPS * _lengths(mu)[0] ** 2


def _lengths(mu: GridDensity) -> tuple[float, float]:
    """Return the longest cell and the shortest side of the free cells, which are a box.

    An axis of one cell does not count: it has no next cell.
    """
    free, longest, shortest = mu.is_free.reshape(mu.shape), 0.0, math.inf
    for k, (n, h) in enumerate(zip(mu.shape, mu.box.spacing, strict=True)):
        count = int(free.movedim(k, 0).reshape(n, -1).any(1).sum())
        if count > 1:
            longest, shortest = max(longest, h), min(shortest, count * h)
    if not longest:
        longest = shortest = max(mu.box.spacing)
    return longest, shortest


def _for_what_moves(mu: GridDensity, dt: float, terms: Terms) -> float:
    r"""Return the variance for terms other than internal energies.

    The variance is a share of dt times the standard deviation of their F' under the
    density; constants in F' do not count. A kernel as wide as the density would blur
    it. So the variance is at most that of the density after the step, along the
    narrowest axis. The terms contract the density by the factor :math:`1 +
    dt\,\lambda`, where :math:`\lambda |x - m|^2/2` fits F' best. Nonlocal terms are
    differentiated at a density that is positive everywhere.
    """
    f, rest = potential_of(mu, terms).reshape(-1), terms.nonlocal_part
    if rest is not None:
        free = mu.is_free.to(mu.dtype)
        masses = (1 - SHARE) * mu.weights + SHARE * free / free.sum()
        f = f + rest.first_variation(mu.with_free_weights(masses))
    squares = (mu.points - mu.weights @ mu.points).square()
    variances = (mu.weights @ squares).tolist()
    least = min(
        (v for v, n in zip(variances, mu.shape, strict=True) if n > 1), default=0.0
    )
    energy, f = _standardised(mu, f)
    length, q = _standardised(mu, 0.5 * squares.sum(-1))
    fit = float(mu.weights @ (f * q)) * (energy / length) if length > 0 else 0.0
    contraction = 1.0 + dt * max(fit, 0.0)
    return min(SHARE_OF_DT * dt * energy, least / contraction / contraction)


def _standardised(mu: GridDensity, f: Tensor) -> tuple[float, Tensor]:
    """Return the standard deviation under a density, and f of mean 0, deviation 1."""
    f = torch.where(mu.weights > 0, f, 0.0)
    f = f - mu.weights @ f
    f = torch.where(mu.weights > 0, f, 0.0)
    unit = f.abs().max().clamp_min(torch.finfo(f.dtype).tiny)
    f = f / unit  # the squares below must not overflow in any unit
    deviation = (mu.weights @ f.square()).sqrt()
    f = torch.where(deviation > 0, f / deviation, 0.0)
    return float(unit) * float(deviation), f


def _stiffness(mu: GridDensity, terms: Terms) -> float:
    r"""Return the mean of :math:`\rho\,U''(\rho)` without the entropy's part."""
    if terms.internal is None:
        return 0.0
    mean = mu.weights * elasticity(terms.internal, mu.density().log())
    return float(torch.where(mu.weights > 0, mean, 0.0).sum())
