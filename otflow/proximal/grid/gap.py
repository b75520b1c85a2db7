"""How far a density on a grid is from the exact JKO step, by duality."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.errors import NonFinite
from otflow.measures import Box
from otflow.proximal.grid.c_transform import c_transform
from otflow.proximal.grid.duality import cell_extremes, cell_means
from otflow.proximal.terms import Terms

__all__ = ["distance_bound", "dual_value"]


def dual_value(
    box: Box, mu: Tensor, phi: Tensor, terms: Terms, V: Tensor, dt: float
) -> float | None:
    r"""Return a lower bound of :math:`\min_\nu F(\nu) + W_2^2(\mu, \nu)/(2\,dt)`.

    For any :math:`\phi` with :math:`\phi^c(x) = \inf_y |x - y|^2/(2\,dt) - \phi(y)` it
    is :math:`\int\phi^c d\mu - \int U^*(-\phi - V)`. Here :math:`\phi` is itself the
    c-transform of a function g on the centres, which defines it between them; and
    :math:`|x|^2/2 - dt\,\phi^c` is convex and at most :math:`|x|^2/2 - dt\,g` at the
    centres, so its mean over a cell is at most that of the linear interpolation. Both
    go on for one cell beyond the walls, where phi goes on straight.

    By the same convexity :math:`-\phi` is at most its linear interpolation and
    :math:`\sum_a h_a^2/(8\,dt)`, less in the mean. And
    :math:`U^*` is convex and increases, so its mean over a cell is at most that of the
    chord over the values of such a bound on :math:`-\phi - V`.

    Parameters
    ----------
    box : Box
        Cells.
    mu : Tensor
        Masses, in the box's shape.
    phi : Tensor
        Minus the first variation at the new density, or near it; minus infinity in
        obstacles, beside which a smaller box is left.
    terms : Terms
        Potentials and internal energies only.
    V : Tensor
        The potential, in the box's shape. Between the centres it is known by its second
        differences.
    dt : float
        Step.

    Returns
    -------
    float or None
        The bound, however good phi is; None if :math:`U^*` is infinite there.
    """
    box, (mu, phi, V) = _free_box(box, phi > -math.inf, mu, phi, V)
    wide = _widened(box)
    g = c_transform(_bordered(phi).reshape(-1), wide, dt)[0]
    twice = c_transform(g, wide, dt)[0].reshape(wide.shape)
    unit = sum(h * h for h in box.spacing) / dt
    means = cell_means(g.reshape(wide.shape))
    transport = float((mu * means).sum(dtype=torch.float64)) - unit / 12
    s = (-twice - _bordered(V)).to(torch.float64)
    low, high = cell_extremes(s)
    more = _between(V).to(torch.float64)
    mean, low, high = cell_means(s) + more + unit / 12, low + more, high + more
    high = high + unit / 8
    share = ((mean - low) / (high - low)).clamp(0.0, 1.0)
    kappa, energy = terms.temperature, terms.energy
    # A constant may be added to phi: the best one, where it is in closed form.
    if energy is None:  # U* is 0 up to 0 and infinite above
        return transport - float(high.max())
    if terms.internal is None:  # the density (U*)' is to have mass 1
        chord = torch.logaddexp(
            torch.log1p(-share) + low / kappa, share.log() + high / kappa
        )
        mass = chord.reshape(-1).logsumexp(0) - 1.0 + math.log(box.cell_volume)
        return transport - kappa * (1.0 + float(mass))
    try:
        below, above = (energy.conjugate(x.reshape(-1)) for x in (low, high))
    except NonFinite:
        return None
    share = share.reshape(-1)
    loss = float((below + share * (above - below)).sum()) * box.cell_volume
    return transport - loss if math.isfinite(loss) else None


def distance_bound(
    gap: float, masses: Tensor, V: Tensor, modulus: float | None, dt: float
) -> float | None:
    r"""Return a bound on the W2 distance to the exact step, from a gap of duality.

    The objective is :math:`(1/dt + \lambda)`-convex along generalised geodesics, so a
    measure within a gap of its minimum is within :math:`\sqrt{2\,\mathrm{gap}/(1/dt +
    \lambda)}` of the minimiser. Both sides of the gap read V at the centres of cells:
    its mean over a cell is above that by a 24th of its second difference, and its least
    value in a cell below it by up to an eighth. A sixth is added for both.

    Parameters
    ----------
    gap : float
        Objective at the measure minus a lower bound of its minimum.
    masses, V : Tensor
        Of the new density, and the potential, in the box's shape; V infinite or NaN in
        obstacles.
    modulus : float or None
        The :math:`\lambda`, if known.
    dt : float
        Step.

    Returns
    -------
    float or None
        None if the modulus is unknown, or dt too long for it.
    """
    if modulus is None or 1 + dt * modulus <= 0:
        return None
    unseen = 0.0
    for axis, n in enumerate(V.shape):
        if n > 2:
            bend = V.diff(n=2, dim=axis).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
            first, last = bend.narrow(axis, 0, 1), bend.narrow(axis, n - 3, 1)
            bend = torch.cat([first, bend, last], axis)
            unseen += float((masses * bend).sum(dtype=torch.float64)) / 6
    return math.sqrt(2 * dt * (max(gap, 0.0) + unseen) / (1 + dt * modulus))


def _free_box(
    box: Box, is_free: Tensor, *arrays: Tensor
) -> tuple[Box, tuple[Tensor, ...]]:
    """Return the smallest box that holds all free cells, and arrays on it."""
    lower, upper, shape = [], [], []
    for axis, (a, h) in enumerate(zip(box.lower, box.spacing, strict=True)):
        others = tuple(k for k in range(box.dim) if k != axis)
        cells = is_free.sum(others).nonzero() if others else is_free.nonzero()
        first, last = int(cells.min()), int(cells.max()) + 1
        arrays = tuple(f.narrow(axis, first, last - first) for f in arrays)
        lower.append(a + first * h)
        upper.append(a + last * h)
        shape.append(last - first)
    return Box(tuple(lower), tuple(upper), tuple(shape)), arrays


def _widened(box: Box) -> Box:
    """Return the box with one more cell around."""
    return Box(
        tuple(a - h for a, h in zip(box.lower, box.spacing, strict=True)),
        tuple(b + h for b, h in zip(box.upper, box.spacing, strict=True)),
        tuple(n + 2 for n in box.shape),
    )


def _bordered(f: Tensor) -> Tensor:
    """Return f with one more cell around, where it goes on straight."""
    for axis, n in enumerate(f.shape):
        inner = min(1, n - 1)
        first, last = f.narrow(axis, 0, 1), f.narrow(axis, n - 1, 1)
        low = 2 * first - f.narrow(axis, inner, 1)
        high = 2 * last - f.narrow(axis, n - 1 - inner, 1)
        f = torch.cat([low, f, high], axis)
    return f


def _between(V: Tensor) -> Tensor:
    """Return how far V may lie below its linear interpolation in each cell.

    That is an eighth of the second difference where it is positive, and three eighths
    of minus it beyond the outermost centres, where the interpolation goes on straight.
    """
    total = torch.zeros_like(V)
    for axis, n in enumerate(V.shape):
        if n > 2:
            bend = V.diff(n=2, dim=axis)
            ends = [bend.narrow(axis, 0, 1), bend.narrow(axis, n - 3, 1)]
            bend = torch.cat([ends[0], bend, ends[1]], axis)
            total += bend.clamp_min(0) / 8
            for place, end in zip((0, n - 1), ends, strict=True):
                total.narrow(axis, place, 1).add_(3 * (-end).clamp_min(0) / 8)
    return total
