"""What tests of densities on grids share: tangents from velocity fields."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import otflow as of


def face_velocity(mu: of.GridDensity, v: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the tangent of a velocity field (..., d) -> (..., d), at face centres."""
    box = mu.box
    parts = []
    for axis, (a, h, n) in enumerate(
        zip(box.lower, box.spacing, box.shape, strict=True)
    ):
        axes = box.axes(mu.weights)
        axes[axis] = a + h * torch.arange(1, n, dtype=mu.dtype)
        x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        parts.append(v(x)[..., axis])
    return box.join_faces(parts)


def two_rooms(n: int) -> Tensor:
    """Return a wall with a door across n x n cells, n a multiple of 4."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[n // 2 - 1 : n // 2 + 1] = True
    mask[:, 3 * n // 8 : 5 * n // 8] = False
    return mask
