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
        held, k = self._held, self._count
        kind = row.dtype if k == 0 else torch.promote_types(held.dtype, row.dtype)
        if k == len(held) or held.dtype != kind:
            self._held = row.new_empty((max(LEAST, 2 * k), *row.shape), dtype=kind)
            if k:
                self._held[:k] = held[:k]
        self._held[k] = row
        self._count = k + 1

    def first(self, default: Tensor) -> Tensor:
        """Return the first row, or a default if there is none."""
        return self._held[0] if self._count else default

    def between(self, first: int, last: int) -> Tensor:
        """Return the rows from one to before another as a tensor of their own."""
        return self._held[first:last].clone()
