"""Upwind fluxes on a grid: an explicit step, and the velocity that makes one."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import Diverged, NotConverged, Unsupported
from otflow.measures.grid.box import Box
from otflow.numerics.multigrid import GridLaplacian, solve_laplacian

__all__ = ["check_courant", "courant", "displacement", "upwind"]

MAX_ITERATIONS = 1_000
# A mass below so many units in the last place of the largest does not move.
DUST = 32


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
            f"{abs(dt) / share:.4g}, or use JKO(), which has no such limit"
        )
        raise Diverged(msg, measure=measure)


# The inverse: a velocity that makes a given change of masses --------------------------


def displacement(box: Box, source: Tensor, target: Tensor, is_open: Tensor) -> Tensor:
    r"""Return the displacement through faces for which `upwind` gives the target.

    In one dimension the flux is a cumulative sum. Otherwise it is
    :math:`\rho\nabla\phi` with :math:`-\nabla\cdot(\rho\nabla\phi)` the change of
    density: the flux of least kinetic energy, by conjugate gradients. A cell without
    mass takes its mass from its neighbours, in proportion to theirs.

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
    longest = max(range(box.dim), key=lambda axis: box.shape[axis])
    if box.n == box.shape[longest]:  # a line of cells
        flux = _cumulative(source - target) * box.spacing[longest]
    else:
        check_layers(box, source, target)
        flux = _least_energy_flux(box, source, target, is_open)
    below, above = box.neighbours(source)
    upstream = torch.where(flux > 0, below, above) * is_open
    if bool(((flux != 0) & (upstream == 0)).any()):
        raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))
    moves = torch.where(flux == 0, 0.0, flux / torch.where(flux == 0, 1.0, upstream))
    share = courant(box, source, moves)
    if share > 1 + 64 * torch.finfo(source.dtype).eps:
        what = f"a cell would have to send out {share:.3g} times its mass"
        raise Unsupported(_TOO_FAR.format(what))
    return moves


_TOO_FAR = (
    "no single upwind step leads from one grid density to the other: {}; take "
    "densities less than a cell apart, compare samples of them by otflow.metrics, as "
    "wasserstein2(mu.sample(n, generator), nu.sample(n, generator)), or take the path "
    "between Quantiles, Gaussians or Particles"
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
    box: Box, source: Tensor, target: Tensor, is_open: Tensor
) -> Tensor:
    """Return masses through faces, times the spacing, that carry source to target."""
    below, above = box.neighbours(source)
    gain_below, gain_above = box.neighbours(
        torch.where(source > 0, 0.0, target)
    )  # of cells that are empty so far
    # They are filled by their neighbours, in proportion to the masses of these.
    around = box.collect(above * is_open, below * is_open)
    tiny = torch.finfo(source.dtype).tiny  # below it the inverse overflows
    share = torch.where(around > 0, 1 / around.clamp_min(tiny), 0.0)
    if bool(((source == 0) & (target > 0) & (around == 0)).any()):
        raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))
    share_below, share_above = box.neighbours(share)
    filling = below * gain_above * share_above - above * gain_below * share_below
    filling = filling * is_open  # masses, positive upwards
    change = source - target - box.collect(filling, -filling)
    change = torch.where(source > 0, change, 0.0)
    _check_balance(box, source, change)
    both = below + above
    # In this order the product of two small masses does not underflow.
    mobility = 2 * below * (above / both.masked_fill(both == 0, 1.0)) * is_open
    # Where there is almost no mass the flux is round-off. The velocity, the flux over
    # the mass, would not be small.
    dust = DUST * torch.finfo(source.dtype).eps * float(source.max())
    still = torch.maximum(below, above) < dust
    mobility = mobility.masked_fill(still, 0.0)
    phi = _conjugate_gradients(box, mobility, -change, source)
    flux = mobility * box.gradient(phi)
    # Masses that pass a face, times the spacing, as the flux.
    flux = flux + filling / box.over_spacing(torch.ones_like(filling))
    return flux.masked_fill(still, 0.0)


def _check_balance(box: Box, source: Tensor, change: Tensor) -> None:
    """Raise Unsupported if parts of the support that do not touch change mass."""
    support = source > 0
    if bool(support.all()):
        return
    ndimage = lazy_import("scipy.ndimage")
    labels, count = ndimage.label(support.reshape(box.shape).cpu().numpy())
    index = torch.from_numpy(labels).to(source.device).reshape(-1).long()
    sums = change.new_zeros(count + 1).index_add_(0, index, change)
    if bool((sums.abs() > 1e3 * torch.finfo(change.dtype).eps).any()):
        raise Unsupported(_TOO_FAR.format("mass would have to cross empty cells"))


def _conjugate_gradients(
    box: Box, mobility: Tensor, rhs: Tensor, source: Tensor
) -> Tensor:
    r"""Solve :math:`-\nabla\cdot(m\nabla\phi) = \mathrm{rhs}`, no flux at walls."""
    flow = box.split_faces(box.over_spacing(box.over_spacing(mobility)))
    L = GridLaplacian.of(flow, rhs.new_zeros(box.shape))
    rhs = rhs.reshape(box.shape) * (L.diagonal > 0)
    # The masses balance up to round-off. The rest has no solution: it is removed.
    rhs = rhs - L.diagonal * (rhs.sum() / L.diagonal.sum())
    # Below the round-off of the largest mass a residual means nothing.
    noise = torch.finfo(rhs.dtype).eps * float(source.max())
    tolerance = 64 * noise / max(float(rhs.norm()), noise)
    phi, iterations = solve_laplacian(L, rhs, tolerance, MAX_ITERATIONS)
    residual = float((rhs - L.apply(phi)).abs().max())
    if not residual <= 1e3 * noise:
        msg = (
            f"conjugate gradients for a displacement stopped after {iterations} "
            f"iterations at a residual of {residual:.3g} of mass"
        )
        raise NotConverged(msg, info={"residual": residual})
    return phi.reshape(-1)
