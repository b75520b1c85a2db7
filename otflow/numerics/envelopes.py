"""Lower envelopes of parabolas, row by row; compiled where numba is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import

__all__ = [
    "compiled",
    "compiled_envelope",
    "has_compiler",
    "in_threads",
    "lower_envelope",
    "some_rows",
]

# Most entries of a temporary array of pairs: 16 MiB in float64.
TEMPORARY = 2**21
# Entries below which the start of a thread takes longer than the work.
FEW = 2**14


@functools.cache
def has_compiler() -> bool:
    """Return whether numba is installed."""
    try:
        lazy_import("numba")
    except ImportError:
        return False
    return True


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, compiled by numba."""
    compiler: Callable[..., Any] = lazy_import("numba").njit(nogil=True, cache=True)
    jitted: Callable[..., Any] = compiler(function)
    return jitted


def some_rows(rows: Tensor, targets: int) -> int:
    """Return how many rows fit into a temporary array of their pairs."""
    return max(1, TEMPORARY // max(1, rows.shape[-1] * targets))


def in_threads(
    function: Callable[..., tuple[Any, ...]], arrays: tuple[Any, ...], *rest: Any
) -> tuple[Any, ...]:
    """Return the arrays that a function makes of rows, in as many threads as torch.

    The function must release the lock of the interpreter.
    """
    count = torch.get_num_threads() if arrays[0].size >= FEW else 1
    if count == 1:
        return function(*arrays, *rest)
    parts = [np.array_split(a, count) for a in arrays]
    with ThreadPoolExecutor(count) as pool:
        jobs = [
            pool.submit(function, *part, *rest) for part in zip(*parts, strict=True)
        ]
        found = [job.result() for job in jobs]
    return tuple(np.concatenate(pieces) for pieces in zip(*found, strict=True))


def lower_envelope(
    rows: Tensor, places: Tensor, targets: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\min_j u\,(x_i - y_j)^2 + f_j` of each row f, and the j.

    Parameters
    ----------
    rows : Tensor, shape (k, n)
        The rows, on the CPU. Plus infinity bars an entry.
    places : Tensor, shape (n,)
        Increasing y.
    targets : Tensor, shape (m,)
        Increasing x.
    unit : float
        The factor u > 0.

    Returns
    -------
    minimum : Tensor, shape (k, m)
        Plus infinity where all entries are barred.
    argmin : Tensor of int64, shape (k, m)
        Index j. It does not fall along a row.

    Notes
    -----
    Time O(k (n + m)) with numba :cite:p:`felzenszwalb2012distance`, O(k n m) without.
    """
    if not has_compiler():
        square = unit * (targets[:, None] - places).square()
        parts = [
            (chunk[:, None] + square).min(-1)
            for chunk in torch.split(rows, some_rows(rows, len(targets)))
        ]
        return torch.cat([p.values for p in parts]), torch.cat(
            [p.indices for p in parts]
        )
    return compiled_envelope(rows, places, targets, unit)


def compiled_envelope(
    rows: Tensor, places: Tensor, targets: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """Return `lower_envelope` by numba, or raise ImportError."""
    # Numba reads arrays, which share the memory of CPU tensors.
    array, *ends = (t.contiguous().numpy() for t in (rows, places, targets))
    found = in_threads(compiled(_envelopes), (array,), *ends, unit)
    lowest, nearest = (torch.from_numpy(a) for a in found)
    return lowest, nearest


def _envelopes(rows: Any, places: Any, targets: Any, unit: float) -> tuple[Any, Any]:
    """Return the lower envelope of the parabolas unit (x - y_j)^2 + f_j of each row.

    Numba compiles this function. The stack holds the parabolas that are the lowest
    somewhere; the k-th of them is the lowest from `start[k]` on.
    """
    count, n = rows.shape
    m = len(targets)
    lowest = np.empty((count, m), rows.dtype)
    nearest = np.empty((count, m), np.int64)
    stack = np.empty(n, np.int64)
    start = np.empty(n, np.float64)
    for row in range(count):
        f = rows[row]
        top = -1
        for j in range(n):
            if not f[j] < np.inf:
                continue
            s = -np.inf
            # A parabola that loses to the new one before its start is never the lowest.
            while top >= 0:
                i = stack[top]
                apart = places[j] - places[i]
                s = 0.5 * ((f[j] - f[i]) / (unit * apart) + (places[j] + places[i]))
                if s > start[top]:
                    break
                top -= 1
                s = -np.inf
            top += 1
            stack[top] = j
            start[top] = s
        k = 0
        for i in range(m):
            if top < 0:
                lowest[row, i] = np.inf
                nearest[row, i] = min(i, n - 1)
                continue
            while k < top and start[k + 1] < targets[i]:
                k += 1
            j = stack[k]
            apart = targets[i] - places[j]
            lowest[row, i] = f[j] + unit * apart * apart
            nearest[row, i] = j
    return lowest, nearest
