"""How far a density on a grid is from the exact JKO step, by duality."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.measures import Box
from otflow.proximal.c_transform import c_transform
from otflow.proximal.terms import Terms

__all__ = ["distance_bound", "dual_value"]


def dual_value(
    box: Box, mu: Tensor, phi: Tensor, terms: Terms, V: Tensor, dt: float
) -> float:
    r"""Return a lower bound of :math:`\min_\nu F(\nu) + W_2^2(\mu, \nu)/(2\,dt)`.

    For any :math:`\phi` with :math:`\phi^c(x) = \inf_y |x - y|^2/(2\,dt) - \phi(y)` it
    is :math:`\int\phi^c d\mu - \int U^*(-\phi - V)`. Here :math:`\phi` is itself the
    c-transform of a function g on the centres, which defines it between them; and
    :math:`|x|^2/2 - dt\,\phi^c` is convex and at most :math:`|x|^2/2 - dt\,g` at the
    centres, so its mean over a cell is at most that of the linear interpolation. What
    is left to the midpoint rule is the integral of U*.

    Parameters
    ----------
    box : Box
        Cells.
    mu : Tensor
        Masses, in the box's shape.
    phi : Tensor
        Minus the first variation at the new density, or near it; minus infinity in
        obstacles.
    terms : Terms
        Potentials and internal energies only.
    V : Tensor
        The potential, in the box's shape.
    dt : float
        Step.

    Returns
    -------
    float
        The bound, however good phi is.
    """
    g = c_transform(phi.reshape(-1), box, dt)
    twice = c_transform(g, box, dt).reshape(box.shape)
    s = (-twice - V)[phi > -math.inf].to(torch.float64)
    transport = float(_integral(box, g.reshape(box.shape), mu, dt))
    kappa, energy = terms.temperature, terms.energy
    # A constant may be added to phi: the best one, where it is in closed form.
    if energy is None:  # U* is 0 up to 0 and infinite above
        return transport - float(s.max())
    if terms.internal is None:  # the density (U*)' is to have mass 1
        mass = (s / kappa - 1.0).logsumexp(0) + math.log(box.cell_volume)
        return transport - kappa * (1.0 + float(mass))
    return transport - float(energy.conjugate(s).sum()) * box.cell_volume


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


def _integral(box: Box, g: Tensor, mu: Tensor, dt: float) -> Tensor:
    """Bound the integral of phi^c against a density constant on cells from below.

    Towards the walls |x|^2/2 - dt g goes on with the slope of the wall's coordinate,
    the largest that it can have; that is g goes on constant.
    """
    for axis, n in enumerate(box.shape):
        below = torch.cat([g.narrow(axis, 0, 1), g.narrow(axis, 0, n - 1)], axis)
        above = torch.cat([g.narrow(axis, 1, n - 1), g.narrow(axis, n - 1, 1)], axis)
        g = 0.75 * g + 0.125 * (below + above)
    rest = sum(h * h for h in box.spacing) / (12 * dt)
    return (mu * g).sum(dtype=torch.float64) - rest
