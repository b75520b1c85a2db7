"""What a density on a grid must satisfy, checked at the door."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow._typing import ArrayLike
from otflow.errors import BoxWarning
from otflow.measures.grid.box import Box

__all__ = [
    "check_border",
    "check_connected",
    "check_density",
    "free_cells",
    "mass_tolerance",
]

# Share of the mass in the outermost cells above which a box is too small.
BORDER_SHARE = 1e-3


def mass_tolerance(dtype: torch.dtype) -> float:
    """Return by how much the masses of a density may miss the sum 1."""
    return 1e-5 if dtype == torch.float32 else 1e-9


def free_cells(obstacles: ArrayLike | None, rho: Tensor) -> Tensor:
    """Return which cells are free (n,), from a mask of obstacles of the right kind."""
    if obstacles is None:
        return torch.ones(rho.numel(), dtype=torch.bool, device=rho.device)
    mask = torch.as_tensor(obstacles, device=rho.device)
    if mask.dtype != torch.bool or mask.shape != rho.shape:
        msg = (
            f"obstacles must be a bool array of shape {tuple(rho.shape)}, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}"
        )
        raise (TypeError if mask.dtype != torch.bool else ValueError)(msg)
    if bool(mask.all()):
        msg = "obstacles fill the whole box: no cell is free"
        raise ValueError(msg)
    return ~mask.reshape(-1)


def check_density(rho: Tensor, free: Tensor) -> None:
    """Refuse a density that is negative, not finite, zero, or inside an obstacle."""
    bad = ~(torch.isfinite(rho) & (rho >= 0))
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        kind = "finite" if not bool(torch.isfinite(rho[index])) else "non-negative"
        msg = f"the density must be {kind}, got {float(rho[index]):.6g} at cell {index}"
        raise ValueError(msg)
    if float(rho.sum()) == 0:
        msg = "the density is zero everywhere: a probability measure needs mass 1"
        raise ValueError(msg)
    inside = rho.reshape(-1)[~free]
    if bool((inside > 0).any()):
        msg = (
            f"there is density {float(inside.max()):.6g} inside an obstacle; multiply "
            f"it by ~obstacles and normalise"
        )
        raise ValueError(msg)


def check_connected(mass: Tensor, free: Tensor) -> None:
    """Refuse mass on both sides of an obstacle that has no way round."""
    ndimage = lazy_import("scipy.ndimage")
    labels, count = ndimage.label(free.cpu().numpy())
    if count < 2:
        return
    labels = torch.from_numpy(labels).to(mass.device)
    shares = [float(mass[labels == k].sum()) for k in range(1, count + 1)]
    if sum(share > 0 for share in shares) > 1:
        msg = (
            f"obstacles disconnect the mass: {count} separate rooms hold the shares "
            f"{', '.join(f'{s:.3g}' for s in shares)}; open a door between them, or "
            f"flow each room by itself"
        )
        raise ValueError(msg)


def check_border(
    box: Box,
    weights: Tensor,
    is_free: Tensor,
    *,
    walls: bool,
    before: Tensor | None = None,
) -> None:
    """Warn (BoxWarning) of mass beside a border that stands for all space.

    Once along a flow: not if there was as much `before`, when it warned.
    """
    if walls or not bool(is_free.all()):
        return
    share = _border_share(box, weights)
    if share > BORDER_SHARE and (
        before is None or _border_share(box, before) <= BORDER_SHARE
    ):
        msg = (
            f"{share:.2%} of the mass lies within one cell of the border of the box "
            f"{box.lower} to {box.upper}: it is too small; enlarge it, or pass "
            f"walls=True if the border is a wall"
        )
        warnings.warn(msg, BoxWarning, stacklevel=4)


def _border_share(box: Box, weights: Tensor) -> float:
    """Return the largest mass of a layer of outermost cells."""
    mass = weights.detach().reshape(box.shape)
    layers = [
        mass.select(axis, end).sum() for axis in range(box.dim) for end in (0, -1)
    ]
    return float(torch.stack(layers).max())
