"""Recorded numbers against time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from otflow._validation import real
from otflow.plotting.canvas import array, check_trajectory, new_axes
from otflow.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["energy"]


def energy(
    trajectory: Trajectory[Any],
    *,
    record: str = "energy",
    minimum: float = 0.0,
    log: bool = False,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a recorded number against time, the energy by default.

    Parameters
    ----------
    trajectory : Trajectory
        What `otflow.flow` returned.
    record : str
        Name of the record to draw.
    minimum : float
        Number to subtract from the record. With the least value a logarithmic axis
        shows the rate of convergence.
    log : bool
        Whether the vertical axis is logarithmic.
    label, color : str, optional
        Name for ``ax.legend()``, and colour; by default the next colour of the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the curve is the last of ``ax.lines``.

    Raises
    ------
    ValueError
        If there is no such record, if it does not hold one number for each time, or if
        it is not positive and the axis is logarithmic.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 2))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=9)
    >>> ax = of.plotting.energy(run, log=True)
    >>> ax.get_xlabel(), ax.get_yscale()
    ('time', 'log')
    """
    check_trajectory(trajectory)
    if record not in trajectory.records:
        msg = f"no record {record!r}; there are {sorted(trajectory.records)}"
        raise ValueError(msg)
    values = array(trajectory.records[record])
    if values.ndim != 1:
        msg = f"record {record!r} has shape {values.shape}: not one number a time"
        raise ValueError(msg)
    minimum = real(minimum, "minimum")
    values = values - minimum
    if log and not bool((values > 0).all()):
        k = int(np.argmax(~(values > 0)))
        msg = (
            f"log=True needs a positive record, but {record} - {minimum:g} is "
            f"{values[k]:.3g} at time {trajectory.times[k]:g}; pass a smaller minimum"
        )
        raise ValueError(msg)
    ax = new_axes(ax)
    ax.plot(array(trajectory.times), values, label=label, color=color)
    ax.set_xlabel("time")
    ax.set_ylabel(f"{record} - {minimum:g}" if minimum else record)
    if log:
        ax.set_yscale("log")
    return ax
