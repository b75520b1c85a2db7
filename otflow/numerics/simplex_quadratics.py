"""The least value of a convex quadratic function over the simplex, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["least_on_simplex"]


def least_on_simplex(slope: Tensor, curvature: Tensor, start: Tensor) -> Tensor:
    r"""Return the minimiser of :math:`g\cdot z + \tfrac12 z\cdot A z` over the simplex.

    An active set of entries that are zero :cite:p:`nocedal2006numerical`: on the others
    the minimiser solves a linear system; an entry that would be negative leaves, and
    the zero entry of least slope enters. The value falls with each change of the set,
    so that no set returns.

    Parameters
    ----------
    slope : Tensor, shape (n,)
        The vector g.
    curvature : Tensor, shape (n, n)
        The symmetric matrix A, positive definite.
    start : Tensor, shape (n,)
        A point of the simplex.

    Returns
    -------
    Tensor, shape (n,)
        A point of the simplex, whose zeros are exact.

    Notes
    -----
    O(n^3) for each change of the set; about as many changes as entries that become
    zero, if `start` is near.

    Examples
    --------
    >>> import torch
    >>> from otflow.numerics.simplex_quadratics import least_on_simplex
    >>> slope, curvature = torch.tensor([-1.0, -0.5, 2.0]), torch.eye(3)
    >>> least_on_simplex(slope, curvature, torch.full((3,), 1 / 3))
    tensor([0.7500, 0.2500, 0.0000])
    """
    # In units of the curvature the sum of the entries counts as much as their slopes.
    unit = float(curvature.abs().max())
    if unit > 0:
        slope, curvature = slope / unit, curvature / unit
    z, inside = start, start > 0
    entered: int | None = None
    for _ in range(10 * len(start) + 10):
        y = _on_face(slope, curvature, inside)
        falls = inside & (y <= 0)
        if bool(falls.any()):
            if entered is not None and bool(falls[entered]) and float(z[entered]) == 0:
                break  # within round-off the entry that entered cannot grow
            share = torch.where(falls, z / (z - y), torch.inf).clamp_max(1.0)
            least = share.min()
            z = torch.where(share == least, 0.0, z + least * (y - z))
            inside = z > 0
            entered = None
            continue
        z = y
        rise = slope + curvature @ z
        level = (z @ rise).expand_as(rise)
        lower = torch.where(inside, torch.inf, rise - level)
        entered = int(lower.argmin())
        noise = 8 * torch.finfo(z.dtype).eps * float(rise.abs().max())
        if not float(lower[entered]) < -noise:
            break
        inside = inside.clone()
        inside[entered] = True
    z = z.clamp_min(0.0)
    return z / z.sum()


def _on_face(slope: Tensor, curvature: Tensor, inside: Tensor) -> Tensor:
    """Return the minimiser over the vectors of sum 1 that vanish outside a set."""
    at = inside.nonzero()[:, 0]
    m = len(at)
    system = slope.new_zeros(m + 1, m + 1)
    system[:m, :m] = curvature[at][:, at]
    system[:m, m] = system[m, :m] = 1.0
    sides = torch.cat([-slope[at], slope.new_ones(1)])
    answer, failed = torch.linalg.solve_ex(system, sides)
    if int(failed):
        answer = torch.linalg.lstsq(system, sides[:, None]).solution[:, 0]
    answer = answer[:m]
    return torch.zeros_like(slope).index_put((at,), answer)
