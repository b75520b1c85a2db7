r"""Fields of smooth radial kernels on boxes, by Taylor's formula of third order.

About the centre c of a cell the field of all masses is summed with its first three
derivatives, so that masses of both signs cancel. With a completely monotone profile
:math:`W(z) = \varphi(|z|^2)` is a mixture of Gaussians, by Bernstein's theorem. Then no
derivative of fourth order along unit vectors exceeds that at 0, which is
:math:`12\varphi''(0)`. This bounds what Taylor's formula leaves out.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from otflow.numerics.enclosed_sums import BLOCK
from otflow.numerics.enclosures import Enclosure, pairs, row_count
from otflow.numerics.intervals import EPS, outward

__all__ = ["Monotone", "taylor_enclosure"]

# Units of round-off in one term, beside those of the sum.
ULPS = 128


class Monotone(Protocol):
    """A radial kernel with a completely monotone profile."""

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        """Return the profile and its derivatives at s, right to a few units of 0's."""


def taylor_enclosure(
    kernel: Monotone, x: Enclosure, points: Tensor, masses: Tensor
) -> Enclosure:
    r"""Return :math:`\sum_j a_j\,\varphi(|x - y_j|^2)` on boxes, with derivatives.

    Time O(n d^3) for a cell and n atoms, as one product of matrices.

    Parameters
    ----------
    kernel : Monotone
        Gives :math:`\varphi` and its derivatives.
    x : Enclosure, shape (C, d)
        The points of boxes themselves.
    points : Tensor, shape (n, d)
        Atoms y.
    masses : Tensor, shape (n,)
        Masses a of either sign.

    Returns
    -------
    Enclosure, shape (C,)
        The sum.
    """
    low, high = x.value
    centre = 0.5 * low + 0.5 * high
    reach = torch.maximum(high - centre, centre - low) * (1 + 4 * EPS)
    thin = not bool(reach.any())
    points, masses = points.to(centre), masses.to(centre)
    order = x.order if thin else 3
    derivatives = _derivatives(kernel, centre, points, masses, order)
    slacks = _slacks(kernel, centre, points, masses, order)
    d, size = centre.shape[1], float(masses.abs().sum()) * (1 + len(masses) * EPS)
    # What the third derivatives leave out, by powers of the distance from the centre.
    fourth = 12.0 * float(kernel.derivatives(centre.new_zeros(1), 2)[2]) * size
    far = reach.square().sum(1).sqrt() * (1 + 8 * EPS)
    rows = centre.new_zeros(2, row_count(d, x.order), len(centre))
    i, j = pairs(d)
    for k in range(1 + x.order):
        spread = far.new_full((len(far),) + (1,) * k, slacks[k])
        if not thin:
            spread = spread + _spread(derivatives, slacks, reach, k)
            left = fourth * far ** (4 - k) / (24, 6, 2)[k]
            spread = spread + left.reshape(-1, *[1] * k)
        spread = spread.expand_as(derivatives[k]) * (1 + 64 * EPS)
        ends = outward(torch.stack([derivatives[k] - spread, derivatives[k] + spread]))
        if k == 0:
            rows[:, 0] = ends
        elif k == 1:
            rows[:, 1 : 1 + d] = ends.mT
        else:
            rows[:, 1 + d :] = ends[..., i, j].mT
    return x.like(rows)


def _derivatives(
    kernel: Monotone, c: Tensor, points: Tensor, masses: Tensor, order: int
) -> list[Tensor]:
    """Return the derivatives of the field at centres c: (C,), (C, d), (C, d, d), ..."""
    d = c.shape[1]
    middle = points.mean(0)
    y, at = points - middle, c - middle
    powers = [torch.ones_like(masses)[:, None]]
    for _ in range(order):
        powers.append((powers[-1][:, :, None] * y[:, None]).flatten(1))
    # Moments of the masses phi^(k)(s_j) a_j of degree up to k, of each k.
    sums = [[c.new_zeros(len(c), d**q) for q in range(1 + k)] for k in range(1 + order)]
    size = max(1, BLOCK // len(c))
    for start in range(0, len(points), size):
        part = slice(start, start + size)
        s = c.new_zeros(len(c), len(points[part]))
        for i in range(d):
            z = c[:, i, None] - points[part, i]
            s.addcmul_(z, z)
        for k, values in enumerate(kernel.derivatives(s, order)):
            weights = values * masses[part]
            for q in range(1 + k):
                sums[k][q] += weights @ powers[q][part]
    moments = [_about(at, sums[k], k) for k in range(1 + order)]
    return _chained(moments, d, order)


def _about(c: Tensor, sums: list[Tensor], degree: int) -> list[Tensor]:
    """Return moments about c, of z = c - y, from those of y."""
    n, d = c.shape
    S = [t.reshape(n, *[d] * q) for q, t in enumerate(sums)]
    found = [S[0]]
    if degree > 0:
        found.append(c * S[0][:, None] - S[1])
    if degree > 1:
        mixed = c[:, :, None] * S[1][:, None, :]
        square = c[:, :, None] * c[:, None, :]
        found.append(square * S[0][:, None, None] - mixed - mixed.mT + S[2])
    if degree > 2:
        cube = square[..., None] * c[:, None, None, :]
        outer = _symmetric(square[..., None] * S[1][:, None, None, :])
        inner = _symmetric(S[2][..., None] * c[:, None, None, :])
        found.append(cube * S[0][:, None, None, None] - outer + inner - S[3])
    return found


def _symmetric(t: Tensor) -> Tensor:
    """Return the sum over the three places of the last axis; the first two commute."""
    return t + t.permute(0, 1, 3, 2) + t.permute(0, 3, 1, 2)


def _chained(moments: list[list[Tensor]], d: int, order: int) -> list[Tensor]:
    """Return the derivatives in x from moments of z = x - y."""
    found = [moments[0][0]]
    if order > 0:
        found.append(2 * moments[1][1])
    eye = torch.eye(d).to(found[0])
    if order > 1:
        found.append(4 * moments[2][2] + 2 * eye * moments[1][0][:, None, None])
    if order > 2:
        bent = _symmetric(eye[..., None] * moments[2][1][:, None, None, :])
        found.append(8 * moments[3][3] + 4 * bent)
    return found


def _slacks(
    kernel: Monotone, c: Tensor, points: Tensor, masses: Tensor, order: int
) -> list[float]:
    """Return bounds on the round-off of the derivatives."""
    middle = points.mean(0)
    width = 2 * max(float((t - middle).norm(dim=1).amax()) for t in (points, c))
    peaks = [abs(float(t)) for t in kernel.derivatives(points.new_zeros(1), order)]
    unit = (len(points) + ULPS) * EPS * float(masses.abs().sum())
    found = [peaks[0] * unit]
    if order > 0:
        found.append(2 * peaks[1] * width * unit)
    if order > 1:
        found.append((4 * peaks[2] * width**2 + 2 * peaks[1]) * unit)
    if order > 2:
        found.append((8 * peaks[3] * width**3 + 12 * peaks[2] * width) * unit)
    return found


def _spread(
    derivatives: list[Tensor], slacks: list[float], reach: Tensor, k: int
) -> Tensor:
    """Return how far derivative k may change within reach, up to the third order."""
    found = torch.zeros_like(derivatives[k])
    factor = 1.0
    for higher in range(k + 1, 4):
        term = derivatives[higher].abs() + slacks[higher]
        factor /= higher - k
        for _ in range(higher - k):
            term = (term * reach.reshape(len(reach), *[1] * (term.ndim - 2), -1)).sum(
                -1
            )
        found = found + factor * term
    return found
