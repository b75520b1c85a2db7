"""Checks of arguments: each raises a typed error that names argument and cure."""

from __future__ import annotations

import difflib
import hashlib
import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._typing import ArrayLike, Seed
from otflow.errors import NonFinite

__all__ = [
    "as_float_tensor",
    "as_points",
    "as_tensor",
    "as_weights",
    "check_finite",
    "check_function",
    "check_generator",
    "check_kind",
    "check_like",
    "check_option",
    "coordinate_limit",
    "non_negative_int",
    "positive",
    "real",
    "seed_and_stream",
    "true_or_false",
    "unit_of",
]

# Squares of coordinates, summed over points, must stay far from overflow.
_COORDINATE_LIMITS = {torch.float64: 1e150, torch.float32: 1e15}


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
    weights: ArrayLike, points: Tensor, *, normalize: bool, name: str = "weights"
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
        msg = (
            f"{name} must sum to 1, got {total:.9g}; "
            f"pass normalize=True to divide them by their sum"
        )
        raise ValueError(msg)
    return weights


def check_like(x: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Raise if two tensors differ in dtype (TypeError) or device (ValueError)."""
    if x.dtype != other.dtype:
        msg = (
            f"{name} has dtype {x.dtype} but {other_name} has {other.dtype}; "
            f"nothing is cast silently: convert one with .to({other.dtype})"
        )
        raise TypeError(msg)
    if x.device != other.device:
        msg = (
            f"{name} is on {x.device} but {other_name} is on {other.device}; "
            f"move one with .to('{other.device}')"
        )
        raise ValueError(msg)


def check_kind(value: Any, kind: type, name: str, *, cure: str = "") -> None:
    """Raise TypeError unless `value` is a `kind`; a class itself gets a cure."""
    if not isinstance(value, kind):
        hint = f"; {cure}" if cure else ""
        if isinstance(value, type):
            hint = f"; write {value.__name__}()"
        msg = f"{name} must be a {kind.__name__}, got {value!r:.80}{hint}"
        raise TypeError(msg)


def check_function(value: Any, demand: str) -> None:
    """Raise TypeError, which states the demand, unless `value` can be called."""
    if not callable(value):
        msg = f"{demand}, got {type(value).__name__}"
        raise TypeError(msg)


def true_or_false(value: Any, name: str) -> bool:
    """Return a bool; anything else raises TypeError."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, got {value!r}"
        raise TypeError(msg)
    return value


def real(value: Any, name: str) -> float:
    """Return a finite real number as a float; bool and str raise TypeError."""
    if type(value) is float and math.isfinite(value):  # the good case, of every step
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        msg = f"{name} must be a real number, got {type(value).__name__} {value!r:.80}"
        # A tensor would lose its graph, and on a GPU the wait would cost time.
        if getattr(value, "shape", None) == ():
            msg += f"; give float({name})"
        raise TypeError(msg)
    number = float(value)
    if not math.isfinite(number):
        msg = f"{name} must be finite, got {number}"
        raise ValueError(msg)
    return number


def positive(value: Any, name: str, *, or_zero: bool = False) -> float:
    """Return a finite real number > 0 (or >= 0) as a float."""
    number = real(value, name)
    if number < 0 or (number == 0 and not or_zero):
        kind = "non-negative" if or_zero else "positive"
        msg = f"{name} must be {kind}, got {number}"
        raise ValueError(msg)
    return number


def non_negative_int(value: Any, name: str, *, minimum: int = 0) -> int:
    """Return an integer >= `minimum`; float, bool and str raise TypeError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        msg = f"{name} must be an integer, got {type(value).__name__} {value!r}"
        raise TypeError(msg)
    if value < minimum:
        msg = f"{name} must be at least {minimum}, got {int(value)}"
        raise ValueError(msg)
    return int(value)


def check_option(value: Any, name: str, options: Collection[str]) -> str:
    """Return `value` if it is one of `options`; else raise and name the nearest one."""
    if isinstance(value, str) and value in options:
        return value
    lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(value).lower(), list(lower), n=1)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else ""
    msg = f"{name} must be one of {sorted(options)}, got {value!r}{hint}"
    raise (ValueError if isinstance(value, str) else TypeError)(msg)


def seed_and_stream(seed: Seed, device: torch.device) -> tuple[int, torch.Generator]:
    """Return one integer and the generator made from it, on `device`.

    The integer is the given one, or drawn from the given generator, or fresh. It is
    hashed before it seeds the stream, so that ``manual_seed`` of the same integer gives
    other numbers. The global random state is neither read nor written.
    """
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            msg = (
                f"generator is on {seed.device} but the measure is on {device}; "
                f"use torch.Generator(device={str(device)!r})"
            )
            raise ValueError(msg)
        drawn = torch.randint(2**63 - 1, (), generator=seed, device=seed.device)
        number = int(drawn)
    elif seed is None:
        number = torch.Generator().seed()
    else:
        number = non_negative_int(seed, "generator")
    digest = hashlib.blake2b(f"otflow.flow {number}".encode(), digest_size=8).digest()
    stream = torch.Generator(device=device)
    stream.manual_seed(int.from_bytes(digest, "big"))
    return number, stream


def check_generator(generator: Any) -> None:
    """Raise TypeError unless given a generator: None would mean the global state."""
    if not isinstance(generator, torch.Generator):
        msg = (
            f"generator must be a torch.Generator, got {type(generator).__name__}; "
            f"use torch.Generator().manual_seed(0)"
        )
        raise TypeError(msg)


def check_finite(x: Tensor, what: str) -> None:
    """Raise `NonFinite`, naming `what`, if an entry of `x` is NaN or infinite."""
    if x.requires_grad:
        x = x.detach()
    # One reduction on the good path: a sum is finite only if its terms are. A sum of
    # finite terms may overflow; then the entries are checked one by one.
    if math.isfinite((x.sum() if x.ndim else x).item()):
        return
    if bool(torch.isfinite(x).all()):
        return
    bad = (~torch.isfinite(x)).nonzero()
    where = f", first at index {tuple(int(i) for i in bad[0])}" if x.ndim else ""
    first = (x[tuple(bad[0])] if x.ndim else x).item()
    msg = (
        f"{what} is {first}{where}: the functional is not finite at this measure; "
        f"look for log(0), division by 0 or an overflow; if a kernel has no value at "
        f"0, kernels.Function(W, singular=True) leaves each atom's own pair out; move "
        f"atoms apart that coincide"
    )
    raise NonFinite(msg)
