"""Checks of the masses and the obstacles that a density on a grid is made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from otflow._graphs import records
from otflow._lazy import lazy_import
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.errors import NonFinite
from otflow.measures.grid.box import Box, mass_tolerance, total_mass

__all__ = [
    "check_masses",
    "check_same_box",
    "check_same_obstacles",
    "explained",
    "free_cells",
    "masses_of",
]


def free_cells(obstacles: ArrayLike | None, rho: Tensor) -> Tensor:
    """Return which cells are free (n,), from a mask of obstacles that is checked."""
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


def masses_of(rho: Tensor, box: Box, free: Tensor, *, normalize: bool) -> Tensor:
    """Return the masses (n,) of a density, checked, with its graph."""
    _check_density(rho.detach(), free)
    weights = rho.reshape(-1) * box.cell_volume
    total = total_mass(weights)
    _check_units(box, total, rho.dtype)
    if normalize:
        weights = weights / (weights.sum() if records(weights) else total)
    elif abs(total - 1) > mass_tolerance(rho.dtype):
        msg = (
            f"the density must integrate to 1, got {total:.9g}; pass normalize=True to "
            f"divide it by its integral"
        )
        raise ValueError(msg)
    if not bool(free.all()):
        mass = weights.detach().reshape(box.shape)
        _check_connected(mass, free.reshape(box.shape))
    return weights


def check_masses(masses: Tensor, like: Tensor, free: Tensor) -> None:
    """Raise unless masses (n,) are a probability on the cells of `like`."""
    check_like(masses, like, "weights", "the density")
    if masses.shape != like.shape:
        msg = (
            f"weights must have shape {tuple(like.shape)}, one mass per cell, got "
            f"{tuple(masses.shape)}; use weights.reshape(-1)"
        )
        raise ValueError(msg)
    _check_density(masses.detach(), free)
    total = total_mass(masses)
    if abs(total - 1) > mass_tolerance(masses.dtype):
        msg = (
            f"weights must sum to 1, got {total:.9g}; divide them by their sum, or use "
            f"with_free_weights to differentiate in masses of any sum"
        )
        raise ValueError(msg)


def check_same_box(mu: Any, other: Any) -> None:
    """Raise ValueError unless `other` is a density on the box of `mu`."""
    if getattr(other, "box", None) != mu.box:
        box = getattr(other, "box", None)
        where = f"{other!r}" if box is None else f"one on {box}"
        msg = (
            f"both densities must live on the same grid, got {where} beside one on "
            f"{mu.box}; make both on one, as by GridDensity.from_samples("
            f"nu.sample(100_000, generator), lower, upper, shape)"
        )
        raise ValueError(msg)


def check_same_obstacles(first: Tensor, second: Tensor) -> None:
    """Raise ValueError if one density may enter a cell that is closed to the other."""
    if not torch.equal(first, second):
        msg = (
            "both densities must have the same obstacles; make both anew with the "
            "obstacles that they share"
        )
        raise ValueError(msg)


def explained(error: NonFinite, empty: Tensor) -> NonFinite:
    """Return an error that names the empty cells, if there are any, as the cause."""
    count = int(empty.sum())
    if count == 0:
        return error
    msg = (
        f"{error}. The density vanishes in {count} cells, where an entropy has an "
        f"infinite slope: flow it by JKO(), or diffuse it a little first"
    )
    return NonFinite(msg)


def _check_density(rho: Tensor, free: Tensor) -> None:
    """Raise ValueError for a density negative, not finite, zero, or in an obstacle."""
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


def _check_units(box: Box, total: float, dtype: torch.dtype) -> None:
    """Raise ValueError if a corner, or the mass before it is 1, leaves the dtype."""
    reach = max(*map(abs, box.lower), *map(abs, box.upper))
    if not (reach <= torch.finfo(dtype).max and 0 < total < math.inf):
        msg = (
            f"a box that reaches to {reach:.3g}, with cells of volume "
            f"{box.cell_volume:.3g}, leaves the range of {dtype}; measure lengths in "
            f"another unit"
        )
        raise ValueError(msg)


def _check_connected(mass: Tensor, free: Tensor) -> None:
    """Raise ValueError if obstacles cut the mass in two."""
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
