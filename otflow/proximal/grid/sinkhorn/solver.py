"""The JKO step on a grid: debiased entropic transport by accelerated scalings."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from otflow._validation import non_negative_int, positive, true_or_false
from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.proximal.base import ProxResult
from otflow.proximal.certificate import ROUND_OFF, Certificate, certify
from otflow.proximal.grid.base import GridProximal
from otflow.proximal.grid.duality import DualProblem, distance_bound, dual_value
from otflow.proximal.grid.push_forward import distance_along_axes
from otflow.proximal.grid.rounds import minimise_nonlocal
from otflow.proximal.grid.sinkhorn.blur import (
    MOST_BLUR,
    response_to_blur,
    warn_of_blur,
)
from otflow.proximal.grid.sinkhorn.derivative import attach
from otflow.proximal.grid.sinkhorn.iteration import Plan, iterate, positive_start
from otflow.proximal.grid.sinkhorn.local import Local
from otflow.proximal.grid.sinkhorn.problem import (
    least_eps,
    pose,
    potential_of,
    variance_of,
)
from otflow.proximal.grid.sinkhorn.warm import Warm, fitting, packed, unpacked
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["GridSinkhorn"]


# A default eps above FINER times the least one can be made finer.
FINER = 1.01
# Sweeps for the coupling of a density with itself. Each sweep halves their error at
# least; details that the kernel resolves converge much faster.
SWEEPS, SWEPT = 10, 4.0
# Error of an energy over its change by one more evaluation of the map: a stiff
# iteration is so much farther from its end.
SAFE = 10.0
# Largest relative error of the estimate of a distance beyond a cell.
SHARE = 0.05


@dataclass(frozen=True)
class GridSinkhornDetails:
    """What `GridSinkhorn` reports besides the words of a certificate.

    Parameters
    ----------
    w2_upper : float or None
        The root of the plan's cost, no less than the distance; None if not asked for.
    log_domain : bool
        Whether numbers would have underflowed.
    eps : float
        The kernel's variance.
    bias : float
        What the debiased cost adds to F.
    blur : float
        How far the blur alone moves the density, in W2.
    blurred : bool
        Whether that is more than a twentieth of the step.

    Attributes
    ----------
    w2_upper, log_domain, eps, bias, blur, blurred
        As above.
    """

    w2_upper: float | None
    log_domain: bool
    eps: float
    bias: float
    blur: float
    blurred: bool


class GridSinkhorn(GridProximal):
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

    moves_straight = True

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
        super().__init__(tolerance, max_iterations)
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
        terms = sort_terms(F, mu.dim)
        before = float(F.value(mu))
        kept = fitting(warm, mu)
        solution = self._solved(terms, mu, dt, kept)
        known = solution.certificate(F, before, duality=self.certify)
        rose = not known["energy_after"] <= before
        # A step that neither converged nor lowered F is worse than none.
        if rose and not known.converged:
            own = replace(known.details, w2_upper=0.0 if self.certify else None)
            stayed = replace(known, energy_after=before, w2=0.0, details=own)
            return ProxResult(mu, certificate=stayed)
        told = None if kept is None else kept.told
        if known.details.blurred or (rose and not known.certified):
            told = warn_of_blur(known, F, solution.problem, told)
        warm = Warm(solution.problem, solution.iterate, told)
        nu = mu.moved(solution.measure.weights)
        return ProxResult(nu, warm, certificate=known)

    def state_dict(self, warm: Any) -> Any:
        return packed(warm) if isinstance(warm, Warm) else None

    def load_state(self, F: Functional, mu: GridDensity, kept: Any) -> Warm | None:
        return None if kept is None else unpacked(F, kept)

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
        terms = sort_terms(F, mu.dim)
        with torch.no_grad():
            start = mu.with_free_weights(mu.weights.detach())
            found = self._solved(terms, start, dt, fitting(warm, mu))
        return attach(found, mu, tolerance=self._tolerance(mu))

    # Parts ----------------------------------------------------------------------------

    def _solved(
        self, terms: Terms, mu: GridDensity, dt: float, warm: Warm | None
    ) -> _Solution:
        """Return the step with the given eps, or with the default that fits.

        Certified and differentiable steps have the same eps.
        """
        eps = variance_of(mu, dt, terms, self.eps)
        first = self._with_eps(terms, mu, dt, warm, eps)
        # A default eps is wide for speed. A step that it blurs is repeated with the
        # least eps, which a negative entropy may not bear.
        least, is_default = least_eps(mu), self.eps is None and terms.temperature >= 0
        if not (is_default and eps > FINER * least and first.blur[1]):
            return first
        again = self._with_eps(terms, mu, dt, warm, least)
        spent = first.iterations + again.iterations
        return replace(again if again.converged else first, iterations=spent)

    def _with_eps(
        self, terms: Terms, mu: GridDensity, dt: float, warm: Warm | None, eps: float
    ) -> _Solution:
        """Return the step with this eps."""
        problem = pose(terms, mu, dt, eps, None if warm is None else warm.problem)
        tolerance, budget = self._tolerance(mu), self.max_iterations
        rest = terms.nonlocal_part
        plan: Plan
        if rest is None:
            plan = solved = iterate(problem, warm, self.memory, tolerance, budget)
            spent = solved.used
        else:
            local = Local(problem, warm, self.memory)
            outcome = minimise_nonlocal(
                rest,
                mu,
                local,
                start=positive_start(problem),
                scale=dt / eps,
                tolerance=tolerance,
                budget=budget,
            )
            plan, spent = local.finish(outcome), outcome.spent
        now = plan.iterate
        return _Solution(
            plan.problem, now, spent, now.residual <= tolerance, self.memory
        )

    def _tolerance(self, mu: GridDensity) -> float:
        # In a long sum of masses the residual does not fall below round-off.
        return max(self.tolerance, 1e3 * torch.finfo(mu.dtype).eps)


# Certificates -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Solution(Plan):
    """The plan of a step, and what is known of it.

    Parameters
    ----------
    problem, iterate : Scaling, Iterate
        The plan.
    iterations : int
        Evaluations of the map.
    converged : bool
        Whether the residual met the tolerance.
    memory : int
        Differences that the acceleration keeps in the solves that measure the blur.
    """

    iterations: int
    converged: bool
    memory: int

    @cached_property
    def own(self) -> Tensor:
        """The potential of the debiased cost of the new density to itself."""
        log_density = self.iterate.log_density
        return self.problem.potential_at(self._own_scaling, log_density)

    @cached_property
    def _own_scaling(self) -> Tensor:
        log_density = self.iterate.log_density
        return self._swept(0.5 * log_density, log_density, SWEEPS)

    @cached_property
    def blur(self) -> tuple[float, bool]:
        r"""The distance by which the blur moves the step, and whether it is too large.

        Let :math:`\varphi` be the potential of the debiased cost at :math:`\nu`. The
        step is :math:`\nabla\varphi = -dt\,\nabla F'[\nu]`. The debiased cost of
        :math:`\nu` to itself also has a potential :math:`\varphi_\nu`; the exact
        distance has none. So :math:`\|\nabla\varphi_\nu\|_{L^2(\nu)}` is the pull of
        the blur. To leading order :math:`\varphi_\nu = \tfrac{\varepsilon^2}4
        \Delta\sqrt\nu/\sqrt\nu`. The parts of F pull with :math:`dt\,\|\nabla V\|` and
        so on; at rest they cancel.

        A blur that pulls with less than `MOST_BLUR` of the strongest part of F is
        small, whatever the response; then the distance is its pull. Else
        `response_to_blur` measures the distance.
        """
        problem, nu, V = self.problem, self.measure, self.problem.potential
        parts = [self.potential / problem.dt + problem.potential]
        if problem.terms.interactions or problem.terms.others:
            # Then the potential holds their first variation too.
            V = potential_of(problem.source, problem.terms)
            parts.append(problem.potential - V)
        pull = problem.dt * max(_length(nu, f) for f in (*parts, V))
        blur = _length(nu, self.own)
        # One sweep more halves the error at least. So the error of the pull is at most
        # twice the change by it.
        log_density = self.iterate.log_density
        log_a = self._swept(self._own_scaling, log_density, 1)
        more = problem.potential_at(log_a, log_density)
        left = SWEPT * _length(problem.source, more - self.own)
        if blur <= MOST_BLUR * pull + left:
            return blur, False
        return response_to_blur(self, self.own, blur, pull, self.memory)

    def certificate(
        self, F: Functional, before: float, *, duality: bool
    ) -> Certificate:
        """Return the certificate that `GridSinkhorn` documents."""
        problem, nu = self.problem, self.measure
        mu, dt = problem.source, problem.dt
        after = float(F.value(nu))
        log_a = self._swept(0.5 * problem.log_source, problem.log_source, SWEEPS)
        old = problem.potential_at(log_a, problem.log_source)
        costs = self.own.reshape(-1) * nu.weights + old.reshape(-1) * mu.weights
        bias = float(costs.sum(dtype=torch.float64)) / dt
        if mu.dim == 1:
            w2: float | None = distance_along_axes(mu, nu)
        else:
            w2 = _trusted_distance(mu, 2 * self.cost(), 2 * dt * bias)
        upper = bound = None
        if duality:
            log_b = problem.log_source - self.iterate.image
            cost = problem.kernel.squared_distance(
                self.iterate.log_a, log_b, safely=problem.safely
            )
            upper = math.sqrt(cost)
            if self.converged:
                bound = self._bound(F, after + cost / (2 * dt))
        claim = "optimal" if problem.terms.nonlocal_part is None else "stationary"
        blur, blurred = self.blur
        claim = "none" if blurred else claim if bound is None else "exact"
        round_off = ROUND_OFF * torch.finfo(mu.dtype).eps
        return certify(
            energy_before=before,
            energy_after=after,
            dt=dt,
            w2=w2,
            residual=self.iterate.residual,
            converged=self.converged,
            guarantee=claim,
            bound=bound,
            noise=self._noise() + round_off * max(abs(before), abs(after)),
            iterations=self.iterations,
            details=GridSinkhornDetails(
                upper, problem.safely, problem.kernel.eps, bias, blur, blurred
            ),
        )

    def _swept(self, log_a: Tensor, log_density: Tensor, sweeps: int) -> Tensor:
        r"""Return a further iterate for :math:`a\,Ka = \rho`.

        The mean of :math:`2\varepsilon(\log a - \tfrac12\log\rho)` over :math:`\rho` is
        the debiased cost of :math:`\rho` to itself.
        """
        empty = log_density == -math.inf
        for _ in range(sweeps):
            image = self.problem.convolve(log_a)
            log_a = 0.5 * (log_a + log_density - image).masked_fill(empty, -math.inf)
        return log_a

    def _noise(self) -> float:
        r"""Return the error that the residual leaves in the energies, as measured.

        The new density is known twice, as that of the iterate and as the second
        marginal of the plan. The first variation turns the difference of the two into
        an energy. The other part is the rise of the dual value that is still to come,
        by its slope.
        """
        problem, iterate = self.problem, self.iterate
        masses = self.measure.weights.reshape(self.measure.shape)
        volume = problem.kernel.box.cell_volume
        off = (iterate.log_density.exp() * volume - masses).abs()
        phi = (self.potential - (masses * self.potential).sum()).abs()
        left = problem.kernel.eps * (iterate.slope * iterate.change).abs()
        total = off * phi + left + iterate.residual * masses * phi
        return SAFE * float(total.sum(dtype=torch.float64)) / problem.dt

    def _bound(self, F: Functional, primal: float) -> float | None:
        """Return a bound on the distance to the exact step, None if there is none."""
        terms, mu, dt = self.problem.terms, self.problem.source, self.problem.dt
        modulus = F.modulus(mu.dim)
        if terms.interactions or terms.others or modulus is None:
            return None
        posed = DualProblem.of(terms, mu, self.problem.potential.reshape(-1), dt)
        phi = self.potential.reshape(-1).double()
        value, unseen = dual_value(posed, -phi / dt - posed.V)
        if value is None:
            return None
        V = torch.where(mu.is_free, posed.V, math.nan).reshape(mu.shape)
        masses = self.measure.weights.reshape(mu.shape)
        return distance_bound(primal - value + unseen, masses, V, modulus, dt)


def _trusted_distance(mu: GridDensity, cost: float, bias: float) -> float | None:
    r"""Return the root of cost - bias where that can be trusted, else None.

    The cost is that of debiased entropic transport, twice; its bias is known to leading
    order. What is left is taken to be no more than the bias itself: if that could move
    the distance by more than a cell and 5 %, the estimate is not given.
    """
    estimate = math.sqrt(max(0.0, cost - bias))
    most, least = math.sqrt(max(0.0, cost)), math.sqrt(max(0.0, cost - 2 * bias))
    off = max(most - estimate, estimate - least)
    known = off <= max(*mu.box.spacing, SHARE * estimate)
    return estimate if known else None


def _length(nu: GridDensity, f: Tensor) -> float:
    """Return the norm of the gradient of f in L2 of a density."""
    return float(nu.norm(nu.box.gradient(f)))
