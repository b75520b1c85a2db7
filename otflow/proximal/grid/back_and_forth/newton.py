"""Newton's method for the pressure of a JKO step: matrix, direction, ascent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.functionals import Entropy
from otflow.functionals.combined import Combined
from otflow.numerics.anderson import Anderson
from otflow.numerics.line_search import turning_point
from otflow.numerics.multigrid import GridLaplacian, solve_laplacian
from otflow.proximal.grid.pressure import Iterate, PressureProblem

__all__ = ["CONTRACTION", "MEMORY", "laplacian", "maximise"]

# The coarsest grid has at least SMALLEST cells along its longest axis. Each coarser
# grid takes COARSE_STEPS Newton steps at most, to COARSE_RESIDUAL of the mass.
SMALLEST, COARSE_STEPS, COARSE_RESIDUAL = 8, 12, 1e-3
# A climb has stalled if PATIENCE Newton steps do not cut the residual to PROGRESS.
PATIENCE, PROGRESS = 16, 0.5
# Most evaluations of the dual, and most inner iterations, per allowed Newton step.
TRIALS_A_STEP, INNER_A_STEP = 3, 15
# Tolerance of the steps along single axes, which cost almost nothing.
FINE = 1e-9
# A start with a residual below NEAR needs no coarser grid; there steps are mixed.
NEAR = 0.02
# With a residual above so many tolerances the climb starts again, from the minimiser of
# the energy.
NEARLY = 10.0
# Relative residual of the Newton systems, and most inner iterations. The matrix is not
# the exact derivative, so more digits would not help.
INEXACT, MAX_INNER = 1e-2, 60
# Differences of steps in the Anderson mixing near the solution.
MEMORY = 4
# Damping: nearly empty cells count as if they passed a share of the residual more mass.
# The share falls by LESS after a step that leaves at most GOOD of the residual, and
# grows by MORE after others.
GOOD, LESS, MORE = 0.5, 0.25, 2.0
# A trial step that cuts the residual to this share is good, wherever the dual turns.
CONTRACTION = 0.9


def maximise(
    problem: PressureProblem,
    start: Tensor,
    tolerance: float,
    limit: int,
    *,
    separable: bool = True,
) -> tuple[Iterate, int, bool]:
    """Take Newton steps until the residual is below a share of the mass.

    Parameters
    ----------
    problem : PressureProblem
        The problem.
    start : Tensor, shape (n,)
        A first pressure.
    tolerance : float
        The share.
    limit : int
        Most Newton steps.
    separable : bool
        Whether to try the steps along the axes, whose sum may be the solution.

    Returns
    -------
    best : Iterate
        The iterate of least residual.
    steps : int
        Newton steps on this grid.
    stalled : bool
        Whether the climb ended above the tolerance because the residual fell no more.
    """
    point = problem.at(start.clamp_min(problem.lowest))
    small = max(problem.box.shape) < 2 * SMALLEST
    far = not point.residual <= max(NEAR, tolerance)
    if far and separable and _is_product(problem):
        point = _better(point, problem.at(_along_axes(problem, tolerance, limit)))
    if not small and not point.residual <= max(NEAR, tolerance):
        coarse, guess = problem.coarser(), problem.restrict(start)
        below, _, _ = maximise(
            coarse, guess, COARSE_RESIDUAL, COARSE_STEPS, separable=separable
        )
        for guess in (problem.prolong(coarse, below.pressure), problem.at_rest()):
            point = _better(point, problem.at(guess))
    best, steps, stalled = _climb(problem, point, tolerance, limit)
    # Further starts: each is tried if the residual is above `margin` tolerances.
    again = [(NEARLY, "at rest", False)]
    if sum(n > 1 for n in problem.box.shape) <= 1:
        # On a line the matrix is the exact derivative: plain steps raise the dual to
        # its end, past kinks of the push-forward that mixing and patience do not pass.
        again += [(1.0, "at rest", True), (1.0, "best", True)]
    for margin, place, plain in again:
        if best.residual <= margin * tolerance:
            continue
        first = problem.at(problem.at_rest() if place == "at rest" else best.pressure)
        other, more, also = _climb(problem, first, tolerance, limit, plain=plain)
        best, steps, stalled = _better(best, other), steps + more, stalled and also
    return best, steps, stalled and not best.residual <= tolerance


def _better(one: Iterate, other: Iterate) -> Iterate:
    """Return the iterate of less residual; a residual that is NaN never wins."""
    return one if one.residual <= other.residual else other


def _is_product(problem: PressureProblem) -> bool:
    """Return whether the energy is that of a product, a sum over the axes."""
    lines = sum(n > 1 for n in problem.box.shape)
    energy = problem.internal
    parts = energy.parts if isinstance(energy, Combined) else ((1.0, energy),)
    entropy = len(parts) == 1 and isinstance(parts[0][1], Entropy)
    unbounded = math.isinf(energy.max_density)
    return lines > 1 and entropy and unbounded and bool((problem.room > 0).all())


def _along_axes(problem: PressureProblem, tolerance: float, limit: int) -> Tensor:
    """Return the pressure of the steps of the marginals along each axis."""
    lines = []
    for axis in range(problem.box.dim):
        line = problem.along(axis)
        # The residuals of the axes add up in the product.
        aim = min(tolerance / (4 * problem.box.dim), FINE)
        start = line.at(line.at_rest())
        point, _, _ = _climb(line, start, aim, limit, plain=True)
        if not point.residual <= aim:
            point = _better(point, maximise(line, start.pressure, aim, limit)[0])
        lines.append((line, point.pressure))
    return problem.joined(lines)


def _climb(
    problem: PressureProblem,
    point: Iterate,
    tolerance: float,
    limit: int,
    *,
    plain: bool = False,
) -> tuple[Iterate, int, bool]:
    """Return the best of the Newton iterates, their number, and whether it stalled.

    Plain steps are neither mixed nor damped: on a line, where the matrix is the exact
    derivative.
    """
    best, steps, last, trials, inner = point, 0, 0, 0, 0
    goal_residual = PROGRESS * point.residual
    # Newton's matrix is not the exact derivative, so the steps converge linearly, and
    # slowly at some cells, as beside an obstacle. Mixing accelerates them.
    anderson = Anderson(MEMORY, torch.ones_like(point.pressure))
    damping = 0.0 if plain else 1.0
    while not best.residual <= tolerance and steps < limit:
        spent = trials >= TRIALS_A_STEP * limit or inner >= INNER_A_STEP * limit
        # Plain steps raise the dual, while the residual may rise for many steps.
        wasted = 0 if plain else steps - last
        if spent or wasted >= PATIENCE:
            return best, steps, True
        # Halfway through the patience the climb returns to the best iterate and goes on
        # without mixing.
        if wasted == PATIENCE // 2:
            point = best
            anderson.forget()
        change, used = _direction(problem, point, damping)
        inner += used
        direction = change
        if not plain and point.residual < NEAR and wasted < PATIENCE // 2:
            goal = anderson.advance(point.pressure, change).clamp_min(problem.lowest)
            direction = goal - point.pressure
        found, used = _search(problem, point, direction)
        trials += used
        if found is None and direction is not change:
            found, used = _search(problem, point, change)
            trials += used
            anderson.forget()
        steps += 1
        if found is None:
            return best, steps, True
        factor = LESS if found.residual <= GOOD * point.residual else MORE
        damping = min(1.0, damping * factor)
        point = found
        best = _better(best, point)
        if not best.residual > goal_residual:
            last, goal_residual = steps, PROGRESS * best.residual
    return best, steps, False


def _direction(
    problem: PressureProblem, point: Iterate, damping: float
) -> tuple[Tensor, int]:
    """Return the change of a projected Newton step, and the inner iterations.

    The matrix is not the exact derivative of the excess: it leaves out that mass moved
    along one axis changes the flow along the others.
    """
    L = laplacian(problem, point, damping)
    shape, p, excess = problem.box.shape, point.pressure, point.excess
    diagonal = L.diagonal.reshape(-1)
    above = p - problem.lowest
    # Cells that win no mass lie below the hull of cells that do. The faces between two
    # winners have equal weights. So these cells, without an excess, interpolate the
    # changes of the winners linearly, as the hull does. No mass passes ends of rows.
    lost = point.lost & (diagonal > 0)
    moves = ((above * diagonal + excess > 0) & (diagonal > 0)) | lost
    # Where no pressure is needed it drops to its least value.
    fixed = torch.where(moves | (diagonal == 0), 0.0, -above).reshape(shape)
    mask = moves.reshape(shape)
    right = excess.masked_fill(lost, 0.0).reshape(shape) - L.apply(fixed)
    step, used = solve_laplacian(L.inside(mask), right * mask, INEXACT, MAX_INNER)
    step = torch.where(mask, step, fixed).reshape(-1).masked_fill(point.lost, 0.0)
    return (p + step).clamp_min(problem.lowest) - p, used


def _search(
    problem: PressureProblem, point: Iterate, direction: Tensor
) -> tuple[Iterate | None, int]:
    """Return a point along a direction where the dual almost turns, and the trials."""

    def trial(length: float) -> tuple[Iterate, float, bool]:
        goal = point.pressure + length * direction
        found = problem.at(goal.clamp_min(problem.lowest))
        slope = float(found.excess @ (found.pressure - point.pressure)) / length
        return found, slope, found.residual <= CONTRACTION * point.residual

    found, _, used = turning_point(trial, float(point.excess @ direction))
    return found, used


def laplacian(
    problem: PressureProblem, point: Iterate, damping: float
) -> GridLaplacian:
    """Return approximately minus the derivative of the excess in the pressure."""
    shape = problem.box.shape
    is_free = problem.room.reshape(shape) > 0
    beside = None if bool(is_free.all()) else _beside_obstacles(problem, point)
    faces = []
    for axis, (flow, h) in enumerate(
        zip(point.mobility, problem.box.spacing, strict=True)
    ):
        n = shape[axis]
        low, high = is_free.narrow(axis, 0, n - 1), is_free.narrow(axis, 1, n - 1)
        least = damping * min(point.residual, 1.0) * _typical_mass(problem)
        # Far from the solution, cells that are empty now may have to pass mass.
        passing = flow.clamp_min(least)
        if beside is not None:
            # Around a corner mass moves diagonally, through no face.
            both = beside.narrow(axis, 0, n - 1) + beside.narrow(axis, 1, n - 1)
            passing = torch.maximum(passing, 0.5 * both)
        faces.append(passing * (low & high) * (problem.dt / h**2))
    return GridLaplacian.of(faces, _softness(problem, point).reshape(shape))


def _beside_obstacles(problem: PressureProblem, point: Iterate) -> Tensor:
    """Return the masses of the cells that touch an obstacle, 0 elsewhere."""
    near = problem.room.reshape(problem.box.shape) <= 0
    for axis, n in enumerate(problem.box.shape):
        wide = near.clone()
        wide.narrow(axis, 0, n - 1).logical_or_(near.narrow(axis, 1, n - 1))
        wide.narrow(axis, 1, n - 1).logical_or_(near.narrow(axis, 0, n - 1))
        near = wide
    return point.masses.reshape(problem.box.shape) * near


def _typical_mass(problem: PressureProblem) -> float:
    """Return the mass of a well filled cell: the largest mass, or a full cell's."""
    most = problem.internal.max_density * float(problem.room.max())
    return min(most, float(problem.masses.max()))


def _softness(problem: PressureProblem, point: Iterate) -> Tensor:
    """Return the derivative of the wanted masses in the pressure."""
    room = torch.where(problem.room > 0, problem.room, 1.0)
    wanted, top = point.wanted / room, problem.internal.max_density
    r = torch.maximum(wanted, point.masses / room).clamp_max(top)
    usable = (r > 0) & (wanted < top) & (problem.room > 0) & ~point.lost
    bend = problem.internal.curvature(torch.where(usable, r, 1.0))
    usable = usable & (bend > 0)
    return torch.where(usable, problem.room / torch.where(usable, bend, 1.0), 0.0)
