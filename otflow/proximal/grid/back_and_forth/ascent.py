"""Dual steps with nonlocal terms: Newton's method for one dual of the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.numerics.line_search import turning_point
from otflow.proximal.grid.back_and_forth.coupled import Coupled, Joint
from otflow.proximal.grid.back_and_forth.newton import CONTRACTION
from otflow.proximal.grid.pressure import Iterate

__all__ = ["ascend"]

# The change in cells that fill at once shrinks to SHORTER, if these cells have THEIRS
# of the slope.
SHORTER, THEIRS = 0.4, 0.5
# Damping falls after a whole step and grows after a shortened one.
LESS, MORE = 0.25, 4.0
# The ascent ends if PATIENCE steps do not cut the residual to PROGRESS.
PATIENCE, PROGRESS = 12, 0.5
# No two densities have a larger residual. Beyond, the dual rises without end, as it may
# if G is concave.
MOST = 4.0


def ascend(
    coupled: Coupled, joint: Joint, tolerance: float, limit: int
) -> tuple[Joint, int]:
    r"""Raise the dual of a step with nonlocal terms by Newton steps.

    The step minimises :math:`E(\nu) + G(\nu)`. Its dual in the potential and in masses
    m is

    .. math:: \int\phi^c d\mu - \int U^*(-\phi - V - G'[m]) + G(m) - \int m\,G'[m].

    For a quadratic convex G it is concave in both. A step follows one line in both and
    is shortened where the slope along the line turns. The masses of Newton's step are
    those that the potential brings, to first order; so the system is that of `Coupled`.
    For other G the dual need not rise, and the caller compares objectives.

    Parameters
    ----------
    coupled : Coupled
        The problem.
    joint : Joint
        The start.
    tolerance : float
        Largest residual.
    limit : int
        Most steps.

    Returns
    -------
    best : Joint
        The iterate of least residual.
    steps : int
        Number of steps.
    """
    is_line = sum(n > 1 for n in coupled.problem.box.shape) <= 1
    # On a line the matrix is the exact derivative.
    damping = 0.0 if is_line else 1.0
    best, steps, last = joint, 0, 0
    goal = PROGRESS * joint.residual
    while best.residual > tolerance and steps < limit and steps - last < PATIENCE:
        change, moved = coupled.direction(joint, damping)
        finite = torch.isfinite(change) & torch.isfinite(moved)
        if not bool(finite.all()):
            break
        steps += 1
        found = _search(coupled, joint, change, moved)
        if found is None or found[0].residual > MOST:
            break
        joint, length = found
        damping = min(1.0, damping * (LESS if length >= 1.0 else MORE))
        if joint.residual < best.residual:
            best = joint
        if best.residual <= goal:
            goal, last = PROGRESS * best.residual, steps
    return best, steps


def _search(
    coupled: Coupled, joint: Joint, change: Tensor, moved: Tensor
) -> tuple[Joint, float] | None:
    """Return a point along a direction where the dual almost turns; None if none."""
    bend = coupled.second(joint.masses, moved)
    slopes, tried = _slopes(coupled, joint, change, bend), joint

    def trial(length: float) -> tuple[Joint, float, bool]:
        nonlocal slopes, tried
        masses = joint.masses + length * moved
        tried = coupled.at(joint.phi + length * change, masses)
        slopes = _slopes(coupled, tried, (tried.phi - joint.phi) / length, bend)
        good = tried.residual <= CONTRACTION * joint.residual
        return tried, sign * float(slopes.sum()), good

    def shortened() -> bool:
        # An empty cell wins mass at once when its potential passes those of its
        # neighbours. No derivative at the start foretells this, so the change is
        # shortened in these cells alone.
        nonlocal change
        filled = _filled(joint.point, tried.point, slopes)
        theirs = float(slopes[filled].sum()) < THEIRS * float(slopes.sum())
        if theirs:
            change = torch.where(filled, SHORTER * change, change)
        return theirs

    start = float(slopes.sum())
    # The dual of a concave G has a saddle: it may fall to the point where it turns, if
    # the residual falls too.
    sign = math.copysign(1.0, start)
    found, length, _ = turning_point(trial, abs(start), shortened)
    if found is None or (sign < 0 and found.residual > joint.residual):
        return None
    return found, length


def _filled(old: Iterate, new: Iterate, slopes: Tensor) -> Tensor:
    """Return the cells that wanted more mass, and got too much."""
    return (slopes < 0) & (old.excess < 0) & (new.masses > 2 * new.wanted)


def _slopes(coupled: Coupled, joint: Joint, change: Tensor, bend: Tensor) -> Tensor:
    """Return the share of each cell in the slope of the dual at a point."""
    point = joint.point
    change = torch.where(coupled.is_free, change, 0.0)
    return (point.wanted - joint.masses) * bend - point.excess * change
