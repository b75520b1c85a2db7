"""Checks of the masses, the border and the obstacles of a density on a grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from otflow._graphs import records
from otflow._lazy import lazy_import
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow._warn import warn
from otflow.errors import BoxWarning, NonFinite
from otflow.measures.grid.box import Box

__all__ = [
    "check_border",
    "check_masses",
    "check_same_box",
    "check_same_obstacles",
    "explained",
    "fault_of_step",
    "free_cells",
    "mass_tolerance",
    "masses_of",
]

# A box is too small if more than this share of the mass lies beside its border; beside
# means this share of the side, at least one cell.
BORDER_SHARE, BORDER_WIDTH = 1e-3, 1 / 40
# Mass in that layer does not reach the border if the mean mass of its cells is more
# than so many times that of the outermost cell.
REACHED = 20.0


def mass_tolerance(dtype: torch.dtype) -> float:
    """Return how far the sum of the masses may be from 1."""
    return 1e-5 if dtype == torch.float32 else 1e-9


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
    total = _sum(weights)
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
    total = _sum(masses)
    if abs(total - 1) > mass_tolerance(masses.dtype):
        msg = (
            f"weights must sum to 1, got {total:.9g}; divide them by their sum, or use "
            f"with_free_weights to differentiate in masses of any sum"
        )
        raise ValueError(msg)


def check_same_box(mu: Any, other: Any) -> None:
    """Raise ValueError unless `other` is a density on the box of `mu`."""
    if getattr(other, "box", None) != mu.box:
        msg = (
            f"both densities must live on the same grid, got {other!r} beside {mu!r} "
            f"on {mu.box}"
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


def fault_of_step(before: Tensor, after: Tensor) -> str | None:
    """Return what is wrong with the masses after a step, None if nothing."""
    if not bool((after >= 0).all() & after.sum().isfinite()):
        return (
            "cell masses left the non-negative finite numbers; take a smaller dt "
            "or use JKO"
        )
    kept, total = _sum(before), _sum(after)
    if abs(total - kept) > mass_tolerance(after.dtype):
        return (
            f"a step changed the mass from {kept:.9g} to {total:.9g}: nothing may "
            f"leave through a wall or an obstacle; stop the velocity there"
        )
    return None


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


def _sum(masses: Tensor) -> float:
    return float(masses.detach().sum(dtype=torch.float64))


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


def check_border(
    box: Box,
    weights: Tensor,
    is_free: Tensor,
    *,
    walls: bool,
    before: Tensor | None = None,
) -> None:
    """Warn (BoxWarning) of mass beside a border that stands for all space.

    It warns once along a flow: not if there was as much mass `before`.
    """
    if walls or not bool(is_free.all()):
        return
    share = _border_share(box, weights)
    if share > BORDER_SHARE and (
        before is None or _border_share(box, before) <= BORDER_SHARE
    ):
        msg = (
            f"{share:.2%} of the mass lies beside the border of the box {box.lower} to "
            f"{box.upper}: it is too small; enlarge it, or pass walls=True if the "
            f"border is a wall"
        )
        warn(msg, BoxWarning)


def _border_share(box: Box, weights: Tensor) -> float:
    """Return the mass of both outermost layers along an axis, the largest of all axes.

    A layer of one cell holds ever less mass as the grid is refined. So the layers of a
    fine grid are a share of the side.
    """
    mass = weights.detach().reshape(box.shape)
    shares = []
    for axis, n in enumerate(box.shape):
        wide = max(1, int(BORDER_WIDTH * n))
        along = mass.movedim(axis, 0).reshape(n, -1).sum(1)
        ends = (along,) if n == 1 else (along[:wide], along[-wide:].flip(0))
        layers = (min(end.sum(), REACHED * wide * end[0]) for end in ends)
        shares.append(float(sum(layers)))
    return max(shares)
