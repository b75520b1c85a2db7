"""Geodesics of W2 between particles; length and action of a path of measures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._validation import real
from otflow.measures import Particles
from otflow.metrics.assignments import assignment
from otflow.metrics.distances import Distant, wasserstein2, wasserstein2_squared
from otflow.metrics.plans import transport_plan

__all__ = ["action", "aligned_ends", "geodesic", "length"]


def aligned_ends(mu: Particles, nu: Particles) -> tuple[Particles, Particles]:
    r"""Return :math:`\mu` and :math:`\nu` with atoms matched: index i goes to index i.

    For n equal weights on both sides `nu` is permuted. Otherwise both measures are
    split into the cells of an optimal plan. With ``a, b = aligned_ends(mu, nu)`` the
    tangent ``a.displacement_to(b)`` is the initial velocity of the geodesic, and its
    ``a.norm`` is W2.

    Parameters
    ----------
    mu, nu : Particles
        The ends.

    Returns
    -------
    tuple of Particles
        The same measures, of equal size and weights.

    Raises
    ------
    Unsupported
        If weights carry a graph: the masses of the plan have no derivative here.
    TypeError
        If a measure is not `Particles`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> a = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> b = of.Particles(torch.tensor([[9.0], [5.0]]))
    >>> of.metrics.aligned_ends(a, b)[1].points.T
    tensor([[5., 9.]])
    """
    for name, measure in (("mu", mu), ("nu", nu)):
        if not isinstance(measure, Particles):
            msg = f"{name} must be Particles, got {type(measure).__name__}"
            raise TypeError(msg)
    refuse_graph(
        "aligned ends",
        "the masses of an optimal plan have no derivative here",
        mu.weights,
        nu.weights,
        cure="Particles(mu.points, mu.weights.detach())",
    )
    if mu.is_uniform and nu.is_uniform and mu.n == nu.n:
        return mu, Particles(nu.points[assignment(mu.points, nu.points)])
    plan = transport_plan(mu, nu)
    ends = (mu.points[plan.rows], nu.points[plan.columns])
    a, b = (Particles(x, plan.masses, normalize=True) for x in ends)
    return a, b


def geodesic(mu: Particles, nu: Particles, t: float) -> Particles:
    r"""Return :math:`\mu_t = ((1-t)\,x + t\,y)_\# P`, P an optimal plan.

    The path :math:`\mu_t` is the geodesic of constant speed, :math:`W_2(\mu_s, \mu_t) =
    |t - s|\, W_2(\mu_0, \mu_1)`. Its action is :math:`\int_0^1 \|v_t\|^2 dt = W_2^2`
    :cite:p:`benamou2000computational`.

    Parameters
    ----------
    mu, nu : Particles
        The ends, at times 0 and 1.
    t : float
        Time. Outside [0, 1] the straight lines are extended, and the path may no longer
        be a geodesic.

    Returns
    -------
    Particles
        For n equal weights on both sides n atoms, otherwise one atom for each cell of
        the plan.

    Notes
    -----
    Cost: one assignment or one plan. For many times call `aligned_ends` once and push.

    Examples
    --------
    >>> import torch, otflow as of
    >>> a = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> b = of.Particles(torch.tensor([[9.0], [5.0]]))
    >>> of.metrics.geodesic(a, b, 0.5).points.T
    tensor([[2.5000, 5.0000]])
    """
    t = real(t, "t")
    start, end = aligned_ends(mu, nu)
    return start.push(start.displacement_to(end), t)


def length(path: Sequence[Distant]) -> Tensor:
    r"""Return :math:`\sum_k W_2(\mu_k, \mu_{k+1})`, the length of a path of measures.

    For a fine path it approximates :math:`\int \|v_t\| dt`. It is at least the distance
    between the ends, and does not depend on the speed.

    Parameters
    ----------
    path : sequence of Particles, Tensor or ndarray; or of densities of one kind
        Two measures or more.

    Returns
    -------
    Tensor
        0-d; differentiable.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.metrics.length([torch.tensor([[z]]) for z in (0.0, 1.0, 0.5)])
    tensor(1.5000)
    """
    _check_path(path)
    return torch.stack([wasserstein2(mu, nu) for mu, nu in pairwise(path)]).sum()


def action(path: Sequence[Distant], times: Iterable[float] | None = None) -> Tensor:
    r"""Return :math:`\sum_k W_2^2(\mu_k, \mu_{k+1}) / (t_{k+1} - t_k)`.

    For a fine path it approximates :math:`\int \|v_t\|^2 dt`
    :cite:p:`benamou2000computational`. Over [0, 1] the action is at least the square of
    the `length`, with equality at constant speed, and at least :math:`W_2^2` between
    the ends, with equality on the geodesic.

    Parameters
    ----------
    path : sequence of Particles, Tensor or ndarray; or of densities of one kind
        Two measures or more.
    times : iterable of float, optional
        Increasing times, one for each measure; by default evenly spread over [0, 1].

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
    _check_path(path)
    count = len(path)
    clock = range(count) if times is None else times
    unit = count - 1 if times is None else 1
    instants = [real(float(t) / unit, "times") for t in clock]
    if len(instants) != count:
        msg = f"times must be one per measure, {count} of them, got {len(instants)}"
        raise ValueError(msg)
    parts = []
    for (mu, nu), (start, end) in zip(pairwise(path), pairwise(instants), strict=True):
        if end <= start:
            msg = f"times must increase, got {start:g} and then {end:g}"
            raise ValueError(msg)
        parts.append(wasserstein2_squared(mu, nu) / (end - start))
    return torch.stack(parts).sum()


def _check_path(path: Sequence[Distant]) -> None:
    if len(path) < 2:
        msg = f"a path has two measures or more, got {len(path)}"
        raise ValueError(msg)
