"""Checks of arguments and of what users' functions return: typed errors with a cure."""

from __future__ import annotations

import difflib
import hashlib
import math
import numbers
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from otflow._made import refuse_kind, shown
from otflow._typing import Ground, Seed
from otflow.errors import InvalidFunctional, NonFinite

__all__ = [
    "alike",
    "check_dtype",
    "check_energy",
    "check_finite",
    "check_function",
    "check_generator",
    "check_ground",
    "check_kind",
    "check_like",
    "check_map",
    "check_option",
    "check_scalar",
    "check_tensor",
    "non_negative_int",
    "positive",
    "real",
    "seed_and_stream",
    "shown",
    "true_or_false",
]


class Placed(Protocol):
    """What has a dtype and a device, as a tensor and a measure have."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        ...


def check_like(x: Placed, other: Placed, name: str, other_name: str) -> None:
    """Raise if two tensors differ in dtype (TypeError) or device (ValueError).

    A measure has a dtype and a device as well.
    """
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


def alike(x: Any, other: Tensor) -> bool:
    """Return whether x is a tensor of the shape, the dtype and the device of other."""
    return (
        isinstance(x, Tensor)
        and x.shape == other.shape
        and x.dtype == other.dtype
        and x.device == other.device
    )


def check_kind(value: Any, kind: type, name: str, *, cure: str = "") -> None:
    """Raise TypeError, with a cure, unless `value` is a `kind`."""
    if not isinstance(value, kind):
        refuse_kind(value, kind, name, cure)


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
    try:
        number = float(value)
    except OverflowError:  # an integer or a fraction beyond the range of floats
        number = math.inf if value == abs(value) else -math.inf
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


def check_option(
    value: Any, name: str, options: Collection[str], *, also: str = ""
) -> str:
    """Return `value` if it is one of `options`; else raise and name the nearest one.

    `also` says what else is taken in the place of a name.
    """
    if isinstance(value, str) and value in options:
        return value
    lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(str(value).lower(), list(lower), n=1)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else ""
    hint += f"; {also}" if also else ""
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
    elif isinstance(seed, numbers.Integral):
        number = non_negative_int(seed, "generator")
    else:
        msg = (
            f"generator must be an integer or a torch.Generator, got "
            f"{type(seed).__name__} {seed!r:.80}; give an integer, the seed"
        )
        raise TypeError(msg)
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


def first_not_finite(x: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first entry that is NaN or infinite, if there is one."""
    if x.requires_grad:
        x = x.detach()
    # One reduction on the good path: a sum is finite only if its terms are. A sum of
    # finite terms may overflow; then the entries are checked one by one.
    total = (x.sum() if x.ndim else x).item()
    if math.isfinite(total) or bool(torch.isfinite(x).all()):
        return None
    return tuple(int(i) for i in (~torch.isfinite(x)).nonzero()[0])


def check_finite(x: Tensor, what: str) -> None:
    """Raise `NonFinite`, naming `what`, if an entry of `x` is NaN or infinite."""
    if (index := first_not_finite(x)) is None:
        return
    where = f", first at index {index}" if x.ndim else ""
    msg = (
        f"{what} is {x[index].item()}{where}: the functional is not finite at this "
        f"measure; look for log(0), division by 0 or an overflow; if a kernel has no "
        f"value at 0, kernels.Function(W, singular=True) leaves each atom's own pair "
        f"out; move atoms apart that coincide"
    )
    raise NonFinite(msg)


def check_scalar(value: Any, like: Any, *, finite: bool = False) -> Tensor:
    """Raise InvalidFunctional unless `value` is 0-d, real, and where `like` is.

    With ``finite=True`` a value that is NaN or infinite raises `NonFinite`.
    """
    if not isinstance(value, Tensor):
        msg = (
            f"a functional's value must be a 0-d tensor, got {type(value).__name__}; "
            f"compute it from mu.points and mu.weights with torch, and do not call "
            f"float() or .item()"
        )
        raise InvalidFunctional(msg)
    if value.ndim != 0:
        msg = (
            f"a functional's value must be a 0-d tensor, got shape "
            f"{tuple(value.shape)}; average over the measure, e.g. mu.expectation(f)"
        )
        raise InvalidFunctional(msg)
    if not value.is_floating_point():
        msg = f"a functional's value must be real floating point, got {value.dtype}"
        raise InvalidFunctional(msg)
    if value.dtype != like.dtype and _coarser(value.dtype, like.dtype):
        msg = (
            f"a functional's value is {value.dtype} but the measure is {like.dtype}, "
            f"whose round-off its certificates state; build its tensors with "
            f"dtype=mu.dtype"
        )
        raise InvalidFunctional(msg)
    if value.device != like.device:
        msg = (
            f"a functional's value is on {value.device} but the measure is on "
            f"{like.device}; build its tensors on the measure's device"
        )
        raise InvalidFunctional(msg)
    if finite and not math.isfinite(value.item()):
        check_finite(value, "the functional's value")
    return value


def _coarser(one: torch.dtype, other: torch.dtype) -> bool:
    return torch.finfo(one).eps > torch.finfo(other).eps


def check_ground(values: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Raise InvalidFunctional unless a ground function gave a number or row a point."""
    n = points.shape[0]
    check_tensor(values, "a ground function")
    if values.ndim < 1 or values.shape[0] != n:
        msg = (
            f"a ground function must map (n, d) = {tuple(points.shape)} to "
            f"({n},) or ({n}, m), got shape {tuple(values.shape)}; reduce over the "
            f"last axis, e.g. .sum(-1)"
        )
        raise InvalidFunctional(msg)
    check_dtype(values, weights, "a ground function", "points x")
    return values


def check_tensor(values: Any, what: str) -> None:
    """Raise InvalidFunctional unless a user's function gave a torch tensor."""
    if not isinstance(values, Tensor):
        msg = (
            f"{what} must return a torch.Tensor, got {type(values).__name__}; compute "
            f"it with torch, as torch.cos in the place of numpy.cos"
        )
        raise InvalidFunctional(msg)


def check_energy(e: Ground, rho: Tensor) -> Tensor:
    """Return e(rho); raise InvalidFunctional unless it is one number per density."""
    what, cure = "an energy per unit of mass e", "a constant c is c + 0 * r"
    each, values = ", entry by entry", e(rho)
    if isinstance(values, (int, float)):
        msg = f"{what} must return a torch.Tensor, got {type(values).__name__}; {cure}"
        raise InvalidFunctional(msg)
    return check_map(values, rho, rho.shape, what, "densities r", cure, each)


def check_map(
    values: Tensor,
    arguments: Tensor,
    shape: torch.Size,
    what: str,
    of: str,
    cure: str,
    each: str = "",
) -> Tensor:
    """Raise InvalidFunctional unless a user's function returned numbers of a shape.

    `what` names the function; `of` names its arguments, by their kind and their letter.
    """
    kind = of.split(maxsplit=1)[0]
    check_tensor(values, what)
    if values.shape != shape:
        msg = (
            f"{what} must map {kind} {tuple(arguments.shape)} to {tuple(shape)}"
            f"{each}, got {tuple(values.shape)}; {cure}"
        )
        raise InvalidFunctional(msg)
    check_dtype(values, arguments, what, of)
    return values


def check_dtype(values: Tensor, arguments: Tensor, what: str, of: str) -> None:
    """Raise InvalidFunctional unless a user's function kept the dtype of `arguments`.

    `what` and `of` are those of `check_map`.
    """
    if values.dtype != arguments.dtype:
        kind, letter = of.split()
        msg = (
            f"{what} returned {values.dtype} for {kind} of dtype {arguments.dtype}; "
            f"build its constants with the dtype of {letter}"
        )
        raise InvalidFunctional(msg)
