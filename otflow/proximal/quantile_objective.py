"""The objective of a JKO step on quantiles, with its gradient and banded Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from otflow._autodiff import (
    line_derivatives,
    value_and_gradient,
    value_gradient_product,
)
from otflow.errors import InvalidFunctional, NonFinite
from otflow.functionals import Functional, Interaction, Potential
from otflow.functionals.base import Scaled
from otflow.kernels import Energy, Log, PowerLaw, RadialKernel, Riesz
from otflow.measures import Quantiles
from otflow.measures.cells import far_hessian, near_interaction
from otflow.proximal.springs import Springs
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["Expansion", "Objective"]

# Conjugate gradients stop at this share of the first residual, or after so many steps.
FORCING = 1e-4
MAX_PRODUCTS = 200

# Up to so many cells the Hessian of interactions is a dense matrix: 32 MB.
DENSE = 2048

Product: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Expansion:
    """The objective at some quantiles, to second order."""

    edges: Tensor
    energy: float  # F
    noise: float  # round-off of the objective
    objective: float  # dt F + half the squared distance
    floor: float  # round-off of the gradient, as the length of a displacement
    gradient: Tensor  # of the objective in the edges, (n + 1,)
    band: Springs  # its Hessian but for the nonlocal terms
    concavity: float  # how far the band may be from convex, per unit of lumped mass
    product: Product | None  # nonlocal part of the Hessian, times v

    def solve(
        self, rhs: Tensor, lumped: Tensor, extra: Springs | None = None
    ) -> Tensor:
        """Return the Hessian (made positive, plus `extra`) inverse, times `rhs`."""
        band = self.band if extra is None else self.band.plus(extra)
        x = band.solve(rhs)
        if x is None:
            # The potentials' part is at least -concavity times the lumped masses.
            band = Springs(band.rows + self.concavity * lumped, band.springs)
            x = band.solve(rhs)
        if x is None:
            msg = "the Hessian of the JKO objective on quantiles is not finite"
            raise NonFinite(msg)
        if self.product is None:
            return x
        return self._conjugate_gradients(band, x)

    def _conjugate_gradients(self, band: Springs, solved: Tensor) -> Tensor:
        """Correct the band's solution for the nonlocal terms, preconditioned by it.

        What the band solves exactly, stiff bounds above all, never enters a product
        with it. Along negative curvature the search stops: a direction of descent.
        """
        assert self.product is not None
        r, x = -self.product(solved), torch.zeros_like(solved)
        z = band.solve(r)
        if z is None:
            return solved
        p, band_p, rz = z, r, float(r @ z)
        target = FORCING**2 * rz
        for _ in range(MAX_PRODUCTS):
            q = band_p + self.product(p)
            curvature = float(p @ q)
            if not curvature > 0:
                break
            alpha = rz / curvature
            x, r = x + alpha * p, r - alpha * q
            z, before = band.solve(r), rz
            if z is None:
                break
            rz = float(r @ z)
            if rz <= target:
                break
            p, band_p = z + (rz / before) * p, r + (rz / before) * band_p
        return solved + x


class Objective:
    r"""The function :math:`dt\,F(q) + \tfrac12\sum_i \ell_i (q_i - p_i)^2`.

    Internal energies and potentials have a tridiagonal Hessian in closed form, from
    :math:`U', U''` and :math:`V', V''`. Interactions and all other terms enter by
    products of their Hessian and a vector, by autodiff or a dense matrix. The
    quantiles are float64, and F is evaluated in the dtype of the measure.

    Parameters
    ----------
    F : Functional
        What is minimised.
    mu : Quantiles
        Where the step starts.
    dt : float
        Its length.
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
        self.start = self.expand(self.centre)

    def norm(self, tangent: Tensor) -> float:
        """Return the lumped length of a displacement of the quantiles."""
        return math.sqrt(float(self.lumped @ tangent.square()))

    def expand(self, q: Tensor) -> Expansion:
        """Return value, gradient and Hessian at quantiles (n + 1,), gaps > 0."""
        w, dt = self.weights, self.dt
        force, stiffness, parts = self._internal(q.diff())
        d = q - self.centre
        gradient, rows = self.lumped * d, self.lumped.clone()
        reach = torch.maximum(q.abs(), self.centre.abs())
        concavity, coarse = 0.0, torch.zeros_like(q)
        if self.terms.potentials:
            x = q[:, None].to(self.mu.dtype)
            values, slope, curve = line_derivatives(self._potential, x)
            parts.append(self.lumped * values.to(w))
            gradient += dt * self.lumped * slope.to(w)
            rows += dt * self.lumped * curve.to(w)
            concavity = dt * max(0.0, -float(curve.min()))
            coarse += dt * (slope.abs() + curve.abs() * reach)
        gradient[:-1] += dt * force
        gradient[1:] -= dt * force
        band = Springs(rows, dt * stiffness)
        product = None
        if self.terms.interactions or self.terms.others:
            value, slope, product = self._nonlocal(q)
            parts.append(value.reshape(1))
            gradient = gradient + dt * slope
            # Neighbours interact by second differences, which cancel.
            cancelled = 1 + float(reach.max()) / float(q.diff().min())
            coarse += dt * cancelled * slope.abs() / self.lumped
        total = sum(float(part.sum()) for part in parts)
        size = sum(float(part.abs().sum()) for part in parts)
        if not math.isfinite(total):
            msg = "the energy of quantiles is not finite; look for an overflow"
            raise NonFinite(msg)
        half = 0.5 * float(self.lumped @ d.square())
        # F is as exact as the dtype of the measure; the rest is float64.
        own = torch.finfo(self.mu.dtype).eps
        floor = 2 * torch.finfo(torch.float64).eps * self.norm(
            band.diagonal * reach / self.lumped
        ) + 4 * own * self.norm(coarse)
        noise = 16 * own * (dt * size + half)
        return Expansion(
            q,
            total,
            noise,
            dt * total + half,
            floor,
            gradient,
            band,
            concavity,
            product,
        )

    def _internal(self, gaps: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return pressure, its slope -dP/dg >= 0, and energies of the cells, (n,)."""
        w, kappa, internal = self.weights, self.terms.temperature, self.terms.internal
        r = w / gaps
        pressure, stiffness = kappa * r, kappa * r / gaps
        energies = [kappa * w * r.log()] if kappa else []
        if internal is not None:
            e = internal.e(r)
            pressure = pressure + r * (internal.slope(r) - e)
            stiffness = stiffness + (r * r * internal.curvature(r)).clamp_min(0) / gaps
            energies.append(w * e)
        return pressure, stiffness, energies

    def _potential(self, x: Tensor) -> Tensor:
        values = self.terms.V(x)
        if values.shape != x.shape[:1]:
            msg = (
                f"V must map (n, d) = {tuple(x.shape)} to ({len(x)},), got "
                f"{tuple(values.shape)}; reduce over the last axis: .sum(-1)"
            )
            raise InvalidFunctional(msg)
        return values

    def _nonlocal(self, q: Tensor) -> tuple[Tensor, Tensor, Product]:
        """Return value, gradient and dt times the Hessian of the other terms."""
        own, wide = self.mu.dtype, self.centre.dtype
        edges, pairs = q.to(own), self.terms.interactions
        if not pairs or self.mu.n > DENSE:
            value, slope, times = value_gradient_product(
                self._value(*pairs, *self.terms.others), edges
            )
            return value.to(wide), slope.to(wide), self._scaled(times)
        # The products of a dense matrix are cheaper than those by autodiff.
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


def _products(
    pairs: tuple[tuple[float, Interaction], ...], edges: Tensor, weights: Tensor
) -> Product:
    """Return the Hessian of interactions as a product; it is made at the first."""

    def near(q: Tensor) -> Tensor:
        energies = [c * near_interaction(q, weights, term.W) for c, term in pairs]
        return torch.stack(energies).sum()

    @cache
    def parts() -> tuple[Tensor, Product]:
        far = sum(
            (c * far_hessian(edges, weights, term.W) for c, term in pairs),
            start=edges.new_zeros(()),
        )
        return far, value_gradient_product(near, edges)[2]

    def product(v: Tensor) -> Tensor:
        far, near_product = parts()
        return far @ v + near_product(v)

    return product


def _modulus(F: Functional) -> float | None:
    r"""Return a convexity bound in the quantiles; None if unknown.

    That of V carries over: the nodes of an expectation are the quantiles, with the
    masses of the lumped product. Of all others a negative bound holds, since the
    lumped product is that of the quantiles and exceeds that of nodes in between; a
    positive one is not claimed.
    """
    total = 0.0
    for c, term in F.terms():
        bound = Scaled(c, term).modulus_in(1)
        if bound is None and isinstance(term, Interaction) and c > 0:
            bound = 0.0 if _is_convex_apart(term.W) else None
        if bound is None:
            return None
        total += bound if isinstance(term, Potential) else min(bound, 0.0)
    return total


def _is_convex_apart(W: object) -> bool:
    """Whether a kernel is convex on the half-line: quantiles never change order."""
    if isinstance(W, PowerLaw):
        return W.attraction >= 1 and W.repulsion <= 1
    if isinstance(W, RadialKernel) and W.modulus is not None and W.modulus >= 0:
        return True
    return isinstance(W, (Log, Riesz, Energy))
