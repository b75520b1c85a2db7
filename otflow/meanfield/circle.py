r"""The largest value of a sum of kinks on a circle, exactly, arc by arc."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.meanfield.kinks import Kinks, Maximum

__all__ = ["largest_on_circle"]

# Round-off of the cumulative sums over 2 n kinks, beside that of a value of g.
SUMS = 4


def largest_on_circle(g: Kinks) -> Maximum:
    r"""Return the largest dual norm of g on the unit sphere of the plane.

    The kinks cut the plane into cones on which each output is linear, :math:`s\cdot v`.
    The slopes s of all cones are cumulative sums over the kinks in the order of their
    angles. On the sphere of the norm "l1" the largest value lies at a ray of a kink or
    of an axis; on the circle also at the main axis of the slopes, if the cone holds it.

    Parameters
    ----------
    g : Kinks
        The function, of q = 2 variables.

    Returns
    -------
    Maximum
        A closed bracket. Time O(n log n), memory O(n m).
    """
    axes = torch.eye(2, dtype=g.z.dtype, device=g.z.device)
    normals = torch.cat([g.z, axes])
    bent = torch.cat([g.bent, g.bent.new_zeros(2, g.outputs)])
    rays = torch.stack([-normals[:, 1], normals[:, 0]], 1)
    size = g.length(rays)[:, None]
    rays = torch.where(size > 0, rays / size, axes[:1])
    rays = torch.cat([rays, -rays])
    order = torch.atan2(rays[:, 1], rays[:, 0]).argsort()
    rays = rays[order]
    # Counterclockwise, a kink becomes inactive at its ray and active at the opposite.
    jumps = bent[:, :, None] * normals[:, None]
    sums = torch.cat([-jumps, jumps])[order].cumsum(0)  # (2 n + 4, m, 2)
    following = rays.roll(-1, 0)
    widest = int((following - rays).square().sum(1).argmax())
    slope = g.slope((rays[widest] + following[widest])[None])[0]
    slopes = slope + (sums - sums[widest])
    ends = g.size_of(torch.einsum("amq,aq->am", slopes, rays))
    best = int(ends.argmax())
    top, place = float(ends[best]), rays[best]
    # By continuity the end of an arc is the start of the next, but for round-off.
    others = g.size_of(torch.einsum("amq,aq->am", slopes, following))
    top = max(top, float(others.max()))
    if g.norm == "l2":
        within, values, axis = _main_axes(slopes, rays, following)
        if bool(within.any()):
            inner = torch.where(within, values, 0.0)
            k = int(inner.argmax())
            if float(inner[k]) > top:
                top, place = float(inner[k]), axis[k]
    value = float(g.size_of(g(place[None]))[0])
    noise = (1 + SUMS) * g.noise
    upper = max(top, value) + noise
    return Maximum(value, upper, place, g.direction(g(place[None])[0]), True)


def _main_axes(
    slopes: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which arcs hold the main axis of their slopes, the norm there, the axis.

    For slopes S (m, 2) the norm |S v| on the circle is largest at the eigenvector of
    S^T S of the larger eigenvalue, and falls monotonically to both sides.
    """
    a, c = slopes.square().sum(1).unbind(1)
    b = slopes.prod(2).sum(1)
    angle = 0.5 * torch.atan2(2 * b, a - c)
    axis = torch.stack([angle.cos(), angle.sin()], 1)
    largest = torch.linalg.vector_norm((slopes @ axis[:, :, None])[:, :, 0], dim=1)

    def holds(v: Tensor) -> Tensor:
        after = start[:, 0] * v[:, 1] - start[:, 1] * v[:, 0] >= 0
        before = v[:, 0] * end[:, 1] - v[:, 1] * end[:, 0] >= 0
        return after & before

    ahead, behind = holds(axis), holds(-axis)
    return ahead | behind, largest, torch.where(ahead[:, None], axis, -axis)
