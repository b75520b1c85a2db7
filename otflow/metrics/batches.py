"""Exact squared distances between many pairs of small clouds at once."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._arrays import as_points, as_tensor
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.metrics.assignments import assignment

__all__ = ["batched_wasserstein2_squared"]


def batched_wasserstein2_squared(x: ArrayLike, y: ArrayLike) -> Tensor:
    r"""Return :math:`W_2^2(\mu_k, \nu_k)` for each pair k of clouds of equal weights.

    .. math:: W_2^2(\mu_k, \nu_k) = \min_\sigma
        \frac1n \sum_i |x_{ki} - y_{k\sigma(i)}|^2

    Each is the exact distance that `wasserstein2_squared` gives for one pair.

    Parameters
    ----------
    x, y : Tensor or ndarray, shape (B, n, d)
        B pairs of clouds of n points each.

    Returns
    -------
    Tensor, shape (B,)
        In the dtype and on the device of `x`, differentiable in all points.

    Raises
    ------
    ValueError
        If shapes or devices differ, if a cloud is empty, or a point is not finite.
    TypeError
        If dtypes differ.

    See Also
    --------
    otflow.metrics.wasserstein2_squared : One pair, of any weights and sizes.

    Notes
    -----
    On the line all clouds are sorted together, O(B n log n), on the device of the
    points. Else the pairs are assigned one after another on the CPU, as by
    `assignment`, some 0.5 ms each for n up to 30.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]])
    >>> of.metrics.batched_wasserstein2_squared(x, x.flip(1) + 3.0)
    tensor([9., 9.])
    """
    x, y = _clouds(x, "x"), _clouds(y, "y")
    check_like(y, x, "y", "x")
    if x.shape != y.shape:
        msg = (
            f"x has shape {tuple(x.shape)} but y {tuple(y.shape)}: pairs of clouds "
            f"have one shape; use wasserstein2_squared for each pair"
        )
        raise ValueError(msg)
    s, t = x.detach(), y.detach()
    if x.shape[2] == 1:
        sigma = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
        places = s[..., 0].argsort(dim=1, stable=True)
        sigma = sigma.scatter(1, places, t[..., 0].argsort(dim=1, stable=True))
    else:
        pairs = [assignment(u, v) for u, v in zip(s, t, strict=True)]
        none = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
        sigma = torch.stack(pairs) if pairs else none
    moves = x.double() - y.double().gather(1, sigma[..., None].expand_as(y))
    return moves.square().sum(2).mean(1).to(x.dtype)


def _clouds(x: ArrayLike, name: str) -> Tensor:
    """Return clouds (B, n, d) of finite points, checked."""
    x = as_tensor(x, name)
    if x.ndim != 3:
        cure = f"; use {name}[None] for one cloud" if x.ndim == 2 else ""
        msg = f"{name} must have shape (B, n, d), got {tuple(x.shape)}{cure}"
        raise ValueError(msg)
    if x.shape[1] == 0 or x.shape[2] == 0:
        msg = (
            f"{name} has shape {tuple(x.shape)}: clouds (B, n, d) need n >= 1 "
            f"points in dimension d >= 1"
        )
        raise ValueError(msg)
    # The dtype of no clouds is checked too.
    rows = x.flatten(0, 1) if len(x) else x.new_zeros(1, x.shape[2])
    as_points(rows, name)
    return x
