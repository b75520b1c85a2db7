"""The JKO step on grids by its dual: hard congestion and large steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from otflow._validation import non_negative_int
from otflow.errors import Diverged, Unsupported
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.base import ProxResult
from otflow.proximal.grid.back_and_forth.newton import maximise
from otflow.proximal.grid.back_and_forth.rounds import Settled, settle
from otflow.proximal.grid.back_and_forth.step import is_full, result_of
from otflow.proximal.grid.base import GridProximal
from otflow.proximal.grid.own_energy import LocalTerms, stepped
from otflow.proximal.grid.pressure import Iterate, PressureProblem
from otflow.proximal.grid.push_forward import squared_diagonal
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["BackAndForth"]

# Least density of the first guess, as a share of the largest, for an energy without a
# least pressure: its U' is minus infinity at the density 0.
DUST = 1e-12
# Mass that may be too much for a full room, in units of the dtype's round-off.
OVERFULL = 64.0


class BackAndForth(GridProximal):
    r"""Solve :math:`\min_\nu F(\nu) + W_2^2(\mu, \nu)/(2\,dt)` on a grid by its dual.

    The solver maximises the dual of :cite:t:`jacobs2021back`, :math:`\int\phi^c d\mu -
    \int U^*(-\phi - V)`, over the pressure :math:`p = -\phi - V \ge U'(0)`. The step is
    :math:`\nu = T_\#\mu` with :math:`T^{-1}(y) = y - dt\,\nabla\phi`. Where p exceeds
    its least value, the density is :math:`(U^*)'(p)`; under hard congestion this is the
    bound. Elsewhere the density is lower, and it is what the map brings.

    Each iteration has two parts. Forth: the c-transform along one axis after the other
    moves the masses along these axes, with exact conservation. Back: a Newton step for
    the pressure where it acts, :math:`-dt\,\nabla\cdot(\nu\nabla\delta) +
    (U^*)''\delta = \nu - (U^*)'(p)`, with multigrid and Anderson mixing; the published
    method has a fixed preconditioner. The dual is concave: a step is shortened where
    the slope along it turns. Where :math:`\phi` wins no mass, :math:`\phi` is raised
    until it is about to win some, as in the published method.

    A start far from the solution is first improved on coarser grids. With an entropy
    the steps of the marginals along each axis improve it too: their product is the step
    if the source and the density of equilibrium are products. ``iterations`` counts the
    steps on the grid itself.

    Potentials may be nonconvex. Obstacles and walls hold no density. Besides congestion
    F may hold `Entropy` and `PowerEntropy` with m > 1. F may also hold a user's term
    that is known by its value only, if its first variation in a cell is :math:`V +
    U'(\rho)` of this cell and U is convex. The solver tests this at random densities,
    and again at the result. Interactions and other terms are linearised in rounds.
    Each round adds enough of a convex energy for the objective to fall. From the end of
    a round, Newton's method solves the whole problem without linearising these terms.

    Parameters
    ----------
    tolerance : float
        Stop when the mass at the wrong density is below `tolerance`: mass above the
        bound, or mass that differs from :math:`(U^*)'(p)`.
    max_iterations : int
        Most Newton steps on the grid itself, for each start of each linearisation.
        There are up to two starts, and on a line two more with plain steps.
    max_linearisations : int
        Most linearisations of interactions and other terms. The step ends earlier,
        without convergence, if two in succession fail, or if eight do not halve the
        residual. With an internal energy besides a bound it also ends after 1.25 times
        `max_iterations` Newton steps in all.

    Attributes
    ----------
    tolerance, max_iterations, max_linearisations
        As above.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``
        F at the start and at the end, which never increases, and F(before) - F(after) -
        w2^2 / (2 dt). Without linearisations the decrease is at least -``gap``. It may
        be negative where mass moves by less than half a cell, the resolution of the
        grid; then the guarantee is ``"none"``.
    ``w2``
        An upper bound of the W2 distance of start and end, the cost of a plan. In 1-D
        the distance itself, unless a bound on the density has moved mass on.
    ``primal``, ``dual``, ``gap``
        The objective at the result, a lower bound of its minimum over all densities
        that are constant on cells, and the difference of both. At the exact step the
        gap is about :math:`\sum_a h_a^2/(6\,dt)`, from the size of the cells. With
        interactions and other terms all three belong to the last linear problem; its
        energies differ from F by a constant and by the nonlinear part. None if an
        energy has no conjugate.
    ``residual``, ``converged``
        Mass at the wrong density, and whether it met the tolerance. Interactions and
        other terms enter by their first variation at the result. The residual then
        includes the mass by which the densities of two evaluations differ.
    ``stalled``
        Whether the solve ended above its tolerance, with iterations left, because it
        did not improve. Such a step is not converged.
    ``stayed``
        Whether the measure is returned unchanged because the step would not lower F.
        The measure is then at rest up to the size of the cells.
    ``relocated``
        Mass that was moved to meet the bound on the density exactly.
    ``linearisations``
        Number of linearisations of interactions and other terms; 0 without them.
    ``bound``
        A bound on the W2 distance to the exact step among all densities,
        :math:`\sqrt{2\,dt\,(\mathrm{gap} + b) / (1 + dt\,\lambda)}`, some cells at
        best. The best density that is constant on cells has the same bound, so it is
        within twice the bound of the result. b has two parts: the excess of the
        integral of :math:`U^*` over cells above its value at the means, bounded by
        chords, and a sixth of the mean second difference of the potential, which is
        read at the centres of cells. In a full room the bound is the length of the box
        times the root of the mass that would still fit. None unless the modulus
        :math:`\lambda` of F is known, :math:`1 + dt\,\lambda > 0`, nothing was
        linearised, and no energy is known by its sum over cells only.
    ``guarantee``
        ``"exact"``: within ``bound`` of the step. ``"optimal"``: the objective is
        within ``gap`` of its minimum. ``"stationary"``: the same for the last
        linearisation, or an energy has no conjugate. ``"none"``: not converged, the
        energy rose, the decrease is negative beyond round-off and the tolerance, or the
        last linearisation raised F.

    Time O(n log n) an iteration, memory O(n), computed in float64. Mass moves along
    straight lines, so ``solve`` raises `Unsupported` if there are obstacles, unless the
    free cells fill a smaller box. A room that is full below the bound stays as it is.
    In two and three dimensions two kinds of steps may not converge: with an entropy
    where nothing is a product, and a step that spreads one cell over many. Then
    ``converged`` is False.

    Examples
    --------
    >>> import torch, otflow as of
    >>> rho = torch.zeros(64, dtype=torch.float64)
    >>> rho[32:] = 0.5
    >>> mu = of.GridDensity(rho, lower=0.0, upper=4.0, walls=True)  # on [2, 4]
    >>> F = of.Potential(lambda x: x[..., 0], modulus=0.0) + of.Congestion(0.75)
    >>> result = of.proximal.BackAndForth().solve(F, mu, dt=3.0)
    >>> float(result.measure.density().max())
    0.75
    >>> round(float(result.measure.points[result.measure.weights > 0].max()), 2)
    1.34
    """

    moves_straight = True

    def __init__(
        self,
        *,
        tolerance: float = 1e-6,
        max_iterations: int = 60,
        max_linearisations: int = 30,
    ) -> None:
        super().__init__(tolerance, max_iterations)
        self.max_linearisations = non_negative_int(
            max_linearisations, "max_linearisations", minimum=1
        )

    def solve(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> ProxResult[GridDensity]:
        """Return the proximal step as `ProximalSolver.solve`; `warm` is a pressure.

        Raises
        ------
        Unsupported
            Also if a straight line between free cells may meet an obstacle, or F holds
            a fast diffusion.
        NonFinite
            Also if the potential is not finite in a free cell.
        ValueError
            Also if an internal energy has no flow in this dimension.
        """
        dt = self._admit(F, mu, dt, GridDensity)
        terms = sort_terms(F, mu.dim)
        if terms.is_fast:
            msg = (
                "BackAndForth works with the pressure, which under fast diffusion "
                "(PowerEntropy(m), m < 1) is unbounded in vacuum; use GridSinkhorn()"
            )
            raise Unsupported(msg)
        return stepped(terms, mu, lambda taken: self._step(F, mu, dt, warm, taken))

    def _step(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any, taken: LocalTerms
    ) -> ProxResult[GridDensity]:
        """Return the step with these terms."""
        terms = taken.terms
        problem = PressureProblem.of(terms, mu, taken.potential(mu), dt)
        before = float(F.value(mu))
        start = _first_pressure(problem) if warm is None else warm.to(problem.V)
        # A full room holds one density only: nothing is to be solved.
        if is_full(problem, self.tolerance, OVERFULL * torch.finfo(mu.dtype).eps):
            return self._full(F, mu, problem, start, before)
        settled = self._solve(terms, mu, problem, start)
        if not math.isfinite(settled.point.residual):
            msg = "the dual of the JKO step left the finite numbers; take a smaller dt"
            raise Diverged(msg, measure=mu)
        return result_of(F, mu, before, settled, self.tolerance)

    def _full(
        self,
        F: Functional,
        mu: GridDensity,
        problem: PressureProblem,
        pressure: Tensor,
        before: float,
    ) -> ProxResult[GridDensity]:
        """Return the step in a full room: the measure itself.

        Two densities below the bound differ by at most the mass that still fits, and no
        mass moves farther than through the whole box.
        """
        bound = problem.internal.max_density
        vacancy = max(
            bound * float(problem.room.sum()) - float(problem.masses.sum()), 0
        )
        over = (problem.masses - bound * problem.room).clamp_min(0).sum()
        rest = float(over)
        distance = math.sqrt((vacancy + rest) * squared_diagonal(problem.box))
        lost = torch.zeros_like(pressure, dtype=torch.bool)
        still = Iterate(pressure, problem.masses, problem.masses, [], [], lost, rest)
        # Mass above the bound by round-off stays where it is.
        stay = rest <= OVERFULL * torch.finfo(mu.dtype).eps
        settled = Settled(still, 0, "converged", 0, problem)
        return result_of(
            F, mu, before, settled, self.tolerance, within=distance, stay=stay
        )

    def _solve(
        self, terms: Terms, mu: GridDensity, problem: PressureProblem, start: Tensor
    ) -> Settled:
        """Solve, in rounds if there are nonlocal terms."""
        if terms.interactions or terms.others:
            return settle(
                terms,
                mu,
                problem,
                start,
                tolerance=self.tolerance,
                limit=self.max_iterations,
                most=self.max_linearisations,
            )
        point, steps, stalled = maximise(
            problem, start, self.tolerance, self.max_iterations
        )
        ending = "stalled" if stalled else "limit"
        if point.residual <= self.tolerance:
            ending = "converged"
        return Settled(point, steps, ending, 0, problem)


def _first_pressure(problem: PressureProblem) -> Tensor:
    """Return the pressure in equilibrium with the source."""
    density = problem.masses / problem.box.cell_volume
    dust = DUST * float(density.max())
    slope = problem.internal.slope(density.clamp_min(dust))
    if math.isinf(problem.lowest):
        return slope
    return torch.where(density > dust, slope, problem.lowest).clamp_min(problem.lowest)
