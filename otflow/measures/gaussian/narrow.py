"""Interaction of a Gaussian law: Gaussian kernels, and features between the nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from otflow._warn import warn
from otflow.errors import KernelWarning
from otflow.kernels import Gaussian, Kernel

__all__ = [
    "gaussian_kernel_energy",
    "gaussian_kernel_potential",
    "hidden_energy",
    "warn_if_missed",
    "warn_if_rough",
]

# Share of the energy that may lie between the nodes without a warning.
UNSEEN = 0.1
# Share of the spread of a kernel by which two rules may differ without a warning.
ROUGH = 1e-3


def gaussian_kernel_energy(factor: Tensor, W: Gaussian) -> Tensor:
    r"""Return :math:`\tfrac12\det(I + 2LL^\top/\sigma^2)^{-1/2}`.

    That is :math:`\tfrac12 E\,W(\sqrt2 L z)` for :math:`W(z) = e^{-|z|^2/2\sigma^2}`.

    Parameters
    ----------
    factor : Tensor, shape (d, d)
        The factor L.
    W : Gaussian
        Kernel.

    Returns
    -------
    Tensor
        0-d; differentiable to any order. Time O(d^3).
    """
    # Two points differ by a Gaussian of mean 0 and factor sqrt(2) L.
    zero = torch.zeros_like(factor[0])
    apart = math.sqrt(2.0) * factor
    return 0.5 * gaussian_kernel_potential(zero, apart, W, zero[None])[0]


def gaussian_kernel_potential(
    mean: Tensor, factor: Tensor, W: Gaussian, x: Tensor
) -> Tensor:
    r"""Return :math:`E\,W(x - m - Lz)` at points x (m, d), in closed form: (m,).

    That is :math:`\det(I + \Sigma/\sigma^2)^{-1/2} \exp(-\tfrac12 (x - m)^\top (\Sigma
    + \sigma^2 I)^{-1} (x - m))`; differentiable to any order.
    """
    scaled = factor / W.sigma
    one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky(one + scaled @ scaled.T)
    offsets = (x - mean).T / W.sigma
    z = torch.linalg.solve_triangular(root, offsets, upper=False)
    logs = -0.5 * z.square().sum(0) - root.diagonal().log().sum()
    potential: Tensor = logs.exp()
    return potential


def hidden_energy(
    W: Kernel, nodes: Tensor, weights: Tensor, factor: Tensor, values: Tensor
) -> float:
    """Return an estimate of the energy of W that no node of a rule sees.

    Let r be the distance of the nearest node from 0. The value of W at 0 is
    extrapolated from r and 2 r along each axis of the factor, as for a kernel that is
    smooth on that scale. The excess of W(0) over this value counts with half of the
    chance that two points are nearer than r. The estimate is replaced by 0 if it is
    small beside what the nodes see: the spread of W about its mean, since a constant is
    no feature.

    Parameters
    ----------
    W : callable
        Takes differences (..., d) to (...), finite at 0.
    nodes : Tensor, shape (n, d)
        White nodes z.
    weights : Tensor, shape (n,)
        Masses of the nodes.
    factor : Tensor, shape (d, d)
        The factor L.
    values : Tensor, shape (n,)
        W at the differences of points that the nodes stand for.
    """
    with torch.no_grad():
        dim = len(factor)
        r = nodes.norm(dim=-1).min()
        z = math.sqrt(2.0) * r * factor.T  # one point on each axis
        points = torch.cat([0.0 * z[:1], z, -z, 2.0 * z, -2.0 * z])
        own = W.values(points)
        at_zero, (near, far) = own[0], own[1:].reshape(2, 2, dim).mean(1)
        surprise = (at_zero - (4.0 * near - far) / 3.0).abs().max()
        half = torch.as_tensor(0.5 * dim, dtype=torch.float64)
        chance = torch.special.gammainc(half, 0.5 * r.double().cpu().square())
        unseen = 0.25 * float(chance) * float(surprise)
        seen = 0.5 * float(weights @ (values - weights @ values).abs())
        floor = 64 * torch.finfo(factor.dtype).eps * float(values.abs().max())
    return unseen if unseen > UNSEEN * seen + floor else 0.0


def warn_if_missed(
    W: Kernel,
    nodes: Tensor,
    weights: Tensor,
    factor: Tensor,
    values: Tensor,
    rough: Sequence[Tensor],
) -> None:
    """Warn (KernelWarning) if the nodes miss a share of a kernel's energy.

    `rough` holds means of the kernel by coarser rules.
    """
    unseen = hidden_energy(W, nodes, weights, factor, values)
    if unseen > 0:
        msg = (
            f"an interaction kernel is narrower about 0 than the distance of the "
            f"{len(nodes)} nodes of a Gaussian: an energy of about {unseen:.2g} is "
            f"left out; take kernels.Gaussian, which is exact, more nodes "
            f"(mu.refined(...)), or on a line Quantiles"
        )
        warn(msg, KernelWarning)
    elif rough:
        mean = weights @ values
        spread = float(weights @ (values - mean).abs())
        warn_if_rough(W, mean, torch.stack(list(rough)), spread)


def warn_if_rough(
    W: Kernel, found: Tensor, other: Tensor, spread: float | None = None
) -> None:
    """Warn (KernelWarning) if two rules find different averages of a kernel.

    The difference counts beside the spread of the averages, or the one given.
    """
    off, largest = float((found - other).abs().max()), float(found.abs().max())
    scale = largest if spread is None else spread
    if off > ROUGH * scale + 64 * torch.finfo(found.dtype).eps * largest:
        msg = (
            f"the nodes of a Gaussian know averages of {W!r} to about {off:.2g} only, "
            f"as at a kink or a jump, or if it is narrow; for exp(-|z|^2 / 2 s^2) take "
            f"kernels.Gaussian, which is exact; else more nodes (mu.refined(...)), a "
            f"smoother kernel, or on a line Quantiles"
        )
        warn(msg, KernelWarning)
