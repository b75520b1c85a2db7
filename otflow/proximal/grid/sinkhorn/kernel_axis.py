"""The heat kernel of a segment with reflecting ends, as a matrix or in windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from otflow.proximal.grid.sinkhorn.kernel_pairs import log_convolve

__all__ = ["DenseAxis", "LongAxis"]

# Mirror images of the box on either side that the kernel sees.
IMAGES = 3
# Source cells that share one shift in the log domain, by dtype: within a block the
# logarithms may range over the exponents of that type.
BLOCK = {torch.float64: 16, torch.float32: 4}
# Entries of the largest temporary array.
TEMPORARY = 2**21
# Rows of a window of a long axis, and cells of a block that it sums or leaves out.
ROWS, CELLS = 64, 16
# Standard deviations beyond which a path by a wall does not count beside a direct one.
FAR = 9.0
# Logarithm of what does not count beside another: below round-off over 1e10 cells.
UNSEEN = 64.0
# Part of the exponents of a dtype that the kernel may range over within a block.
RANGE = 0.9


class DenseAxis:
    """A short axis: its kernel is one symmetric (n, n) matrix."""

    def __init__(self, n: int, h: float, eps: float, like: Tensor) -> None:
        self.h = h
        self.log = _log_heat(n, h, eps).to(like.device)
        self.dtype = like.dtype
        self.matrix = self.log.exp().to(like.dtype)

    def apply(self, v: Tensor, axis: int) -> Tensor:
        """Return K v along an axis."""
        return _along(self.matrix, v, axis)

    def log_apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(K exp(log_v)) along an axis, whatever the range."""
        return _on_last(self._blocks.apply, log_v, axis)

    def log_moment(self, log_v: Tensor, axis: int) -> Tensor:
        """Return the same for K times the squared distance."""
        return _on_last(self._moments.apply, log_v, axis)

    def moment(self, v: Tensor, axis: int) -> Tensor:
        """Return K times the squared distance, applied to v."""
        return _along(self._moments.matrix, v, axis)

    @cached_property
    def _blocks(self) -> _Blocks:
        return _Blocks(self.log, self.dtype)

    @cached_property
    def _moments(self) -> _Blocks:
        i = torch.arange(len(self.log), dtype=torch.float64, device=self.log.device)
        distance = (self.h * (i[:, None] - i)).abs()
        return _Blocks(self.log + 2 * distance.log(), self.dtype)


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
        return _on_last(self._apply, v, axis)

    def log_apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(K exp(log_v)) along an axis, whatever the range."""
        return _on_last(self._log_apply, log_v, axis)

    def log_moment(self, log_v: Tensor, axis: int) -> Tensor:
        """Return the same for K times the squared distance of the cells."""
        return _on_last(self._log_moment, log_v, axis)

    def moment(self, v: Tensor, axis: int) -> Tensor:
        """Return K times the squared distance of the cells, applied to v."""
        return _on_last(self._moment, v, axis)

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


class _Blocks:
    """A matrix (m, n) known by its logarithm, in blocks of columns with one shift."""

    def __init__(self, log: Tensor, dtype: torch.dtype) -> None:
        m, n = log.shape
        size = BLOCK[dtype]
        self.n, self.size, self.count = n, size, -(-n // size)
        padded = log.new_full((self.count * size, m), -math.inf)
        padded[:n] = log.T
        blocks = padded.reshape(self.count, size, m)
        shift = blocks.amax(1, keepdim=True).clamp_min(-1e300)
        self.scaled = (blocks - shift).exp().to(dtype)  # (count, size, m)
        self.shift = shift.clamp_min(torch.finfo(dtype).min / 8).to(dtype)
        self.log = log.to(dtype)

    @cached_property
    def matrix(self) -> Tensor:
        """The matrix itself."""
        return self.log.exp()

    def apply(self, rows: Tensor) -> Tensor:
        """Return log(M exp(.)) of the rows (k, n): (k, m); they may be -inf."""
        step = max(1, TEMPORARY // (max(self.log.shape) * self.count))
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
        """Return the same by one exponential for each entry of the matrix."""
        step = max(1, TEMPORARY // self.log.numel())
        return torch.cat(
            [
                torch.logsumexp(rows[:, None, :] + self.log, -1)
                for rows in torch.split(log_v, step)
            ]
        )


def _along(matrix: Tensor, v: Tensor, axis: int) -> Tensor:
    """Multiply by a symmetric matrix along an axis."""
    if axis == v.ndim - 1:
        return v @ matrix
    before = math.prod(v.shape[:axis])
    return (matrix @ v.reshape(before, v.shape[axis], -1)).reshape(v.shape)


def _on_last(function: Callable[[Tensor], Tensor], v: Tensor, axis: int) -> Tensor:
    """Apply a function of rows along an axis."""
    moved = v.movedim(axis, -1)
    out = function(moved.reshape(-1, moved.shape[-1]))
    return out.reshape(moved.shape).movedim(-1, axis)


def _log_heat(n: int, h: float, eps: float) -> Tensor:
    """Return the logarithm of the heat kernel between cells of a reflecting segment."""
    i = torch.arange(n, dtype=torch.float64)
    terms = []
    for k in range(-IMAGES, IMAGES + 1):
        terms.append(i[:, None] - i + 2 * n * k)
        terms.append(i[:, None] + i + 1 + 2 * n * k)
    log = torch.logsumexp(torch.stack(terms).square() * (-h * h / (2 * eps)), 0)
    # The sum over all images is the same for every row.
    return log - torch.logsumexp(log, 1, keepdim=True)
