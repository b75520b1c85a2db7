"""Observed orders and rates: slopes of least squares on logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._validation import real

__all__ = ["exponential_rate", "observed_order"]


def observed_order(
    steps: Sequence[float] | Tensor | np.ndarray[Any, Any],
    errors: Sequence[float] | Tensor | np.ndarray[Any, Any],
) -> float:
    r"""Return the slope p of the least-squares line :math:`\log e = p \log h + c`.

    For time steps h the slope is the observed order of a scheme. For numbers of
    particles N or times t it is an algebraic rate, and negative if the errors fall.

    Parameters
    ----------
    steps : sequence of float, shape (m,)
        Step sizes h, > 0, not all equal.
    errors : sequence of float, shape (m,)
        Errors e, > 0.

    Returns
    -------
    float
        The order p.

    Raises
    ------
    ValueError
        If fewer than two pairs are given, if lengths differ, or if an entry is not
        finite and positive. An error of exactly zero has no logarithm.

    Examples
    --------
    >>> import otflow as of
    >>> round(of.analysis.observed_order([0.1, 0.05, 0.025], [4e-2, 1e-2, 2.5e-3]), 6)
    2.0
    """
    return _slope(_logarithms(steps, "steps"), _logarithms(errors, "errors"), "steps")


def exponential_rate(
    times: Sequence[float] | Tensor | np.ndarray[Any, Any],
    values: Sequence[float] | Tensor | np.ndarray[Any, Any],
    *,
    limit: float = 0.0,
) -> float:
    r"""Return the rate r of the least-squares fit :math:`v - v_\infty = C e^{-rt}`.

    Parameters
    ----------
    times : sequence of float, shape (m,)
        Times t, not all equal.
    values : sequence of float, shape (m,)
        Values v, above `limit`, e.g. ``run.records["energy"]``.
    limit : float
        The limit :math:`v_\infty`.

    Returns
    -------
    float
        The rate r, positive if the values fall.

    Raises
    ------
    ValueError
        If fewer than two pairs are given, if lengths differ, or if a value does not
        exceed the limit.

    Examples
    --------
    >>> import torch, otflow as of
    >>> t = torch.linspace(0, 1, 5)
    >>> round(of.analysis.exponential_rate(t, 3 * (-2 * t).exp()), 4)
    2.0
    """
    above = _numbers(values, "values") - real(limit, "limit")
    return -_slope(
        _numbers(times, "times"), _logarithms(above, "values - limit"), "times"
    )


def _numbers(values: Any, name: str) -> Tensor:
    try:
        numbers = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = (
            f"{name} must be a sequence of real numbers ({error}); convert it, e.g. "
            f"[float(x) for x in {name}]"
        )
        raise TypeError(msg) from error
    if numbers.is_complex():
        msg = f"{name} must be real numbers, got {numbers.dtype}; take .real of them"
        raise TypeError(msg)
    numbers = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if numbers.ndim != 1 or len(numbers) < 2:
        msg = f"{name} must be at least two numbers, got shape {tuple(numbers.shape)}"
        raise ValueError(msg)
    if not bool(torch.isfinite(numbers).all()):
        i = int((~torch.isfinite(numbers)).nonzero()[0])
        msg = f"{name} must be finite, got {float(numbers[i])} at index {i}"
        raise ValueError(msg)
    return numbers


def _logarithms(values: Any, name: str) -> Tensor:
    numbers = _numbers(values, name)
    if bool((numbers <= 0).any()):
        i = int((numbers <= 0).nonzero()[0])
        msg = (
            f"{name} must be positive to have a logarithm, got {float(numbers[i]):.6g} "
            f"at index {i}; leave out what has reached round-off"
        )
        raise ValueError(msg)
    return numbers.log()


def _slope(x: Tensor, y: Tensor, name: str) -> float:
    if len(x) != len(y):
        msg = f"{name} has {len(x)} entries, but there are {len(y)} to fit"
        raise ValueError(msg)
    x = x - x.mean()
    spread = float(x @ x)
    if spread == 0:
        msg = f"{name} are all equal: no slope can be fitted; vary them"
        raise ValueError(msg)
    return float(x @ (y - y.mean())) / spread
