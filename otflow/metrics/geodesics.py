"""Geodesics of W2, and generalised ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from otflow._graphs import refuse_graph
from otflow._validation import real
from otflow.measures import Gaussian, GridDensity, Measure, Particles, Quantiles
from otflow.metrics.assignments import assignment
from otflow.metrics.gluing import glue
from otflow.metrics.grid_paths import (
    check_grids,
    check_unit_times,
    glued_pairs,
    grid_path,
    joined,
)
from otflow.metrics.inputs import Cloud, cloud
from otflow.metrics.kinds import (
    OnLine,
    check_gaussians,
    check_particles,
    in_plane,
    line_edges,
)
from otflow.metrics.plans import check_tolerance, couple, transport_plan
from otflow.metrics.steps import quantiles_of

__all__ = ["aligned_ends", "generalized_geodesic", "geodesic"]

Kind = TypeVar("Kind", Particles, Gaussian, Quantiles)
Times: TypeAlias = Sequence[float] | Tensor | np.ndarray[Any, Any]

BEYOND = (
    "beyond its ends a path may leave the box of a grid; take Particles(mu.points, "
    "mu.weights), whose straight lines are extended"
)


def aligned_ends(
    mu: Particles, nu: Particles, *, tolerance: float = 0.0
) -> tuple[Particles, Particles]:
    r"""Return :math:`\mu` and :math:`\nu` with atoms matched: index i goes to index i.

    For n equal weights on both sides `nu` is permuted. Otherwise both measures are
    split into the cells of an optimal plan. With ``a, b = aligned_ends(mu, nu)`` the
    tangent ``a.displacement_to(b)`` is the initial velocity of the geodesic, and its
    ``a.norm`` is W2.

    Parameters
    ----------
    mu, nu : Particles
        The ends.
    tolerance : float
        How far the squared length may lie above :math:`W_2^2`, as a share of it, in
        [0, 1). With 0 the plan is optimal. A tolerance saves time between many atoms.

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
    share = check_tolerance(tolerance)
    check_particles({"mu": mu, "nu": nu}, "aligned ends")
    if mu.is_uniform and nu.is_uniform and mu.n == nu.n and not share:
        return mu, Particles(nu.points[assignment(mu.points, nu.points)])
    plan = transport_plan(mu, nu, tolerance=share)
    ends = (mu.points[plan.rows], nu.points[plan.columns])
    a, b = (Particles(x, plan.masses, normalize=True) for x in ends)
    return a, b


@overload
def geodesic(mu: Kind, nu: Kind, t: float, *, tolerance: float = 0.0) -> Kind: ...
@overload
def geodesic(
    mu: Kind, nu: Kind, t: Times, *, tolerance: float = 0.0
) -> tuple[Kind, ...]: ...
@overload
def geodesic(
    mu: GridDensity, nu: GridDensity, t: float, *, tolerance: float = 0.0
) -> Any: ...
@overload
def geodesic(
    mu: GridDensity, nu: GridDensity, t: Times, *, tolerance: float = 0.0
) -> tuple[Any, ...]: ...
@overload
def geodesic(
    mu: OnLine, nu: OnLine, t: float, *, tolerance: float = 0.0
) -> Quantiles: ...
@overload
def geodesic(
    mu: OnLine, nu: OnLine, t: Times, *, tolerance: float = 0.0
) -> tuple[Quantiles, ...]: ...
def geodesic(mu: Any, nu: Any, t: Any, *, tolerance: float = 0.0) -> Any:
    r"""Return :math:`\mu_t = ((1-t)\,x + t\,y)_\# P`, P an optimal plan.

    The path :math:`\mu_t` is the geodesic of constant speed, :math:`W_2(\mu_s, \mu_t) =
    |t - s|\, W_2(\mu_0, \mu_1)`. Its action is :math:`\int_0^1 \|v_t\|^2 dt = W_2^2`
    :cite:p:`benamou2000computational`.

    On the line the quantile functions are averaged, :math:`Q_t = (1-t)\,Q_0 + t\,Q_1`.
    A mean of two step densities has its steps elsewhere, so the answer is `Quantiles`
    whose levels are those of both measures, also between two `GridDensity`. A cell too
    short for the dtype is joined to the next, so the ends may have fewer cells than the
    times between. Gaussians stay Gaussian: :math:`L_t = (1-t)\,L + t\,L'O`, O the
    rotation of the optimal map.

    A grid in the plane or in space is atoms at the centres of its cells, as in
    `wasserstein2`. Their geodesic is one of `Particles`, whose atoms lie between the
    centres. On a grid the answer is this measure remapped: along each axis an atom is
    shared linearly between the two nearest centres. The remap keeps the mass and the
    mean, and adds at most :math:`h_k^2/4` to the variance along axis k. So it is within
    :math:`\delta = \frac12(\sum_k h_k^2)^{1/2}` of the geodesic in :math:`W_2`, and
    :math:`|W_2(\mu_s, \mu_t) - |t - s|\,W_2(\mu, \nu)| \le 2\delta`. At the times 0
    and 1 it is the end itself. The corners of the box go along straight lines too:
    between a grid and its translate or its dilation the geodesic is exact.

    Parameters
    ----------
    mu, nu : Particles, Gaussian, Quantiles or GridDensity
        The ends, at times 0 and 1, of one kind; or two densities on the line.
    t : float, or sequence of float, or Tensor of shape (m,)
        Time, or times. Outside [0, 1] the straight lines are extended, and the path may
        no longer be a geodesic; on a grid in the plane or in space t lies in [0, 1].
    tolerance : float
        How far the squared length of the path may lie above :math:`W_2^2`, as a share
        of it, in [0, 1). With 0 the plan is optimal. It serves particles, and grids in
        the plane and in space; the others have a closed form. Between large grids the
        answer is then a bridge of Schroedinger: :math:`(1-t)X + tY` has a Gaussian
        noise of the variance :math:`2t(1-t)h^2` at most along an axis.

    Returns
    -------
    Measure, or tuple of Measure
        One for each time. For n equal weights on both sides n atoms, otherwise one atom
        for each cell of the plan. On the line `Quantiles` of fewer than n + m cells. A
        Gaussian on the nodes of `mu`. In the plane and in space a `GridDensity` that
        has, along each axis, as many cells as the end that has more.

    Raises
    ------
    Unsupported
        If a graph would be lost: that of a weight or of t. If a density on a grid has
        obstacles, or on the line vanishes between two parts of its mass.
    TypeError, ValueError
        If the ends are of different kinds, dtypes or dimensions. If quantiles cross,
        outside of [0, 1]. If a time is outside of [0, 1] on a grid in the plane.
    NotConverged
        As by `transport_plan`.
    Diverged
        If a covariance becomes singular, outside of [0, 1].

    See Also
    --------
    otflow.metrics.generalized_geodesic : Through the plans from a third measure.
    otflow.metrics.barycenter : The mean of several measures.

    Notes
    -----
    Cost: one assignment or one plan for all times; O(n log n) on the line, O(d^3)
    between Gaussians. Grids of 128 x 128 cells take some seconds; those of 512 x 512
    cells need a tolerance, and then the time of `wasserstein2_bounds`, a fraction of a
    second for each time, and O(n) memory.

    The points of the answer are differentiable in the points, edges, means and factors
    of both ends; on a grid in the plane in nothing. A Gaussian end may have a singular
    covariance: any optimal coupling gives a geodesic, and the one taken needs no
    inverse. Between lattices several plans may be optimal; one of them is taken. For
    the geodesic of the atoms of a grid, without the remap, take
    ``Particles(mu.points, mu.weights)``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> a = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> b = of.Particles(torch.tensor([[9.0], [5.0]]))
    >>> of.metrics.geodesic(a, b, 0.5).points.T
    tensor([[2.5000, 5.0000]])
    >>> p, q = of.Quantiles(torch.tensor([0.0, 1.0])), of.Quantiles(torch.arange(3.0))
    >>> [nu.edges for nu in of.metrics.geodesic(p, q, [0.0, 0.5])]
    [tensor([0.0000, 0.5000, 1.0000]), tensor([0.0000, 0.7500, 1.5000])]
    """
    times, one = _times(t)
    share = check_tolerance(tolerance)
    path: Sequence[Measure]
    if isinstance(mu, Gaussian) and isinstance(nu, Gaussian):
        check_gaussians({"mu": mu, "nu": nu})
        move = mu.displacement_to(nu)
        path = [_along(mu, move, time) for time in times]
    elif in_plane(mu) and in_plane(nu):
        check_unit_times(times, BEYOND)
        check_grids({"mu": mu, "nu": nu})
        path = grid_path(mu, nu, joined(mu, nu, share), times)
    elif isinstance(mu, OnLine) and isinstance(nu, OnLine):
        (p, q), masses = line_edges([mu, nu], ["mu", "nu"])
        path = [_ordered(p + time * (q - p), masses, mu.points, time) for time in times]
    else:
        start, end = aligned_ends(mu, nu, tolerance=share)
        tangent = start.displacement_to(end)
        path = [start.push(tangent, time) for time in times]
    return path[0] if one else tuple(path)


@overload
def generalized_geodesic(base: Kind, mu: Kind, nu: Kind, t: float) -> Kind: ...
@overload
def generalized_geodesic(
    base: Kind, mu: Kind, nu: Kind, t: Times
) -> tuple[Kind, ...]: ...
@overload
def generalized_geodesic(
    base: GridDensity, mu: GridDensity, nu: GridDensity, t: float
) -> Any: ...
@overload
def generalized_geodesic(
    base: GridDensity, mu: GridDensity, nu: GridDensity, t: Times
) -> tuple[Any, ...]: ...
@overload
def generalized_geodesic(
    base: OnLine, mu: OnLine, nu: OnLine, t: float
) -> Quantiles: ...
@overload
def generalized_geodesic(
    base: OnLine, mu: OnLine, nu: OnLine, t: Times
) -> tuple[Quantiles, ...]: ...
def generalized_geodesic(base: Any, mu: Any, nu: Any, t: Any) -> Any:
    r"""Return :math:`\mu_t = ((1-t)\,y + t\,z)_\# \Gamma`, optimal from the base.

    :math:`\Gamma` couples the base :math:`\sigma` with both ends. Its projections on
    :math:`(\sigma, \mu)` and :math:`(\sigma, \nu)` are optimal plans: Definition 9.2.2
    of :cite:p:`ambrosio2008gradient`. If the plans are maps, :math:`\mu_t =
    ((1-t)\,T_\sigma^\mu + t\,T_\sigma^\nu)_\#\,\sigma`. Along this path
    :math:`W_2^2(\sigma, \cdot)` is convex,

    .. math:: W_2^2(\sigma, \mu_t) \le (1-t)\,W_2^2(\sigma, \mu) +
        t\,W_2^2(\sigma, \nu) - t(1-t)\,W_2^2(\mu, \nu),

    which fails on geodesics in dimension 2 and above. On the line both paths are equal.

    Parameters
    ----------
    base : Particles, Gaussian, Quantiles or GridDensity
        The measure :math:`\sigma`.
    mu, nu : Particles, Gaussian, Quantiles or GridDensity
        The ends, at times 0 and 1, of the kind of the base.
    t : float, or sequence of float, or Tensor of shape (m,)
        Time, or times, in [0, 1].

    Returns
    -------
    Measure, or tuple of Measure
        One for each time. For n equal weights everywhere n atoms, otherwise one atom
        for each cell of the glued plans. On the line the `geodesic`. On a grid in the
        plane or in space the remap of these atoms, as by `geodesic`.

    Raises
    ------
    ValueError
        If a time is outside of [0, 1], or dimensions differ.
    Unsupported, TypeError
        As by `geodesic`.

    Notes
    -----
    Cost: that of two geodesics. Where an optimal plan splits an atom of the base, the
    parts are coupled in the order of the indices; any other choice is allowed too.

    Examples
    --------
    >>> import torch, otflow as of
    >>> base = of.Particles(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    >>> mu = of.Particles(torch.tensor([[0.0, 1.0], [4.0, 1.0]]))
    >>> nu = of.Particles(torch.tensor([[4.0, 3.0], [0.0, 3.0]]))
    >>> of.metrics.generalized_geodesic(base, mu, nu, 0.5).points
    tensor([[0., 2.],
            [4., 2.]])
    """
    times, one = _times(t)
    check_unit_times(times, "there the plans are known")
    named = {"base": base, "mu": mu, "nu": nu}
    if all(map(in_plane, named.values())):
        check_grids(named)
        found = grid_path(mu, nu, glued_pairs(base, mu, nu), times)
        return found[0] if one else tuple(found)
    if isinstance(base, OnLine) and not in_plane(base):
        line_edges([base, mu, nu], ["base", "mu", "nu"])
        return geodesic(mu, nu, t)
    if isinstance(base, Gaussian):
        check_gaussians(named)
        first, second = base.displacement_to(mu), base.displacement_to(nu)
        moves = [torch.lerp(first, second, time) for time in times]
        turned = [base.with_free_state(base.state + move) for move in moves]
        return turned[0] if one else tuple(turned)
    check_particles(named, "a generalised geodesic")
    x, *others = (cloud(measure, name) for name, measure in named.items())
    at, (y, z) = _flat(x), [_flat(other) for other in others]
    plans = [couple(at, x.masses, y, others[0].masses)]
    plans.append(couple(at, x.masses, z, others[1].masses))
    _, columns, masses = glue(plans)
    start, end = (m.points[c] for m, c in zip((mu, nu), columns, strict=True))
    uniform = base.n == mu.n == nu.n and all(m.is_uniform for m in named.values())
    weights = None if uniform else masses.to(start)
    path = [
        Particles(torch.lerp(start, end, time), weights, normalize=not uniform)
        for time in times
    ]
    return path[0] if one else tuple(path)


def _flat(x: Cloud) -> Tensor:
    """Return points as float64 on the CPU, without a graph."""
    return x.points.detach().to("cpu", torch.float64)


def _times(t: Any) -> tuple[list[float], bool]:
    """Return times as numbers, and whether one number was given."""
    if isinstance(t, Tensor):
        refuse_graph(
            "a geodesic",
            "times become numbers",
            t,
            cure="t.detach(), or start.push(t * start.displacement_to(end), 1.0) with "
            "start, end = aligned_ends(mu, nu)",
        )
    if isinstance(t, (Tensor, np.ndarray)):
        if t.ndim > 1:
            msg = f"t must have one axis, got shape {tuple(t.shape)}; use t.reshape(-1)"
            raise ValueError(msg)
        t = t.tolist()
    if isinstance(t, Sequence) and not isinstance(t, str):
        return [real(time, "t") for time in t], False
    return [real(t, "t")], True


def _along(mu: Gaussian, tangent: Tensor, time: float) -> Gaussian:
    """Return the Gaussian at a time; at the ends a covariance may be singular."""
    if 0 <= time <= 1:
        return mu.with_free_state(torch.add(mu.state, tangent, alpha=time))
    return mu.push(tangent, time)


def _ordered(edges: Tensor, masses: Tensor, like: Tensor, time: float) -> Quantiles:
    """Return the quantiles at a time; raise ValueError if they cross."""
    if not 0 <= time <= 1 and bool((edges.detach().diff() <= 0).any()):
        msg = f"quantiles cross at the time {time:g}; take t in [0, 1]"
        raise ValueError(msg)
    return quantiles_of(edges, masses, like)
