"""Convolution with a narrow Gaussian in logarithms, over the pairs that count."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

__all__ = ["log_convolve", "supremal_convolution"]


def log_convolve(
    v: Tensor, places: Tensor, n: int, alpha: float, temporary: int
) -> Tensor:
    r"""Return :math:`\log\sum_y e^{v(y) - \alpha(x - y)^2}` for x = 0, ..., n - 1.

    With :math:`m(x)` the largest exponent, a pair is below the largest of its target by
    :math:`m(x) + \alpha x^2 - 2 \alpha x y - (v(y) - \alpha y^2)`, which is convex in
    x: m(x) + alpha x^2 is a largest affine function. So a source counts for the targets
    of one interval, found by bisection. All that is left out is less than half of
    round-off.

    Parameters
    ----------
    v : Tensor, shape (m,)
        Logarithms of the sources; minus infinity is no source.
    places : Tensor, shape (m,)
        Where they are, increasing integers as float64.
    n : int
        Targets.
    alpha : float
        Of the Gaussian.
    temporary : int
        Pairs that are held at once.

    Returns
    -------
    Tensor, shape (n,)
        Minus infinity where there is no source.

    Notes
    -----
    Time O(m log n) and the pairs that count; memory O(m) and `temporary`.
    """
    there = v.detach() > -math.inf
    if not bool(there.all()):
        v, places = v[there], places[there]
    if len(v) == 0:
        return v.new_full((n,), -math.inf)
    values = v.detach().to(torch.float64)
    most, best = supremal_convolution(values, places, n, alpha)
    cut = math.log(2 * len(v) / torch.finfo(v.dtype).eps)
    first, count = _intervals(values, places, most, places[best], alpha, cut)
    total = v.new_zeros(n)
    chunks = _chunks(count, temporary)
    for low, high in itertools.pairwise(chunks):
        size = count[low:high]
        source = torch.repeat_interleave(torch.arange(low, high, device=v.device), size)
        start = size.cumsum(0) - size
        own = torch.arange(len(source), device=v.device)
        target = first[source] + own - start[source - low]
        known = alpha * (target - places[source]).square() + most[target]
        term = (v[source] - known.to(v.dtype)).exp()
        total = total.index_add(0, target, term)
    return total.log() + most.to(v.dtype)


def supremal_convolution(
    v: Tensor, places: Tensor, n: int, alpha: float
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\max_y v(y) - \alpha(x - y)^2` for x = 0, ..., n - 1, and where.

    The best source does not fall as x grows, so that of a target is between those of
    its neighbours on a coarser line: all levels together look at O(m + n) pairs each.
    """
    device, stride = v.device, 1 << max(0, (n - 1).bit_length())
    most = v.new_full((n,), -math.inf)
    best = torch.zeros(n, dtype=torch.int64, device=device)
    while stride >= 1:
        offset = 0 if stride >= n else stride
        x = torch.arange(offset, n, 2 * stride if offset else n, device=device)
        low, high = torch.zeros_like(x), torch.full_like(x, len(v) - 1)
        if offset:
            low = best[x - stride]
            known = x + stride < n
            high = torch.where(known, best[(x + stride).clamp_max(n - 1)], high)
        high = torch.maximum(low, high)
        size = high - low + 1
        owner = torch.repeat_interleave(torch.arange(len(x), device=device), size)
        start = size.cumsum(0) - size
        source = low[owner] + torch.arange(len(owner), device=device) - start[owner]
        value = v[source] - alpha * (x[owner] - places[source]).square()
        top = v.new_full((len(x),), -math.inf)
        top = top.scatter_reduce(0, owner, value, "amax")
        is_best = value >= top[owner]
        most[x] = top
        best[x] = torch.zeros_like(x).scatter_reduce(
            0, owner[is_best], source[is_best], "amax"
        )
        stride //= 2
    return most, best


def _intervals(
    v: Tensor, places: Tensor, most: Tensor, best: Tensor, alpha: float, cut: float
) -> tuple[Tensor, Tensor]:
    """Return the first target of each source, and how many there are, maybe none."""
    n = len(most)

    def below(x: Tensor) -> Tensor:
        return most[x] - v + alpha * (x - places).square()

    # The source is the closest to the largest where the best one passes it.
    after = torch.searchsorted(best.contiguous(), places.contiguous())
    near, other = after.clamp(0, n - 1), (after - 1).clamp(0, n - 1)
    peak = torch.where(below(near) <= below(other), near, other)
    counts = below(peak) <= cut
    ends = []
    for end in (0, n - 1):
        inside, outside = peak, torch.full_like(peak, end)
        inside = torch.where(below(outside) <= cut, outside, inside)
        for _ in range(n.bit_length()):
            middle = (inside + outside) // 2
            fits = below(middle) <= cut
            inside = torch.where(fits, middle, inside)
            outside = torch.where(fits, outside, middle)
        ends.append(inside)
    first, last = ends
    return first, torch.where(counts, last - first + 1, 0)


def _chunks(count: Tensor, most: int) -> list[int]:
    """Return bounds of runs of sources of at most so many pairs, or of one source."""
    total = count.cumsum(0)
    bounds = [0]
    while bounds[-1] < len(count):
        done = int(total[bounds[-1] - 1]) if bounds[-1] else 0
        limit = total.new_tensor([done + most])
        end = int(torch.searchsorted(total, limit, right=True))
        bounds.append(max(end, bounds[-1] + 1))
    return bounds
