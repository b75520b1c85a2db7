"""The rows of a record in one tensor that grows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Column"]

LEAST = 16


class Column:
    """Rows of one shape, as they come; memory for at most twice as many.

    A list of small tensors would hold a small block of memory for each row. Such blocks
    lie between the large blocks of the steps, and then these are not used again: the
    memory of a long flow would grow by about a measure for each row.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self._held = torch.empty(0) if rows is None else rows.clone()
        self._count = len(self._held)

    def __len__(self) -> int:
        return self._count

    def append(self, row: Tensor) -> None:
        """Add a row of the shape of those before."""
        k = self._count
        if k == len(self._held) or row.dtype != self._held.dtype:
            self._make_room(row)
        self._held[k] = row
        self._count = k + 1

    def _make_room(self, row: Tensor) -> None:
        """Let the tensor have room for a row, and a dtype that holds it."""
        held, k = self._held, self._count
        kind = torch.promote_types(held.dtype, row.dtype) if k else row.dtype
        if k == len(held) or kind != held.dtype:
            self._held = row.new_empty((max(LEAST, 2 * k), *row.shape), dtype=kind)
            if k:
                self._held[:k] = held[:k]

    @property
    def shape(self) -> torch.Size:
        """Shape of each row, once there is one."""
        return self._held.shape[1:]

    def between(self, first: int, last: int) -> Tensor:
        """Return the rows from one to before another as a tensor of their own."""
        return self._held[first:last].clone()
