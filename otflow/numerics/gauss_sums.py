"""Logarithms of sums of Gaussians along rows, and means under their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow.numerics.envelopes import (
    compiled,
    has_compiler,
    in_threads,
    lower_envelope,
    some_rows,
)

__all__ = ["log_gauss_sums"]

# A term below the largest one of its sum by the factor e^CUT does not count: 1000 of
# them sum to less than 1 % of the round-off of the sum.
CUT = 48.0


def log_gauss_sums(
    rows: Tensor,
    places: Tensor,
    targets: Tensor,
    alpha: float,
    values: Tensor,
    cut: float = CUT,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\log\sum_j e^{v_j - \alpha(x_i - y_j)^2}` of rows v, and means.

    Parameters
    ----------
    rows : Tensor, shape (k, n), float64
        Exponents v, on the CPU. Minus infinity bars an entry.
    places, targets : Tensor, shapes (n,) and (m,)
        Increasing y and x.
    alpha : float
        The factor, > 0.
    values : Tensor, shape (k, n, q)
        Numbers u of which the means are wanted; q may be 0.
    cut : float
        Terms below the largest one by the factor :math:`e^{-cut}` may be left out. By
        default they are below round-off.

    Returns
    -------
    logarithms : Tensor, shape (k, m)
        Minus infinity where all entries are barred.
    means : Tensor, shape (k, m, q)
        The means of u under the terms of each sum, 0 where all entries are barred.

    Notes
    -----
    The largest exponent of a target x, plus :math:`\alpha x^2`, is convex and piecewise
    linear in x. So a source counts for the targets of one interval around the place
    where the best source passes it. With numba, time is O(1) for each pair that counts.
    Without, all pairs are visited.
    """
    if not has_compiler():
        return _on_all_pairs(rows, places, targets, alpha, values)
    lowest, nearest = lower_envelope(-rows, places, targets, alpha)
    arrays = (rows, values, lowest, nearest)
    found = in_threads(
        compiled(_sums),
        tuple(a.contiguous().numpy() for a in arrays),
        places.numpy(),
        targets.numpy(),
        alpha,
        cut,
    )
    logarithms, means = (torch.from_numpy(a) for a in found)
    return logarithms, means


def _on_all_pairs(
    rows: Tensor, places: Tensor, targets: Tensor, alpha: float, values: Tensor
) -> tuple[Tensor, Tensor]:
    exponent = -alpha * (targets[:, None] - places).square()
    step = some_rows(rows, len(targets))
    logarithms, means = [], []
    for v, u in zip(torch.split(rows, step), torch.split(values, step), strict=True):
        terms = v[:, None] + exponent
        total = terms.logsumexp(-1)
        logarithms.append(total)
        if values.shape[2]:
            shift = total.masked_fill(total == -torch.inf, 0.0)
            means.append((terms - shift[..., None]).exp() @ u)
    empty = values.new_zeros(len(rows), len(targets), 0)
    return torch.cat(logarithms), torch.cat(means) if means else empty


def _sums(
    rows: Any,
    values: Any,
    lowest: Any,
    nearest: Any,
    places: Any,
    targets: Any,
    alpha: float,
    cut: float,
) -> tuple[Any, Any]:
    """Return the logarithms and the means; numba compiles this function."""
    count, n = rows.shape
    m, q = len(targets), values.shape[2]
    logarithms = np.empty((count, m))
    means = np.zeros((count, m, q))
    total = np.empty(m)
    for row in range(count):
        v, low, near = rows[row], lowest[row], nearest[row]
        if low[0] == np.inf:
            logarithms[row, :] = -np.inf
            continue
        total[:] = 0.0
        first = 0
        for j in range(n):
            if v[j] == -np.inf:
                continue
            while first < m and near[first] < j:
                first += 1
            for step in (1, -1):
                i = first if step == 1 else first - 1
                while 0 <= i < m:
                    apart = targets[i] - places[j]
                    exponent = v[j] - alpha * apart * apart + low[i]
                    if exponent < -cut:
                        break
                    weight = np.exp(exponent)
                    total[i] += weight
                    for k in range(q):
                        means[row, i, k] += weight * values[row, j, k]
                    i += step
        for i in range(m):
            logarithms[row, i] = np.log(total[i]) - low[i]
            for k in range(q):
                means[row, i, k] /= total[i]
    return logarithms, means
