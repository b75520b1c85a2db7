"""Points of a measure as a NumPy array."""

from __future__ import annotations

from typing import Any

import numpy as np

from otflow.errors import Unsupported
from otflow.measures.base import Measure

__all__ = ["array_of_points"]


def array_of_points(mu: Measure, dtype: Any, copy: bool | None) -> Any:
    """Return the points of equal atoms as an array, as the array protocol asks for it.

    Parameters
    ----------
    mu : Measure
        Atoms.
    dtype : dtype or None
        That of the array; that of the points by default.
    copy : bool or None
        True for memory of its own, False to raise where a copy is needed.

    Raises
    ------
    Unsupported
        If the weights differ, or the points carry a graph or are not on the CPU.
    ValueError
        If another dtype is asked for and a copy is not allowed.
    """
    points, weights = mu.points, mu.weights
    if points.requires_grad or weights.requires_grad:
        msg = (
            "an array has no graph, and the graph of this measure would be lost; use "
            "mu.detach()"
        )
        raise Unsupported(msg)
    if points.device.type != "cpu":
        msg = (
            f"an array lies in the memory of the CPU, not on {points.device}; use "
            f"mu.to('cpu')"
        )
        raise Unsupported(msg)
    if not bool((weights == weights[0]).all()):
        msg = (
            "the weights of these particles differ, and an array of the points would "
            "lose them; use mu.points.numpy() and mu.weights.numpy()"
        )
        raise Unsupported(msg)
    held = points.numpy()
    if copy:
        return held.astype(dtype or held.dtype, copy=True)
    if dtype is not None and np.dtype(dtype) != held.dtype:
        if copy is False:
            msg = (
                f"points of {held.dtype} are copied into an array of "
                f"{np.dtype(dtype)}; use numpy.asarray(mu, dtype), which may copy"
            )
            raise ValueError(msg)
        return held.astype(dtype)
    # Writes would reach the measure, and those of NumPy are not counted.
    held.flags.writeable = False
    return held
