"""The heat kernel of a box, axis by axis, also where its results underflow."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from otflow.measures import Box
from otflow.proximal.grid.sinkhorn.kernel_long import TEMPORARY, LongAxis, on_last

__all__ = ["DenseAxis", "GibbsKernel"]

# Longest axis, in cells, whose kernel is a matrix.
LONGEST = 1024
# Mirror images of the box on either side that count in the kernel.
IMAGES = 3
# Source cells that share one shift in the log domain, by dtype. Within a block the
# logarithms must fit into the range of exponents of the dtype.
BLOCK = {torch.float64: 16, torch.float32: 4}


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
    axes : list of DenseAxis or LongAxis
        The kernel along each axis.

    Notes
    -----
    Time O(d n^(d+1)) for n cells an axis; along an axis of more than 1024 cells, O(1)
    for each cell in the kernel's reach, and no array of n^2. In the log domain n/16
    exponentials a cell, and n in rows where logarithms range too widely for that; along
    a long axis those of the pairs of cells that count, a few deviations of the kernel.
    """

    def __init__(self, box: Box, eps: float, like: Tensor) -> None:
        self.box, self.eps = box, eps
        self.axes: list[DenseAxis | LongAxis] = [
            (DenseAxis if n <= LONGEST else LongAxis)(n, h, eps, like)
            for n, h in zip(box.shape, box.spacing, strict=True)
        ]
        self.dtype = like.dtype
        limits = torch.finfo(like.dtype)
        self.top = 0.45 * math.log(limits.max)
        self.bottom = math.log(limits.tiny)

    def apply(self, v: Tensor) -> Tensor:
        """Return K v for an array of the box's shape."""
        for k, axis in enumerate(self.axes):
            v = axis.apply(v, k)
        return v

    def log_apply(
        self, log_v: Tensor, *, safely: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return log K exp(log_v), and a floor.

        By matrix products entries of log_v far below its maximum are lost to underflow,
        and so are results below the floor, which come back as the floor. Safely nothing
        underflows, whatever the range, and the floor is minus infinity.
        """
        if safely:
            for k, axis in enumerate(self.axes):
                log_v = axis.log_apply(log_v, k)
            return log_v, log_v.new_tensor(-math.inf)
        shift = log_v.detach().amax() - self.top
        out = (log_v - shift).exp()
        for k, axis in enumerate(self.axes):
            out = axis.apply(out, k)
        floor = shift + self.bottom
        return (out.log() + shift).clamp_min(floor), floor

    def squared_distance(self, log_a: Tensor, log_b: Tensor, *, safely: bool) -> float:
        r"""Return the integral of :math:`a(x)\, K(x, y)\, b(y)\, |x - y|^2`."""
        total = 0.0
        shift = log_b.amax() - self.top
        for chosen, there in enumerate(self.axes):
            if safely:
                out = log_b
                for k, axis in enumerate(self.axes):
                    act = axis.log_moment if k == chosen else axis.log_apply
                    out = act(out, k)
            else:
                v = (log_b - shift).exp()
                for k, axis in enumerate(self.axes):
                    v = there.moment(v, k) if k == chosen else axis.apply(v, k)
                out = v.log() + shift
            total += float((log_a + out).exp().sum(dtype=torch.float64))
        return total * self.box.cell_volume


class DenseAxis:
    """A short axis: its kernel is one symmetric (n, n) matrix."""

    def __init__(self, n: int, h: float, eps: float, like: Tensor) -> None:
        self.h = h
        self.log = _log_heat(n, h, eps).to(like.device)
        self.dtype = like.dtype
        self.matrix = self.log.exp().to(like.dtype)

    def apply(self, v: Tensor, axis: int, matrix: Tensor | None = None) -> Tensor:
        """Return K v along an axis, or another symmetric matrix times v."""
        matrix = self.matrix if matrix is None else matrix
        if axis == v.ndim - 1:
            return v @ matrix
        before = math.prod(v.shape[:axis])
        return (matrix @ v.reshape(before, v.shape[axis], -1)).reshape(v.shape)

    def log_apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(K exp(log_v)) along an axis, whatever the range."""
        return on_last(self._blocks.apply, log_v, axis)

    def log_moment(self, log_v: Tensor, axis: int) -> Tensor:
        """Return the same for K times the squared distance."""
        return on_last(self._moments.apply, log_v, axis)

    def moment(self, v: Tensor, axis: int) -> Tensor:
        """Return K times the squared distance, applied to v."""
        return self.apply(v, axis, self._moments.matrix)

    @cached_property
    def _blocks(self) -> _Blocks:
        return _Blocks(self.log, self.dtype)

    @cached_property
    def _moments(self) -> _Blocks:
        i = torch.arange(len(self.log), dtype=torch.float64, device=self.log.device)
        distance = (self.h * (i[:, None] - i)).abs()
        return _Blocks(self.log + 2 * distance.log(), self.dtype)


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
