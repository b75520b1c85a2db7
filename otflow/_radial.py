"""Radial kernels: energy and gradients in closed form, tile by tile; powers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from otflow._pairs import tiles

__all__ = ["TILE", "power", "power_slope", "radial_potential", "radial_sweep"]

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
        s = (a[0][:, None] - b[0]).square_()
        for p, q in zip(a[1:], b[1:], strict=True):
            difference = p[:, None] - q
            s.addcmul_(difference, difference)
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


def radial_potential(
    W: Profile, x: Tensor, y: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\sum_j b_j W(x_i - y_j)` (n,), and its gradient in x (n, d).

    Time O(n m d), memory O(n d). W is finite at 0. The answers carry no graph.
    """
    x, y, b = x.detach(), y.detach(), b.detach()
    potential, force = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
    for i in tiles(len(x), TILE):
        for j in tiles(len(y), TILE):
            at, to = x[i].T.contiguous(), y[j].T.contiguous()
            s = torch.zeros(at.shape[1], to.shape[1], dtype=x.dtype, device=x.device)
            for p, q in zip(at, to, strict=True):
                difference = p[:, None] - q
                s.addcmul_(difference, difference)
            phi, slope = W.profile_and_slope(s)
            potential[i].addmv_(phi, b[j])
            for axis, (p, q) in enumerate(zip(at, to, strict=True)):
                force[i, axis].addmv_((p[:, None] - q).mul_(slope), b[j])
    return potential, 2.0 * force


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
