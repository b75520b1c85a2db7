"""How far a density on a grid is from the exact JKO step, by duality."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.functionals import Entropy
from otflow.functionals.internal import Internal, combine
from otflow.measures import Box
from otflow.proximal.terms import Terms

__all__ = ["c_transform", "dual_value"]

# Entries of the largest temporary array.
TEMPORARY = 2**20


def c_transform(box: Box, phi: Tensor, dt: float) -> Tensor:
    r"""Return :math:`\phi^c(x) = \min_y |x - y|^2/(2\,dt) - \phi(y)` between cells.

    Parameters
    ----------
    box : Box
        Cells.
    phi : Tensor
        In the box's shape; minus infinity where y may not lie.
    dt : float
        Step, > 0.

    Returns
    -------
    Tensor
        In the box's shape; axis by axis in time O(n^(d+1)).
    """
    out = -phi
    for axis, (n, h) in enumerate(zip(box.shape, box.spacing, strict=True)):
        i = torch.arange(n, dtype=phi.dtype, device=phi.device)
        cost = (i[:, None] - i).square() * (h * h / (2 * dt))
        moved = out.movedim(axis, -1)
        rows = moved.reshape(-1, n)
        best = torch.empty_like(rows)
        step = max(1, TEMPORARY // (n * n))
        for k in range(0, len(rows), step):
            best[k : k + step] = (rows[k : k + step, None, :] + cost).amin(-1)
        out = best.reshape(moved.shape).movedim(-1, axis)
    return out


def dual_value(
    box: Box, mu: Tensor, phi: Tensor, terms: Terms, V: Tensor, dt: float
) -> float:
    r"""Return a lower bound of :math:`\min_\nu F(\nu) + W_2^2(\mu, \nu)/(2\,dt)`.

    For any :math:`\phi`, with :math:`\phi^c(x) = \inf_y |x - y|^2/(2\,dt) - \phi(y)`,
    it is :math:`\int\phi^c d\mu - \int U^*(-\phi - V)`. Here :math:`\phi` is
    the c-transform of a function on the centres, so it is known between them, and
    :math:`|x|^2/2 - dt\,\phi^c` is convex, so its mean over a cell is at most that of
    its linear interpolation. The midpoint rule for V and U* is the one thing not
    bounded.

    Parameters
    ----------
    box : Box
        Cells.
    mu : Tensor
        Masses, in the box's shape.
    phi : Tensor
        Where to start: minus the first variation at the new density, minus infinity in
        obstacles.
    terms : Terms
        Potentials and internal energies only.
    V : Tensor
        The potential in the box's shape.
    dt : float
        Step.

    Returns
    -------
    float
        Minus infinity if phi is good for nothing.
    """
    g = c_transform(box, phi, dt)
    phi = c_transform(box, g, dt)
    free = phi.new_ones(()).bool() if V is None else torch.isfinite(V)
    s = torch.where(free, -phi - V, -math.inf)
    s, transport = s[free].to(torch.float64), float(_mean_over_cells(box, g, mu, dt))
    energy = internal_energy(terms)
    # The best constant to add to phi, where it is known in closed form.
    if energy is None:  # U* is 0 up to 0 and infinite above
        return transport - float(s.max())
    if terms.internal is None:  # the mass of (U*)' is to be 1
        kappa = terms.temperature
        mass = (s / kappa - 1.0).logsumexp(0) + math.log(box.cell_volume)
        return transport - kappa * (1.0 + float(mass))
    return transport - float(energy.conjugate(s).sum()) * box.cell_volume


def internal_energy(terms: Terms) -> Internal | None:
    """Return entropy and other internal energies as one."""
    parts: list[tuple[float, Internal]] = []
    if terms.temperature:
        parts.append((terms.temperature, Entropy()))
    if terms.internal is not None:
        parts.append((1.0, terms.internal))
    return combine(parts)


def _mean_over_cells(box: Box, g: Tensor, mu: Tensor, dt: float) -> Tensor:
    """Return a lower bound of the integral of g, |x|^2/2 - dt g convex, against mu.

    Beyond the last centres slopes are those that lead into the box, so that g goes on
    constant.
    """
    for axis in range(box.dim):
        n = box.shape[axis]
        below = torch.cat([g.narrow(axis, 0, 1), g.narrow(axis, 0, n - 1)], axis)
        above = torch.cat([g.narrow(axis, 1, n - 1), g.narrow(axis, n - 1, 1)], axis)
        g = 0.75 * g + 0.125 * (below + above)
    rest = sum(h * h for h in box.spacing) / (12 * dt)
    return (mu * g).sum(dtype=torch.float64) - rest
