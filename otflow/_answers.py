"""Checks of what a user's functions return: numbers, shape, dtype and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow.errors import InvalidFunctional

__all__ = ["check_dtype", "check_map", "check_scalar"]


def check_scalar(value: Any, like: Any) -> Tensor:
    """Raise InvalidFunctional unless `value` is 0-d, real, and where `like` is."""
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
    if value.device != like.device:
        msg = (
            f"a functional's value is on {value.device} but the measure is on "
            f"{like.device}; build its tensors on the measure's device"
        )
        raise InvalidFunctional(msg)
    return value


def check_map(
    values: Any,
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
    if not isinstance(values, Tensor) or values.shape != shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        msg = (
            f"{what} must map {kind} {tuple(arguments.shape)} "
            f"to {tuple(shape)}{each}, got {got}; {cure}"
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
