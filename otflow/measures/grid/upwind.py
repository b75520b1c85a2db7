"""Upwind fluxes on a grid: an explicit step, and the velocity that makes one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from otflow._bounds import at_most
from otflow._lazy import lazy_import
from otflow.errors import Diverged, NotConverged, Unsupported
from otflow.measures.grid.box import Box
from otflow.numerics.multigrid import GridLaplacian, solve_laplacian

__all__ = ["check_courant", "courant", "displacement", "upwind"]

MAX_ITERATIONS = 1_000
# A mass below so many units in the last place of the largest is dust: it does not move.
DUST = 32
# Largest residual, in units of dust.
FAR = 32


def courant(box: Box, weights: Tensor, moves: Tensor) -> float:
    """Return the largest share of its mass that a cell would send out.

    Parameters
    ----------
    box : Box
        The grid.
    weights : Tensor, shape (n,)
        Masses; cells without mass send out nothing.
    moves : Tensor, shape (n_faces,)
        Displacement through each face, velocity times time.

    Returns
    -------
    float
        Above 1 the explicit step could leave a negative mass.
    """
    shares = box.over_spacing(moves)
    leaving = box.collect(shares.clamp_min(0), -shares.clamp_max(0)).detach()
    return float(leaving[weights > 0].max())


def upwind(box: Box, weights: Tensor, moves: Tensor) -> Tensor:
    r"""Return the masses after one step of upwind fluxes :math:`v^+\rho_- - v^-\rho_+`.

    Parameters
    ----------
    box : Box
        The grid.
    weights : Tensor, shape (n,)
        Masses.
    moves : Tensor, shape (n_faces,)
        Velocity times time through each face, 0 at obstacles.

    Returns
    -------
    Tensor, shape (n,)
        The same total; non-negative, but for round-off, if `courant` is at most 1.
    """
    below, above = box.neighbours(weights)
    flux = moves.clamp_min(0) * below + moves.clamp_max(0) * above
    return weights - box.divergence(flux)


def check_courant(
    box: Box, weights: Tensor, moves: Tensor, dt: float, measure: object
) -> None:
    """Raise Diverged for a step above the CFL limit, and name the largest step."""
    share = courant(box, weights, moves)
    if not share <= 1 + 64 * torch.finfo(weights.dtype).eps:
        msg = (
            f"dt = {dt:.4g} is above the CFL limit of this velocity on this grid: a "
            f"cell would send out {share:.3g} times its mass; take |dt| <= "
            f"{at_most(abs(dt) / share, 4)}, or remap=True in the scheme, or "
            f"use JKO(), which have no such limit"
        )
        raise Diverged(msg, measure=measure)


# The inverse: a velocity that makes a given change of masses --------------------------


def displacement(box: Box, source: Tensor, target: Tensor, is_open: Tensor) -> Tensor:
    r"""Return the displacement through faces for which `upwind` gives the target.

    In one dimension the flux is a cumulative sum. Otherwise it is
    :math:`\rho\nabla\phi` with :math:`-\nabla\cdot(\rho\nabla\phi)` the change of
    density: the flux of least kinetic energy, by conjugate gradients. A cell without
    mass takes its mass from its neighbours, in proportion to theirs. All is computed in
    float64. The target is met up to the round-off of both measures.

    Parameters
    ----------
    box : Box
        The grid.
    source, target : Tensor, shape (n,)
        Masses before and after.
    is_open : Tensor, shape (n_faces,)
        1 for faces that are open, 0 for those of obstacles.

    Returns
    -------
    Tensor, shape (n_faces,)
        Velocity times time 1.

    Raises
    ------
    Unsupported
        If the flux would have to cross empty cells, or a cell would have to send out
        more than its mass.
    """
    if torch.equal(source, target):
        return torch.zeros_like(is_open)
    dtype, noise = source.dtype, torch.finfo(source.dtype).eps
    is_line = box.n == max(box.shape)
    if not is_line:
        check_layers(box, source, target)
    # In float64 only the masses themselves carry round-off, not the sums of them.
    source, target, is_open = source.double(), target.double(), is_open.double()
    change = source - target
    change = change - change.sum() / source.sum() * source
    unseen = DUST * noise * float(source.max())
    if is_line:
        # Each of the two masses of a cell is rounded: their sums err by noise each.
        flux, unseen = _cumulative(change), max(2 * noise, unseen)
    else:
        flux = _least_energy_flux(box, source, change, is_open, noise)
    flux = _affordable(box, source, flux, unseen)
    below, above = box.neighbours(source)
    upstream = torch.where(flux > 0, below, above) * is_open
    if bool(((flux != 0) & (upstream == 0)).any()):
        raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))
    shares = torch.where(flux == 0, 0.0, flux / upstream.masked_fill(flux == 0, 1.0))
    parts = zip(box.spacing, box.split_faces(shares), strict=True)
    moves = box.join_faces([h * part for h, part in parts])
    share = courant(box, source, moves)
    if share > 1 + 64 * noise:
        what = f"a cell would have to send out {share:.3g} times its mass"
        raise Unsupported(_TOO_FAR.format(what))
    return moves.to(dtype)


def _affordable(box: Box, source: Tensor, flux: Tensor, unseen: float) -> Tensor:
    """Return the flux with cells that overdraw by round-off sending out all they have.

    Less mass than the round-off of a flux cannot show how much of it moves.
    """
    leaving = box.collect(flux.clamp_min(0.0), -flux.clamp_max(0.0))
    over = (leaving > source) & (leaving <= source + unseen)
    part = torch.where(over, source / leaving.masked_fill(~over, 1.0), 1.0)
    below, above = box.neighbours(part)
    return flux * torch.where(flux > 0, below, above)


_INSTEAD = (
    "compare them by metrics.wasserstein2(mu, nu), or take the path between Quantiles, "
    "Gaussians or Particles"
)
_TOO_FAR = (
    "no single upwind step leads from one grid density to the other: {}; take "
    "densities less than a cell apart, " + _INSTEAD
)


def check_layers(box: Box, source: Tensor, target: Tensor) -> None:
    """Raise Unsupported if mass would have to cross whole layers of cells.

    The mass that passes between two layers follows from their masses alone, and must
    come from the layer before. So the check needs no flux and no solve.
    """
    # Sums of masses, of sum 1, have an absolute round-off.
    noise = 1e3 * torch.finfo(source.dtype).eps
    for axis in range(box.dim):
        layers, others = (
            mass.reshape(box.shape).movedim(axis, 0).flatten(1).sum(1)
            for mass in (source, target)
        )
        passing = _cumulative(layers - others)
        upstream = torch.where(passing > 0, layers[:-1], layers[1:])
        crossed = passing.abs() > upstream + noise
        if not bool(crossed.any()):
            continue
        if bool((upstream[crossed] == 0).any()):
            raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))
        share = float((passing[crossed].abs() / upstream[crossed]).max())
        what = f"a layer of cells would have to send out {share:.3g} times its mass"
        raise Unsupported(_TOO_FAR.format(what))


def _cumulative(change: Tensor) -> Tensor:
    """Return the mass that passes each face, summed from the side that rounds less."""
    from_left = change.cumsum(0)[:-1]
    from_right = -change.flip(0).cumsum(0).flip(0)[1:]
    size = change.abs().cumsum(0)
    return torch.where(2 * size[:-1] < size[-1], from_left, from_right)


def _least_energy_flux(
    box: Box, source: Tensor, change: Tensor, is_open: Tensor, noise: float
) -> Tensor:
    """Return the masses through faces whose outflow is a change, up to dust."""
    dust = DUST * noise * float(source.max())
    below, above = box.neighbours(source)
    # Empty cells are filled by their neighbours, in proportion to the masses of these.
    gain = torch.where(source > 0, 0.0, -change)
    around = box.collect(above * is_open, below * is_open)
    if bool(((gain > 0) & (around == 0)).any()):
        raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))
    rate = torch.where(around > 0, gain / around.masked_fill(around == 0, 1.0), 0.0)
    rate_below, rate_above = box.neighbours(rate)
    filling = (below * rate_above - above * rate_below) * is_open  # positive upwards
    change = (change - box.collect(filling, -filling)).masked_fill(source == 0, 0.0)
    both = below + above
    # In this order the product of two small masses does not underflow.
    mobility = 2 * below * (above / both.masked_fill(both == 0, 1.0)) * is_open
    # Where there is almost no mass the flux is round-off. The velocity, the flux over
    # the mass, would not be small.
    still = torch.maximum(below, above) < dust
    mobility = mobility.masked_fill(still, 0.0)
    change = _balanced(box, mobility, source, change, max(2 * noise, FAR * dust))
    phi = _conjugate_gradients(box, mobility, -change, dust)
    flux = filling + box.over_spacing(mobility * box.gradient(phi))
    return flux.masked_fill(still, 0.0)


def _balanced(
    box: Box, mobility: Tensor, source: Tensor, change: Tensor, most: float
) -> Tensor:
    """Return a change whose sum is 0 over cells that are joined by mobile faces.

    Raises
    ------
    Unsupported
        If such a sum was more than `most`.
    """
    n, joins = box.n, mobility > 0
    cells = box.neighbours(torch.arange(n, device=source.device))
    low, high = (side[joins].cpu().numpy() for side in cells)
    graph = lazy_import("scipy.sparse").coo_matrix(
        (np.ones(len(low)), (low, high)), shape=(n, n)
    )
    labels = lazy_import("scipy.sparse.csgraph").connected_components(graph)[1]
    part = torch.from_numpy(labels).to(source.device).long()
    sums, masses = (source.new_zeros(n).index_add(0, part, x) for x in (change, source))
    if bool((sums.abs() > most).any()):
        raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))
    return change - source * (sums / masses.masked_fill(masses == 0, 1.0))[part]


def _conjugate_gradients(
    box: Box, mobility: Tensor, rhs: Tensor, dust: float
) -> Tensor:
    r"""Solve :math:`-\nabla\cdot(m\nabla\phi) = \mathrm{rhs}`, no flux at walls."""
    flow = box.split_faces(box.over_spacing(box.over_spacing(mobility)))
    L = GridLaplacian.of(flow, rhs.new_zeros(box.shape))
    rhs = rhs.reshape(box.shape) * (L.diagonal > 0)
    # The residual of all cells together reaches twice the dust of one, and no less.
    aim = 2 * dust / max(float(rhs.norm()), dust)
    phi, iterations = solve_laplacian(L, rhs, aim, MAX_ITERATIONS)
    residual = float((rhs - L.apply(phi)).abs().max())
    if not residual <= FAR * dust:
        msg = (
            f"the flux between two grid densities, whose masses contrast much, was "
            f"not found: {iterations} iterations of conjugate gradients left a "
            f"residual of {residual:.3g} of mass; {_INSTEAD}"
        )
        raise NotConverged(msg, info={"residual": residual})
    return phi.reshape(-1)
