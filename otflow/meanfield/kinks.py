r"""Sums of kinks: what a network of homogeneous units is in its inner weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["EPS", "Kinks", "Level", "Maximum", "as_found", "dual_directions", "gains"]

EPS = torch.finfo(torch.float64).eps

# Maps a value that was found to the bound that is sharp enough for it.
Level: TypeAlias = Callable[[float], float]

# Numbers in the largest temporary array of a round, and most cells in a round.
TEMPORARY = 2**19
ROUND = 2048
# Starts, the best ones of those given, from which to climb.
CLIMBERS = 8
# An ascent ends after so many steps of little gain, and what share of the sharpness
# asked for is little.
IDLE = 2
LITTLE = 0.1


def gains(level: Level, before: float, after: float) -> bool:
    """Return whether a larger value matters beside the sharpness asked for."""
    return after > before + LITTLE * (level(before) - before)


def as_found(value: float) -> float:
    """Return the value: no bound above it is sharp enough."""
    return value


@dataclass(frozen=True, eq=False)
class Maximum:
    r"""A bracket of the maximum, and where its lower end is attained.

    Parameters
    ----------
    lower, upper : float
        The largest value that was found, and a bound that holds with round-off.
    place : Tensor, shape (q,)
        Where `lower` is attained.
    direction : Tensor, shape (m,)
        The unit vector u of the outputs with u.g = |g| there.
    closed : bool
        Whether both ends agree to round-off, or as well as was asked for.
    advice : str
        What brings both ends closer.
    """

    lower: float
    upper: float
    place: Tensor
    direction: Tensor
    closed: bool
    advice: str = "a larger budget brings them closer"


class Kinks:
    r"""The function :math:`g(v) = \sum_k q_k\,(c_0\,v\cdot z_k + c_1\,(v\cdot z_k)^+)`.

    Parameters
    ----------
    z : Tensor, shape (n, q)
        Rows, in float64.
    coefficients : Tensor, shape (n, m)
        The factors of the m outputs.
    unit : tuple of float
        The numbers :math:`(c_0, c_1)`: (0, 1) for relu.
    norm : str
        "l1" or "l2", of v and of the outputs' weights. Their values are measured in the
        dual norm, the largest modulus or the Euclidean norm.
    """

    def __init__(
        self, z: Tensor, coefficients: Tensor, unit: tuple[float, float], norm: str
    ) -> None:
        self.z, self.norm = z, norm
        self.straight = (unit[0] * coefficients).T @ z  # (m, q)
        self.bent = unit[1] * coefficients  # (n, m)
        # A bound of |g| where |v|_1 <= 1, output by output; its round-off.
        sizes = (abs(unit[0]) + abs(unit[1])) * coefficients.abs()
        tallest = z.abs().amax(1)
        self.size = float((sizes.T @ tallest).norm())
        n, q = z.shape
        # On the Euclidean sphere |v|_1 is at most the root of q.
        reach = 1.0 if norm == "l1" else math.sqrt(q)
        self.noise = (n + 2 * q + 64) * EPS * self.size * reach

    @property
    def outputs(self) -> int:
        """Number m of outputs."""
        return self.bent.shape[1]

    def __call__(self, v: Tensor) -> Tensor:
        """Return g at rows (B, q): (B, m)."""
        return v @ self.straight.T + (v @ self.z.T).clamp_min(0) @ self.bent

    def slope(self, v: Tensor) -> Tensor:
        """Return the derivative of each output at rows (B, q): (B, m, q)."""
        active = (v @ self.z.T > 0).to(v.dtype)  # (B, n)
        return self.straight + (active[:, None] * self.bent.T) @ self.z

    def size_of(self, values: Tensor) -> Tensor:
        """Return the dual norm of values (B, m): (B,)."""
        order = math.inf if self.norm == "l1" else 2
        size: Tensor = torch.linalg.vector_norm(values, order, dim=-1)
        return size

    def length(self, v: Tensor) -> Tensor:
        """Return the norm of rows (B, q): (B,)."""
        order = 1 if self.norm == "l1" else 2
        length: Tensor = torch.linalg.vector_norm(v, order, dim=-1)
        return length

    def direction(self, values: Tensor) -> Tensor:
        """Return unit vectors u of outputs with u.g = |g|, for g (..., m)."""
        return dual_directions(values, self.norm)


def dual_directions(values: Tensor, norm: str) -> Tensor:
    """Return vectors u (..., m) of norm 1 with u.g the dual norm of values g."""
    if norm == "l1":
        j = values.abs().argmax(-1, keepdim=True)
        sign = torch.where(values.gather(-1, j) < 0, -1.0, 1.0).to(values)
        return torch.zeros_like(values).scatter(-1, j, sign)
    length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    first = torch.zeros_like(values)
    first[..., 0] = 1.0
    return torch.where(length > 0, values / length, first)
