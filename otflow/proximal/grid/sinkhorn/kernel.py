"""The heat kernel of a box, axis by axis, also where its results underflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.measures import Box
from otflow.proximal.grid.sinkhorn.kernel_axis import DenseAxis, LongAxis

__all__ = ["GibbsKernel"]

# Cells of an axis above which its kernel is not held as a matrix.
LONGEST = 1024


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
        for k, axis in enumerate(self.axes):
            log_v = axis.log_apply(log_v, k)
        return log_v

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
