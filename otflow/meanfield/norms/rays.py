r"""The inner weights at which sums of ReLU neurons on data are extreme."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._typing import ArrayLike
from otflow._validation import non_negative_int

__all__ = ["MOST_RAYS", "ray_count", "rays"]

# Most rays by default: with 100 data they take 160 MB beside their features.
MOST_RAYS = 200_000
# Two rays nearer than this are one, and a volume below it is that of parallel rows.
SAME = 1e-12


def ray_count(n: int, d: int) -> int:
    """Return the largest number of rays of n data in dimension d."""
    return 2 * math.comb(n + d + 1, d)


def rays(X: ArrayLike, *, most: int = MOST_RAYS) -> Tensor:
    r"""Return the extreme rays of the cones on which all ReLU neurons are linear.

    The hyperplanes :math:`w\cdot x_i + b = 0` of the data, and those of the
    coordinates, :math:`w_j = 0` and :math:`b = 0`, cut the space of :math:`(w, b)` into
    cones. On each of them both :math:`\sum_i \lambda_i (w\cdot x_i + b)^+` and
    :math:`|w|_1 + |b|` are linear. So for any :math:`\lambda`

    .. math:: \max_{|w|_1 + |b| = 1} \Bigl|\sum_i \lambda_i (w\cdot x_i + b)^+\Bigr|

    is attained at one of the extreme rays of the cones. Each of them is the
    intersection of d of the hyperplanes :cite:p:`bach2017breaking`.

    Parameters
    ----------
    X : Tensor or ndarray, shape (n, d)
        Data.
    most : int
        Most rays to make.

    Returns
    -------
    Tensor, shape (K, d + 1)
        Rows (w, b) with :math:`|w|_1 + |b| = 1`, of the dtype and the device of X, each
        with its negative, without repetitions.

    Raises
    ------
    ValueError
        If there may be more than `most` rays. Their number is at most
        :math:`2\binom{n + d + 1}{d}`.

    See Also
    --------
    barron_norm : The linear program over these rays.

    Notes
    -----
    Time :math:`O(K d^4)`, memory :math:`O(K d^2)`. Rays that differ by less than 1e-12
    count as one. The rays of d hyperplanes that are parallel to a line to within
    round-off are left out; a nearby ray is then that of other hyperplanes.

    Examples
    --------
    >>> import torch
    >>> from otflow.meanfield.norms import rays
    >>> rays(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    tensor([[-1.0000,  0.0000],
            [-0.5000,  0.5000],
            [ 0.0000, -1.0000],
            [ 0.0000,  1.0000],
            [ 0.5000, -0.5000],
            [ 1.0000,  0.0000]], dtype=torch.float64)
    """
    X = as_points(X, "X").detach()
    most = non_negative_int(most, "most", minimum=1)
    n, d = X.shape
    count = ray_count(n, d)
    if count > most:
        msg = (
            f"{n} data in dimension {d} have up to {count} rays, more than "
            f"most={most}; take fewer data, or rays(X, most={count})"
        )
        raise ValueError(msg)
    z = torch.cat([X.double(), X.new_ones(n, 1, dtype=torch.float64)], dim=1)
    planes = torch.cat([z, torch.eye(d + 1, dtype=z.dtype, device=z.device)])
    v = _normals(planes, d)
    v = torch.cat([v, -v]) + 0.0  # no negative zeros
    order = _distinct(v)
    return v[order].to(X.dtype)


def _normals(planes: Tensor, d: int) -> Tensor:
    """Return the vectors orthogonal to each choice of d rows, of l1 norm 1."""
    unit = planes / planes.abs().sum(1, keepdim=True)
    size = len(planes)
    choices = torch.combinations(torch.arange(size, device=planes.device), d)
    rows = unit[choices]  # (K, d, d + 1)
    columns = range(d + 1)
    minors = [
        (-1) ** j * torch.linalg.det(rows[:, :, [k for k in columns if k != j]])
        for j in columns
    ]
    v = torch.stack(minors, dim=1)
    length = v.abs().sum(1, keepdim=True)
    keep = length[:, 0] > SAME
    return v[keep] / length[keep]


def _distinct(v: Tensor) -> Tensor:
    """Return the indices of the rows that differ, in the order of the rows."""
    keys = (v / SAME).round()
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(v), device=v.device)
    index = torch.arange(len(v), device=v.device)
    return first.scatter_reduce(0, group, index, "amin")
