r"""The inner weights at which sums of ReLU neurons on data are extreme."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._typing import ArrayLike
from otflow._validation import non_negative_int
from otflow.meanfield.kinks import EPS

__all__ = [
    "MOST_RAYS",
    "distinct",
    "drawn_rays",
    "extreme_rays",
    "half_rays",
    "hyperplanes",
    "ray_count",
]

# Most rays by default: in dimension 3 their rows take 50 MB.
MOST_RAYS = 500_000
# Two rays nearer than this are one.
SAME = 1e-12
# Hyperplanes of which the least singular value is below this count as dependent: the
# loss by leaving out a ray is then below that by its round-off. Those of a volume above
# the second number are known to be independent.
NARROW = EPS**0.5
SURE = 1e-4
# Numbers in a temporary array.
BLOCK = 2**22
# Up to so many coordinates of a ray, minors are cheaper than orthogonalisation.
FEW = 4


def ray_count(n: int, d: int) -> int:
    """Return the largest number of rays of n data in dimension d."""
    return 2 * math.comb(n + d + 1, d)


def extreme_rays(X: ArrayLike, *, most: int = MOST_RAYS) -> Tensor:
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
    best_law : The law over them whose kernel has the least norm.

    Notes
    -----
    Time :math:`O(K d^3)`, memory :math:`O(K d)`. Rays that differ by less than 1e-12
    count as one. The rays of d hyperplanes that are dependent to within 1.5e-8 are left
    out: no sum over the data is much larger there than at rays of others.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.meanfield.extreme_rays(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
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
            f"most={most}; take fewer data, or extreme_rays(X, most={count})"
        )
        raise ValueError(msg)
    v, _, _ = half_rays(hyperplanes(X.double()))
    v = torch.stack([v, -v], dim=1).flatten(0, 1) + 0.0  # no negative zeros
    return v[distinct(v)].to(X.dtype)


def hyperplanes(X: Tensor) -> Tensor:
    """Return the normals of the hyperplanes in (w, b), (n + d + 1, d + 1)."""
    z = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    planes = torch.cat([z, torch.eye(z.shape[1], dtype=z.dtype, device=z.device)])
    length: Tensor = torch.linalg.vector_norm(planes, dim=1, keepdim=True)
    return planes / length


def half_rays(planes: Tensor) -> tuple[Tensor, Tensor, float]:
    r"""Return one ray (K, q) of each d of the hyperplanes, the surest first.

    Each comes with a bound (K,) of the distance "l1" of the two unit vectors, that
    which was computed and the true one. If :math:`\sigma` is the least singular value
    of the normals, round-off moves a ray by a multiple of :math:`\epsilon/\sigma`.
    Choices of :math:`\sigma` below `NARROW` are left out, and the largest of those is
    the last number.
    """
    q = planes.shape[1]
    parts, errors, lost = [], [], 0.0
    for choices in _choices(len(planes), q - 1, max(1, BLOCK // q**2)):
        rows = planes[choices.to(planes.device)]  # (K, d, q)
        v, volume = _orthogonal(rows)
        # The other singular values have a product of at most the root of e.
        narrow = volume / math.sqrt(math.e)
        doubtful = volume < SURE
        if bool(doubtful.any()):
            narrow[doubtful] = torch.linalg.svdvals(rows[doubtful])[:, -1]
        keep = narrow > NARROW
        lost = max(lost, float(narrow.masked_fill(keep, 0.0).max()))
        parts.append(v[keep] / v[keep].abs().sum(1, keepdim=True))
        errors.append(16 * q**2 * EPS / narrow[keep])
    v, error = torch.cat(parts), torch.cat(errors)
    error, order = error.sort()
    return v[order], error, lost


def _choices(count: int, d: int, rows: int) -> Iterator[Tensor]:
    """Yield all d of so many numbers, in blocks (rows, d)."""
    every = itertools.combinations(range(count), d)
    while block := list(itertools.islice(every, rows)):
        yield torch.tensor(block)


def drawn_rays(planes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return rays (K, q) of hyperplanes that are drawn at random."""
    d = planes.shape[1] - 1
    drawn = torch.rand(count, len(planes), generator=generator).topk(d, dim=1).indices
    v, _ = _orthogonal(planes[drawn])
    return v


def _orthogonal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors (K, d + 1) orthogonal to unit rows (K, d, d + 1), and volumes.

    The vectors have the norm 1, or 0 for rows that are dependent.
    """
    q = rows.shape[2]
    if q > FEW:
        axes, triangle = torch.linalg.qr(rows.mT, mode="complete")
        return axes[:, :, -1], triangle.diagonal(dim1=1, dim2=2).abs().prod(1)
    minors = [
        (-1) ** j * torch.linalg.det(rows[:, :, [k for k in range(q) if k != j]])
        for j in range(q)
    ]
    v = torch.stack(minors, dim=1)
    volume = v.norm(dim=1)
    return v / volume.clamp_min(1e-300)[:, None], volume


def distinct(v: Tensor, same: float = SAME) -> Tensor:
    """Return the indices of rows that differ, the first of each kind."""
    keys = (v / same).round()
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(v), device=v.device)
    index = torch.arange(len(v), device=v.device)
    return first.scatter_reduce(0, group, index, "amin")
