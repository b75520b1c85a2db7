"""The heat kernel of a box, axis by axis, also where its results underflow."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from otflow.measures import Box

__all__ = ["GibbsKernel"]

# Mirror images of the box on either side that the kernel sees.
IMAGES = 3
# Source cells that share one shift in the log domain, by dtype: within a block the
# logarithms may range over the exponents of that type.
BLOCK = {torch.float64: 16, torch.float32: 4}
# Entries of the largest temporary array.
TEMPORARY = 2**21


class GibbsKernel:
    r"""Convolution with the Gaussian of variance eps in a box whose walls reflect.

    .. math:: K(x, y) \propto \sum_{\text{images } y'} e^{-|x - y'|^2/2\varepsilon}

    It is the heat kernel of the box at time eps/2 without flux through the walls, with
    rows that sum to 1; a product over axes, so it is applied axis by axis.

    Parameters
    ----------
    box : Box
        Cells.
    eps : float
        Variance.
    like : Tensor
        Gives dtype and device.

    Attributes
    ----------
    box, eps
        As above.
    matrices : list of Tensor
        One symmetric (n_axis, n_axis) matrix an axis.

    Notes
    -----
    Time O(d n^(d+1)) for n cells an axis. In the log domain n/16 exponentials a cell,
    and n in rows where logarithms range too widely for that.
    """

    def __init__(self, box: Box, eps: float, like: Tensor) -> None:
        self.box, self.eps = box, eps
        self.logs = [
            _log_heat(n, h, eps).to(like.device)
            for n, h in zip(box.shape, box.spacing, strict=True)
        ]
        self.dtype = like.dtype
        self.matrices = [log.exp().to(like.dtype) for log in self.logs]
        limits = torch.finfo(like.dtype)
        self.top = 0.45 * math.log(limits.max)
        self.bottom = math.log(limits.tiny)

    def apply(self, v: Tensor) -> Tensor:
        """Return K v for an array of the box's shape."""
        for axis, matrix in enumerate(self.matrices):
            v = _along(matrix, v, axis)
        return v

    def log_apply(self, log_v: Tensor) -> tuple[Tensor, Tensor]:
        """Return log K exp(log_v) by matrix products, and a floor.

        Entries of log_v far below its maximum are lost to underflow, and so are results
        below the floor, which come back as the floor.
        """
        shift = log_v.detach().amax() - self.top
        out = self.apply((log_v - shift).exp())
        floor = shift + self.bottom
        return (out.log() + shift).clamp_min(floor), floor

    def log_apply_safely(self, log_v: Tensor) -> Tensor:
        """Return log K exp(log_v) where nothing underflows, whatever the range."""
        for axis, blocks in enumerate(self._blocks):
            log_v = blocks.apply(log_v, axis)
        return log_v

    def squared_distance(self, log_a: Tensor, log_b: Tensor, *, safely: bool) -> float:
        r"""Return the integral of :math:`a(x)\, K(x, y)\, b(y)\, |x - y|^2`."""
        total = 0.0
        for axis in range(self.box.dim):
            if safely:
                out = log_b
                for k, blocks in enumerate(self._blocks):
                    out = (self._moments[k] if k == axis else blocks).apply(out, k)
                total += float((log_a + out).exp().sum(dtype=torch.float64))
                continue
            shift = log_b.amax() - self.top
            out = (log_b - shift).exp()
            for k, heat in enumerate(self.matrices):
                out = _along(self._moments[k].matrix if k == axis else heat, out, k)
            total += float((log_a + out.log() + shift).exp().sum(dtype=torch.float64))
        return total * self.box.cell_volume

    @cached_property
    def _blocks(self) -> list[_Blocks]:
        return [_Blocks(log, self.dtype) for log in self.logs]

    @cached_property
    def _moments(self) -> list[_Blocks]:
        moments = []
        for log, h in zip(self.logs, self.box.spacing, strict=True):
            i = torch.arange(len(log), dtype=torch.float64, device=log.device)
            distance = (h * (i[:, None] - i)).abs()
            moments.append(_Blocks(log + 2 * distance.log(), self.dtype))
        return moments


class _Blocks:
    """A matrix known by its logarithm, in blocks of columns that share a shift."""

    def __init__(self, log: Tensor, dtype: torch.dtype) -> None:
        n, size = len(log), BLOCK[dtype]
        self.n, self.size, self.count = n, size, -(-n // size)
        padded = log.new_full((self.count * size, n), -math.inf)
        padded[:n] = log.T
        blocks = padded.reshape(self.count, size, n)
        shift = blocks.amax(1, keepdim=True).clamp_min(-1e300)
        self.scaled = (blocks - shift).exp().to(dtype)  # (count, size, n)
        self.shift = shift.to(dtype)  # (count, 1, n)
        self.matrix = log.exp().to(dtype)
        self.log = log.to(dtype)

    def apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(M exp(log_v)) along an axis; log_v may hold minus infinity."""
        moved = log_v.movedim(axis, -1)
        rows = moved.reshape(-1, self.n)
        step = max(1, TEMPORARY // (self.n * self.count))
        out = torch.cat([self._rows(chunk) for chunk in torch.split(rows, step)])
        return out.reshape(moved.shape).movedim(-1, axis)

    def _rows(self, log_v: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(
            log_v, (0, self.count * self.size - self.n), value=-math.inf
        )
        blocks = padded.reshape(len(log_v), self.count, self.size).transpose(0, 1)
        limits = torch.finfo(log_v.dtype)
        lowest = limits.min / 4
        top = blocks.detach().amax(-1, keepdim=True).clamp_min(lowest)
        sums = (blocks - top).exp() @ self.scaled  # (count, rows, n)
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
        step = max(1, TEMPORARY // self.n**2)
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
