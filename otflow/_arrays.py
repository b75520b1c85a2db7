"""Arrays at the door: tensors, points and weights from torch or NumPy, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import check_like

__all__ = [
    "added",
    "as_float_tensor",
    "as_points",
    "as_tensor",
    "as_weights",
    "coordinate_limit",
    "cut",
    "flattened",
    "unit_of",
]

# Squares of coordinates, summed over points, must stay far from overflow.
_COORDINATE_LIMITS = {torch.float64: 1e150, torch.float32: 1e15}


def added(x: Tensor, step: Tensor, length: float) -> Tensor:
    """Return x + length * step; NaN if the dtype cannot hold the length."""
    try:
        return torch.add(x, step, alpha=length)
    except RuntimeError:
        if abs(length) <= torch.finfo(x.dtype).max:
            raise
        return torch.full_like(x, torch.nan)


@lru_cache
def coordinate_limit(dtype: torch.dtype) -> float:
    """Return the largest |coordinate| whose squares stay finite in `dtype`."""
    return _COORDINATE_LIMITS[dtype]


def unit_of(*tensors: Tensor) -> float:
    """Return the power of two below the largest entry: a unit for squares in range.

    A power of two costs no digits. It is a normal number even if all entries are 0.
    """
    largest = max(float(z.detach().abs().max()) for z in tensors if z.numel())
    if not math.isfinite(largest):
        return 1.0
    lowest = max(largest, float(torch.finfo(tensors[0].dtype).tiny))
    return 2.0 ** (math.frexp(lowest)[1] - 1)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return the entries of tensors in turn, as one tensor without other axes."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def cut(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """Return views of a flat tensor, of these shapes in turn."""
    pieces = torch.split(flat, [math.prod(shape) for shape in shapes])
    both = zip(pieces, shapes, strict=True)
    return tuple(piece.view(shape) for piece, shape in both)


def as_tensor(x: ArrayLike, name: str, kinds: str = "biufc") -> Tensor:
    """Return `x` as a dense tensor; dtype and device are kept.

    Of NumPy arrays those pass whose dtype has one of the letters `kinds`.
    """
    if isinstance(x, np.ndarray):
        widest = 16 if x.dtype.kind == "c" else 8
        if x.dtype.kind not in kinds or x.dtype.itemsize > widest:
            msg = f"{name} must be a numeric array that torch knows, got {x.dtype}"
            raise TypeError(msg)
        # A copy: so a read-only array works, and the caller's memory is not shared.
        x = torch.from_numpy(np.array(x, dtype=x.dtype.newbyteorder("="), order="C"))
    if not isinstance(x, Tensor):
        msg = (
            f"{name} must be a torch.Tensor or numpy.ndarray, got {type(x).__name__}; "
            f"use torch.tensor(..., dtype=torch.float64) so that the dtype is explicit"
        )
        raise TypeError(msg)
    if x.layout != torch.strided or x.is_quantized or x.device.type == "meta":
        msg = (
            f"{name} must be a dense tensor, got layout {x.layout} on device "
            f"{x.device}; use .to_dense() or materialise it first"
        )
        raise TypeError(msg)
    return x


def as_float_tensor(x: ArrayLike, name: str) -> Tensor:
    """Return `x` as a dense real float32/float64 tensor; dtype and device are kept."""
    x = as_tensor(x, name, "fiuc")
    if x.dtype in (torch.float16, torch.bfloat16):
        msg = (
            f"{name} has dtype {x.dtype}, too coarse for transport; "
            f"use float32/float64, e.g. {name}.float()"
        )
        raise ValueError(msg)
    if x.dtype not in _COORDINATE_LIMITS:
        real = f"{name}.real" if x.is_complex() else name
        msg = (
            f"{name} must be float32 or float64, got {x.dtype}; "
            f"nothing is cast silently: use {real}.double()"
        )
        raise TypeError(msg)
    return x


def as_points(x: ArrayLike, name: str = "points") -> Tensor:
    """Return an (n, d) cloud of finite points, n >= 1 and d >= 1, checked."""
    x = as_float_tensor(x, name)
    if x.ndim != 2:
        cure = f"; use {name}[:, None] for points on the line" if x.ndim == 1 else ""
        msg = f"{name} must have shape (n, d), got {tuple(x.shape)}{cure}"
        raise ValueError(msg)
    if x.shape[0] == 0:
        msg = f"{name} is empty: shape {tuple(x.shape)}; at least one point is needed"
        raise ValueError(msg)
    if x.shape[1] == 0:
        msg = f"{name} has dimension 0: shape {tuple(x.shape)}; d >= 1 is needed"
        raise ValueError(msg)
    limit = coordinate_limit(x.dtype)
    good = x.detach().abs() < limit  # False for NaN and infinity too
    if not bool(good.all()):
        i, j = (int(k) for k in (~good).nonzero()[0])
        entry = float(x.detach()[i, j])
        if math.isfinite(entry):
            msg = (
                f"{name}[{i}, {j}] = {entry:.3g} is too large: squared distances "
                f"overflow beyond {limit:.0e} in {x.dtype}; rescale the points"
            )
        else:
            msg = f"{name} must be finite, got {entry} at index ({i}, {j})"
        raise ValueError(msg)
    return x


def as_weights(
    weights: ArrayLike,
    points: Tensor,
    *,
    normalize: bool,
    name: str = "weights",
    cure: str = "pass normalize=True to divide them by their sum",
) -> Tensor:
    """Return n weights of the points, checked: finite, non-negative, of sum 1."""
    weights = as_float_tensor(weights, name)
    n = points.shape[0]
    if weights.shape != (n,):
        msg = (
            f"{name} must have shape ({n},), one per point, got {tuple(weights.shape)}"
        )
        raise ValueError(msg)
    check_like(weights, points, name, "points")
    # The checks read the masses without the graph; the answer keeps the graph.
    masses = weights.detach()
    if not bool(torch.isfinite(masses).all()):
        i = int((~torch.isfinite(masses)).nonzero()[0])
        msg = f"{name} must be finite, got {float(masses[i])} at index {i}"
        raise ValueError(msg)
    if bool((masses < 0).any()):
        i = int((masses < 0).nonzero()[0])
        msg = f"{name} must be non-negative, got {float(masses[i]):.6g} at index {i}"
        raise ValueError(msg)
    total = float(masses.sum(dtype=torch.float64))
    if total == 0.0:
        msg = f"{name} are all zero: a probability measure needs mass 1"
        raise ValueError(msg)
    if normalize:
        return weights / weights.sum()
    tolerance = 1e-6 if weights.dtype == torch.float32 else 1e-9
    if abs(total - 1.0) > max(tolerance, n * torch.finfo(weights.dtype).eps):
        msg = f"{name} must sum to 1, got {total:.9g}; {cure}"
        raise ValueError(msg)
    return weights
