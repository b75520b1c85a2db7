"""Arguments of networks of several layers: widths, units, laws, permutations."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from otflow._arrays import as_float_tensor, as_points
from otflow._typing import ArrayLike
from otflow._validation import check_kind, non_negative_int, positive, real
from otflow.meanfield.units import Elementwise, Unit, as_activation
from otflow.measures import Euclidean, Particles

__all__ = [
    "Law",
    "all_units",
    "as_dtype",
    "as_law",
    "as_matrix",
    "as_permutation",
    "as_units",
    "as_weights",
    "as_widths",
    "check_orders",
    "check_readout",
    "kind_of",
    "normal_weights",
]

Law = tuple[float, float]
"""Mean and standard deviation of independent normal numbers."""


def kind_of(name: str) -> type[Particles] | type[Euclidean]:
    """Return the representation of a part."""
    return Particles if name in ("inner", "outer") else Euclidean


def as_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of hidden units; two layers of two units at least."""
    if isinstance(widths, (str, int)) or not isinstance(widths, Sequence):
        msg = (
            f"widths must be a sequence of the numbers of hidden units, got "
            f"{widths!r:.80}; e.g. widths=(100, 100)"
        )
        raise TypeError(msg)
    if len(widths) < 2:
        msg = (
            f"widths must hold two layers at least, got {tuple(widths)!r}; one hidden "
            f"layer is a TwoLayer, whose neurons are one measure"
        )
        raise ValueError(msg)
    for layer, N in enumerate(widths):
        if non_negative_int(N, f"widths[{layer}]") < 2:
            msg = (
                f"widths[{layer}] must be at least 2, got {N}: a mean over one unit "
                f"has none of the limits of wide layers; give 2 units. One unit twice "
                f"is the same function: Linear(..., 2) of two equal rows, and half of "
                f"the weights in each of two columns of the next Linear(2, ...)"
            )
            raise ValueError(msg)
    return tuple(int(N) for N in widths)


def as_units(
    units: str | Elementwise | Sequence[str | Elementwise], depth: int
) -> tuple[Elementwise, ...]:
    """Return one activation for each hidden layer."""
    if isinstance(units, str) or callable(units):
        return (as_activation(units),) * depth
    if not isinstance(units, Sequence):
        msg = (
            f"units must be an activation, or one for each hidden layer, got "
            f"{units!r:.80}; e.g. units='tanh'"
        )
        raise TypeError(msg)
    if len(units) != depth:
        msg = (
            f"units must be one activation, or {depth}, one for each hidden layer, got "
            f"{len(units)}; e.g. units={units[0] if units else 'tanh'!r} for all"
        )
        raise ValueError(msg)
    return tuple(as_activation(unit) for unit in units)


def as_law(law: Law, name: str) -> Law:
    """Return the mean and the standard deviation of a normal law."""
    if not isinstance(law, Sequence) or isinstance(law, str) or len(law) != 2:
        msg = (
            f"{name} must be a pair (mean, standard deviation), got {law!r:.80}; e.g. "
            f"(0.0, 1.0)"
        )
        raise TypeError(msg)
    deviation = positive(law[1], f"the deviation of {name}", or_zero=True)
    return real(law[0], f"the mean of {name}"), deviation


def as_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Return a floating-point type; that of torch by default."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        msg = f"dtype must be torch.float32 or torch.float64, got {dtype!r:.80}"
        raise ValueError(msg)
    return dtype


def all_units(units: tuple[Elementwise, ...]) -> TypeGuard[tuple[Unit, ...]]:
    """Return whether every activation states its slope."""
    return all(isinstance(unit, Unit) for unit in units)


def as_matrix(matrix: ArrayLike, name: str) -> Tensor:
    """Return a fixed matrix, copied."""
    M = as_float_tensor(matrix, name).detach().clone()
    if M.ndim != 2 or not M.numel():
        msg = (
            f"{name} must be a matrix, got shape {tuple(M.shape)}; torch.eye(D, d) is "
            f"one"
        )
        raise ValueError(msg)
    return as_points(M, name)  # finite


def as_permutation(order: Sequence[int] | Tensor, N: int, name: str) -> list[int]:
    """Return the numbers 0, ..., N - 1 in some order, from integers of any kind."""
    cure = f"torch.randperm({N}).tolist() is one"
    arrays = isinstance(order, (Tensor, np.ndarray)) and order.ndim == 1
    if not (arrays or isinstance(order, Sequence)):
        msg = f"{name} must be a sequence of integers, got {order!r:.60}; {cure}"
        raise TypeError(msg)
    listed = order if isinstance(order, Sequence) else order.tolist()
    whole = all(isinstance(k, Integral) and not isinstance(k, bool) for k in listed)
    if not whole or sorted(listed) != list(range(N)):
        msg = (
            f"{name} must hold each of the integers 0, ..., {N - 1} once, got "
            f"{listed!r:.60}; {cure}"
        )
        raise ValueError(msg)
    return [int(k) for k in listed]


def as_weights(
    weights: Sequence[ArrayLike], names: Sequence[str]
) -> dict[str, Particles | Euclidean]:
    """Return the part of each name from its weights; an error names their number."""
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence):
        msg = (
            f"weights must be a sequence of {len(names)} tensors, one for each of "
            f"{list(names)}, got {type(weights).__name__}; [W1, W2, ...] is one"
        )
        raise TypeError(msg)
    if len(weights) != len(names):
        msg = (
            f"weights must be {len(names)} tensors, one for each of "
            f"{list(names)}, got {len(weights)}; network.shapes(d) are theirs"
        )
        raise ValueError(msg)
    parts: dict[str, Particles | Euclidean] = {}
    for k, (name, w) in enumerate(zip(names, weights, strict=True)):
        kind, own = kind_of(name), f"weights[{k}]"
        x = as_points(w, own) if kind is Particles else as_float_tensor(w, own)
        parts[name] = kind(x)
    return parts


def check_orders(
    orders: Sequence[Tensor], widths: tuple[int, ...], device: torch.device
) -> None:
    """Raise unless there is one permutation of units for each hidden layer."""
    if not isinstance(orders, (Sequence, Tensor)):
        msg = (
            f"orders must be a sequence of {len(widths)} permutations, got "
            f"{orders!r:.60}; [torch.arange(N) for N in network.widths] changes nothing"
        )
        raise TypeError(msg)
    if len(orders) != len(widths):
        msg = (
            f"orders must be {len(widths)} permutations, one for each hidden layer, "
            f"got {len(orders)}; torch.arange(N) changes nothing"
        )
        raise ValueError(msg)
    for layer, (order, N) in enumerate(zip(orders, widths, strict=True)):
        check_permutation(order, N, f"orders[{layer}]", device)


def check_permutation(order: Tensor, N: int, name: str, device: torch.device) -> None:
    """Raise unless a tensor holds the numbers 0, ..., N - 1 in some order."""
    check_kind(order, Tensor, name, cure=f"torch.randperm({N}) is one")
    every = torch.arange(N, device=device)
    fits = order.shape == (N,) and order.dtype == torch.int64
    if (
        not fits
        or order.device != device
        or not torch.equal(order.sort().values, every)
    ):
        msg = (
            f"{name} must be a permutation of 0, ..., {N - 1}, int64 on {device}, got "
            f"{order.dtype} of shape {tuple(order.shape)}; torch.randperm({N}) is one"
        )
        raise ValueError(msg)


def check_readout(readout: Tensor | None, outputs: int | None, width: int) -> None:
    """Raise unless states of dimension `width` have that many outputs."""
    m = outputs or 1
    if readout is None and width < m:
        msg = (
            f"the last {m} of the {width} coordinates of a state cannot be the "
            f"outputs; give an embedding with more rows, or a readout"
        )
        raise ValueError(msg)
    if readout is not None and readout.shape[1] != width:
        msg = (
            f"readout must have shape ({m}, {width}) for states of dimension "
            f"{width}, got {tuple(readout.shape)}"
        )
        raise ValueError(msg)


def normal_weights(
    shape: tuple[int, ...], law: Law, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """Return independent normal numbers of a law that `as_law` has checked."""
    numbers = torch.empty(shape, dtype=dtype, device=generator.device)
    return numbers.normal_(*law, generator=generator)
