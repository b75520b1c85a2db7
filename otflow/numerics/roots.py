"""Increasing scalar equations, solved entrywise; bisection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow.errors import NotConverged

__all__ = ["bisect", "increasing_root", "wright_omega"]

MAX_STEPS = 400
FAR_LEFT = -40.0  # exp(x) is the Wright function there, to round-off


def increasing_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    z: Tensor,
    typical: Tensor | float,
) -> Tensor:
    r"""Solve f(z) = 0 entrywise, f increasing.

    Newton's method within a bracket that shrinks. Where f is far above `typical`, f is
    taken for an exponential and its logarithm is stepped, which halves the number of
    its digits instead of dividing it by e. Where a step leaves the bracket, or three
    have not halved it, it is bisected or, while one end is unknown, widened.

    Parameters
    ----------
    function : callable
        Gives f, f' and the size of the terms that were summed to f; where f overflows
        it may be infinite, or NaN with the sign of z.
    z : Tensor
        Where to start.
    typical : Tensor or float
        Size > 0 of the terms of f near the root.

    Returns
    -------
    Tensor
        The root, to a few units of round-off of z or of the terms of f.

    Raises
    ------
    NotConverged
        If the steps run out: f is not increasing, or not smooth.
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
        # A step that ends at an end of the bracket has settled there.
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
    """Narrow intervals on the ends of a condition, entrywise.

    Parameters
    ----------
    holds : callable
        Returns where the condition holds; it does at `inside`.
    inside, outside : Tensor
        Ends of the intervals, floats or integers, in either order. Where `outside` is
        the other end of what is looked at the condition may hold there too.
    halvings : int
        How often each interval is halved.

    Returns
    -------
    inside, outside : Tensor
        Ends that are closer; the condition holds at the first.

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

    Fourth-order iteration of Fritsch, Shafer and Crowley, twice from a rough start:
    relative error a few units of round-off.
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
