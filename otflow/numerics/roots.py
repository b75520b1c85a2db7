"""Increasing scalar equations, solved entrywise; bisection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow.errors import NotConverged

__all__ = ["bisect", "increasing_root", "wright_omega"]

# Most steps of a root search.
MAX_STEPS = 400
# Left of it exp(x) is the Wright function, up to round-off.
FAR_LEFT = -40.0


def increasing_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    z: Tensor,
    typical: Tensor | float,
) -> Tensor:
    r"""Solve f(z) = 0 entrywise for increasing f.

    Newton's method runs within a shrinking bracket. Where f is far above `typical`, the
    step is Newton's for log f. If f grows like an exponential, such a step halves the
    number of digits of f, while a plain step divides f by e. The bracket is bisected if
    a step leaves it, or if three steps have not halved it. While one end is unknown,
    the bracket is widened.

    Parameters
    ----------
    function : callable
        Returns f, f' and the size of the terms whose sum is f. Where f overflows it may
        be infinite, or NaN; a NaN counts as having the sign of z.
    z : Tensor
        The start.
    typical : Tensor or float
        Size > 0 of the terms of f near the root.

    Returns
    -------
    Tensor
        The root, to a few units of round-off of z or of the terms of f.

    Raises
    ------
    NotConverged
        If the steps run out because f is not increasing or not smooth.
    """
    eps = torch.finfo(z.dtype).eps
    low, high = torch.full_like(z, -torch.inf), torch.full_like(z, torch.inf)
    reach, width = 32.0, torch.full_like(z, torch.inf)
    for step in range(MAX_STEPS):
        f, slope, size = function(z)
        above = torch.where(f.isnan(), z > 0, f > 0)
        high, low = torch.where(above, z, high), torch.where(above, low, z)
        excess = f.abs() / typical
        stretch = torch.where(excess > 2, (1 + 1 / excess) * torch.log1p(excess), 1.0)
        new = z - f / slope * stretch
        middle = 0.5 * (low + high)
        middle = torch.where(low.isinf(), high - reach, middle)
        middle = torch.where(high.isinf(), low + reach, middle)
        # The bounds belong to the bracket: a step that settles may end at one.
        inside = (new >= low) & (new <= high)
        inside &= ((new - z).abs() <= reach) | ((high - low) < torch.inf)
        if step % 3 == 2:
            inside &= (high - low <= 0.5 * width) | (high - low).isinf()
            width = high - low
        moved = torch.where(inside, new, middle)
        exact = (f.abs() <= 2 * eps * size) & (size < torch.inf)
        settled = exact | ((moved - z).abs() <= 4 * eps * (1 + z.abs()))
        z = torch.where(exact, z, moved)
        if bool(settled.all()):
            return z
        reach *= 4
    worst = int((~settled).reshape(-1).nonzero()[0])
    msg = (
        f"a pointwise map of an internal energy did not settle in {MAX_STEPS} steps, "
        f"first at density exp({float(z.reshape(-1)[worst]):.6g}): its U must be "
        f"convex and its e smooth on densities > 0"
    )
    raise NotConverged(msg)


def bisect(
    holds: Callable[[Tensor], Tensor], inside: Tensor, outside: Tensor, halvings: int
) -> tuple[Tensor, Tensor]:
    """Bisect intervals for the point where a condition ceases to hold, entrywise.

    Parameters
    ----------
    holds : callable
        Returns where the condition holds. It must hold at `inside`.
    inside, outside : Tensor
        Ends of the intervals, floats or integers, in either order. The condition may
        also hold at `outside`; then `inside` tends to `outside`.
    halvings : int
        Number of halvings of each interval.

    Returns
    -------
    inside, outside : Tensor
        Ends of the last intervals. The condition holds at `inside`.

    Examples
    --------
    >>> import torch
    >>> from otflow.numerics.roots import bisect
    >>> low, high = torch.tensor(0.0), torch.tensor(4.0)
    >>> inside, outside = bisect(lambda x: x * x <= 2, low, high, 20)
    >>> round(float(inside), 4), bool(inside**2 <= 2 < outside**2)
    (1.4142, True)
    """
    for _ in range(halvings):
        total = inside + outside
        middle = 0.5 * total if total.is_floating_point() else total // 2
        fits = holds(middle)
        inside = torch.where(fits, middle, inside)
        outside = torch.where(fits, outside, middle)
    return inside, outside


def wright_omega(x: Tensor) -> Tensor:
    r"""Return the y > 0 with :math:`y + \log y = x`, entrywise.

    Two steps of the fourth-order iteration of Fritsch, Shafer and Crowley, from a rough
    start. The relative error is a few units of round-off.
    """
    far = x < FAR_LEFT
    t = x.clamp_min(FAR_LEFT)
    logs = t.clamp_min(1).log()
    right = t - logs + logs / t.clamp_min(1)
    near = t.clamp(-2, 1)
    middle = 0.5671 + near * (0.3619 + 0.0737 * near)
    left = t.clamp_max(0).exp()
    y = torch.where(t > 1, right, torch.where(t > -2, middle, left - left * left))
    for _ in range(2):
        r = t - y - y.log()
        w = 1 + y
        a, part = 2 * w + 4 * r / 3, r / w
        y = y * (1 + part * (a - part) / (a - 2 * part))
    return torch.where(far, x.exp(), y)
