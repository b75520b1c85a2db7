"""Densities: curves on the line, pictures in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otflow.errors import Unsupported
from otflow.measures import Gaussian, GridDensity, Measure, Quantiles
from otflow.plotting.canvas import (
    Array,
    array,
    check_kind,
    coordinates,
    draw_curve,
    label_plane,
    new_axes,
    next_color,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curve", "density", "draw_picture", "picture"]

# Zero is light and high densities are dark, on paper too; obstacles are grey.
COLORMAP, OBSTACLE = "YlGnBu", "0.55"


def density(
    mu: Measure,
    *,
    axes: Sequence[int] | None = None,
    maximum: float | None = None,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a density: a curve on the line, a picture in the plane.

    A density that is constant on cells is drawn as steps, whose area is the mass. A
    Gaussian is drawn as a bell, or as ellipses at 1 and 2 standard deviations.
    Obstacles are grey.

    Parameters
    ----------
    mu : GridDensity, Quantiles or Gaussian
        The measure to draw.
    axes : sequence of int, optional
        One or two coordinates to draw, counted from 0; the figure then shows a
        marginal. Needed in more than two dimensions.
    maximum : float, optional
        Density of the darkest colour in the plane; by default the largest density.
    label, color : str, optional
        Name for ``ax.legend()``, and colour of a curve; by default the next colour of
        the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    Unsupported
        If the measure has no density: draw it with `particles`.
    ValueError
        If `axes` is missing in more than two dimensions, or out of range.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.GridDensity.from_function(
    ...     lambda x: torch.exp(-x.square().sum(-1)), lower=-3, upper=3, shape=(30, 30)
    ... )
    >>> of.plotting.density(mu).get_xlabel()
    'x[0]'
    """
    check_kind(mu, Measure, "mu", "of a trajectory, take final or a snapshot")
    shown = coordinates(mu, axes)
    ax = new_axes(ax)
    if isinstance(mu, GridDensity) and len(shown) == 2:
        draw_picture(mu, shown, ax, picture(mu, shown), maximum)
        label_plane(ax, shown)
        return ax
    color = color or next_color(ax)
    if isinstance(mu, Gaussian) and len(shown) == 2:
        for deviations, name in ((1, label), (2, None)):
            x, y = _ellipse(mu, shown, deviations)
            ax.plot(x, y, color=color, label=name, alpha=1 / deviations)
        label_plane(ax, shown)
        return ax
    draw_curve(ax, shown[0], *curve(mu, shown[0]), color=color, label=label)
    return ax


def curve(mu: Measure, axis: int) -> tuple[Array, Array]:
    """Return the marginal along an axis: edges and heights of steps, or a bell."""
    if isinstance(mu, GridDensity):
        edges = np.linspace(mu.box.lower[axis], mu.box.upper[axis], mu.shape[axis] + 1)
        return edges, _marginal(mu, [axis])
    if isinstance(mu, Quantiles):
        return array(mu.edges), array(mu.density())
    if isinstance(mu, Gaussian):
        return _bell(mu, axis)
    msg = (
        f"{type(mu).__name__} has no density to draw; draw it as points with "
        f"plotting.particles"
    )
    raise Unsupported(msg)


def picture(mu: GridDensity, shown: Sequence[int]) -> Array:
    """Return the density, or a marginal, as an image: rows go up, columns right."""
    rho = _marginal(mu, shown)
    return rho.T if shown[0] < shown[1] else rho


def draw_picture(
    mu: GridDensity,
    shown: Sequence[int],
    ax: Axes,
    values: Array,
    maximum: float | None,
) -> Any:
    """Draw an image of `picture` in the box of the measure, and return the artist."""
    a, b = shown
    lower, upper = mu.box.lower, mu.box.upper
    extent = (lower[a], upper[a], lower[b], upper[b])
    style: dict[str, Any] = {
        "origin": "lower",
        "extent": extent,
        "interpolation": "nearest",
        "vmin": 0.0,
    }
    darkest = maximum or max(float(values.max()), np.finfo(float).tiny)
    image = ax.imshow(values, cmap=COLORMAP, vmax=darkest, **style)
    if mu.dim == 2 and not bool(mu.is_free.all()):
        blocked = ~mu.is_free.cpu().numpy().reshape(mu.shape)
        blocked = blocked.T if a < b else blocked
        shade = np.ma.masked_where(~blocked, np.ones(blocked.shape))
        ax.imshow(shade, cmap="gray", vmax=1.8, **style)
    return image


def _marginal(mu: GridDensity, shown: Sequence[int]) -> Array:
    """Integrate the density over the axes that are not shown."""
    hidden = tuple(k for k in range(mu.dim) if k not in shown)
    depth = float(np.prod([mu.box.spacing[k] for k in hidden]))
    marginal: Array = array(mu.grid).sum(axis=hidden) * depth
    return marginal


def _bell(mu: Gaussian, axis: int) -> tuple[Array, Array]:
    """Return points within 4 standard deviations and the marginal density there."""
    mean = float(mu.mean[axis])
    sigma = float(mu.covariance[axis, axis]) ** 0.5
    z = np.linspace(-4, 4, 201)
    return mean + sigma * z, np.exp(-0.5 * z**2) / (sigma * np.sqrt(2 * np.pi))


def _ellipse(mu: Gaussian, shown: Sequence[int], deviations: float) -> tuple[Any, Any]:
    """Return the ellipse at `deviations` standard deviations from the mean."""
    block = array(mu.covariance)[np.ix_(shown, shown)]
    angle = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    x, y = deviations * np.linalg.cholesky(block) @ circle
    centre = array(mu.mean)[list(shown)]
    return centre[0] + x, centre[1] + y
