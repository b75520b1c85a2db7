"""The objective of a JKO step on quantiles, with its gradient and banded Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias, cast

import torch
from torch import Tensor

from otflow._autodiff import (
    line_derivatives,
    value_and_gradient,
    value_gradient_product,
)
from otflow._validation import check_map
from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional, Interaction, Potential, PowerEntropy
from otflow.functionals.base import Scaled
from otflow.functionals.combined import Combined
from otflow.functionals.inheritance import redefined
from otflow.kernels import Energy, Kernel, Log, PairKernel, PowerLaw, Riesz
from otflow.kernels.pairs import redefined as redefined_kernel
from otflow.measures import Quantiles
from otflow.measures.quantiles.interaction import far_hessian, near_interaction
from otflow.numerics.tridiagonal import Springs
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["Expansion", "Objective"]

# Up to so many cells the Hessian of interactions is a dense matrix, of 32 MB at most.
DENSE = 2048
# A gap below so many units in the last place of its ends is an atom: its density would
# be wrong in the first digit.
ATOM = 8

Product: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Expansion:
    """The objective at given quantiles, to second order."""

    edges: Tensor
    energy: float  # F
    noise: float  # round-off of the objective
    objective: float  # dt F + half the squared distance
    gradient: Tensor  # of the objective in the edges, (n + 1,)
    error: Tensor  # round-off of the gradient at each quantile, (n + 1,)
    band: Springs  # Hessian of the objective without the nonlocal terms
    pressure: Tensor  # dt times the pressure of each cell, (n,)
    product: Product | None  # v -> nonlocal part of the Hessian times v
    place: float  # unit in the last place of the quantiles that F receives, relative

    @cached_property
    def rounding(self) -> Tensor:
        """Round-off of the gradient, with that of the nonlocal terms' arguments."""
        error = self.error
        if self.product is not None:
            for shift in _shifts(self.edges):
                error = error + 4 * self.place * self.product(shift).abs()
        return error

    @property
    def cancelled(self) -> float:
        """Round-off of the objective if its terms are large and cancel."""
        return float(self.rounding @ self.edges.abs())

    def chain(self, lumped: Tensor, extra: Tensor) -> Springs:
        """Return the band plus `extra` springs, made positive definite.

        If V is so concave that the sum is indefinite, a multiple of the lumped masses
        is added: the same shift for all quantiles, so that neighbours move alike.
        """
        band = Springs(self.band.rows, self.band.springs + extra)
        # Rows > 0 suffice; the factorisation decides where a row is not.
        least = float((band.rows / lumped).min())
        if least <= 0 and band.solve(lumped) is None:
            band = Springs(band.rows + (1 - least) * lumped, band.springs)
        return band

    def floor(self, band: Springs) -> float:
        r"""Return the length of the gradient's round-off in the metric of `band`.

        Quantiles are known to :math:`\epsilon`, a unit in their last place. A spring k
        turns this into a force error :math:`k\,\epsilon`. In the metric of the same
        spring this error has the length :math:`\sqrt k\,\epsilon`, however small the
        masses at its ends. If `band` lacks the spring, the masses alone resist the
        error.
        """
        reach = self.edges.abs()
        place = torch.maximum(reach[1:], reach[:-1]) * torch.finfo(torch.float64).eps
        pull, kept = 2 * self.band.springs * place, band.springs > 0
        held = pull.square() / torch.where(kept, band.springs, 1.0)
        springs = float(held[kept].sum())
        left, right = _beside(pull.masked_fill(kept, 0.0), 0.0)
        # No entry of the inverse is negative, so errors of one sign are the worst case.
        error = self.rounding + left + right
        moved = band.solve(error)
        rows = math.inf if moved is None else float(error @ moved)
        return math.sqrt(springs) + math.sqrt(max(rows, 0.0))


class Objective:
    r"""The function :math:`dt\,F(q) + \tfrac12\sum_i \ell_i (q_i - p_i)^2`.

    Internal energies and potentials have a tridiagonal Hessian in closed form, from
    :math:`U', U''` and :math:`V', V''`. Interactions and all other terms enter by
    products of their Hessian with vectors, by automatic differentiation or by a dense
    matrix. The quantiles are float64. F is evaluated in the dtype of the measure.

    Parameters
    ----------
    F : Functional
        The functional to minimise.
    mu : Quantiles
        The measure to step from.
    dt : float
        Length of the step in time.

    Raises
    ------
    ValueError
        If the entropy has a negative factor.
    """

    def __init__(self, F: Functional, mu: Quantiles, dt: float) -> None:
        self.mu, self.dt = mu, dt
        self.terms: Terms = sort_terms(F, mu.dim)
        if self.terms.temperature < 0:
            msg = (
                f"{self.terms.temperature:g} * Entropy() is concave: a JKO step with "
                f"it has no minimiser; use a positive factor"
            )
            raise ValueError(msg)
        self.centre = mu.edges.to(torch.float64)
        self.weights = mu.weights.to(torch.float64)
        self.lumped = mu.lumped.to(torch.float64)
        self.modulus = _modulus(F)
        self.risen = 0.0  # rise of the objective that was taken for round-off
        # The descent begins here, and the certificate needs its energy.
        self.start = self.expand(self.centre)

    def norm(self, tangent: Tensor) -> float:
        """Return the lumped length of a displacement of the quantiles."""
        return math.sqrt(float(self.lumped @ tangent.square()))

    def expand(self, q: Tensor, gaps: Tensor | None = None) -> Expansion:
        """Return value, gradient and Hessian at quantiles (n + 1,).

        Give the gaps, (n,) and > 0, where they are known better than ``q.diff()``.
        """
        dt, lumped = self.dt, self.lumped
        force, stiffness, parts = self._internal(q.diff() if gaps is None else gaps)
        d = q - self.centre
        gradient, rows = lumped * d, lumped.clone()
        reach = torch.maximum(q.abs(), self.centre.abs())
        # F has the round-off of the measure's dtype; the rest has that of float64.
        own, wide = torch.finfo(self.mu.dtype).eps, torch.finfo(torch.float64).eps
        error, noise = 2 * wide * lumped * reach, 0.0
        if self.terms.potentials:
            x = q[:, None].to(self.mu.dtype)
            values, slope, curve = (
                v.to(q) for v in line_derivatives(self._potential, x)
            )
            parts.append(lumped * values)
            gradient += dt * lumped * slope
            noise += 4 * own * dt * float(lumped * slope.abs() @ reach)
            rows += dt * lumped * curve
            error += 4 * own * dt * lumped * (slope.abs() + curve.abs() * reach)
        gradient[:-1] += dt * force
        gradient[1:] -= dt * force
        band = Springs(rows, dt * stiffness)
        product = None
        if self.terms.interactions or self.terms.others:
            value, slope, product = self._nonlocal(q)
            parts.append(value.reshape(1))
            gradient = gradient + dt * slope
            noise += 4 * own * dt * float(slope.abs() @ reach)
            # Two cancellations make the round-off larger than that of the forces.
            # Neighbours interact by second differences. A force is a difference of the
            # pressures on both sides of a quantile.
            narrow = torch.minimum(*_beside(q.diff(), math.inf))
            pressure = slope.cumsum(0).abs()
            sides = torch.maximum(pressure, torch.cat([pressure[:1], pressure[:-1]]))
            error += 4 * own * dt * slope.abs()
            error += 4 * own * dt * torch.maximum(slope.abs(), sides) * reach / narrow
        total = sum(float(part.sum()) for part in parts)
        size = sum(float(part.abs().sum()) for part in parts)
        # A line search takes the error as a step that is too long.
        if not math.isfinite(total):
            msg = "the energy of quantiles is not finite; look for an overflow"
            raise NonFinite(msg)
        half = 0.5 * float(lumped @ d.square())
        # A gap is known to the last place of its ends; its pressure turns this error
        # into one of the energy.
        ends = torch.maximum(reach[1:], reach[:-1])
        noise += 16 * own * (dt * size + half)
        noise += 4 * wide * dt * float(force.abs() @ ends)
        whole = dt * total + half
        return Expansion(
            q, total, noise, whole, gradient, error, band, dt * force, product, own
        )

    def sure_stiffness(self, gaps: Tensor) -> Tensor:
        """Return a lower bound on the springs while no gap grows by a half, (n,).

        The springs of entropies and powers are falling powers of the gap. The springs
        of a user's energy are bounded by 0: only its convexity may be known.
        """
        # The springs fall as a gap grows: the longest gap has the least.
        wider, internal = 1.5 * gaps, self.terms.internal
        parts = [(1.0, internal)] if internal is not None else []
        if isinstance(internal, Combined):
            parts = list(internal.parts)
        r = self.weights / wider
        sure = self.terms.temperature * r / wider
        for c, part in parts:
            if isinstance(part, PowerEntropy):
                sure = sure + c * r * r * part.curvature(r) / wider
        return self.dt * sure

    def refuse_atoms(self, q: Tensor) -> None:
        """Raise Diverged if a cell of these quantiles is too short for a density."""
        # The last place is that of the ends, or of the place that they came from: at a
        # kink at 0 the ends alone would have none.
        gaps, reach = q.diff(), torch.maximum(q.abs(), self.centre.abs())
        place = torch.finfo(torch.float64).eps * torch.maximum(reach[1:], reach[:-1])
        if not bool((gaps <= ATOM * place).any()):
            return
        i = int((gaps - ATOM * place).argmin())
        own = (
            "; a functional of the distance to other quantiles is to be written with "
            "displacement_to and inner, as the step itself measures"
        )
        msg = (
            f"the JKO step shrinks the cell between quantiles {i} and {i + 1} to an "
            f"atom, which a density cannot represent; smooth F if it has a kink (|x| "
            f"by (x^2 + eps^2)^(1/2)), add Entropy() or another internal energy, take "
            f"a smaller dt, or flow Particles{own if self.terms.others else ''}"
        )
        raise Diverged(msg, measure=self.mu)

    def _internal(self, gaps: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return pressure, its slope -dP/dg >= 0, and energies of the cells, (n,)."""
        w, kappa, internal = self.weights, self.terms.temperature, self.terms.internal
        r = w / gaps
        pressure, stiffness = kappa * r, kappa * r / gaps
        energies = [kappa * w * r.log()] if kappa else []
        if internal is not None:
            e = internal.e(r)
            pressure = pressure + r * (internal.slope(r) - e)
            # A concave part of U would make the band indefinite; without it the step is
            # still one of descent, only slower.
            stiffness = stiffness + (r * r * internal.curvature(r)).clamp_min(0) / gaps
            energies.append(w * e)
        return pressure, stiffness, energies

    def _potential(self, x: Tensor) -> Tensor:
        cure = "reduce over the last axis: .sum(-1)"
        return check_map(self.terms.V(x), x, x.shape[:1], "V", "points x", cure)

    def _nonlocal(self, q: Tensor) -> tuple[Tensor, Tensor, Product]:
        """Return value, gradient and dt times the Hessian of the nonlocal terms."""
        own, wide = self.mu.dtype, self.centre.dtype
        edges, pairs = q.to(own), self.terms.interactions
        # Above this size the dense Hessian does not fit; products cost O(n^2) each.
        if not pairs or self.mu.n > DENSE:
            value, slope, times = value_gradient_product(
                self._value(*pairs, *self.terms.others), edges
            )
            return value.to(wide), slope.to(wide), self._scaled(times)
        # Products with a dense matrix are cheaper than products by autodiff.
        value, slope = value_and_gradient(self._value(*pairs), edges)
        times = _products(pairs, edges, self.mu.weights)
        if not self.terms.others:
            return value.to(wide), slope.to(wide), self._scaled(times)
        rest, other, more = value_gradient_product(
            self._value(*self.terms.others), edges
        )
        both = self._scaled(lambda v: times(v) + more(v))
        return (value + rest).to(wide), (slope + other).to(wide), both

    def _value(self, *terms: tuple[float, Functional]) -> Callable[[Tensor], Tensor]:
        def total(nu: Quantiles) -> Tensor:
            return torch.stack([c * term.value(nu) for c, term in terms]).sum()

        return lambda edges: self.mu.evaluate(total, edges)

    def _scaled(self, times: Product) -> Product:
        own, wide, dt = self.mu.dtype, self.centre.dtype, self.dt
        return lambda v: dt * times(v.to(own)).to(wide)


def _beside(cells: Tensor, beyond: float) -> tuple[Tensor, Tensor]:
    """Return the values left and right of each quantile, (n + 1,) each."""
    end = cells.new_full((1,), beyond)
    return torch.cat([end, cells]), torch.cat([cells, end])


def _shifts(q: Tensor) -> list[Tensor]:
    """Return the quantiles with random signs, always the same ones.

    Errors in their last places are as random. No symmetry of F cancels them all.
    """
    signs = torch.Generator().manual_seed(0)
    coins = torch.randint(2, (2, len(q)), generator=signs).to(q)
    return list(q * (2 * coins - 1))


def _products(
    pairs: tuple[tuple[float, Interaction], ...], edges: Tensor, weights: Tensor
) -> Product:
    """Return the Hessian of interactions as a product, computed at the first call."""
    # `sort_terms` counts a kernel of two points among the other terms.
    kernels = [(c, cast("Kernel", term.kernel)) for c, term in pairs]

    def near(q: Tensor) -> Tensor:
        energies = [c * near_interaction(q, weights, W) for c, W in kernels]
        return torch.stack(energies).sum()

    # Most expansions of a line search need no Hessian, so it waits for a product.
    @cache
    def parts() -> tuple[Tensor, Product]:
        far = sum(
            (c * far_hessian(edges, weights, W) for c, W in kernels),
            start=edges.new_zeros(()),
        )
        return far, value_gradient_product(near, edges)[2]

    def product(v: Tensor) -> Tensor:
        far, near_product = parts()
        return far @ v + near_product(v)

    return product


def _modulus(F: Functional) -> float | None:
    r"""Return a modulus of convexity in the quantiles; None if unknown.

    The modulus of V carries over: an expectation has the quantiles as its nodes, with
    the masses of the lumped product. For all other terms only a negative modulus
    carries over: they have nodes between the quantiles, whose product is at most the
    lumped one. A positive modulus of such a term counts as 0.
    """
    total = 0.0
    for c, term in F.terms():
        bound, own = Scaled(c, term).modulus(1), redefined(term) is None
        # Quantiles keep their order, so W need be convex on the half-line only.
        if bound is None and own and isinstance(term, Interaction) and c > 0:
            bound = 0.0 if _is_convex_apart(term.kernel) else None
        if bound is None:
            return None
        carries = own and isinstance(term, Potential)
        total += bound if carries else min(bound, 0.0)
    return total


def _is_convex_apart(W: PairKernel) -> bool:
    """Whether a kernel is convex on the half-line.

    This suffices, since quantiles never change their order.
    """
    if redefined_kernel(W) is not None:
        return W.modulus is not None and W.modulus >= 0
    if isinstance(W, PowerLaw):
        return W.attraction >= 1 and W.repulsion <= 1
    if W.modulus is not None and W.modulus >= 0:
        return True
    return isinstance(W, (Log, Riesz, Energy))
