"""The JKO step on a grid: debiased entropic transport by accelerated scalings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from otflow._validation import non_negative_int, positive, true_or_false
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.base import ProximalSolver, ProxResult, refuse_obstacles
from otflow.proximal.grid.rounds import minimise_nonlocal
from otflow.proximal.grid.sinkhorn.derivative import attach
from otflow.proximal.grid.sinkhorn.eps import finer_eps, variance_of
from otflow.proximal.grid.sinkhorn.iteration import (
    Warm,
    iterate,
    pose,
    positive_start,
)
from otflow.proximal.grid.sinkhorn.local import Local
from otflow.proximal.grid.sinkhorn.report import Solution, warn_of_blur
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["GridSinkhorn"]


class GridSinkhorn(ProximalSolver[GridDensity]):
    r"""Solve the JKO step on a grid by debiased entropic transport.

    With the entropy :math:`H(\rho) = \int\rho\log\rho` the step is

    .. math:: \min_\nu F(\nu) + \frac1{dt}\Big(\mathrm{OT}_\varepsilon(\mu, \nu)
        - \frac\varepsilon2 H(\nu)\Big), \qquad
        \mathrm{OT}_\varepsilon(\mu, \nu) = \min_\pi \int \tfrac12|x - y|^2\,d\pi
        + \varepsilon H(\pi),

    over the couplings :math:`\pi` of both. Without the second term each step would add
    diffusion of strength :math:`\varepsilon/(2\,dt)` to the flow
    :cite:p:`baradat2025using`. With this term the error is of second order, since
    :math:`\mathrm{OT}_\varepsilon = \tfrac12 W_2^2 + \tfrac\varepsilon2(H(\mu) +
    H(\nu)) + O(\varepsilon^2)` up to a constant :cite:p:`conforti2021formula`.

    The functional :math:`\mathrm{OT}_\varepsilon(\mu, \cdot) - \varepsilon H` is
    convex. So the problem is convex if :math:`F + \frac{\varepsilon}{2\,dt} H` is. An
    entropy of factor :math:`\kappa < 0` needs :math:`\varepsilon > 2\,dt\,|\kappa|`.

    The optimal plan is :math:`a(y) K(x, y) b(x)`. Here K is the heat kernel of the box
    at time :math:`\varepsilon/2`, a product over the axes. The scalings of
    :cite:t:`peyre2015entropic` find a and b. The only variable is the logarithm of
    :math:`Ka` on the support of :math:`\mu`. Its fixed point is the maximum of a
    concave dual value, which plain steps raise. A step of Anderson acceleration
    :cite:p:`walker2011anderson` is kept only if it raises the dual value too.
    Potentials and internal energies enter by their pointwise proximal map. Interactions
    and other terms are linearised in rounds, with the relative entropy to the round
    before added. The objective falls in each round.

    Parameters
    ----------
    eps : float, optional
        Variance of the kernel, in squares of length, one for all axes. The default is
        0.6 squares of the longest spacing. On fine grids the default grows, up to the
        largest of three variances: :math:`0.02\,dt\,\kappa`; the mean of
        :math:`dt\,\rho\,U''(\rho)/100`; 0.02 dt times the standard deviation under
        :math:`\mu` of the F' of all other terms, at most the variance that they leave.
        Then the number of iterations, which grows like the root of
        :math:`dt\,\rho\,U''/\varepsilon`, does not grow with the grid. The default
        scales with units: c F with dt/c gives the same step by the same iterations. If
        the default blurs a step, the solver repeats the step with 0.6 squares of the
        spacing. Cells that are long along one axis cause blur along the other axes:
        refine the long axis, or take `FiniteVolume` or `BackAndForth`.
    tolerance : float
        Stop when the L1 error of the first marginal of the plan is below `tolerance`,
        but not below round-off: 1,000 eps of the dtype, which is 1.2e-4 in float32.
    max_iterations : int
        Most iterations in a step.
    memory : int
        Differences that the acceleration keeps. They hold 2 memory n numbers.
    certify : bool
        Whether to bound the distance to the exact step by duality. This takes d + 2
        passes over the grid, two of them c-transforms: about two iterations with numba,
        ten without.

    Attributes
    ----------
    eps, tolerance, max_iterations, memory, certify
        As above.

    See Also
    --------
    otflow.JKO : The scheme.

    Notes
    -----
    Mass is exact to round-off: a last half-step makes :math:`\mu` the first marginal of
    the plan, and the new density is the second. The new density is positive.

    The walls of the box reflect: the uniform density is at rest. Plans move mass along
    straight lines. So ``solve`` raises `Unsupported` if there are obstacles, unless the
    free cells fill a smaller box. The kernel is corrected beside the walls of this box,
    so that the uniform density is at rest there too.

    Where numbers would underflow, the iteration goes on in the log domain. An iteration
    there costs about thirty times as much; ``log_domain`` is then True.

    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``
        F at the start and at the end, and F(before) - F(after) - w2^2 / (2 dt).
    ``w2``
        On a line the W2 distance of start and end. Else the debiased estimate minus
        ``bias``; None if this could be wrong by more than a cell plus 5 %.
    ``w2_upper``
        Root of the plan's cost: an upper bound of the W2 distance of the densities,
        which are constant on each cell.
    ``residual``, ``converged``
        L1 error of the first marginal, and whether it met the tolerance.
    ``iterations``
        Evaluations of the map, two convolutions each.
    ``log_domain``, ``eps``
        Whether the iteration went on in the log domain, and the variance of the kernel.
    ``bias``
        The part of the debiased cost that is no distance, as an energy: half the costs
        of both ends to themselves, over dt. To leading order it is
        :math:`\varepsilon^2/(8\,dt)` times the mean Fisher information.
    ``blur``, ``blurred``
        The W2 length by which the blur alone moves the density, and whether this length
        exceeds a twentieth of the step. Then eps is too large for dt, and the step is
        not certified. If the blur pulls with less than a twentieth of the strongest
        part of F, ``blur`` is dt times this pull, an upper bound for convex F. Else
        ``blur`` is the distance to the same step with :math:`\sqrt2\,\varepsilon`,
        since the error is of second order; this takes a few more evaluations.
    ``bound``
        A bound on the W2 distance to the exact step,
        :math:`\sqrt{2(\mathrm{gap}+b)/(1/dt+\lambda)}`. The gap is that between F +
        w2_upper^2 / (2 dt) and the value of the exact dual problem at the potential of
        the step. b is a sixth of the mean second difference of V, which is read at the
        centres of cells. The blur of the plan makes the bound about
        :math:`\sqrt{d\,\varepsilon}`, a cell; the error itself is far smaller. None
        unless F is local and :math:`\lambda`-convex along generalised geodesics,
        :math:`1 + dt\,\lambda > 0`, and `certify` is True.
    ``guarantee``
        ``"exact"``: the exact step is unique and within ``bound``. ``"optimal"``: the
        minimiser of the debiased objective, which is convex for local terms.
        ``"stationary"``: a critical point of this objective, with nonlocal terms.
        ``"none"``: not converged, blurred, or the energy rose.

    Time: `iterations` times O(n^(1+1/d)) for n cells in all.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0) + of.Entropy()
    >>> def bell(x):
    ...     return torch.exp(-2 * x.square().sum(-1))
    >>> mu = of.GridDensity.from_function(bell, -4.0, 4.0, 80, dtype=torch.float64)
    >>> result = of.proximal.GridSinkhorn().solve(F, mu, dt=0.1)
    >>> round(float(result.measure.expectation(lambda x: x.square().sum(-1))), 4)
    0.3659
    >>> result.certificate["certified"]
    True
    """

    def __init__(
        self,
        *,
        eps: float | None = None,
        tolerance: float = 2e-5,
        max_iterations: int = 1000,
        memory: int = 16,
        certify: bool = True,
    ) -> None:
        self.eps = None if eps is None else positive(eps, "eps")
        self.tolerance = positive(tolerance, "tolerance")
        self.max_iterations = non_negative_int(
            max_iterations, "max_iterations", minimum=1
        )
        self.memory = non_negative_int(memory, "memory")
        self.certify = true_or_false(certify, "certify")

    def solve(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> ProxResult[GridDensity]:
        """Return the proximal step as `ProximalSolver.solve` does.

        `warm` may come from a step of any length.

        Raises
        ------
        Unsupported
            Also if a straight line between free cells may meet an obstacle.
        ValueError
            Also if eps is too small for the grid, too large for the box, or too small
            for an entropy of negative factor.

        Warns
        -----
        BlurWarning
            If eps is too large for `dt`: the step is blurred, or raised the energy. A
            flow warns once; it warns again after a change of F, of the cells, or of
            `dt` by half. The certificate reports the blur of each step.
        """
        dt = self._admit(F, mu, dt, GridDensity)
        refuse_obstacles(mu, "GridSinkhorn")
        before = float(F.value(mu))
        solution = self._solved(F, mu, dt, warm)
        known = solution.certificate(F, before, duality=self.certify)
        # A step that neither converged nor lowered F is worse than none.
        if not known.converged and not known["energy_after"] <= before:
            own = replace(known.details, w2_upper=0.0 if self.certify else None)
            stayed = replace(known, energy_after=before, w2=0.0, details=own)
            return ProxResult(mu, certificate=stayed)
        told = warm.told if isinstance(warm, Warm) and warm.fits(mu) else None
        told = warn_of_blur(known, F, solution.problem, told)
        kept = Warm(solution.problem, solution.iterate, told)
        nu = mu.moved(solution.measure.weights)
        return ProxResult(nu, kept, certificate=known)

    def differentiable_step(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> GridDensity:
        r"""Return the proximal step as a differentiable function of its data.

        The step is that of `solve`, with the same eps. The weights of the result carry
        the graph of ``mu.weights`` and of all tensors in the functions of F. The
        derivative is the implicit one of the fixed point. The backward pass solves the
        adjoint equation once, by the same iteration, in the memory of one evaluation.

        Parameters
        ----------
        F : Functional
            Potentials, internal energies and interactions. Internal energies are
            differentiated in the density, not in their parameters.
        mu : GridDensity
            The measure to step from. ``mu.with_weights(w)`` has masses with a graph.
        dt : float
            Length of the step in time, > 0.
        warm : object, optional
            ``ProxResult.warm`` of a step before.

        Returns
        -------
        GridDensity
            The new density. Its weights have a graph that is differentiable once. The
            derivatives are as accurate as the step: take a small `tolerance`.

        Raises
        ------
        Unsupported
            If `mu` is not a `GridDensity`, or a straight line may meet an obstacle.
        NotConverged
            If the step, or the adjoint equation in the backward pass, did not converge.
        """
        dt = self._admit(F, mu.detach(), dt, GridDensity)
        refuse_obstacles(mu, "GridSinkhorn")
        with torch.no_grad():
            start = mu.with_free_weights(mu.weights.detach())
            found = self._solved(F, start, dt, warm)
        return attach(found.problem, found.iterate, mu, tolerance=self._tolerance(mu))

    # Parts ----------------------------------------------------------------------------

    def _solved(self, F: Functional, mu: GridDensity, dt: float, warm: Any) -> Solution:
        """Return the step with the given eps, or with the default that fits.

        The choice is made here for certified and for differentiable steps alike.
        """
        terms = sort_terms(F, mu.dim)
        eps = variance_of(mu, dt, terms, self.eps)
        first = self._with_eps(terms, mu, dt, warm, eps)
        finer = finer_eps(mu, terms, self.eps, eps)
        if finer is None or not first.blur[1]:
            return first
        again = self._with_eps(terms, mu, dt, warm, finer)
        spent = first.iterations + again.iterations
        return replace(again if again.converged else first, iterations=spent)

    def _with_eps(
        self, terms: Terms, mu: GridDensity, dt: float, warm: Any, eps: float
    ) -> Solution:
        """Return the step with this eps."""
        kept = warm if isinstance(warm, Warm) and warm.fits(mu) else None
        problem = pose(terms, mu, dt, eps, kept)
        tolerance, budget = self._tolerance(mu), self.max_iterations
        rest = terms.nonlocal_part
        if rest is None:
            solved = iterate(
                problem, kept, memory=self.memory, tolerance=tolerance, budget=budget
            )
            problem, now, spent = solved.problem, solved.iterate, solved.used
        else:
            local = Local(problem, kept, self.memory)
            outcome = minimise_nonlocal(
                rest,
                mu,
                local,
                start=positive_start(problem),
                scale=dt / eps,
                tolerance=tolerance,
                budget=budget,
            )
            (problem, now), spent = local.finish(outcome), outcome.spent
        return Solution(problem, now, spent, now.residual <= tolerance, self.memory)

    def _tolerance(self, mu: GridDensity) -> float:
        return max(self.tolerance, 1e3 * torch.finfo(mu.dtype).eps)
