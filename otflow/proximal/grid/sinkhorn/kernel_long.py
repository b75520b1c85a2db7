"""The heat kernel of a long segment with reflecting ends, in windows and by pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from otflow.numerics.roots import bisect

__all__ = [
    "TEMPORARY",
    "LongAxis",
    "log_convolve",
    "on_last",
    "supremal_convolution",
]

# Most entries of a temporary array: 16 MiB in float64.
TEMPORARY = 2**21
# Rows of a window of a long axis, and cells of a block, which it sums or leaves out.
ROWS, CELLS = 64, 16
# Beyond so many standard deviations a path that a wall reflects does not count beside
# a direct path.
FAR = 9.0
# A number smaller than another by the factor e^UNSEEN does not count beside it: 1e10 of
# them sum to less than round-off.
UNSEEN = 64.0
# Share of the exponents of a dtype over which the kernel may range within a block.
RANGE = 0.9


class LongAxis:
    r"""A long axis: the kernel depends on the difference, and is applied in windows.

    Beyond its ends an array goes on as its mirror image. Each 64 cells are a product of
    one matrix with the cells in their reach. In logarithms they see the whole axis: a
    wide kernel, which varies little over 16 cells, as products with blocks of so many,
    of which only those are summed that can add to the result; a narrow kernel by the
    pairs of cells that count. No array of n^2 entries is made.
    """

    def __init__(self, n: int, h: float, eps: float, like: Tensor) -> None:
        self.n, self.h, self.eps, self.like = n, h, eps, like
        self.count = -(-n // ROWS)
        deviation = math.sqrt(eps) / h
        under = math.sqrt(-2 * math.log(torch.finfo(like.dtype).tiny))
        self.near = min(2 * n, math.ceil(under * deviation))
        far = min(2 * n, n + math.ceil(FAR * deviation))
        self.reach = CELLS * -(-far // CELLS)

    def apply(self, v: Tensor, axis: int) -> Tensor:
        """Return K v along an axis."""
        return on_last(self._apply, v, axis)

    def log_apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(K exp(log_v)) along an axis, whatever the range."""
        return on_last(self._log_apply, log_v, axis)

    def log_moment(self, log_v: Tensor, axis: int) -> Tensor:
        """Return the same for K times the squared distance of the cells."""
        return on_last(self._log_moment, log_v, axis)

    def moment(self, v: Tensor, axis: int) -> Tensor:
        """Return K times the squared distance of the cells, applied to v."""
        return on_last(self._moment, v, axis)

    def _apply(self, rows: Tensor) -> Tensor:
        return self._joined(self._windows(rows) @ self._matrix)

    def _log_apply(self, rows: Tensor) -> Tensor:
        steep = self.h * self.h / self.eps * CELLS * (self.reach + ROWS)
        if steep < RANGE * math.log(torch.finfo(rows.dtype).max):
            return self._log_apply_wide(rows)
        alpha = self.h * self.h / (2 * self.eps)
        # The image of cell k is further from all cells than k: by 2 k + 1 squares.
        seen = min(self.reach, math.ceil(UNSEEN / (2 * alpha)))
        places = torch.arange(-seen, self.n + seen, device=rows.device)
        cells = self._mirrored(places)
        at = places.to(torch.float64)
        out = [log_convolve(v[cells], at, self.n, alpha, TEMPORARY) for v in rows]
        return torch.stack(out) - self._log_total

    def _log_apply_wide(self, rows: Tensor) -> Tensor:
        """Sum over the blocks of cells that count, by bounds on what a block adds."""
        blocks = rows[..., self._places(self.reach)].reshape(len(rows), -1, CELLS)
        log = self._log_blocks.to(rows.dtype)  # (blocks of a window, CELLS, ROWS)
        shift, scaled = (x.to(rows.dtype) for x in self._scaled_blocks)
        limits = torch.finfo(rows.dtype)
        tops = blocks.detach().amax(-1).unfold(-1, len(log), ROWS // CELLS)
        high, low = tops + log.amax((1, 2)), tops + log.amin((1, 2))
        # All that is below this is less than half of round-off of what is summed.
        needed = low.amax(-1, keepdim=True) + math.log(limits.eps / (2 * self.n))
        row, window, block = ((high >= needed) & (tops > -math.inf)).nonzero().T
        parts = []
        pairs = torch.arange(len(row), device=rows.device)
        for k in torch.split(pairs, TEMPORARY // (CELLS * ROWS)):
            v = blocks[row[k], window[k] * (ROWS // CELLS) + block[k]]
            top = v.detach().amax(1, keepdim=True)
            sums = ((v - top).exp()[:, None] @ scaled[block[k]])[:, 0]
            parts.append(sums.log() + top + shift[block[k]])
        sums = torch.cat([*parts, rows.new_empty(0, ROWS)])
        place = row * self.count + window
        largest = rows.new_full((len(rows) * self.count, ROWS), limits.min / 4)
        largest.scatter_reduce_(
            0, place[:, None].expand(-1, ROWS), sums.detach(), "amax"
        )
        total = torch.zeros_like(largest)
        total = total.index_add(0, place, (sums - largest[place]).exp())
        out = total.log() + largest
        return self._joined(out.reshape(len(rows), self.count, ROWS))

    def _moment(self, rows: Tensor) -> Tensor:
        # A mirror image stands for a cell elsewhere, so (x - y)^2 is expanded as below;
        # from the middle, and in the finest numbers, what cancels is far below a cell.
        v, matrix = rows.to(torch.float64), self._matrix.to(torch.float64)
        y = self.h * torch.arange(self.n, dtype=torch.float64, device=rows.device)
        y = y - 0.5 * self.h * (self.n - 1)
        zeroth, first, second = (
            self._joined(self._windows(v * y**power) @ matrix) for power in (0, 1, 2)
        )
        square = y.square() * zeroth - 2 * y * first + second
        return square.clamp_min(0.0).to(rows.dtype)

    def _log_moment(self, rows: Tensor) -> Tensor:
        # (x - y)^2 = x^2 - 2 x y + y^2 from below the box: what cancels is a part of
        # round-off times the square of the box, far less than that of a cell.
        log_v = rows.to(torch.float64)
        y = self.h * torch.arange(1, self.n + 1, device=rows.device).to(torch.float64)
        zeroth, first, second = (
            self._log_apply(log_v + power * y.log()) for power in (0, 1, 2)
        )
        square = y.square() - 2 * y * (first - zeroth).exp() + (second - zeroth).exp()
        return (zeroth + square.clamp_min(0.0).log()).to(rows.dtype)

    def _places(self, reach: int) -> Tensor:
        """Return which cells all windows see, in order, mirrored at the ends."""
        place = torch.arange(-reach, self.count * ROWS + reach, device=self.like.device)
        return self._mirrored(place)

    def _mirrored(self, place: Tensor) -> Tensor:
        place = place.remainder(2 * self.n)
        return torch.where(place < self.n, place, 2 * self.n - 1 - place)

    def _windows(self, rows: Tensor) -> Tensor:
        """Return what each 64 cells can see, (rows, count, 64 + 2 near)."""
        near = self.near
        return rows[..., self._places(near)].unfold(-1, ROWS + 2 * near, ROWS)

    def _joined(self, out: Tensor) -> Tensor:
        return out.reshape(*out.shape[:-2], -1)[..., : self.n]

    def _log_matrix(self, reach: int) -> Tensor:
        """Return log K from a window to its 64 cells, (64 + 2 reach, 64)."""
        i = torch.arange(ROWS + 2 * reach, dtype=torch.float64, device=self.like.device)
        away = i[:, None] - reach - i[:ROWS]
        log = away.square() * (-self.h * self.h / (2 * self.eps))
        return log - log[: 2 * reach + 1, 0].logsumexp(0)

    @cached_property
    def _log_total(self) -> float:
        """The logarithm of the sum of the Gaussian over all cells in reach."""
        away = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        return float((away.square() * (-self.h * self.h / (2 * self.eps))).logsumexp(0))

    @cached_property
    def _matrix(self) -> Tensor:
        return self._log_matrix(self.near).exp().to(self.like.dtype)

    @cached_property
    def _log_blocks(self) -> Tensor:
        return self._log_matrix(self.reach).reshape(-1, CELLS, ROWS)

    @cached_property
    def _scaled_blocks(self) -> tuple[Tensor, Tensor]:
        shift = self._log_blocks.amax(1)
        return shift, (self._log_blocks - shift[:, None]).exp()


def on_last(function: Callable[[Tensor], Tensor], v: Tensor, axis: int) -> Tensor:
    """Apply a function of rows along an axis."""
    moved = v.movedim(axis, -1)
    out = function(moved.reshape(-1, moved.shape[-1]))
    return out.reshape(moved.shape).movedim(-1, axis)


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
        inside, _ = bisect(lambda x: below(x) <= cut, inside, outside, n.bit_length())
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
