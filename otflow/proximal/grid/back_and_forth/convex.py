"""Dual steps with a convex interaction: Newton's method for one concave dual."""

from __future__ import annotations

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


def ascend(
    coupled: Coupled, joint: Joint, tolerance: float, limit: int
) -> tuple[Joint, int]:
    r"""Raise the dual of a local problem and a convex quadratic term, by Newton steps.

    Let :math:`G'[m] = Km` with K positive. The step minimises :math:`E(\nu) + G(\nu)`.
    Its dual in the potential and in masses m,

    .. math:: \int\phi^c d\mu - \int U^*(-\phi - V - Km) - \tfrac12\int m\,Km,

    is concave in both. A step follows one line in both and is shortened where the slope
    along the line turns. The masses of Newton's step are those that the potential
    brings, to first order; so the system is that of `Coupled`. If K is not positive the
    dual need not rise, and the caller compares objectives.

    Parameters
    ----------
    coupled : Coupled
        The problem; its G is quadratic.
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
    slope = joint.problem.V - coupled.problem.V
    while best.residual > tolerance and steps < limit and steps - last < PATIENCE:
        change, moved = coupled.direction(joint, damping, coupled.product)
        finite = torch.isfinite(change) & torch.isfinite(moved)
        if not bool(finite.all()):
            break
        bend = coupled.product(moved)
        steps += 1
        found = _search(coupled, joint, slope, change, moved, bend)
        if found is None:
            break
        joint, length = found
        slope = slope + length * bend
        damping = min(1.0, damping * (LESS if length >= 1.0 else MORE))
        if joint.residual < best.residual:
            best = joint
        if best.residual <= goal:
            goal, last = PROGRESS * best.residual, steps
    return best, steps


def _search(
    coupled: Coupled,
    joint: Joint,
    slope: Tensor,
    change: Tensor,
    moved: Tensor,
    bend: Tensor,
) -> tuple[Joint, float] | None:
    """Return a point along a direction where the dual almost turns; None if none."""
    slopes, tried = _slopes(coupled, joint, change, bend), joint

    def trial(length: float) -> tuple[Joint, float, bool]:
        nonlocal slopes, tried
        tried = coupled.at(
            joint.phi + length * change,
            joint.masses + length * moved,
            slope + length * bend,
        )
        slopes = _slopes(coupled, tried, (tried.phi - joint.phi) / length, bend)
        good = tried.residual <= CONTRACTION * joint.residual
        return tried, float(slopes.sum()), good

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

    found, length, _ = turning_point(trial, float(slopes.sum()), shortened)
    return None if found is None else (found, length)


def _filled(old: Iterate, new: Iterate, slopes: Tensor) -> Tensor:
    """Return the cells that wanted more mass, and got too much."""
    return (slopes < 0) & (old.excess < 0) & (new.masses > 2 * new.wanted)


def _slopes(coupled: Coupled, joint: Joint, change: Tensor, bend: Tensor) -> Tensor:
    """Return the share of each cell in the slope of the dual at a point."""
    point = joint.point
    change = torch.where(coupled.is_free, change, 0.0)
    return (point.wanted - joint.masses) * bend - point.excess * change
