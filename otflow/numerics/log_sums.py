"""Logarithms of sums of exponentials, whatever the range of their exponents."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from otflow.numerics.roots import bisect

__all__ = ["BLOCK", "Blocks", "log_convolve", "supremal_convolution"]

# Most entries of a temporary array: 16 MiB in float64.
TEMPORARY = 2**21
# Columns that share one shift, by dtype. Within a block the logarithms must fit into
# the range of exponents of the dtype.
BLOCK = {torch.float64: 16, torch.float32: 4}


class Blocks:
    """A matrix (m, n) given by its logarithm, in blocks of columns with one shift."""

    def __init__(self, log: Tensor, dtype: torch.dtype) -> None:
        m, n = log.shape
        size = BLOCK[dtype]
        self.n, self.size, self.count = n, size, -(-n // size)
        padded = log.new_full((self.count * size, m), -math.inf)
        padded[:n] = log.T
        blocks = padded.reshape(self.count, size, m)
        # The shift of an empty block must be finite: inf - inf would be NaN.
        shift = blocks.amax(1, keepdim=True).clamp_min(-1e300)
        self.scaled = (blocks - shift).exp().to(dtype)  # (count, size, m)
        self.shift = shift.clamp_min(torch.finfo(dtype).min / 8).to(dtype)
        self.log = log.to(dtype)

    @cached_property
    def matrix(self) -> Tensor:
        """The matrix itself."""
        return self.log.exp()

    def apply(self, rows: Tensor) -> Tensor:
        """Return log(M exp(v)) for rows v (k, n): (k, m). Entries may be -inf."""
        step = max(1, TEMPORARY // (max(len(self.log), self.size) * self.count))
        return torch.cat([self._rows(chunk) for chunk in torch.split(rows, step)])

    def _rows(self, log_v: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(
            log_v, (0, self.count * self.size - self.n), value=-math.inf
        )
        blocks = padded.reshape(len(log_v), self.count, self.size).transpose(0, 1)
        limits = torch.finfo(log_v.dtype)
        lowest = limits.min / 4
        top = blocks.detach().amax(-1, keepdim=True).clamp_min(lowest)
        sums = (blocks - top).exp() @ self.scaled  # (count, rows, m)
        exponent = top + self.shift
        largest = exponent.masked_fill(sums.detach() == 0, lowest).amax(0)
        total = ((exponent - largest).clamp_max(0).exp() * sums).sum(0)
        out = total.log() + largest
        # What underflowed in a block is below tiny times the block's own bound.
        bound = exponent.masked_fill(top == lowest, -math.inf).amax(0)
        cut = bound + math.log(limits.tiny / limits.eps)
        cut_off = (out.detach() < cut).any(-1).nonzero()[:, 0]
        if len(cut_off) == 0:
            return out
        return out.index_put((cut_off,), self._plainly(log_v[cut_off]))

    def _plainly(self, log_v: Tensor) -> Tensor:
        """Return log(M exp(v)) by one exponential for each entry of the matrix."""
        step = max(1, TEMPORARY // self.log.numel())
        chunks = torch.split(log_v, step)
        return torch.cat([(v[:, None] + self.log).logsumexp(-1) for v in chunks])


def log_convolve(
    v: Tensor, places: Tensor, n: int, alpha: float, temporary: int = TEMPORARY
) -> Tensor:
    r"""Return :math:`\log\sum_y e^{v(y) - \alpha(x - y)^2}` for x = 0, ..., n - 1.

    Let :math:`m(x)` be the largest exponent of a target x. The exponent of a pair is
    below m(x) by :math:`m(x) + \alpha x^2 - 2 \alpha x y - (v(y) - \alpha y^2)`. This
    difference is convex in x, since :math:`m(x) + \alpha x^2` is a largest affine
    function. So each source counts for the targets of one interval, which bisection
    finds. The pairs left out sum to less than half of round-off.

    Parameters
    ----------
    v : Tensor, shape (m,)
        Logarithms of the sources; minus infinity is no source.
    places : Tensor, shape (m,)
        Places y of the sources: increasing integers as float64.
    n : int
        Number of targets.
    alpha : float
        The factor :math:`\alpha > 0`.
    temporary : int
        Most pairs that are held at once.

    Returns
    -------
    Tensor, shape (n,)
        Minus infinity if there is no source.

    Notes
    -----
    Time O(m log n) plus a multiple of the number of pairs that count. Memory O(m) plus
    `temporary`.
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
    total, end = v.new_zeros(n), count.cumsum(0)
    pairs = int(end[-1])
    for low in range(0, pairs, temporary):
        pair = torch.arange(low, min(low + temporary, pairs), device=v.device)
        source = torch.searchsorted(end, pair, right=True)
        target = first[source] + pair - (end - count)[source]
        known = alpha * (target - places[source]).square() + most[target]
        term = (v[source] - known.to(v.dtype)).exp()
        total = total.index_add(0, target, term)
    return total.log() + most.to(v.dtype)


def supremal_convolution(
    v: Tensor, places: Tensor, n: int, alpha: float
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\max_y v(y) - \alpha(x - y)^2` for x = 0, ..., n - 1, and the y.

    The y is given by its index, which does not fall as x grows. So the index of a
    target lies between those of its neighbours on a coarser line, and each of the
    :math:`\log_2 n` levels looks at O(m + n) pairs.
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
        # In a near tie round-off may put `high` below `low`: one candidate remains.
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
    """Return the first target of each source, and the number of its targets."""
    n = len(most)

    def below(x: Tensor) -> Tensor:
        return most[x] - v + alpha * (x - places).square()

    # A source is closest to the largest exponent at the targets where the best source
    # passes it.
    after = torch.searchsorted(best.contiguous(), places.contiguous())
    near, other = after.clamp(0, n - 1), (after - 1).clamp(0, n - 1)
    peak = torch.where(below(near) <= below(other), near, other)
    counts = below(peak) <= cut
    ends = []
    for end in (0, n - 1):
        inside, outside = peak, torch.full_like(peak, end)
        inside = torch.where(below(outside) <= cut, outside, inside)
        inside, _ = bisect(lambda x: below(x) <= cut, inside, outside, n.bit_length())
        ends.append(inside)
    first, last = ends
    return first, torch.where(counts, last - first + 1, 0)
