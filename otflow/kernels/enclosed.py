r"""Potentials of point masses under a radial kernel, enclosed on boxes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow._radial import Profile
from otflow.numerics.elementary import FUNCTIONS, Ranges, power
from otflow.numerics.enclosed_sums import BLOCK
from otflow.numerics.enclosures import Enclosure, pairs, row_count
from otflow.numerics.intervals import EPS, TINY, Interval, dot, outward, scale

__all__ = ["power_ranges", "radial_enclosure", "ranges_of"]

# Units of round-off in a product of three numbers, each off by a few.
ULPS = 16


def radial_enclosure(
    profile: Ranges,
    x: Enclosure,
    points: Tensor,
    masses: Tensor,
    steepest: float,
    kernel: Profile | None,
) -> Enclosure:
    r"""Return :math:`\sum_j a_j\,\varphi(|x - y_j|^2)` on boxes, with derivatives.

    With z = x - y, the gradient of a term is :math:`2\varphi' z`, the Hessian
    :math:`2\varphi' I + 4\varphi'' z z^T`.

    Parameters
    ----------
    profile : callable
        Ranges of :math:`\varphi` and of its derivatives.
    x : Enclosure, shape (C, d)
        The points of boxes themselves.
    points : Tensor, shape (n, d)
        Atoms y.
    masses : Tensor, shape (n,)
        Masses a.
    steepest : float
        A bound on each component of the gradient of the kernel; infinity if unknown.
    kernel : Profile or None
        Profile and slope by floating numbers, each off by a few units in its last
        place; None if that is not known.

    Returns
    -------
    Enclosure, shape (C,)
        The sum.
    """
    count, d = x.shape
    low, high = x.value
    points, masses = points.to(low), masses.to(low)
    if kernel is not None and not x.order and bool((low == high).all()):
        return x.like(_at_points(kernel, low, points, masses)[:, None])
    rows = low.new_zeros(2, row_count(d, x.order), count)
    size = max(1, BLOCK // count)
    for start in range(0, len(points), size):
        y, m = points[start : start + size], masses[start : start + size]
        z = [
            torch.stack([low[:, i, None] - y[:, i], high[:, i, None] - y[:, i]])
            for i in range(d)
        ]
        terms = _terms(profile, z, x.order, steepest)
        rows = outward(rows + torch.stack([_summed(t, m) for t in terms], 1))
    return x.like(rows)


def _at_points(kernel: Profile, x: Tensor, points: Tensor, masses: Tensor) -> Interval:
    """Return the sums at points by floating numbers, and a bound on their round-off."""
    found = x.new_zeros(2, len(x))
    size = max(1, BLOCK // len(x))
    for start in range(0, len(points), size):
        y, m = points[start : start + size], masses[start : start + size]
        s = x.new_zeros(len(x), len(y))
        for i in range(x.shape[1]):
            z = x[:, i, None] - y[:, i]
            s.addcmul_(z, z)
        phi, slope = kernel.profile_and_slope(s.clone())
        # s is off by d + 2 units, and the profile by that times its slope.
        errors = s.mul_(slope).abs_().mul_(2.0 + x.shape[1]).add_(phi.abs(), alpha=ULPS)
        sums, slack = phi @ m, (errors @ m.abs()) * ((1 + len(y)) * EPS) + TINY
        found = outward(found + torch.stack([sums - slack, sums + slack]))
    return found


def ranges_of(
    profile: Callable[[Tensor], Tensor], s: Interval, order: int
) -> list[Interval]:
    """Return the ranges of a function of one number that torch operations define."""
    flat = s.reshape(2, -1, 1).clamp(min=0.0)
    values = profile(Enclosure.of(flat[0], flat[1], order)[:, 0])
    assert isinstance(values, Enclosure)
    return [row.reshape(s.shape) for row in values.rows.unbind(1)]


def power_ranges(s: Interval, a: float, order: int) -> list[Interval]:
    """Return the ranges of |z|^a / a, or of log|z| for a = 0, in s = |z|^2."""
    found = FUNCTIONS["log"](s, order) if a == 0 else power(0.5 * a)(s, order)
    return [scale(t, 0.5 if a == 0 else 1 / a) for t in found]


def _terms(
    profile: Ranges, z: list[Interval], order: int, steepest: float
) -> list[tuple[Interval, Tensor]]:
    """Return the rows of one pair, and the size of the numbers that made each."""
    squares = [_square(t) for t in z]
    s = sum(squares[1:], squares[0])
    # The squares are right up to a few units of their last places.
    s = torch.stack([s[0] * (1 - 8 * EPS), s[1] * (1 + 8 * EPS)])
    found = profile(s, order)
    terms = [(found[0], _size(found[0]))]
    if order:
        slope = 2.0 * found[1]
        straight = [_product(slope, t).clamp_(-steepest, steepest) for t in z]
        terms += [(t, _size(t)) for t in straight]
    if order > 1:
        bend = 4.0 * found[2]
        for i, j in zip(*pairs(len(z)), strict=True):
            bent = _product(bend, squares[i] if i == j else _product(z[i], z[j]))
            if i == j:
                terms.append((bent + slope, _size(bent) + _size(slope)))
            else:
                terms.append((bent, _size(bent)))
    return terms


def _summed(term: tuple[Interval, Tensor], masses: Tensor) -> Interval:
    t, size = term
    ends = dot(t, masses[:, None])[..., 0]
    slack = (size @ masses.abs()) * ((ULPS + len(masses)) * EPS)
    return outward(torch.stack([ends[0] - slack, ends[1] + slack]))


def _square(t: Interval) -> Interval:
    ends = t * t
    inside = (t[0] <= 0) & (t[1] >= 0)
    low = torch.minimum(ends[0], ends[1]).masked_fill_(inside, 0.0)
    return torch.stack([low, torch.maximum(ends[0], ends[1])])


def _product(s: Interval, t: Interval) -> Interval:
    a, b, c, d = (_without_nan(s[i] * t[j]) for i in (0, 1) for j in (0, 1))
    low = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
    high = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    return torch.stack([low, high])


def _without_nan(products: Tensor) -> Tensor:
    # Zero times infinity is 0, as an end of an interval.
    return products.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def _size(t: Interval) -> Tensor:
    return torch.maximum(t[1], -t[0])
