"""Exponentials of numbers far below zero, without subnormal numbers on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["exp_below_zero_"]


def exp_below_zero_(exponents: Tensor) -> Tensor:
    r"""Return :math:`e^t` in place of exponents t <= 0, for sums of such terms.

    On the CPU, a result below e times the least normal number counts as 0, of 1e-38 in
    float32. Such a number is subnormal or close to it. It has lost digits, and each
    operation with it takes 50 times as long.

    Parameters
    ----------
    exponents : Tensor
        Without a graph; overwritten.

    Returns
    -------
    Tensor
        The same tensor. NaN stays NaN.
    """
    if exponents.device.type != "cpu" or not exponents.numel():
        return exponents.exp_()
    tiny = torch.finfo(exponents.dtype).tiny
    lowest = math.log(tiny) + 1.0
    if not bool(exponents.amin() < lowest):
        return exponents.exp_()
    # The exponential itself is slow where its result is subnormal or 0. So these
    # exponents are raised first, and their results are dropped.
    exponents.clamp_min_(lowest)
    exponents.exp_()
    cut = tiny * math.e * (1.0 + 1e4 * torch.finfo(exponents.dtype).eps)
    return torch.nn.functional.threshold(exponents, cut, 0.0, inplace=True)
