"""Radial kernels: energy and gradients in closed form, tile by tile; powers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from otflow._pairs import tiles

__all__ = ["TILE", "power", "power_slope", "radial_field", "radial_sweep"]

# Rows of a block: its distances stay in the second-level cache. With a power of two the
# columns of a block would share few cache lines.
TILE = 384
# The scale of a cloud is a small distance between points. It is taken over pairs whose
# indices differ by 1 or by a prime, so that no regular order of the points hides a
# cluster.
PAIRED = (1, 2, 3, 5, 7, 11)
# The share of these distances that is shorter than the scale.
FEW = 0.05
# Largest distance from the mean, in units of the scale, for sums of moments: their
# cancellation costs about log2(EVEN) = 8 bits.
EVEN = 256.0


class Profile(Protocol):
    """What a sweep asks of a radial kernel."""

    @property
    def singular(self) -> bool:
        """Whether the kernel is infinite at 0."""

    @property
    def smooth(self) -> bool:
        """Whether the slope is bounded at 0."""

    def profile(self, s: Tensor) -> Tensor:
        """Return the kernel at squared distances s."""

    def profile_and_slope(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the profile and its derivative at s, which may be overwritten."""


def radial_sweep(
    W: Profile, x: Tensor, w: Tensor, *, gradients: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the energy of points x (n, d) with masses w (n,), and its gradients.

    See `kernels.RadialKernel.sweep`.
    """
    x, w = x.detach(), w.detach()
    centred = x - x.mean(0)
    by_moments = W.smooth and gradients and _is_even(x, centred)
    # Mass and moment of each point stand side by side: one product sums both.
    moments = w[:, None] * torch.cat([torch.ones_like(w)[:, None], centred], dim=1)
    potential, sums = torch.zeros_like(w), torch.zeros_like(moments)
    blocks = list(tiles(len(x), TILE))

    def visit(i: slice, j: slice) -> None:
        """Add a pair of blocks to the potential and to the slopes, both ways."""
        # The transpose with unit stride makes each coordinate one contiguous row.
        a, b = x[i].T.contiguous(), x[j].T.contiguous()
        mass_i, mass_j = moments[i, 0], moments[j, 0]
        s = _squared_distances(a, b)
        on_diagonal = W.singular and i == j
        if on_diagonal:
            s.fill_diagonal_(1.0)
        phi, slope = W.profile_and_slope(s) if gradients else (W.profile(s), s)
        if on_diagonal:
            phi.fill_diagonal_(0.0)
            slope.fill_diagonal_(0.0)
        potential[i].addmv_(phi, mass_j)
        if i != j:
            potential[j].addmv_(phi.T, mass_i)
        if not gradients:
            return
        if by_moments:
            sums[i].addmm_(slope, moments[j])
            if i != j:
                sums[j].addmm_(slope.T, moments[i])
            return
        for axis, (p, q) in enumerate(zip(a, b, strict=True), start=1):
            # Subtract before multiplying: the slope may be unbounded, or some
            # points far away, and then sums of moments would cancel.
            pull = (p[:, None] - q).mul_(slope)
            sums[i, axis].addmv_(pull, mass_j)
            if i != j:
                sums[j, axis].addmv_(pull.T, mass_i, alpha=-1.0)

    for k, i in enumerate(blocks):
        for j in blocks[k:]:
            visit(i, j)
    energy = 0.5 * (w @ potential)
    if not gradients:
        return energy, ()
    force = sums[:, 1:]
    if by_moments:
        force = centred * sums[:, :1] - force
    return energy, (2.0 * w[:, None] * force, potential)


def radial_field(
    W: Profile, x: Tensor, points: Tensor, masses: Tensor, *, gradients: bool
) -> tuple[Tensor, Tensor]:
    """Return potentials (m, k) of masses (n, k), and their gradients (m, k, d).

    See `kernels.PairKernel.field`.
    """
    x, points, masses = x.detach(), points.detach(), masses.detach()
    count, d = masses.shape[1], x.shape[1]
    centre = points.mean(0)
    near, far = x - centre, points - centre
    by_moments = W.smooth and gradients
    by_moments = by_moments and _is_even(torch.cat([points, x]), torch.cat([far, near]))
    potentials = x.new_zeros(len(x), count)
    slopes = x.new_zeros(len(x), count, d) if gradients else x.new_zeros(0)
    moments = torch.cat([masses, (masses[:, :, None] * far[:, None]).flatten(1)], 1)
    for i in tiles(len(x), TILE):
        sums = torch.zeros_like(moments[:1]).expand(len(x[i]), -1).clone()
        a = x[i].T.contiguous()
        for j in tiles(len(points), TILE):
            b = points[j].T.contiguous()
            s = _squared_distances(a, b)
            phi, slope = W.profile_and_slope(s) if gradients else (W.profile(s), s)
            potentials[i].addmm_(phi, masses[j])
            if by_moments:
                sums.addmm_(slope, moments[j])
            elif gradients:
                for axis, (p, q) in enumerate(zip(a, b, strict=True)):
                    pull = (p[:, None] - q).mul_(slope)
                    slopes[i, :, axis] += 2.0 * (pull @ masses[j])
        if by_moments:
            of_points = sums[:, count:].reshape(-1, count, d)
            slopes[i] = 2.0 * (near[i][:, None] * sums[:, :count, None] - of_points)
    return potentials, slopes


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances (m, n) of points (d, m) and (d, n)."""
    s = (a[0][:, None] - b[0]).square_()
    for p, q in zip(a[1:], b[1:], strict=True):
        difference = p[:, None] - q
        s.addcmul_(difference, difference)
    return s


def _is_even(x: Tensor, centred: Tensor) -> bool:
    r"""Return whether no point is far away on the scale of the other distances.

    Then the force :math:`\sum_j w_j \varphi'(s_{ij})(x_i - x_j)` may be the difference
    of two sums of moments. Their cancellation leaves the round-off of the largest |x|,
    which is harmless if most distances are of that size.
    """
    n = len(x)
    shifts = [x.roll(k, 0) - x for k in PAIRED if k < n]
    if not shifts:
        return True
    distances = torch.cat(shifts).norm(dim=1)
    near = distances[distances > 0]
    if not len(near):
        return True
    small = near.kthvalue(1 + int(FEW * (len(near) - 1))).values
    return bool(centred.norm(dim=1).max() <= EVEN * small)


def power(s: Tensor, a: float) -> Tensor:
    """Return |z|^a / a, or log|z| for a = 0, from s = |z|^2; no NaN gradient at 0."""
    if a == 2:
        return 0.5 * s
    if a >= 4:  # below, a second derivative at 0 would be 0 times infinity
        return s.pow(0.5 * a) / a
    zero = s == 0
    safe = s.masked_fill(zero, 1.0)
    if a == 0:
        return (0.5 * safe.log()).masked_fill(zero, -torch.inf)
    power = safe.sqrt() if a == 1 else safe.pow(0.5 * a)
    return (power / a).masked_fill(zero, 0.0 if a > 0 else -torch.inf)


def power_slope(s: Tensor, a: float) -> Tensor:
    """Return d/ds of `power`, with 0 at s = 0 where it is infinite."""
    if a == 2:
        return torch.full_like(s, 0.5)
    if a > 2:
        return 0.5 * s.pow(0.5 * a - 1)
    zero = s == 0
    safe = s.masked_fill(zero, 1.0)
    power = safe.reciprocal() if a == 0 else safe.pow(0.5 * a - 1)
    return (0.5 * power).masked_fill_(zero, 0.0)
