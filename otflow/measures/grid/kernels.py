"""Kernels on the cells of a grid: exact averages, and what sums over centres miss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.kernels import Gaussian, Kernel
from otflow.measures.grid.box import Box
from otflow.numerics.quadrature import gauss_legendre

__all__ = ["HAT", "gaussian_table", "hat_nodes", "seen_along_axes"]

# Gauss nodes of one half of the hat: at round-off for a Gaussian to WIDEST deviations.
ORDER = 16
WIDEST = 2.0
# Gauss nodes of a panel; panels between two centres; halvings of the gap next to 0.
BETWEEN, PANELS, LEVELS = 8, 8, 24
# Fewest cells of the window through which a kernel is looked at. The deviation of the
# window is a quarter of it, so that its own sum over centres is right to round-off.
FEWEST, NARROWING = 6, 4.0
# Gauss rule on [-1, 1] for the weight 1 - |t|, the law of the difference of two points
# uniform in two cells: exact up to degree 5.
HAT = ((0.0, 7 / 12), (math.sqrt(0.4), 5 / 24), (-math.sqrt(0.4), 5 / 24))


def gaussian_table(box: Box, W: Gaussian, steps: list[Tensor], like: Tensor) -> Tensor:
    r"""Return the averages of a Gaussian kernel over pairs of cells, exactly.

    An average is the product of one average per axis. For cells of length h that are k
    cells apart it is :math:`\int_{-1}^1 (1 - |t|)\,e^{-(k + t)^2 h^2/2\sigma^2}\,dt`.
    Gauss's rule gives it for a short h, else the second difference of the second
    primitive of W.

    Parameters
    ----------
    box : Box
        The grid.
    W : Gaussian
        Kernel.
    steps : list of Tensor
        Along each axis the numbers k of cells.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor
        One entry for each combination of the numbers; each right to round-off.
    """
    table = like.new_ones(())
    for k, h in zip(steps, box.spacing, strict=True):
        axis = gaussian_axis(k.to(like.device, torch.float64).abs(), h / W.sigma)
        table = table[..., None] * axis.to(like.dtype)
    return table


def gaussian_axis(k: Tensor, u: float) -> Tensor:
    """Return the averages in one dimension for cells of u standard deviations."""
    if u <= WIDEST:
        t, w = (r.to(k) for r in gauss_legendre(ORDER))
        w = w * (1.0 - t)
        before, after = (k[:, None] - t) * u, (k[:, None] + t) * u
        values = (-0.5 * before**2).exp() + (-0.5 * after**2).exp()
        average: Tensor = values @ w
        return average

    def second(x: Tensor) -> Tensor:
        # The part |x| (pi/2)^(1/2) is taken out: it acts on k = 0 alone.
        t = x.abs() / math.sqrt(2.0)
        scaled: Tensor = torch.special.erfcx(t)
        return (-t * t).exp() * (1.0 - math.sqrt(math.pi) * t * scaled)

    bend = second((k + 1) * u) - 2.0 * second(k * u) + second((k - 1) * u)
    own: Tensor = (k == 0).to(k.dtype) * (math.sqrt(2.0 * math.pi) / u)
    return own + bend / u**2


def seen_along_axes(box: Box, W: Kernel, like: Tensor) -> tuple[float, float, float]:
    r"""Return the shares of a finite kernel that three sums over cells miss.

    Along each axis the even part of W is multiplied by a smooth window as wide as the
    grid. The first share compares the sum over the centres with the integral, by Gauss
    nodes that crowd towards 0; it is small if W is smooth on the scale of cells. The
    second share compares the rule of three nodes with the averages, beyond the cells
    next to 0; the third does so for the finer rule. All are in parts of :math:`\int |W
    - c|`, c the median, so that a constant does not count. A share that is at most that
    of a kink at 0, as of :math:`|z|`, or of round-off, is 0.

    Parameters
    ----------
    box : Box
        The grid.
    W : callable
        Kernel, finite at 0.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    centres, nodes, finer : float
        The shares, the greatest over the axes; infinite if W is not finite.
    """
    shares = [_seen(box, W, like, axis) for axis in range(box.dim)]
    centres, nodes, finer = map(max, zip(*shares, strict=True))
    return centres, nodes, finer


def _seen(box: Box, W: Kernel, like: Tensor, axis: int) -> tuple[float, float, float]:
    count = max(box.shape[axis] - 1, FEWEST)

    def even(k: Tensor) -> Tensor:
        z = like.new_zeros(*k.shape, box.dim)
        z[..., axis] = k * box.spacing[axis]
        return W.even(z)

    def window(k: Tensor) -> Tensor:
        return (-0.5 * (k * NARROWING / count) ** 2).exp()

    k = torch.arange(count + 1, dtype=like.dtype, device=like.device)
    x, w = (r.to(k) for r in gauss_legendre(BETWEEN))
    first = torch.arange(PANELS, dtype=k.dtype, device=k.device)[:, None]
    y, v = ((first + x) / PANELS).reshape(-1), (w / PANELS).repeat(PANELS)
    # The gap next to 0 is halved towards it; the others have the nodes k + y.
    scales = 0.5 ** torch.arange(1, LEVELS + 1, dtype=k.dtype, device=k.device)[:, None]
    inner, outer = (scales * (1.0 + x)).reshape(-1), k[1:-1, None] + y
    centres, near, gaps = even(k), even(inner), even(outer)
    if not all(bool(f.isfinite().all()) for f in (centres, near, gaps)):
        return math.inf, math.inf, math.inf
    level = centres.median()
    near, gaps, centres = near - level, gaps - level, centres - level
    near_mass = (scales * w).reshape(-1) * window(inner)
    gap_mass = v * window(outer)
    scale = float(near_mass @ near.abs() + (gap_mass * gaps.abs()).sum())
    whole = near_mass @ near + (gap_mass * gaps).sum()
    halves = window(k)
    halves[0], halves[-1] = 0.5, 0.5 * halves[-1]
    largest = max(float(f.abs().max()) for f in (centres, near, gaps)) + abs(level)
    allowed = scale / count**2 + 64 * torch.finfo(like.dtype).eps * count * largest

    def share(missed: Tensor) -> float:
        return float(missed.abs()) / scale if float(missed.abs()) > allowed else 0.0

    averages = gaps[1:] @ (v * (1.0 - y)) + gaps[:-1] @ (v * y)  # at 2, 3, ...
    far = k[2:-1]

    def left_out(rule: tuple[tuple[float, float], ...]) -> Tensor:
        by_nodes = sum(a * (even(far + t) - level) for t, a in rule)
        return ((averages - by_nodes) * window(far))[1:].abs().sum()

    shares = [share(left_out(rule)) for rule in (HAT, hat_nodes())]
    return share(halves @ centres - whole), shares[0], shares[1]


def hat_nodes() -> tuple[tuple[float, float], ...]:
    """Return a finer rule for the weight 1 - |t| on [-1, 1]: a Gauss rule each side."""
    x, w = gauss_legendre(BETWEEN)
    one_side = list(zip(x.tolist(), (w * (1.0 - x)).tolist(), strict=True))
    return (*one_side, *((-t, a) for t, a in one_side))
