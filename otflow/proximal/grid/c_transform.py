"""The c-transform of a potential on a grid, exact and one axis at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._validation import check_kind, positive
from otflow.measures.grid.box import Box
from otflow.numerics.envelopes import compiled_envelope, has_compiler

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
    rows = values.movedim(axis, -1)
    n = rows.shape[-1]
    places = torch.arange(n, dtype=torch.float64)
    lowest, nearest = (
        a.to(values.device).reshape(rows.shape).movedim(-1, axis)
        for a in compiled_envelope(rows.reshape(-1, n).cpu(), places, places, unit)
    )
    return lowest, nearest


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
