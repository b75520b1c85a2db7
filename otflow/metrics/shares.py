"""Masses shared among the centres of cells around their places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["hats", "shared"]


def shared(places: Sequence[Tensor], masses: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Return masses on a lattice (n,), each shared among the centres around its place.

    Along each axis a place :math:`i + s` with s in [0, 1) gives the share 1 - s to the
    centre i and s to the next one. This keeps the sum and the mean, and adds the
    variance :math:`s(1-s) \le 1/4` in squares of a cell.

    Parameters
    ----------
    places : sequence of Tensor, shape (k,)
        One for each axis: places in cells, from 0 to n - 1.
    masses : Tensor, shape (k,)
        Masses.
    shape : sequence of int
        Cells along each axis.
    """
    total = masses.new_zeros(math.prod(shape))
    low = [p.floor() for p in places]
    parts = [p - a for p, a in zip(places, low, strict=True)]
    for corner in range(2 ** len(shape)):
        index, share = torch.zeros_like(low[0], dtype=torch.int64), masses
        for axis, n in enumerate(shape):
            up = corner >> axis & 1
            index = index * n + (low[axis].long() + up).clamp_max(n - 1)
            share = share * (parts[axis] if up else 1 - parts[axis])
        total = total.index_add(0, index, share)
    return total


def hats(places: Tensor, n: int) -> Tensor:
    """Return the shares of n centres in each place, a matrix (n, k).

    Parameters
    ----------
    places : Tensor, shape (k,)
        Places in cells, from 0 to n - 1.
    n : int
        Centres.
    """
    centres = torch.arange(n, dtype=places.dtype)
    return (1 - (centres[:, None] - places).abs()).clamp_min(0.0)
