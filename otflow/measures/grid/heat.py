"""The heat flow between the cells of a grid, exact in time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.measures.grid.box import Box

__all__ = ["heat"]

# Images of a cell in the walls farther than so many standard deviations are dropped: a
# normal law has a share of 2e-19 beyond, less than the round-off of float64.
REACH = 9.0
# Rows of a heat kernel that are formed at a time. So the memory grows like the number
# of cells along an axis, not like its square.
BLOCK = 1024
# The exponential series stops when the remaining terms carry less than this mass.
TAIL = 1e-17
# The mean number of jumps in the series of positive terms.
JUMPS = 100.0


def heat(box: Box, weights: Tensor, time: float, is_free: Tensor) -> Tensor:
    r"""Return :math:`e^{t\Delta_h} w`, no flux through walls and obstacles.

    Without obstacles it is the product of one heat kernel per axis; each is exact,
    positive and symmetric. With obstacles it is the exponential series of the jumps
    from cell to cell.

    Parameters
    ----------
    box : Box
        The grid.
    weights : Tensor, shape (n,)
        Masses.
    time : float
        Time t >= 0.
    is_free : Tensor of bool, shape (n,)
        False in obstacles.

    Returns
    -------
    Tensor, shape (n,)
        Masses, of the same total to round-off.

    Notes
    -----
    Without obstacles O(n times the cells along an axis); with them O(n sqrt(t) / h).
    """
    if time == 0:
        return weights
    if not bool(is_free.all()):
        return _around_obstacles(box, weights, time, is_free)
    mass = weights.reshape(box.shape)
    for axis, (n, h) in enumerate(zip(box.shape, box.spacing, strict=True)):
        period = _kernel(n, time / h**2).to(weights)
        row = torch.arange(n, device=weights.device)
        blocks = []
        for start in range(0, n, BLOCK):
            here = row[start : start + BLOCK, None]
            # A cell sees another one and its image in the nearer wall.
            kernel = period[(here - row) % (2 * n)] + period[(here + row + 1) % (2 * n)]
            blocks.append(torch.tensordot(kernel, mass, dims=([1], [axis])))
        mass = torch.cat(blocks).movedim(0, axis)
    return mass.reshape(-1)


def _kernel(n: int, time: float) -> Tensor:
    """Return the heat kernel on a ring of 2n cells of unit spacing, (2n,).

    Walls at both ends of n cells act like mirrors, and make the line a ring.
    """
    if time > n * n:  # wider than the ring: few waves are left
        waves = torch.arange(2 * n, dtype=torch.float64)
        decay = torch.exp(-4 * time * torch.sin(0.5 * math.pi * waves / n) ** 2)
        ring: Tensor = torch.fft.fft(decay).real / (2 * n)
        return ring
    # On the whole line the kernel is exp(-2t) I_k(2t), Bessel functions that are known
    # to full relative precision; the ring is the line wound up.
    turns = math.ceil(REACH * math.sqrt(2 * time) / (2 * n)) + 1
    k = torch.arange(2 * turns * n)
    line = torch.from_numpy(lazy_import("scipy.special").ive(k.numpy(), 2 * time))
    ring = torch.zeros(2 * n, dtype=torch.float64)
    ring.index_add_(0, k % (2 * n), line)
    ring.index_add_(0, -k[1:] % (2 * n), line[1:])
    return ring / ring.sum()


def _around_obstacles(
    box: Box, weights: Tensor, time: float, is_free: Tensor
) -> Tensor:
    r"""Return :math:`e^{-r t} \sum_k \frac{(rt)^k}{k!} P^k w`, P one jump at rate r.

    The first jumps use the Chebyshev series of the same exponential,
    :math:`e^{-rt}(I_0(rt) + 2\sum_k I_k(rt)\, T_k(P))\, w`: it needs only the square
    root of the number of terms. The last 100 jumps, on average, use the positive series
    itself: then every mass that can be positive is positive.
    """
    below, above = box.neighbours(is_free)
    rates = box.over_spacing(box.over_spacing((below & above).to(weights.dtype)))
    rate = 2 * sum(1 / h**2 for h in box.spacing)

    def jump(mass: Tensor) -> Tensor:
        """Return the masses after one jump, a step of explicit Euler at its limit."""
        down, up = box.neighbours(mass)
        flux = rates / rate * (down - up)
        return mass + box.collect(-flux, flux)

    last = min(rate * time, JUMPS)
    total = weights.sum()
    if rate * time > last:
        weights = _chebyshev(jump, weights, rate * time - last).clamp_min(0)
        weights = weights * (total / weights.sum())
    chance, left, term = math.exp(-last), 1.0, weights
    result, k = chance * term, 0
    left -= chance
    # Round-off of the chances may leave more than TAIL. The chance of so many more than
    # the mean number of jumps is below round-off.
    while left > TAIL and k < 10 * last + 100:
        k += 1
        chance *= last / k
        left -= chance
        term = jump(term).clamp_min(0)  # round-off
        result = result + chance * term
    return result * (total / result.sum())


def _chebyshev(
    jump: Callable[[Tensor], Tensor], weights: Tensor, mean: float
) -> Tensor:
    """Return exp(-mean (1 - P)) of the masses for a symmetric P with norm 1."""
    count = math.ceil(REACH * math.sqrt(mean) + REACH**2)
    bessel = lazy_import("scipy.special").ive(range(count + 1), mean)
    before, term = weights, jump(weights)
    result = float(bessel[0]) * before + 2 * float(bessel[1]) * term
    for factor in bessel[2:]:
        before, term = term, 2 * jump(term) - before
        result = result + 2 * float(factor) * term
    return result
