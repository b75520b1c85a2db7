"""Densities on a grid from pictures and from samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._graphs import refuse_graph
from otflow._typing import ArrayLike, Ground
from otflow._validation import check_tensor
from otflow.measures.grid.box import Box

__all__ = ["brightness", "counts", "drawn", "frame", "resampled", "values_at_centres"]

# Luminance of linear red, green and blue (ITU-R BT.709).
LUMINANCE = (0.2126, 0.7152, 0.0722)


def brightness(image: Any, *, invert: bool, dtype: torch.dtype, device: Any) -> Tensor:
    """Return the brightness of a picture in [0, 1], x to the right and y up.

    Parameters
    ----------
    image : ndarray or Tensor
        (H, W) grey, (H, W, 3) colours or (H, W, 4) colours and opacity, the first row
        on top; uint8 in 0..255, bool, or floating point, non-negative.
    invert : bool
        Whether the dark parts hold the mass: 1 minus the brightness.
    dtype, device
        Of the result.

    Returns
    -------
    Tensor, shape (W, H)
        Entry (i, j) is column i, counted from the left, and row j, from the bottom. A
        transparent pixel counts 0.

    Raises
    ------
    TypeError
        If the image is no array, or its dtype is none of the above.
    ValueError
        If its shape is none of the above, or an entry is negative or not finite, or
        above 1 under `invert` or with an opacity.
    """
    if not isinstance(image, (np.ndarray, Tensor)):
        msg = (
            f"image must be an array, got {type(image).__name__}; read a file first, "
            f"e.g. matplotlib.image.imread(path), or numpy.asarray(image)"
        )
        raise TypeError(msg)
    shape = tuple(image.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (3, 4)):
        msg = (
            f"image must have shape (H, W), (H, W, 3) or (H, W, 4), got {shape}; drop "
            f"other axes, or move the colours to the last axis"
        )
        raise ValueError(msg)
    if min(shape[:2]) < 2:
        msg = f"image must be at least 2 pixels high and wide, got shape {shape}"
        raise ValueError(msg)
    if isinstance(image, Tensor):
        refuse_graph(
            "a picture",
            "it is read through numpy",
            image,
            cure="GridDensity(density, lower, upper, normalize=True), which keeps it",
        )
        array = image.detach().cpu().numpy()
    else:
        array = image
    if array.dtype == np.uint8:
        values = array / 255.0
    elif array.dtype.kind in "bf":
        values = np.asarray(array, dtype=np.float64)
    else:
        msg = (
            f"image must be uint8 (0 to 255), bool or floating point, got "
            f"{array.dtype}; convert it, e.g. image / image.max()"
        )
        raise TypeError(msg)
    if not np.isfinite(values).all() or values.min() < 0:
        what = "finite" if not np.isfinite(values).all() else "non-negative"
        msg = f"image must be {what} everywhere; mend or clip it first"
        raise ValueError(msg)
    if values.ndim == 3 and (invert or values.shape[2] == 4) and values.max() > 1:
        _refuse_above_one(values)
    opacity = values[..., 3] if values.ndim == 3 and values.shape[2] == 4 else 1.0
    grey = values[..., :3] @ np.array(LUMINANCE) if values.ndim == 3 else values
    if invert:
        if grey.max() > 1 + 1e-12:
            _refuse_above_one(grey)
        # The luminance weights sum to 1 up to round-off, so white may be above 1.
        grey = np.clip(1.0 - grey, 0.0, None)
    upright = np.ascontiguousarray((grey * opacity)[::-1].T)
    return torch.from_numpy(upright).to(dtype=dtype, device=device)


def _refuse_above_one(values: np.ndarray) -> None:
    msg = (
        f"image must lie in [0, 1] for invert or an opacity, got {values.max():.6g}; "
        f"divide it by its maximum"
    )
    raise ValueError(msg)


def frame(picture: Tensor, lower: Any, upper: Any, shape: Any) -> Box:
    """Return the box of a picture (W, H): by default 1 wide, with a cell a pixel."""
    if lower is None and upper is None:
        width, height = picture.shape
        lower, upper = 0.0, (1.0, height / width)
    return Box.of(lower, upper, tuple(picture.shape) if shape is None else shape)


def resampled(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return averages over the cells of another grid on the same box; integral kept.

    Parameters
    ----------
    values : Tensor, shape (m_1, ..., m_d)
        One value a cell.
    shape : tuple of int
        Number of cells along each axis of the new grid.

    Returns
    -------
    Tensor, shape (n_1, ..., n_d)
        The average of the piecewise constant function over each new cell.
    """
    for axis, n in enumerate(shape):
        m = values.shape[axis]
        if m == n:
            continue
        old = torch.arange(m + 1, dtype=torch.float64) / m
        new = torch.arange(n + 1, dtype=torch.float64) / n
        top = torch.minimum(old[1:], new[1:, None])
        bottom = torch.maximum(old[:-1], new[:-1, None])
        overlap = (n * (top - bottom).clamp_min(0)).to(values)  # of n new with m old
        values = torch.tensordot(overlap, values, dims=([1], [axis])).movedim(0, axis)
    return values


def counts(box: Box, points: ArrayLike) -> Tensor:
    """Return the share of the points in each cell.

    Parameters
    ----------
    box : Box
        The grid.
    points : Tensor or ndarray, shape (m, d)
        Points; none may be outside.

    Returns
    -------
    Tensor, shape (n_1, ..., n_d)
        Masses of sum 1.
    """
    x = as_points(points)
    refuse_graph(
        "a histogram",
        "counts have no derivative in the points",
        x,
        cure="points.detach()",
    )
    if x.shape[1] != box.dim:
        msg = f"points must have shape (m, {box.dim}), got {tuple(x.shape)}"
        raise ValueError(msg)
    index = box.cell_of(x)
    shares = torch.bincount(index, minlength=box.n).to(x.dtype) / len(x)
    return shares.reshape(box.shape)


def values_at_centres(f: Ground, box: Box, like: Tensor) -> Tensor:
    """Return f at the centres of the cells as an array, of dtype and device `like`."""
    values = f(box.centres(like))
    check_tensor(values, "f")
    if values.shape != (box.n,):
        msg = (
            f"f must map the centres (n, d) = ({box.n}, {box.dim}) to ({box.n},), got "
            f"{tuple(values.shape)}; reduce over the last axis, e.g. .sum(-1)"
        )
        raise ValueError(msg)
    return values.reshape(box.shape)


def drawn(
    box: Box, centres: Tensor, weights: Tensor, n: int, generator: torch.Generator
) -> Tensor:
    """Return n points (n, d), each uniform in a cell that is drawn by its mass."""
    uniform = centres.new_empty(n, box.dim + 1).uniform_(generator=generator)
    sums = weights.cumsum(0)
    cell = torch.searchsorted(sums, uniform[:, 0] * sums[-1], right=True)
    # A draw of the very total, by rounding, belongs to the last cell with mass.
    cell = cell.clamp_max(int((weights > 0).nonzero()[-1]))
    return centres[cell] + (uniform[:, 1:] - 0.5) * uniform.new_tensor(box.spacing)
