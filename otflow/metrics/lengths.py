"""Length and action of a path of measures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from otflow._validation import real, shown
from otflow.metrics.distances import Distant, wasserstein2, wasserstein2_squared

__all__ = ["action", "clock", "length"]


def length(path: Iterable[Distant], *, tolerance: float = 0.0) -> Tensor:
    r"""Return :math:`\sum_k W_2(\mu_k, \mu_{k+1})`, the length of a path of measures.

    For a fine path it approximates :math:`\int \|v_t\| dt`. It is at least the distance
    between the ends, and does not depend on the speed.

    Parameters
    ----------
    path : iterable of Particles, Tensor or ndarray; or of densities of one kind
        Two measures or more.
    tolerance : float
        That of each distance, see `wasserstein2`; for large grids.

    Returns
    -------
    Tensor
        0-d; differentiable.

    Notes
    -----
    Along a `geodesic` between grids in the plane each distance has the error of the
    remap, up to a diagonal of a cell. Steps much longer than a cell keep it small.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.length([torch.tensor([[z]]) for z in (0.0, 1.0, 0.5)])
    tensor(1.5000)
    """
    path = _checked(path)
    parts = [wasserstein2(mu, nu, tolerance=tolerance) for mu, nu in pairwise(path)]
    return torch.stack(parts).sum()


def action(
    path: Iterable[Distant],
    times: Iterable[float] | None = None,
    *,
    tolerance: float = 0.0,
) -> Tensor:
    r"""Return :math:`\sum_k W_2^2(\mu_k, \mu_{k+1}) / (t_{k+1} - t_k)`.

    For a fine path it approximates :math:`\int \|v_t\|^2 dt`
    :cite:p:`benamou2000computational`. Over [0, 1] the action is at least the square of
    the `length`, with equality at constant speed, and at least :math:`W_2^2` between
    the ends, with equality on the geodesic.

    Parameters
    ----------
    path : iterable of Particles, Tensor or ndarray; or of densities of one kind
        Two measures or more.
    times : iterable of float, optional
        Increasing times, one for each measure; by default evenly spread over [0, 1].
    tolerance : float
        That of each squared distance, see `wasserstein2_squared`; for large grids.

    Returns
    -------
    Tensor
        0-d; differentiable.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.action([torch.tensor([[z]]) for z in (0.0, 1.0, 0.5)])
    tensor(2.5000)
    """
    path = _checked(path)
    instants = clock(times, len(path))
    parts = [
        wasserstein2_squared(mu, nu, tolerance=tolerance) / (end - start)
        for (mu, nu), (start, end) in zip(
            pairwise(path), pairwise(instants), strict=True
        )
    ]
    return torch.stack(parts).sum()


def clock(times: Iterable[float] | None, count: int) -> list[float]:
    """Return increasing times, one for each measure; by default even in [0, 1]."""
    if times is None:
        return [k / (count - 1) for k in range(count)]
    if isinstance(times, (Tensor, np.ndarray)):
        times = times.tolist()
    if isinstance(times, str) or not isinstance(times, Iterable):
        msg = f"times must be numbers, one per measure, got {shown(times)}"
        raise TypeError(msg)
    instants = [real(t, "times") for t in times]
    if len(instants) != count:
        msg = f"times must be one per measure, {count} of them, got {len(instants)}"
        raise ValueError(msg)
    for start, end in pairwise(instants):
        if end <= start:
            msg = f"times must increase, got {start:g} and then {end:g}"
            raise ValueError(msg)
    return instants


def _checked(path: Iterable[Distant]) -> list[Distant]:
    if isinstance(path, str) or not isinstance(path, Iterable):
        msg = f"a path must be a sequence of measures, got {shown(path)}"
        raise TypeError(msg)
    measures = list(path)
    if len(measures) < 2:
        msg = f"a path has two measures or more, got {len(measures)}"
        raise ValueError(msg)
    return measures
