"""The JKO step on a grid: debiased entropic transport by accelerated scalings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from otflow._validation import non_negative_int, positive
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

    With the entropy :math:`H(\rho) = \int\rho\log\rho` it is

    .. math:: \min_\nu F(\nu) + \frac1{dt}\Big(\mathrm{OT}_\varepsilon(\mu, \nu)
        - \frac\varepsilon2 H(\nu)\Big), \qquad
        \mathrm{OT}_\varepsilon(\mu, \nu) = \min_\pi \int \tfrac12|x - y|^2\,d\pi
        + \varepsilon H(\pi),

    over the couplings :math:`\pi` of both. Without the second term each step would add
    diffusion of strength :math:`\varepsilon/(2\,dt)` to the flow
    :cite:p:`baradat2025using`; with it, as :math:`\mathrm{OT}_\varepsilon =
    \tfrac12 W_2^2 + \tfrac\varepsilon2(H(\mu) + H(\nu)) + O(\varepsilon^2)` up to a
    constant :cite:p:`conforti2021formula`, the error is of second order. The problem
    stays convex for convex energies: :math:`\mathrm{OT}_\varepsilon(\mu, \cdot) -
    \varepsilon H` is. So what must hold is that :math:`F + \frac{\varepsilon}{2\,dt} H`
    be convex: an entropy of factor :math:`\kappa < 0` needs :math:`\varepsilon >
    2\,dt\,|\kappa|`.

    The optimal plan is :math:`a(y) K(x, y) b(x)`, K the heat kernel of the box at time
    :math:`\varepsilon/2`, a product over the axes, and a, b are found by the scalings
    of :cite:t:`peyre2015entropic`. Of these the logarithm of :math:`Ka` on the support
    of :math:`\mu` is the one variable. Its fixed point is the maximum of a concave dual
    value, which plain steps raise; Anderson acceleration :cite:p:`walker2011anderson`
    is kept only where it raises it too. Potentials and internal energies enter by their
    pointwise proximal map. Interactions and other terms are linearised in rounds, with
    their relative entropy to the round before, and the objective falls in each.

    Parameters
    ----------
    eps : float, optional
        Variance of the kernel, in squares of length, one for all axes. By default 0.6
        squares of the longest spacing; on fine grids more, up to the largest of
        :math:`0.02\,dt\,\kappa`, the mean of :math:`dt\,\rho\,U''(\rho)/100`, and 0.02
        dt times the standard deviation under :math:`\mu` of the F' of all other terms,
        the last at most the variance that they leave. So it has units: c F with dt/c
        is the same step, by the same iterations. It is a small part of what the step
        does, and the number of iterations, which grows like the root of
        :math:`dt\,\rho\,U''/\varepsilon`, does not grow with the grid. Cells much
        longer along one axis than along another are blurred along the other: refine
        the long ones, or take `FiniteVolume` or `BackAndForth`. A step that this
        default blurs is made again with 0.6 squares of the spacing.
    tolerance : float
        Stop when the first marginal of the plan is right to it in L1. It is kept above
        round-off: at least 1,000 eps of the dtype, 1.2e-4 in float32.
    max_iterations : int
        Budget per step.
    memory : int
        Differences that the acceleration keeps; 2 memory n numbers.
    certify : bool
        Whether to bound the distance to the exact step by duality: d + 2 more passes
        over the grid, two of them c-transforms; about as much as two iterations with
        numba, ten without.

    Attributes
    ----------
    eps, tolerance, max_iterations, memory, certify
        As above.

    See Also
    --------
    otflow.JKO : The scheme.

    Notes
    -----
    Mass is exact to round-off: the new density is the second marginal of a plan whose
    first is :math:`\mu`, by a last half-step. It is positive.

    The walls of the box reflect: the uniform density is at rest. Plans go along
    straight lines, so obstacles are refused unless the free cells fill a smaller box;
    beside its walls the kernel is corrected so that the uniform density is at rest.

    Where numbers would underflow the iteration goes on in the log domain, where it
    costs about thirty times as much; ``log_domain`` says so.

    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``
        F at both ends, and F(before) - F(after) - w2^2 / (2 dt).
    ``w2``
        On a line the distance between both ends. Else the debiased estimate, less
        ``bias``; None where that could be off by more than a cell and 5 %. And
        ``w2_upper``, the root of the plan's cost: no less than the distance between the
        densities, constant on each cell.
    ``residual``, ``converged``, ``iterations``, ``log_domain``, ``eps``
        L1 error of the first marginal, whether it met the tolerance, evaluations of
        the map (two convolutions each), the log domain, the kernel's variance.
    ``bias``
        What the debiased cost adds to F: half the costs of both ends to themselves,
        over dt; to leading order :math:`\varepsilon^2/(8\,dt)` times the mean Fisher
        information.
    ``blur``, ``blurred``
        How far the blur alone moves the density, in W2, and whether that is more than
        a twentieth of the step, however long: eps is then too large for dt, and the
        step is not certified. Where the blur pulls with less than a twentieth of the
        strongest part of F, ``blur`` is dt times that pull, which is no less in a
        convex F. Else it is how far the same step with :math:`\sqrt2\,\varepsilon`
        goes from this one, as the error is of second order: a few evaluations more.
    ``bound``
        Where F is :math:`\lambda`-convex along generalised geodesics, local, and
        :math:`1 + dt\,\lambda > 0`: :math:`\sqrt{2(\mathrm{gap}+b)/(1/dt+\lambda)}`,
        a bound on the W2 distance to the exact step, from the gap between F +
        w2_upper^2 / (2 dt) and the value of the exact dual problem at the potential
        found; b is a sixth of the mean second difference of V, which is read at the
        centres of cells. The plan's blur makes it about
        :math:`\sqrt{d\,\varepsilon}`, a cell; the error itself is far smaller. None if
        unknown or not asked for.
    ``guarantee``
        ``"exact"``: the exact step is unique and within ``bound``. ``"optimal"``: the
        minimiser of the debiased objective, which is convex for local terms.
        ``"stationary"``: a critical point of it, with nonlocal terms. ``"none"``: not
        converged, blurred, or the energy rose.

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
        if not isinstance(certify, bool):
            msg = f"certify must be True or False, got {certify!r}"
            raise TypeError(msg)
        self.certify = certify

    def solve(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> ProxResult[GridDensity]:
        """Return the proximal step of length `dt` from `mu`.

        Parameters
        ----------
        F : Functional
            What to minimise.
        mu : GridDensity
            Where to step from.
        dt : float
            Step, > 0.
        warm : object, optional
            ``ProxResult.warm`` of a step before, of any length.

        Returns
        -------
        ProxResult
            The new density and the certificate.

        Raises
        ------
        Unsupported
            If `mu` is not a `GridDensity`, or a straight line may meet an obstacle.
        ValueError
            If eps is too small for the grid, too large for the box, or too small for
            an entropy of negative factor.

        Warns
        -----
        BlurWarning
            If eps is too large for `dt`: the step is blurred, or raised the energy.
            Once in a flow: with `warm`, again for another F, a `dt` longer or shorter
            by half, or other cells. The certificate says it of each step.
        """
        dt = self._admit(F, mu, dt, GridDensity)
        refuse_obstacles(mu, "GridSinkhorn")
        before = float(F.value(mu))
        solution = self._solved(F, mu, dt, warm)
        known = solution.certificate(F, before, duality=self.certify)
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

        It is the step of `solve`, with the same eps. The weights of the result carry
        the graph of ``mu.weights`` and of whatever tensors the functions of F hold. The
        derivative is that of the fixed point, implicitly: the adjoint equation is
        solved once in the backward pass, by the same iteration, in the memory of a
        single evaluation.

        Parameters
        ----------
        F : Functional
            Potentials, internal energies and interactions; internal energies are
            differentiated in the density, not in parameters of their own.
        mu : GridDensity
            Where to step from; ``mu.with_weights(w)`` puts a graph on the masses.
        dt : float
            Step, > 0.
        warm : object, optional
            ``ProxResult.warm`` of a step before.

        Returns
        -------
        GridDensity
            Its weights have a graph, once differentiable. Their derivatives are as
            accurate as the step: take a small `tolerance`.

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
        """Return the step with the eps that was given, or with the default that fits.

        The one home of that choice: it is the same for a step that is certified and for
        one that is differentiated.
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
