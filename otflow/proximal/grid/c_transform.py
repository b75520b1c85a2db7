"""The c-transform of a potential on a grid, exact and one axis at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._validation import check_kind, positive
from otflow.measures.grid.box import Box

__all__ = ["along_axis", "c_transform", "has_compiler"]

# Offsets tried between two questions whether a better one can still come. A question
# reads the whole array, and on a GPU it waits for the result.
STRIDE = 4


def c_transform(
    phi: Tensor, box: Box, dt: float, *, compiled: bool | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\phi^c(x) = \min_y |x - y|^2/(2\,dt) - \phi(y)` on cell centres.

    The square is a sum over the axes. So the minimum is taken along one axis after the
    other :cite:p:`felzenszwalb2012distance`. For every pair of cells :math:`\phi^c(x) +
    \phi(y) \le |x - y|^2/(2\,dt)`. Hence :math:`\int\phi^c d\mu + \int\phi\,d\nu` is a
    lower bound of :math:`W_2^2(\mu, \nu)/(2\,dt)` for atoms at the centres.

    Parameters
    ----------
    phi : Tensor, shape (n,)
        One value for each cell, in C order. Minus infinity bars a cell.
    box : Box
        The grid.
    dt : float
        Length of the step in time, > 0.
    compiled : bool, optional
        Whether to use the lower envelope of parabolas, compiled by numba for the CPU.
        The default is True on the CPU if numba is installed (``pip install
        'otflow[fast]'``).

    Returns
    -------
    transform : Tensor, shape (n,)
        The transform; plus infinity if all cells are barred.
    argmin : Tensor of int64, shape (n,)
        Index of the minimiser; some cell if all are barred.

    Raises
    ------
    ValueError
        If `phi` has the wrong shape, is NaN or plus infinity, or `dt` is not positive.
    ImportError
        If `compiled` is True and numba is not installed.

    Notes
    -----
    Memory O(n). Compiled code takes time O(n). Plain code tries the offsets in the
    order of their cost until no larger one can win. It takes time O(n k) for a longest
    displacement of k cells.

    Examples
    --------
    >>> import torch, otflow as of
    >>> from otflow.proximal.grid.c_transform import c_transform
    >>> box = of.measures.Box.of(0.0, 3.0, (3,))
    >>> c_transform(torch.tensor([0.0, 0.0, 1.0]), box, dt=0.5)[0]
    tensor([ 0.,  0., -1.])
    """
    check_kind(box, Box, "box")
    dt = positive(dt, "dt")
    if not isinstance(phi, Tensor) or phi.shape != (box.n,):
        got = getattr(phi, "shape", type(phi).__name__)
        msg = f"phi must have shape ({box.n},), one value a cell, got {got}"
        raise ValueError(msg)
    phi = phi.detach()
    if not bool((phi < math.inf).all()):
        msg = "phi must be finite or minus infinity in every cell, not NaN or infinity"
        raise ValueError(msg)
    values = -phi.reshape(box.shape)
    index = torch.zeros(box.shape, dtype=torch.int64, device=phi.device)
    for axis in reversed(range(box.dim)):
        values, nearest = along_axis(
            values, axis, box.spacing[axis], dt, compiled=compiled
        )
        # The flat index of the minimiser over this axis and the axes done before.
        stride = math.prod(box.shape[axis + 1 :])
        index = nearest * stride + torch.gather(index, axis, nearest)
    return values.reshape(-1), index.reshape(-1)


def along_axis(
    values: Tensor,
    axis: int,
    spacing: float,
    dt: float,
    *,
    compiled: bool | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\min_j (h(i - j))^2/(2\,dt) + f_j` along an axis, and the j.

    Parameters
    ----------
    values : Tensor
        The array f. Plus infinity bars an entry.
    axis : int
        The axis of the minimum.
    spacing, dt : float
        Distance h of two entries, and length of the step in time.
    compiled : bool, optional
        As in `c_transform`.

    Returns
    -------
    minimum : Tensor
        The minimum, in the shape of `values`.
    argmin : Tensor of int64
        Index along the axis.
    """
    unit = spacing * spacing / (2.0 * dt)
    if compiled is None:
        compiled = values.device.type == "cpu" and has_compiler()
    if not compiled:
        return _by_offsets(values, axis, unit)
    rows = values.movedim(axis, -1).contiguous()
    n = rows.shape[-1]
    # Numba reads arrays, which share the memory of CPU tensors.
    found = _compiled()(rows.reshape(-1, n).cpu().numpy(), unit)
    lowest, nearest = (
        torch.from_numpy(a).to(values.device).reshape(rows.shape).movedim(-1, axis)
        for a in found
    )
    return lowest, nearest


@functools.cache
def has_compiler() -> bool:
    """Return whether numba is installed."""
    try:
        lazy_import("numba")
    except ImportError:
        return False
    return True


def _by_offsets(values: Tensor, axis: int, unit: float) -> tuple[Tensor, Tensor]:
    """Return the minimum; try offsets 0, 1, -1, 2, ... until no larger one can win."""
    n = values.shape[axis]
    lowest = values.clone()
    shape = [n if a == axis else 1 for a in range(values.ndim)]
    own = torch.arange(n, device=values.device).reshape(shape)
    nearest = own.expand(values.shape).clone()
    least = values.amin(axis, keepdim=True)
    for k in range(1, n):
        cost = unit * k * k
        if k % STRIDE == 1:
            # In a row of barred entries inf - inf is NaN; such a row wants no offset.
            excess = torch.nan_to_num(lowest.amax(axis, keepdim=True) - least, nan=-1.0)
            if not bool((excess > cost).any()):
                break
        for goal, source, j in (
            (slice(0, n - k), slice(k, n), k),
            (slice(k, n), slice(0, n - k), -k),
        ):
            here = (slice(None),) * axis
            trial = values[(*here, source)] + cost
            old = lowest[(*here, goal)]
            better = trial < old
            old.copy_(torch.where(better, trial, old))
            place = nearest[(*here, goal)]
            place.copy_(torch.where(better, (own + j)[(*here, goal)], place))
    return lowest, nearest


@functools.cache
def _compiled() -> Callable[[Any, float], tuple[Any, Any]]:
    numba = lazy_import("numba")
    compiled: Callable[[Any, float], tuple[Any, Any]] = numba.njit(
        nogil=True, cache=True
    )(_lower_envelope)
    return compiled


def _lower_envelope(rows: Any, unit: float) -> tuple[Any, Any]:
    """Return the lower envelope of the parabolas unit (i - j)^2 + f_j of each row.

    Numba compiles this function. The stack holds the parabolas that are the lowest
    somewhere; the k-th of them is the lowest from `start[k]` on.
    """
    count, n = rows.shape
    lowest = np.empty_like(rows)
    nearest = np.empty((count, n), np.int64)
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
                s = 0.5 * ((f[j] - f[i]) / (unit * (j - i)) + (j + i))
                if s > start[top]:
                    break
                top -= 1
                s = -np.inf
            top += 1
            stack[top] = j
            start[top] = s
        k = 0
        for i in range(n):
            if top < 0:
                lowest[row, i] = np.inf
                nearest[row, i] = i
                continue
            while k < top and start[k + 1] < i:
                k += 1
            j = stack[k]
            lowest[row, i] = f[j] + unit * (i - j) * (i - j)
            nearest[row, i] = j
    return lowest, nearest
