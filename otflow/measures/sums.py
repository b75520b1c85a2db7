"""Sums over points and over pairs of them; masses that are reweighted or drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from otflow._autodiff import grads_of
from otflow._graphs import alias, differentiating, leaf, records, refuse_graph
from otflow._pairs import pair_sum, tiles
from otflow._typing import Ground
from otflow._validation import (
    alike,
    check_energy,
    check_generator,
    check_ground,
    check_like,
    non_negative_int,
    real,
)
from otflow._warn import warn
from otflow.kernels import Function, Kernel, as_kernel

__all__ = [
    "check_draw",
    "integrate",
    "internal_energy",
    "kernel_at_the_door",
    "linear",
    "pair_energy",
    "pair_potential",
    "reweighted",
    "sum_at",
]


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


def kernel_at_the_door(W: Ground, diagonal: bool | None) -> Kernel:
    """Return W as a kernel, and warn if the deprecated option `diagonal` is given."""
    kernel = as_kernel(W)
    if diagonal is None:
        return kernel
    msg = (
        "diagonal= goes in the next release: a kernel is singular or not; leave the "
        "pairs i = j out by kernels.Function(W, singular=True)"
    )
    warn(msg, DeprecationWarning)
    same = kernel.singular != diagonal
    return kernel if same else Function(kernel, singular=not diagonal)


def linear(kernel: Kernel, integral: Callable[[Kernel], Tensor]) -> Tensor:
    """Return an integral that is linear in the kernel, the sum over its terms."""
    (first, one), *others = kernel.terms()
    total = integral(one) if first == 1 else first * integral(one)
    for c, W in others:
        total = total + c * integral(W)
    return total


def pair_energy(W: Kernel, points: Tensor, weights: Tensor) -> Tensor:
    r"""Return :math:`\tfrac12 \sum_{ij} w_i w_j W(x_i - x_j)` tile by tile.

    The pairs i = j are omitted if W is singular.
    """

    def energy(x: Tensor, a: Tensor, y: Tensor, b: Tensor, is_diagonal: bool) -> Tensor:
        z = x[:, None, :] - y[None, :, :]
        if is_diagonal and W.singular:
            keep = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            i, j = keep.nonzero(as_tuple=True)
            return 0.5 * (a[i] * b[j] * W.values(z[i, j])).sum()
        return 0.5 * (a @ W.values(z) @ b)

    closed = not W.has_graph(points)
    return pair_sum(energy, points, weights, sweep=W.closed_sweep(), is_closed=closed)


def pair_potential(
    W: Kernel, x: Tensor | None, points: Tensor, weights: Tensor
) -> Tensor:
    r"""Return :math:`\sum_j w_j \tfrac12(W(x_i - x_j) + W(x_j - x_i))`, (m,).

    The places are probes x (m, d), or the points themselves. At the points, the pairs i
    = j are omitted if W is singular. Differentiable to any order. Time O(n m d), memory
    O(n + m).
    """
    if x is not None:
        return sum_at(W.even, x, points, weights, is_closed=not W.has_graph(points))
    live = records(points, weights) or W.has_graph(points)
    with differentiating(parameters=live):
        masses = alias(weights)
        energy = pair_energy(W, points, masses)
        return grads_of(energy, (masses,), create_graph=live)[0]


def sum_at(
    f: Ground, x: Tensor, points: Tensor, weights: Tensor, *, is_closed: bool = True
) -> Tensor:
    r"""Return :math:`\sum_j w_j f(x_i - x_j)`, (m,), tile by tile.

    An f whose parameters are being recorded is not closed.
    """
    if is_closed and not records(x, points, weights):
        total = torch.zeros_like(x[:, 0])
        with torch.no_grad():
            for i in tiles(len(x)):
                for j in tiles(len(points)):
                    total[i] += f(x[i][:, None] - points[j]) @ weights[j]
        return total

    def energy(x: Tensor, a: Tensor, y: Tensor, b: Tensor, _: bool) -> Tensor:
        return a @ f(x[:, None] - y) @ b

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
