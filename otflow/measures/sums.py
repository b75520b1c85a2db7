"""Sums over the points of a measure: integrals, pairs, masses; functions checked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._graphs import recording, records, refuse_graph
from otflow._pairs import pair_sum
from otflow._typing import Ground
from otflow._validation import check_like, real
from otflow.errors import InvalidFunctional
from otflow.kernels import RadialKernel

__all__ = [
    "check_energy",
    "check_kernel",
    "integrate",
    "internal_energy",
    "pair_energy",
    "refuse_to_draw",
    "reweighted",
]


def reweighted(weights: Tensor, log_rate: Tensor, dt: float) -> Tensor:
    r"""Return :math:`w_i e^{dt\,r_i}` over their sum; masses of zero stay zero."""
    if not isinstance(log_rate, Tensor) or log_rate.shape != weights.shape:
        got = getattr(log_rate, "shape", type(log_rate).__name__)
        shape = tuple(weights.shape)
        msg = f"log_rate must have shape {shape}, one entry a cell or atom, got {got}"
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
    r"""Return :math:`\sum_i w_i f(x_i)`, refused unless f is a ground function.

    Values at points where `skipped` (n,) is True count as 0, whatever they are.
    """
    values = f(points)
    n = points.shape[0]
    if not isinstance(values, Tensor) or values.ndim < 1 or values.shape[0] != n:
        got = (
            f"shape {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else type(values).__name__
        )
        msg = (
            f"a ground function must map (n, d) = {tuple(points.shape)} to "
            f"({n},) or ({n}, m), got {got}; reduce over the last axis, "
            f"e.g. .sum(-1)"
        )
        raise InvalidFunctional(msg)
    if values.dtype != weights.dtype:
        msg = (
            f"a ground function returned {values.dtype} for points of dtype "
            f"{points.dtype}; build its constants with the dtype of x"
        )
        raise InvalidFunctional(msg)
    if skipped is not None:
        values = values.masked_fill(skipped.reshape(-1, *[1] * (values.ndim - 1)), 0)
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
    else:  # 0 with an infinite derivative of the right sign
        vacuum = torch.special.entr(weights)
        vacuum = -vacuum if at_zero < 0 else vacuum
    filled = weights * check_energy(e, rho.masked_fill(empty, 1.0))
    return torch.where(empty, vacuum, filled).sum()


def pair_energy(
    W: Ground, points: Tensor, weights: Tensor, *, diagonal: bool = True
) -> Tensor:
    r"""Return :math:`\tfrac12 \sum_{ij} w_i w_j W(x_i - x_j)` tile by tile."""

    def energy(x: Tensor, a: Tensor, y: Tensor, b: Tensor, is_diagonal: bool) -> Tensor:
        z = x[:, None, :] - y[None, :, :]
        if is_diagonal and not diagonal:
            keep = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
            i, j = keep.nonzero(as_tuple=True)
            return 0.5 * (a[i] * b[j] * check_kernel(W, z[i, j])).sum()
        return 0.5 * (a @ check_kernel(W, z) @ b)

    sweep = W.sweep if isinstance(W, RadialKernel) and W.singular != diagonal else None
    closed = not recording() or not has_parameters(W, points)
    return pair_sum(energy, points, weights, sweep=sweep, is_closed=closed)


def has_parameters(W: Ground, points: Tensor) -> bool:
    """Return whether a kernel has a graph of its own, as a network has."""
    if isinstance(W, RadialKernel) and all(
        isinstance(value, (int, float)) for value in vars(W).values()
    ):
        return False
    # At a difference other than 0, which a user's kernel need not admit.
    values = W(torch.ones_like(points[:1]).detach())
    return bool(getattr(values, "requires_grad", False))  # the sum refuses the rest


def check_kernel(W: Ground, z: Tensor) -> Tensor:
    """Return W(z), refused unless it is one number for each difference."""
    values = W(z)
    if not isinstance(values, Tensor) or values.shape != z.shape[:-1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        msg = (
            f"an interaction W must map differences {tuple(z.shape)} to "
            f"{tuple(z.shape[:-1])}, got {got}; reduce over the last axis: .sum(-1)"
        )
        raise InvalidFunctional(msg)
    if values.dtype != z.dtype:
        msg = (
            f"an interaction W returned {values.dtype} for differences of dtype "
            f"{z.dtype}; build its constants with the dtype of z"
        )
        raise InvalidFunctional(msg)
    return values


def check_energy(e: Ground, rho: Tensor) -> Tensor:
    """Return e(rho), refused unless it is one number for each density."""
    values = e(rho)
    if not isinstance(values, Tensor) or values.shape != rho.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        msg = (
            f"an energy per unit of mass e must map densities {tuple(rho.shape)} to "
            f"{tuple(rho.shape)}, entry by entry, got {got}; a constant c is c + 0 * r"
        )
        raise InvalidFunctional(msg)
    if values.dtype != rho.dtype:
        msg = (
            f"an energy per unit of mass e returned {values.dtype} for densities of "
            f"dtype {rho.dtype}; build its constants with the dtype of r"
        )
        raise InvalidFunctional(msg)
    return values


def refuse_to_draw(weights: Tensor) -> None:
    """Refuse to draw by masses that carry a graph: no derivative says what is drawn."""
    refuse_graph(
        "a sample",
        "what is drawn has no derivative in the masses",
        weights,
        cure="mu.detach()",
    )
