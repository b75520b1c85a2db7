"""Sums over points and over pairs of them; masses that are reweighted or drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from otflow._autodiff import grads_of, value_and_gradient
from otflow._graphs import alias, differentiating, leaf, records, refuse_graph
from otflow._pairs import pair_sum, tiles
from otflow._typing import Ground
from otflow._validation import (
    alike,
    check_energy,
    check_finite,
    check_generator,
    check_ground,
    check_like,
    non_negative_int,
    real,
)
from otflow._warn import warn
from otflow.kernels import Function, Kernel, PairKernel, as_kernel

__all__ = [
    "Atoms",
    "check_draw",
    "energy_of",
    "integrate",
    "internal_energy",
    "kernel_at_the_door",
    "linear",
    "pair_energy",
    "pair_potential",
    "pair_slope",
    "potential_of",
    "reweighted",
    "sum_at",
]


Integral = Callable[[Kernel], Tensor]
"""What a representation makes of a kernel of differences."""


class Atoms(Protocol):
    """Points and their masses: a measure, or its quadrature rule."""

    @property
    def points(self) -> Tensor:
        """Points (n, d)."""

    @property
    def weights(self) -> Tensor:
        """Masses (n,)."""


def reweighted(weights: Tensor, log_rate: Tensor, dt: float, each: str = "") -> Tensor:
    r"""Return :math:`w_i e^{dt\,r_i}` over their sum; masses of zero stay zero."""
    if not isinstance(log_rate, Tensor) or log_rate.shape != weights.shape:
        got = getattr(log_rate, "shape", type(log_rate).__name__)
        msg = f"log_rate must have shape {tuple(weights.shape)}{each}, got {got}"
        raise ValueError(msg)
    check_like(log_rate, weights, "log_rate", "weights")
    exponents = real(dt, "dt") * log_rate
    if not records(weights) or bool((weights > 0).all()):
        return torch.softmax(weights.log() + exponents, dim=0)
    # The logarithm has no derivative at 0, the product has one.
    empty = weights == 0
    logs = weights.masked_fill(empty, 1.0).log() + exponents
    logs = logs.masked_fill(empty, -torch.inf)
    nothing = torch.where(empty, weights, 0.0)
    growth = (exponents - torch.logsumexp(logs, 0)).masked_fill(~empty, 0.0).exp()
    shares = torch.softmax(logs, dim=0) + nothing * growth
    return shares / shares.sum()


def integrate(
    f: Ground, points: Tensor, weights: Tensor, skipped: Tensor | None = None
) -> Tensor:
    r"""Return :math:`\sum_i w_i f(x_i)`.

    Values at points where `skipped` (n,) is True count as 0, whatever they are.

    Raises
    ------
    InvalidFunctional
        If f does not return one value, or one array, per point, of the dtype of the
        masses.
    """
    values = f(points)
    if skipped is None and alike(values, weights):  # the good case, of every step
        return weights @ values
    check_ground(values, points, weights)
    if skipped is not None:
        values = values.masked_fill(skipped.reshape(-1, *[1] * (values.ndim - 1)), 0)
    if values.ndim <= 2:  # on the path of every step: a third of the time of tensordot
        return weights @ values
    total: Tensor = torch.tensordot(weights, values, dims=1)
    return total


def internal_energy(e: Ground, rho: Tensor, weights: Tensor) -> Tensor:
    r"""Return :math:`\sum_i w_i\,e(\rho_i)`, 0 where there is no mass."""
    empty = rho == 0
    if not bool(empty.any()):
        return weights @ check_energy(e, rho)
    at_zero = float(check_energy(e, torch.zeros_like(rho[:1])).detach())
    if math.isfinite(at_zero):
        vacuum = at_zero * weights
    # Both have the value 0; entr, -w log w, has an infinite derivative of that sign.
    else:
        vacuum = torch.special.entr(weights)
        vacuum = -vacuum if at_zero < 0 else vacuum
    filled = weights * check_energy(e, rho.masked_fill(empty, 1.0))
    return torch.where(empty, vacuum, filled).sum()


def kernel_at_the_door(W: Ground | PairKernel, diagonal: bool | None) -> PairKernel:
    """Return W as a kernel, and warn if the deprecated option `diagonal` is given."""
    kernel = as_kernel(W)
    if diagonal is None:
        return kernel
    msg = (
        "diagonal= goes in the next release: a kernel is singular or not; leave the "
        "pairs i = j out by kernels.Function(W, singular=True)"
    )
    warn(msg, DeprecationWarning)
    if kernel.singular != diagonal or not isinstance(kernel, Kernel):
        return kernel
    return Function(kernel, singular=not diagonal)


def linear(kernel: Kernel, integral: Integral) -> Tensor:
    """Return an integral that is linear in the kernel, the sum over its terms."""
    (first, one), *others = kernel.terms()
    total = integral(one) if first == 1 else first * integral(one)
    for c, W in others:
        total = total + c * integral(W)
    return total


def energy_of(
    mu: Atoms, W: Ground | PairKernel, diagonal: bool | None, own: Integral
) -> Tensor:
    """Return `Measure.interaction`, by the `own` integral of kernels of differences."""
    kernel = kernel_at_the_door(W, diagonal)
    if isinstance(kernel, Kernel):
        energy = linear(kernel, own)
    else:
        energy = pair_energy(kernel, mu.points, mu.weights)
    check_finite(energy, f"under {kernel!r} the interaction's value")
    return energy


def potential_of(
    mu: Atoms,
    W: Ground | PairKernel,
    probes: Tensor | None,
    diagonal: bool | None,
    own: Callable[[Kernel, Tensor | None], Tensor],
) -> Tensor:
    """Return `Measure.convolve`, by the `own` integral of kernels of differences."""
    kernel = kernel_at_the_door(W, diagonal)
    if isinstance(kernel, Kernel):
        potential = linear(kernel, lambda V: own(V, probes))
    else:
        potential = pair_potential(kernel, probes, mu.points, mu.weights)
    check_finite(potential, f"the potential of {kernel!r}")
    return potential


def pair_energy(K: PairKernel, points: Tensor, weights: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \sum_{ij} w_i w_j K(x_i, x_j)` tile by tile.

    The pairs i = j are omitted if K is singular.
    """

    def energy(x: Tensor, a: Tensor, y: Tensor, b: Tensor, is_diagonal: bool) -> Tensor:
        if is_diagonal and K.singular:
            keep = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            i, j = keep.nonzero(as_tuple=True)
            return 0.5 * (a[i] * b[j] * K.pairs(x[i], y[j])).sum()
        return 0.5 * (a @ K.pairs(x[:, None, :], y[None, :, :]) @ b)

    closed, rows = not K.has_graph(points), K.rows(points)
    return pair_sum(energy, rows, weights, sweep=K.closed_sweep(), is_closed=closed)


def pair_potential(
    K: PairKernel, x: Tensor | None, points: Tensor, weights: Tensor
) -> Tensor:
    r"""Return :math:`\sum_j w_j \tfrac12(K(x_i, x_j) + K(x_j, x_i))`, (m,).

    The places are probes x (m, d), or the points themselves. At the points, the pairs i
    = j are omitted if K is singular. Differentiable to any order. Time O(n m d), memory
    O(n + m).
    """
    if x is None:
        live = records(points, weights) or K.has_graph(points)
        with differentiating(parameters=live):
            masses = alias(weights)
            energy = pair_energy(K, points, masses)
            return grads_of(energy, (masses,), create_graph=live)[0]
    closed, rows = not K.has_graph(points), (K.rows(x), K.rows(points))
    if closed and not records(*rows, weights):
        return K.field(x, points, weights[:, None], gradients=False)[0][:, 0]
    return _sum_of_pairs(K.even_pairs, *rows, weights, is_closed=closed)


def pair_slope(K: PairKernel, x: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient (m, d) of `pair_potential` at probes, with their graphs.

    Raises
    ------
    NonFinite
        If a potential is infinite, as that of a singular kernel at an atom.
    """
    if records(x, points, weights):
        beside = (points, weights)
        return value_and_gradient(
            lambda y: pair_potential(K, y, points, weights).sum(), x, beside=beside
        )[1]
    filled = weights != 0
    masses = weights[filled][:, None]
    potentials, slopes = K.field(x, points[filled], masses, gradients=True)
    check_finite(potentials, f"the potential of {K!r}")
    check_finite(slopes, f"the gradient of the potential of {K!r}")
    return slopes[:, 0]


def sum_at(
    f: Ground, x: Tensor, points: Tensor, weights: Tensor, *, is_closed: bool = True
) -> Tensor:
    r"""Return :math:`\sum_j w_j f(x_i - x_j)`, (m,), tile by tile.

    An f whose parameters are being recorded is not closed.
    """

    def of_pairs(y: Tensor, z: Tensor) -> Tensor:
        return f(y - z)

    return _sum_of_pairs(of_pairs, x, points, weights, is_closed=is_closed)


def _sum_of_pairs(
    f: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    points: Tensor,
    weights: Tensor,
    *,
    is_closed: bool,
) -> Tensor:
    """Return the sums over j of w_j f(x_i, x_j), (m,), of rows that broadcast."""
    if is_closed and not records(x, points, weights):
        total = torch.zeros_like(x[:, 0])
        with torch.no_grad():
            for i in tiles(len(x)):
                for j in tiles(len(points)):
                    total[i] += f(x[i][:, None], points[j]) @ weights[j]
        return total

    def energy(x: Tensor, a: Tensor, y: Tensor, b: Tensor, _: bool) -> Tensor:
        return a @ f(x[:, None], y) @ b

    # It is linear in the masses of the probes: their gradient is the sum.
    masses, others = leaf(torch.ones_like(x[:, 0])), (points, weights)
    whole = pair_sum(energy, x, masses, others=others, is_closed=is_closed)
    return grads_of(whole, (masses,), create_graph=True)[0]


def check_draw(n: int, generator: torch.Generator, weights: Tensor) -> int:
    """Return the number of draws; Unsupported if masses carry a graph.

    A draw has no derivative in the masses.
    """
    check_generator(generator)
    refuse_graph(
        "a sample",
        "what is drawn has no derivative in the masses",
        weights,
        cure="mu.detach()",
    )
    return non_negative_int(n, "n", minimum=1)
