r"""The heights for which Laguerre cells have given masses: damped Newton iterations.

They minimise the convex function :math:`\int \max_j (x\cdot y_j - w_j)\,d\rho(x) +
\sum_j b_j w_j`, whose gradient is :math:`b_j - \rho(C_j)`
:cite:p:`kitagawa2019convergence`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import NotConverged
from otflow.metrics.bracket import NOISE
from otflow.metrics.columns import cheapest
from otflow.metrics.crossings import Cells, StepDensity, integrals
from otflow.metrics.laguerre import Diagram, diagram

__all__ = ["Balanced", "heights"]

# Cells along an axis that make one cell of the coarser density.
TOGETHER = 2
# Least goal along the way, in mean masses of an atom.
EVEN = 0.05
# Share of a coarser density that is uniform, so that all its cells touch.
FLOOR = 0.03
# Share of its goal that every cell keeps along the way from one density to the next.
KEPT = 0.5
# Share of its goal that every cell has before the density changes further. The cells
# may have in excess, in sum, what it leaves of the mass.
NEAR = 0.75
# Most Newton steps for one density, and halvings of a step. The steps converge
# quadratically once they need no halving.
STEPS, HALVINGS = 25, 25
# Share of the curvature that is added to it: the cells of parts of the density that do
# not touch have no common wall, so that their heights are not determined.
DAMPING = 1e-11
# Factor of the share of the coarser density where the cells cannot follow a fall to 0,
# the largest such factor, and the least share.
SLOW, SLOWEST, ROUND_OFF = 0.01, 0.9, 1e-14
# Steps after which the next change of the density is larger.
FEW = 3
# Sum of errors of masses that is round-off, and one that only round-off keeps from
# falling: Newton steps are exact there.
EXACT, CLOSE = 1e-13, 1e-8
# Bounds of lengths that are divided by.
TINY, HUGE = 1e-100, 1e100


@dataclass(frozen=True, eq=False)
class Balanced:
    r"""Cells, and bounds of the greatest :math:`\int x\cdot T(x)\,d\rho(x)`.

    Parameters
    ----------
    w : Tensor, shape (n,)
        Heights.
    masses, moments : Tensor, shapes (n,) and (n, d)
        Integrals of 1 and of x over the cells.
    greatest, reached : float
        No map correlates more than `greatest`; a plan reaches `reached`.
    noise : float
        The round-off of both.
    steps : int
        Newton steps.
    """

    w: Tensor
    masses: Tensor
    moments: Tensor
    greatest: float
    reached: float
    noise: float
    steps: int


class _Goal(NamedTuple):
    """A tolerance of ``rest - correlation``, as a share of it, and of all masses."""

    rest: float
    tolerance: float

    def is_met(self, state: _State) -> bool:
        """Whether bounds and masses suffice, or are wrong by round-off alone."""
        greatest, reached = state.bounds()
        wide = max(NOISE * abs(reached), self.tolerance * (self.rest - reached))
        return greatest - reached <= wide and state.residual <= max(
            self.tolerance, EXACT
        )


@dataclass(frozen=True, eq=False)
class _Problem:
    """Atoms y of masses b, which sum to 1, and a density with a share of a coarser one.

    The box of the `coarsest` density holds all. Tiny cells hinder all steps. So no goal
    is less than `floor`, or than that share of it if the density is the last one.
    """

    y: Tensor
    b: Tensor
    coarsest: StepDensity
    density: StepDensity
    coarser: StepDensity
    is_last: bool

    @property
    def floor(self) -> float:
        """The least goal."""
        return EVEN / len(self.b)

    def goals(self, share: float) -> Tensor:
        """Return the masses that the cells shall have."""
        least = self.floor * (share if self.is_last else 1.0)
        goals = self.b.clamp_min(least)
        return goals / goals.sum()

    def at(self, w: Tensor, share: float) -> _State:
        """Return the cells of these heights."""
        n, box = len(self.b), self.coarsest
        cells = diagram(self.y, w, box.lower, box.upper)
        own = integrals(cells, self.density, n)
        alone = self.coarser is self.density
        other = own if alone else integrals(cells, self.coarser, n)
        return _State(self, w, cells, own, other, share)


@dataclass(frozen=True, eq=False)
class _State:
    """The cells of heights w, and their integrals of both densities."""

    problem: _Problem
    w: Tensor
    diagram: Diagram
    own: Cells
    other: Cells
    share: float

    @cached_property
    def cells(self) -> Cells:
        """The integrals of the density with its share of the coarser one."""
        if self.share == 0.0:
            return self.own
        both = zip(self.own, self.other, strict=True)
        return Cells(*(p + self.share * (q - p) for p, q in both))

    @cached_property
    def excess(self) -> Tensor:
        """The masses minus their goals."""
        return self.cells.masses - self.goals

    @cached_property
    def goals(self) -> Tensor:
        """The masses that the cells shall have."""
        return self.problem.goals(self.share)

    @property
    def residual(self) -> float:
        """The sum of the errors of the masses."""
        return float(self.excess.abs().sum())

    @property
    def least(self) -> float:
        """The least mass of a cell, as a share of its goal."""
        return float((self.cells.masses / self.goals).min())

    @property
    def is_near(self) -> bool:
        """Whether the density may change: no cell lacks much of its mass.

        Where parts of the density do not touch, only the share of the coarser density
        moves mass between their cells, and no more than it holds.
        """
        most = (1 - NEAR) * (self.share or 1.0)
        return self.least >= NEAR and self.residual <= most

    def least_share(self) -> float:
        """Return the least share of the coarser density that leaves mass everywhere.

        With a share s the masses are own + s (other - own), at least KEPT of the goals.
        """
        p, own = self.problem, self.own.masses
        rise = self.other.masses - own
        bounds = [(KEPT * p.goals(0.0) - own, rise)]
        if p.is_last:
            bounds.append((-own, rise - KEPT * p.floor))
        share = 0.0
        for lack, gain in bounds:
            short = lack > 0
            if not bool((gain[short] > 0).all()):
                return 1.0
            if bool(short.any()):
                share = max(share, float((lack[short] / gain[short]).max()))
        return min(1.0, share)

    def direction(self) -> Tensor:
        """Return the Newton step."""
        n = len(self.w)
        first, second = self.diagram.first, self.diagram.second
        inner = ((first < n) & (second < n)).nonzero()[:, 0]
        i, j = first[inner].numpy(), second[inner].numpy()
        bonds = self.cells.walls[inner] / self.diagram.normals[inner].norm(dim=1)
        sparse = lazy_import("scipy.sparse")
        half = sparse.coo_matrix((bonds.numpy(), (i, j)), shape=(n, n))
        links = (half + half.T).tocsc()
        degree = np.asarray(links.sum(1)).reshape(-1)
        diagonal = degree + DAMPING * (degree + degree.mean() + TINY)
        curvature = sparse.diags(diagonal).tocsc() - links
        solve = lazy_import("scipy.sparse.linalg").splu(curvature).solve
        return torch.from_numpy(solve(self.excess.numpy()))

    def bounds(self) -> tuple[float, float]:
        """Return the upper bound of the correlation, and that which a plan reaches.

        The plan sends the mass that a cell has in excess, taken evenly from the cell,
        to the cells that lack mass, in proportion.
        """
        y, cells = self.problem.y, self.cells
        terms = float((y * cells.moments).sum())
        greatest = terms - float(self.w @ self.excess)
        more, less = self.excess.clamp_min(0.0), (-self.excess).clamp_min(0.0)
        if float(more.sum()) == 0.0 or float(less.sum()) == 0.0:
            return greatest, terms
        sent = more / cells.masses.masked_fill(more == 0, 1.0)
        lost = float(sent @ (cells.moments * y).sum(1))
        gained = float((sent @ cells.moments) @ (less @ y) / less.sum())
        return greatest, terms - lost + gained

    def noise(self) -> float:
        """Return the round-off of the bounds.

        By convexity no plane lies higher above that of the own atom inside a cell than
        at its corners.
        """
        y, w, cells = self.problem.y, self.w, self.cells
        g, real = y.square().sum(1) - 2 * w, self.diagram.meeting < len(w)
        kept = real.any(1)
        corners, real = self.diagram.vertices[kept], real[kept]
        index = self.diagram.meeting[kept].masked_fill(~real, 0)
        values = (corners[:, None] - y[index]).square().sum(2) - g[index]
        own = values.masked_fill(~real, -torch.inf).amax(1)
        above = 0.5 * float((own - cheapest(corners, y, g, 1)[0][:, 0]).max())
        lost = abs(float(cells.masses.sum() - 1)) * float(w.abs().max())
        moved = float(cells.moments.sum(0).abs().sum() * y.abs().max())
        sums = (y * cells.moments).abs().sum() + (cells.masses + self.goals) @ w.abs()
        return max(0.0, above) + lost + moved + NOISE * float(sums)


def heights(
    y: Tensor, b: Tensor, density: StepDensity, rest: float, tolerance: float
) -> Balanced:
    """Return heights for which the cells of atoms y have masses b > 0.

    The barycentre of the density is 0. The iterations end when the bounds of `rest`
    minus the correlation differ by a share `tolerance` of the upper one and the masses
    are right up to it, or to round-off; or when no step improves the masses.
    """
    levels = [density]
    while max(levels[-1].masses.shape) > 1:
        levels.append(levels[-1].coarser(TOGETHER, FLOOR))
    w, steps, coarser = _scaled_voronoi(y, levels[-1]), 0, levels[-1]
    for own in levels[::-1]:
        is_last = own is density
        problem = _Problem(y, b, levels[-1], own, coarser, is_last)
        state, used = _from_coarser(
            problem, w, _Goal(rest, tolerance) if is_last else None
        )
        w, steps, coarser = state.w, steps + used, own
    greatest, reached = state.bounds()
    masses, moments = state.cells.masses, state.cells.moments
    return Balanced(w, masses, moments, greatest, reached, state.noise(), steps)


def _scaled_voronoi(y: Tensor, density: StepDensity) -> Tensor:
    """Return heights whose cells are those of nearest atoms, moved into the box."""
    low, high = y.amin(0), y.amax(0)
    size, sides = high - low, density.upper - density.lower
    fits = (sides / size.clamp_min(TINY)).min()
    scale = float((0.9 * fits).clamp_max(HUGE))
    middle = 0.5 * (density.lower + density.upper)
    places = middle + scale * (y - 0.5 * (low + high))
    return places.square().sum(1) / (2 * scale)


def _from_coarser(
    problem: _Problem, w: Tensor, goal: _Goal | None
) -> tuple[_State, int]:
    """Return the cells of a density, and the steps, from those of the coarser one.

    The density changes no faster than its cells can follow. None may lose its mass. If
    parts of the density do not touch, its cells alone do not determine the heights, and
    the share of the coarser density falls little by little.
    """
    state, used, slowness = problem.at(w, 1.0), 0, 0.0
    while True:
        share = state.least_share()
        share = max(min(share, 0.5 * state.share), slowness * state.share)
        new, more, done = _newton(replace(state, share=share), goal)
        used += more
        if done or (new.share == 0.0 and new.residual <= CLOSE):
            return new, used
        if new.share == 0.0 or not new.is_near:
            slowness = max(SLOW, share / state.share) ** 0.5
        else:
            state = new
            # What took few steps may go faster.
            slowness = slowness**2 if more <= FEW else slowness
        if slowness > SLOWEST or state.share < ROUND_OFF:
            return replace(state, share=0.0), used


def _newton(state: _State, goal: _Goal | None) -> tuple[_State, int, bool]:
    """Return the state after damped Newton steps, how many, and whether it suffices.

    It suffices without a share of the coarser density, if the bounds differ by the goal
    or, without one, the cells are near.
    """
    floor, factor = 0.5 * min(1.0, state.least), 1.0
    for step in range(STEPS):
        last = replace(state, share=0.0)
        if last.is_near if goal is None else goal.is_met(last):
            return last, step, True
        if state.share and state.is_near:
            return state, step, False
        move, size = state.direction(), float(state.excess.norm())
        factor = min(1.0, 8 * factor)
        for _ in range(HALVINGS):
            try:
                new = state.problem.at(state.w + factor * move, state.share)
            except NotConverged:  # no cells, to round-off
                factor *= 0.5
                continue
            shrunk = float(new.excess.norm()) <= (1 - 0.5 * factor) * size
            if shrunk and new.least >= floor:
                break
            factor *= 0.5
        else:
            return state, step, False
        state = new
    return state, STEPS, False
