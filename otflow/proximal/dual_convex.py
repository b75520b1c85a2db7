"""A dual step with a convex quadratic term: Newton's method for a concave dual."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.proximal.dual_coupled import Coupled, Joint
from otflow.proximal.pressure import Iterate

__all__ = ["ascend"]

OVERSHOOT, MAX_TRIALS = 0.5, 16
SHORTER = 0.4
STEEP = 0.5
GOOD, LESS, MORE = 0.5, 0.25, 2.0
PATIENCE, PROGRESS = 12, 0.5


def ascend(
    coupled: Coupled, joint: Joint, tolerance: float, limit: int
) -> tuple[Joint, int]:
    is_line = sum(n > 1 for n in coupled.problem.box.shape) <= 1
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
        new, length = found
        slope = slope + length * bend
        factor = LESS if length >= 1.0 else 4.0
        damping = min(1.0, damping * factor)
        joint = new
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
    """Return a point along a direction where the dual has all but turned."""
    start = float(_slope(coupled, joint, change, bend).sum())
    if not start > 0:
        return None
    length, best = 1.0, None
    for _ in range(MAX_TRIALS):
        trial = coupled.at(
            joint.phi + length * change,
            joint.masses + length * moved,
            slope + length * bend,
        )
        move = (trial.phi - joint.phi) / length
        slopes = _slope(coupled, trial, move, bend)
        here = float(slopes.sum())
        if here >= -OVERSHOOT * start or trial.residual <= 0.9 * joint.residual:
            best = trial, length
            if not here > STEEP * start:
                return best
            length *= 2.0
        elif best is not None:
            return best
        else:
            filled = switched_on(joint.point, trial.point, slopes)
            if float(slopes[filled].sum()) < 0.5 * here:
                change = torch.where(filled, SHORTER * change, change)
                continue
            length *= min(max(start / (start - here), 0.1), 0.9)
    return best


def switched_on(old: Iterate, new: Iterate, slopes: Tensor) -> Tensor:
    """Return the cells that were empty, and that got too much."""
    return (slopes < 0) & (old.excess < 0) & (new.masses > 2 * new.wanted)


def _slope(coupled: Coupled, joint: Joint, change: Tensor, bend: Tensor) -> Tensor:
    """Return what each cell adds to the slope of the dual at a point."""
    point = joint.point
    change = torch.where(coupled.is_free, change, 0.0)
    rest = point.wanted - joint.masses
    return rest * bend - point.excess * change
