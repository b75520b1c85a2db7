"""Names for the kinds of arguments that recur in signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

__all__ = ["ArrayLike", "Ground", "Seed", "Value"]

ArrayLike: TypeAlias = Tensor | np.ndarray[Any, Any]
"""A tensor or a NumPy array; an array is copied once into a tensor."""

Ground: TypeAlias = Callable[[Tensor], Tensor]
"""A batched function on the ground space: (..., d) -> (...) or (..., m)."""

Value: TypeAlias = Callable[[Any], Tensor]
"""A function of a measure that returns a 0-d tensor."""

Seed: TypeAlias = Any
"""None, an int, or a ``torch.Generator``."""
