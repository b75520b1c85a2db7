"""The heat kernel of a box, axis by axis, also where its results underflow."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from otflow.measures import Box
from otflow.numerics.log_sums import BLOCK, Blocks, log_convolve

__all__ = ["DenseAxis", "GibbsKernel", "LongAxis"]

# Longest axis, in cells, whose kernel is a matrix.
LONGEST = 1024
# Mirror images of the box on either side that count in the kernel of a short axis.
IMAGES = 3
# Cells of a window of a long axis.
ROWS = 64
# Beyond so many standard deviations a path that a wall reflects does not count beside
# a direct path.
FAR = 9.0
# A number smaller than another by the factor e^UNSEEN does not count beside it: 1e10 of
# them sum to less than round-off.
UNSEEN = 64.0


class GibbsKernel:
    r"""Convolution with the Gaussian of variance eps in a box whose walls reflect.

    .. math:: K(x, y) \propto \sum_{\text{images } y'} e^{-|x - y'|^2/2\varepsilon}

    K is the heat kernel of the box at time eps/2 without flux through the walls. Its
    rows sum to 1. It is a product over the axes, so it acts on one axis after the
    other.

    Parameters
    ----------
    box : Box
        Cells.
    eps : float
        Variance.
    like : Tensor
        Gives the dtype and the device.
    is_free : Tensor of bool, optional
        The cells without obstacles, in the box's shape; None stands for all.

    Attributes
    ----------
    box, eps, is_free
        As above.
    axes : list of DenseAxis or LongAxis
        The kernel along each axis.

    Notes
    -----
    Time O(d n^(d+1)) for n cells along each axis. An axis of more than 1024 cells takes
    O(1) for each cell in reach of the kernel, and no array of n^2 entries. In the log
    domain a cell takes n/16 exponentials, or n in rows where the logarithms range too
    widely. Along a long axis a narrow kernel takes one exponential for each pair of
    cells that counts, over a few deviations.
    """

    def __init__(
        self, box: Box, eps: float, like: Tensor, is_free: Tensor | None = None
    ) -> None:
        self.box, self.eps, self.is_free = box, eps, is_free
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

        Entries of log_v far below its maximum underflow in the matrix products. A
        result below the floor is returned as the floor. In the safe mode nothing
        underflows, and the floor is minus infinity.
        """
        if safely:
            for k, axis in enumerate(self.axes):
                log_v = axis.log_apply(log_v, k)
            return log_v, log_v.new_tensor(-math.inf)
        # The largest entry goes high in the range, so that fewer small ones underflow.
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
        for chosen in range(len(self.axes)):
            out = log_b if safely else (log_b - shift).exp()
            for k, axis in enumerate(self.axes):
                if k == chosen:
                    out = (axis.log_moment if safely else axis.moment)(out, k)
                else:
                    out = (axis.log_apply if safely else axis.apply)(out, k)
            log = out if safely else out.log() + shift
            total += float((log_a + log).exp().sum(dtype=torch.float64))
        return total * self.box.cell_volume

    @cached_property
    def correction(self) -> Tensor | None:
        r"""The eps log s of the s with which s K s is stochastic; None if all is free.

        Beside an obstacle the kernel loses mass. With this term the uniform density on
        the free cells is at rest, as without obstacles.
        """
        is_free = self.is_free
        if is_free is None:
            return None
        log_s = torch.zeros(is_free.shape, dtype=self.dtype, device=is_free.device)
        log_s = log_s.masked_fill(~is_free, -math.inf)
        # Each sweep halves the error at least: 60 sweeps pass the digits of a float64.
        for _ in range(60):
            image = self.log_apply(log_s, safely=True)[0]
            log_s = (0.5 * (log_s - image)).masked_fill(~is_free, -math.inf)
        return self.eps * torch.where(is_free, log_s, 0.0)


class DenseAxis:
    """A short axis, whose kernel is one symmetric (n, n) matrix."""

    def __init__(self, n: int, h: float, eps: float, like: Tensor) -> None:
        self.h = h
        self.log = _log_heat(n, h, eps).to(like.device)
        self.dtype = like.dtype
        self.matrix = self.log.exp().to(like.dtype)

    def apply(self, v: Tensor, axis: int, matrix: Tensor | None = None) -> Tensor:
        """Return K v along an axis, or the product with another symmetric matrix."""
        matrix = self.matrix if matrix is None else matrix
        if axis == v.ndim - 1:
            return v @ matrix
        before = math.prod(v.shape[:axis])
        return (matrix @ v.reshape(before, v.shape[axis], -1)).reshape(v.shape)

    def log_apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(K exp(log_v)) along an axis, whatever the range of log_v."""
        return on_last(self._blocks.apply, log_v, axis)

    def log_moment(self, log_v: Tensor, axis: int) -> Tensor:
        """Return `log_apply` of K times the squared distance of the cells."""
        return on_last(self._moments.apply, log_v, axis)

    def moment(self, v: Tensor, axis: int) -> Tensor:
        """Return K v with K times the squared distance of the cells."""
        return self.apply(v, axis, self._moments.matrix)

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.log, self.dtype)

    @cached_property
    def _moments(self) -> Blocks:
        i = torch.arange(len(self.log), dtype=torch.float64, device=self.log.device)
        distance = (self.h * (i[:, None] - i)).abs()
        return Blocks(self.log + 2 * distance.log(), self.dtype)


class LongAxis:
    r"""A long axis: the kernel depends on the difference, and is applied in windows.

    Beyond its ends an array goes on as its mirror image. The results in a window of 64
    cells are the product of one matrix and the cells in reach of the window. In
    logarithms every cell is in reach. A wide kernel then goes by the same windows. A
    narrow kernel goes by the pairs of cells that count. No array has n^2 entries.
    """

    def __init__(self, n: int, h: float, eps: float, like: Tensor) -> None:
        self.n, self.h, self.eps, self.like = n, h, eps, like
        self.alpha = h * h / (2 * eps)
        deviation = math.sqrt(eps) / h
        under = math.sqrt(-2 * math.log(torch.finfo(like.dtype).tiny))
        self.near = min(2 * n, math.ceil(under * deviation))
        self.reach = min(2 * n, n + math.ceil(FAR * deviation))

    def apply(self, v: Tensor, axis: int) -> Tensor:
        """Return K v along an axis."""
        return on_last(self._apply, v, axis)

    def log_apply(self, log_v: Tensor, axis: int) -> Tensor:
        """Return log(K exp(log_v)) along an axis, whatever the range."""
        return on_last(self._log_apply, log_v, axis)

    def log_moment(self, log_v: Tensor, axis: int) -> Tensor:
        """Return `log_apply` of K times the squared distance of the cells."""
        return on_last(self._log_moment, log_v, axis)

    def moment(self, v: Tensor, axis: int) -> Tensor:
        """Return K v with K times the squared distance of the cells."""
        return on_last(self._moment, v, axis)

    def _apply(self, rows: Tensor) -> Tensor:
        return self._joined(self._windows(rows, self.near) @ self._matrix)

    def _log_apply(self, rows: Tensor) -> Tensor:
        # Within a block of cells a wide kernel varies by less than what underflows.
        limits = torch.finfo(torch.float64)
        steep = 2 * self.alpha * BLOCK[torch.float64] * (self.reach + ROWS)
        if steep < math.log(limits.eps / limits.tiny):
            # One row at a time: each cell is in many windows.
            windows = (self._windows(v, self.reach) for v in rows.to(torch.float64))
            out = torch.stack([self._blocks.apply(seen) for seen in windows])
            return self._joined(out).to(rows.dtype)
        # The image of cell k is further from all cells than k: by 2 k + 1 squares.
        seen = min(self.reach, math.ceil(UNSEEN / (2 * self.alpha)))
        places = torch.arange(-seen, self.n + seen, device=rows.device)
        cells, at = self._mirrored(places), places.to(torch.float64)
        sums = [log_convolve(v[cells], at, self.n, self.alpha) for v in rows]
        return torch.stack(sums) - self._log_total

    def _moment(self, rows: Tensor) -> Tensor:
        # A mirror image stands for a cell elsewhere, so (x - y)^2 is expanded as below.
        # Lengths from the middle, in float64, keep what cancels far below a cell.
        v, matrix = rows.to(torch.float64), self._matrix.to(torch.float64)
        y = self.h * torch.arange(self.n, dtype=torch.float64, device=rows.device)
        y = y - 0.5 * self.h * (self.n - 1)
        zeroth, first, second = (
            self._joined(self._windows(v * y**power, self.near) @ matrix)
            for power in (0, 1, 2)
        )
        square = y.square() * zeroth - 2 * y * first + second
        return square.clamp_min(0.0).to(rows.dtype)

    def _log_moment(self, rows: Tensor) -> Tensor:
        # (x - y)^2 = x^2 - 2 x y + y^2, with positive lengths from below the box. What
        # cancels is round-off times the square of the box, far below that of a cell.
        log_v = rows.to(torch.float64)
        y = self.h * torch.arange(1, self.n + 1, device=rows.device).to(torch.float64)
        zeroth, first, second = (
            self._log_apply(log_v + power * y.log()) for power in (0, 1, 2)
        )
        square = y.square() - 2 * y * (first - zeroth).exp() + (second - zeroth).exp()
        return (zeroth + square.clamp_min(0.0).log()).to(rows.dtype)

    def _mirrored(self, place: Tensor) -> Tensor:
        place = place.remainder(2 * self.n)
        return torch.where(place < self.n, place, 2 * self.n - 1 - place)

    def _windows(self, v: Tensor, reach: int) -> Tensor:
        """Return what each 64 cells of v (..., n) see, (..., windows, 64 + 2 reach)."""
        end = ROWS * -(-self.n // ROWS) + reach
        cells = self._mirrored(torch.arange(-reach, end, device=v.device))
        return v[..., cells].unfold(-1, ROWS + 2 * reach, ROWS)

    def _joined(self, out: Tensor) -> Tensor:
        return out.reshape(*out.shape[:-2], -1)[..., : self.n]

    def _log_matrix(self, reach: int) -> Tensor:
        """Return log K from a window to its 64 cells, (64 + 2 reach, 64)."""
        i = torch.arange(ROWS + 2 * reach, dtype=torch.float64, device=self.like.device)
        log = (i[:, None] - reach - i[:ROWS]).square() * -self.alpha
        return log - log[: 2 * reach + 1, 0].logsumexp(0)

    @cached_property
    def _log_total(self) -> float:
        """The logarithm of the sum of the Gaussian over all cells in reach."""
        away = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        return float((away.square() * -self.alpha).logsumexp(0))

    @cached_property
    def _matrix(self) -> Tensor:
        return self._log_matrix(self.near).exp().to(self.like.dtype)

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self._log_matrix(self.reach).T, torch.float64)


def on_last(function: Callable[[Tensor], Tensor], v: Tensor, axis: int) -> Tensor:
    """Apply a function of rows along an axis."""
    moved = v.movedim(axis, -1)
    out = function(moved.reshape(-1, moved.shape[-1]))
    return out.reshape(moved.shape).movedim(-1, axis)


def _log_heat(n: int, h: float, eps: float) -> Tensor:
    """Return the logarithm of the heat kernel of a segment with reflecting ends."""
    i = torch.arange(n, dtype=torch.float64)
    terms = []
    for k in range(-IMAGES, IMAGES + 1):
        terms.append(i[:, None] - i + 2 * n * k)
        terms.append(i[:, None] + i + 1 + 2 * n * k)
    log = torch.logsumexp(torch.stack(terms).square() * (-h * h / (2 * eps)), 0)
    # The sum over all images is the same for every row.
    return log - torch.logsumexp(log, 1, keepdim=True)
