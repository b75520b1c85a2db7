"""Two-sided bounds on a JKO step between densities that are constant on cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.measures.grid.box import Box
from otflow.proximal.grid.c_transform import c_transform
from otflow.proximal.grid.pressure import PressureProblem

__all__ = ["below_bound", "cell_extremes", "cell_means", "dual_value"]

# The share of the largest mass of a cell below which a cell is empty.
DUST = 1e-9


def below_bound(masses: Tensor, room: Tensor, bound: float) -> tuple[Tensor, float]:
    """Return masses below a bound on the density, and how much mass that moved.

    What exceeds the bound goes to the cells that hold mass already, in proportion to
    what is left in them, and to other free cells only if these are full.

    Parameters
    ----------
    masses : Tensor, shape (n,)
        Masses of the cells.
    room : Tensor, shape (n,)
        Free volume of the cells.
    bound : float
        The bound, possibly infinite.
    """
    if math.isinf(bound):
        return masses, 0.0
    most = bound * room
    kept = torch.minimum(masses, most)
    excess = float((masses - kept).sum())
    for allowed in (masses > 0, room > 0):
        left = torch.where(allowed, most - kept, 0.0)
        total = float(left.sum())
        if total > 0:
            share = min(excess, total)
            kept = kept + left * (share / total)
            excess -= share
    return torch.minimum(kept, most), float((masses - kept).clamp_min(0).sum())


def dual_value(
    problem: PressureProblem, pressure: Tensor, masses: Tensor
) -> tuple[float | None, float]:
    r"""Return a lower bound of :math:`\int V d\nu + \int U(\nu) + W_2^2/(2\,dt)`.

    It holds for all densities that are constant on cells. With the potentials
    :math:`\psi = \phi^c` of nodes, :math:`\psi - |x|^2/(2\,dt)` and :math:`\phi -
    |y|^2/(2\,dt)` interpolated linearly along each axis satisfy :math:`\psi(x) +
    \phi(y) \le |x - y|^2/(2\,dt)` everywhere, since :math:`x \cdot y` is linear in
    each; and their means over cells are in closed form. The additive constant is the
    best one. Between a density and itself the bound is too low by
    :math:`\sum_a h_a^2/(6\,dt)`.

    For all densities :math:`U^*` has to be integrated over cells, where the bound above
    takes it at the mean :math:`\bar s` of its argument. It is convex, so its mean is at
    most that of the chord over the values of the argument in the cell.

    Parameters
    ----------
    problem : PressureProblem
        The step.
    pressure : Tensor, shape (n,)
        Any pressure.
    masses : Tensor, shape (n,)
        The new masses, or nearly: far from them the pressure is taken a little lower,
        which costs nothing and keeps :math:`U^*` zero there.

    Returns
    -------
    dual : float or None
        The bound; None if :math:`U^*` is infinite there.
    unseen : float
        By how much it can be lower for all densities; infinite where U is known by its
        sum over cells only.
    """
    box, dt, room = problem.box, problem.dt, problem.room
    is_free = room > 0
    unit = sum(h * h for h in box.spacing) / dt
    pressure = pressure - unit / 4 * _far_from(masses.reshape(box.shape)).reshape(-1)
    phi, wide = _with_border(problem, -problem.V - pressure)
    psi = c_transform(phi.reshape(-1), wide, dt)[0].reshape(phi.shape)
    gain = float(problem.masses @ (cell_means(psi).reshape(-1) - unit / 12))
    mean = torch.where(is_free, cell_means(phi).reshape(-1) - unit / 12, 0.0)
    s = torch.where(is_free, -mean - problem.V, 0.0)
    V, _ = _with_border(problem, problem.V)
    low, high = (x.reshape(-1) for x in cell_extremes(-phi - V))
    try:
        # The best constant makes the mass 1; the bound is concave in it, and any holds.
        shift = problem.constant(s)
        at = problem.internal.conjugate((s - shift)[is_free])
        loss = float(room[is_free] @ at)
        dual = gain - shift * float(problem.masses.sum()) - loss
        if not math.isfinite(dual):
            return None, math.inf
        if problem.is_summed:
            return dual, math.inf
        ends = (torch.minimum(low, s), torch.maximum(high + unit / 8, s))
        below, above = (problem.internal.conjugate((x - shift)[is_free]) for x in ends)
    except NonFinite:
        return None, math.inf
    width = (ends[1] - ends[0])[is_free]
    share = (s - ends[0])[is_free] / torch.where(width > 0, width, 1.0)
    chord = below + share * (above - below) - at
    return dual, max(float(room[is_free] @ chord), 0.0)


def _far_from(masses: Tensor) -> Tensor:
    """Return 1 where neither a cell nor any beside it holds mass, else 0."""
    near = (masses > DUST * masses.max()).to(masses.dtype)
    for axis in range(masses.ndim):
        near = _spread(near, axis)
    return (near == 0).to(masses.dtype)


def _with_border(problem: PressureProblem, f: Tensor) -> tuple[Tensor, Box]:
    """Return a function of cells with one more cell around, and beside obstacles."""
    box = problem.box
    is_free = (problem.room > 0).reshape(box.shape)
    phi = torch.where(is_free, f.reshape(box.shape), 0.0)
    if not bool(is_free.all()):
        total, count = phi, is_free.to(phi.dtype)
        for axis in range(box.dim):
            total, count = _spread(total, axis), _spread(count, axis)
        near = total / count.clamp_min(1)
        phi = torch.where(is_free, phi, torch.where(count > 0, near, -math.inf))
    for axis, n in enumerate(box.shape):
        inner = min(1, n - 1)  # an axis of one cell goes on constant
        first, second = phi.narrow(axis, 0, 1), phi.narrow(axis, inner, 1)
        last, other = phi.narrow(axis, n - 1, 1), phi.narrow(axis, n - 1 - inner, 1)
        low = torch.where(torch.isfinite(second), 2 * first - second, first)
        high = torch.where(torch.isfinite(other), 2 * last - other, last)
        phi = torch.cat([low, phi, high], axis)
    return phi, Box(
        tuple(a - h for a, h in zip(box.lower, box.spacing, strict=True)),
        tuple(b + h for b, h in zip(box.upper, box.spacing, strict=True)),
        tuple(n + 2 for n in box.shape),
    )


def _spread(x: Tensor, axis: int) -> Tensor:
    """Return the sum of each entry and its two neighbours along an axis."""
    n = x.shape[axis]
    out = x.clone()
    out.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1))
    out.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1))
    return out


def cell_means(f: Tensor) -> Tensor:
    """Return the means over inner cells of what is linear between centres."""
    for axis in range(f.ndim):
        n = f.shape[axis] - 2
        sides = f.narrow(axis, 0, n) + f.narrow(axis, 2, n)
        f = 0.75 * f.narrow(axis, 1, n) + 0.125 * sides
    return f


def cell_extremes(f: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds over inner cells of what is linear between centres along axes."""
    low = high = f
    for axis in range(f.ndim):
        n = f.shape[axis] - 2
        own, others = low.narrow(axis, 1, n), (low.narrow(axis, k, n) for k in (0, 2))
        for other in others:
            own = torch.minimum(own, 0.5 * (low.narrow(axis, 1, n) + other))
        top, others = high.narrow(axis, 1, n), (high.narrow(axis, k, n) for k in (0, 2))
        for other in others:
            top = torch.maximum(top, 0.5 * (high.narrow(axis, 1, n) + other))
        low, high = own, top
    return low, high
