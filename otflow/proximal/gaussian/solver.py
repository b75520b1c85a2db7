"""The JKO step on Gaussians: Newton over optimal maps, exact for quadratic energies."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from otflow._validation import non_negative_int, positive
from otflow.errors import KernelWarning
from otflow.functionals import Functional
from otflow.measures import Gaussian
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import Certificate, Guarantee, certify
from otflow.proximal.gaussian.exactness import integrates_exactly
from otflow.proximal.gaussian.judges import Missed, missed_by, refined, round_off
from otflow.proximal.gaussian.maps import norm
from otflow.proximal.gaussian.problem import Point, Problem, newton_step
from otflow.proximal.gaussian.stall import Watch

__all__ = ["GaussianDetails", "GaussianProximal"]

# Halvings of a trial step before the search gives up, and Armijo's constant.
MAX_HALVINGS = 30
DECREASE = 1e-4

# The quadratic model is tried again while it cuts the gradient to this share. It
# converges linearly: at a worse share Newton's method is cheaper.
CONTRACTION = 0.25

NOTHING = Missed(0.0, 0.0, 0.0, 0.0)  # the errors of nodes that integrate F exactly
ROSE: dict[str, Any] = {
    "cause": "the rule of the nodes has a critical point whose objective is above that "
    "of the start: the derivatives of F are not those of its values there",
    "cure": "smooth F, or flow a GridDensity, which takes values",
}
STALLED: dict[str, Any] = {
    "cause": "the objective stopped falling, as at a kink of F that nodes cross",
    "cure": "smooth the kink (|x| by (x^2 + eps^2)^(1/2), relu(z) by softplus(k z) / "
    "k), or flow a GridDensity",
}
# The difference of two rules shows their round-off only in part: what both share
# cancels. The true round-off is taken as UNLIKE times the difference.
UNLIKE = 4.0
# Round-off of a law in units of the dtype's. It collects the errors of the factor's
# singular vectors, of products and of sums.
STORED = 16.0


@dataclass(frozen=True)
class GaussianDetails:
    """What `GaussianProximal` reports besides the words of a certificate.

    Parameters
    ----------
    map_optimal : bool
        Whether the map of the step is optimal: B >= 0.
    quadrature_error, energy_error : float or None
        Errors of the nodes: of the step, in W2, and of the energies.
    nodes : int
        Number of nodes that the solver used.
    stalled : bool
        Whether the descent ended because the objective and its gradient stopped
        falling.

    Attributes
    ----------
    map_optimal, quadrature_error, energy_error, nodes, stalled
        As above.
    """

    map_optimal: bool
    quadrature_error: float | None
    energy_error: float | None
    nodes: int
    stalled: bool = False


class GaussianProximal(ProximalSolver[Gaussian]):
    r"""Solve :math:`\min_\nu F(\nu) + W_2^2(\mu, \nu)/(2\,dt)` over Gaussians.

    One optimal map :math:`x \mapsto m' + B(x - m)`, with B symmetric, leads from
    :math:`\mu = N(m, LL^\top)` to each Gaussian :cite:p:`bhatia2019bures`, and
    :math:`W_2^2 = |m' - m|^2 + |BL - L|_F^2`. So the JKO step is

    .. math:: \min_{m',\,B = B^\top} dt\, F\big(N(m', BLL^\top B)\big)
        + \tfrac12 |m' - m|^2 + \tfrac12 \|BL - L\|_F^2,

    over B >= 0. The objective is strongly convex where F is convex along generalised
    geodesics. The minimum over all symmetric B is the same, since the optimal map is
    the cheapest.

    For a potential with Hessian A and entropy at temperature :math:`\kappa`, the step
    has a closed form; A need not commute with the covariance. With
    :math:`RR^\top = I + dt\,A` and the singular values :math:`R^{-1}L = U s V^\top`,

    .. math:: L' = R^{-\top} U\,\tfrac12\big(s + \sqrt{s^2 + 4\,dt\,\kappa}\big)V^\top.

    This L' solves the optimality condition :math:`\Sigma = C\Sigma'C` with :math:`C = I
    + dt\,(A - \kappa\Sigma'^{-1})`. For A = 0 the step is the entropy's proximal map of
    :cite:t:`diao2023forward`. The gradient of any F gives such a quadratic model at a
    Gaussian. The solver minimises these models while they converge fast; a quadratic F
    needs one. Then Newton's method with conjugate gradients takes over. It has the
    Hessian of the entropy in closed form, and that of the rest by differences of its
    velocity.

    V, kernels and features must be continuous: derivatives at nodes do not see a jump.
    Therefore finer rules at the step also form the gradient from values, by Stein's
    identity :math:`E f z = E\,\nabla f`. The difference to the gradient from
    derivatives is part of ``quadrature_error``. The step has not converged if this
    difference, on 65,536 nodes too, exceeds a twentieth of the derivatives or moves the
    step too far. This test detects a jump, a spike at a node and a detached part of V.
    No rule detects a spike between all nodes. A spike of height h and of a width w
    below the distance of the nodes (0.005 standard deviations on the line) changes the
    energy by about h w over a deviation. For d > 1 values are compared on 64 random
    lines too, for d > 3 on these lines alone; there the size of a jump is known to a
    factor of 3.

    Parameters
    ----------
    tolerance : float
        Stop when the gradient of the objective is below `tolerance` times the
        displacement, both in :math:`L^2(\mu)`, or is at round-off.
    max_gradients : int
        Most evaluations of F with its velocity in a step.
    quadrature_tolerance : float
        Largest ``quadrature_error``, relative to the length of the step plus the
        deviation of its law, both in W2. If the error is larger, the solver repeats the
        step on a finer rule.
    max_nodes : int
        Most nodes of a finer rule; 0 keeps to the nodes of the measure.

    Attributes
    ----------
    tolerance, max_gradients, quadrature_tolerance, max_nodes
        As above.
    flat : bool
        True: tangents at different Gaussians may be added.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``
        F at the start and at the end, and F(before) - F(after) - w2^2 / (2 dt) >= 0.
    ``w2``
        W2 distance of start and end; an upper bound unless ``map_optimal``.
    ``residual``
        Norm of the gradient over that of the displacement.
    ``converged``
        Whether the residual met the tolerance or is at round-off, and the nodes met
        ``quadrature_tolerance``, and the objective did not rise.
    ``map_optimal``
        Whether B >= 0.
    ``iterations``
        Evaluations of F with its velocity.
    ``quadrature_error``
        0.0 where the nodes are shown to integrate F exactly. This holds for entropy,
        powers of the density and Gaussian kernels. It holds for potentials, kernels and
        features that are polynomials of a degree that the rule integrates, if they are
        computed by sums, products and integer powers.
        Else an estimate of the W2 distance to the step of the exact integrals, by two
        finer rules that do not alias alike: Newton's step for the gradient that the
        nodes leave out. The gradient is taken by derivatives and by values; where the
        two rules disagree on the Hessian, the gradient itself is taken. The energy that
        a narrow kernel may hide between the nodes is added. The estimate proves
        nothing. None if F is not finite at finer nodes.
    ``energy_error``
        An estimate of the error of both energies, by the same rules. It must be below
        ``quadrature_tolerance`` times the mean deviation of the values that F
        integrates. It is part of ``noise``. None as above.
    ``nodes``
        Number of nodes that the solver used: those of the measure, or of a finer rule.
        With a finer rule, both energies are by this rule and the new measure carries
        its nodes, so that the next step starts there. If ``max_nodes`` does not
        suffice, the step has not converged; ``cause`` and ``cure`` say so.
    ``stalled``
        Whether the descent ended because the objective and its gradient stopped
        falling, as where nodes cross a kink of F. Then ``cause`` and ``cure`` say what
        helps.
    ``bound``
        A bound on the W2 distance to the exact step: the norm of the gradient over
        :math:`1 + dt\,\lambda`, with :math:`\lambda` the modulus of F. Round-off is
        added: that of the formulas, and that of F's arithmetic as other exact rules
        show it. None unless ``quadrature_error`` is 0.0, the modulus is known, the map
        is optimal and :math:`1 + dt\,\lambda > 0`.
    ``guarantee``
        ``"exact"``: the step among Gaussians is unique and within ``bound``. For
        quadratic energies and entropy it is the step among all measures.
        ``"stationary"``: a critical point of the JKO objective, as the nodes integrate
        it, with the optimal map. ``"upper-bound"``: a critical point of an upper bound
        of the objective; the map is not optimal. This occurs where nodes are too few
        for F and dt is huge. ``"none"``: not converged, or the energy rose.

    Time: ``iterations`` times the cost of F at the nodes and O(d^3). Each finer rule
    starts from the step of the rule before.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0) + of.Entropy()
    >>> mu = of.Gaussian(torch.tensor([4.0]), torch.tensor([[1.0]]))
    >>> result = of.proximal.GaussianProximal().solve(F, mu, dt=1.0)
    >>> result.measure.mean, result.measure.covariance  # at rest in its spread
    (tensor([2.]), tensor([[1.]]))
    >>> result.certificate.guarantee
    'exact'
    """

    flat = True

    def __init__(
        self,
        *,
        tolerance: float = 1e-9,
        max_gradients: int = 1000,
        quadrature_tolerance: float = 1e-3,
        max_nodes: int = 1 << 16,
    ) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_gradients = non_negative_int(max_gradients, "max_gradients", minimum=1)
        self.quadrature_tolerance = positive(
            quadrature_tolerance, "quadrature_tolerance"
        )
        self.max_nodes = non_negative_int(max_nodes, "max_nodes")

    def solve(
        self, F: Functional, mu: Gaussian, dt: float, warm: Any = None
    ) -> ProxResult[Gaussian]:
        dt = self._admit(F, mu, dt, Gaussian)
        with warnings.catch_warnings():  # the certificate says what nodes do not see
            warnings.simplefilter("ignore", KernelWarning)
            return self._solve(F, mu, dt)

    def _solve(self, F: Functional, mu: Gaussian, dt: float) -> ProxResult[Gaussian]:
        problem = Problem.of(F, mu, dt)
        start = problem.at(torch.zeros_like(mu.state))
        point = self._by_newton(problem, self._by_models(problem, start))
        is_exact = integrates_exactly(F, mu)
        # No rule needs to judge nodes that are proved to be exact.
        missed = NOTHING if is_exact else self._missed(problem, start, point)
        while missed is not None and not self._resolved(point, missed):
            # No finer rule helps where derivatives and values contradict each other, or
            # at a kink: finer rules have smaller ones, and more of them.
            if missed.contradicted or problem.stalled:
                break
            finer = refined(problem, self.max_nodes)
            # The last step stands, with the error that was found.
            if finer is None or problem.used >= self.max_gradients:
                break
            begin = finer.try_at(torch.zeros_like(mu.state))
            if begin is None:  # F is not finite at the finer nodes
                missed = None
                break
            problem, start = finer, finer.take(begin)
            # By the finer rule, the step of the coarse rule may be worse than no step.
            trial = problem.try_at(point.coordinates)
            falls = trial is not None and trial.objective <= start.objective
            better = problem.take(trial) if trial and falls else start
            point = self._by_newton(problem, better)
            missed = self._missed(problem, start, point)
        known = self._certificate(problem, start, point, missed)
        return ProxResult(point.measure, certificate=known)

    def _by_models(self, problem: Problem, start: Point) -> Point:
        """Minimise quadratic models while each cuts the gradient to a fourth."""
        point = start
        while not self._converged(problem, point) and problem.used < self.max_gradients:
            guess = problem.minimise_model(point)
            trial = None if guess is None else problem.try_at(guess)
            if trial is None or trial.objective > point.objective + point.noise:
                return point
            before, point = point, problem.take(trial)
            # Newton's method goes on from the better of the two points.
            if point.size > CONTRACTION * before.size:
                return point if point.size < before.size else before
        return point

    def _by_newton(self, problem: Problem, point: Point) -> Point:
        """Minimise by Newton's method, over optimal maps first, then over all."""
        point = self._descend(problem, point)
        # Optimal maps reach every law at the least cost, so the first descent loses no
        # minimum. Only too few nodes can tell two maps to the same law apart.
        if not (self._converged(problem, point) or problem.stalled):
            problem.inside = False
            point = self._descend(problem, point)
        return point

    def _descend(self, problem: Problem, point: Point) -> Point:
        """Take steps of Newton's method; the objective never increases."""
        first, watch = point.size, Watch(point)
        while not self._converged(problem, point) and problem.used < self.max_gradients:
            # Inexact Newton: a share of the gradient that shrinks with the gradient
            # keeps convergence faster than linear.
            accuracy = min(0.1, point.size / first if first > 0 else 0.1)
            budget = self.max_gradients - problem.used
            step = newton_step(problem, point, point.gradient, accuracy, budget)
            found = self._search(problem, point, step)
            if found is None:
                break
            point = problem.take(found)
            if watch.has_stalled(point):
                problem.stalled = not self._converged(problem, point)
                break
        return point

    def _search(self, problem: Problem, point: Point, p: Tensor) -> Point | None:
        """Backtrack until the objective falls enough; None if it never does."""
        slope = float((point.gradient * p).sum())
        if not slope < 0:
            # The Hessian is indefinite, or its differences are round-off: go down the
            # gradient.
            p, slope = -point.gradient, -(point.size**2)
        length = 1.0
        for _ in range(MAX_HALVINGS):
            if problem.used >= self.max_gradients:
                return None
            found = problem.try_at(point.coordinates + length * p)
            if found is not None:
                if found.objective <= point.objective + DECREASE * length * slope:
                    return found
                # The decrease drowns in round-off; then a smaller gradient is progress.
                level = found.objective <= point.objective + point.noise
                if level and found.size < 0.9 * point.size:
                    return found
            length *= 0.5
        return None

    def _converged(self, problem: Problem, point: Point) -> bool:
        moved = norm(point.coordinates)
        return point.size <= self.tolerance * moved + problem.floor(point)

    def _missed(self, problem: Problem, start: Point, point: Point) -> Missed | None:
        budget = max(self.max_gradients - problem.used, 0)
        tolerance = self.quadrature_tolerance
        return missed_by(problem, start, point, tolerance, budget)

    def _resolved(self, point: Point, missed: Missed | None) -> bool:
        if missed is None:
            return False
        size = norm(point.coordinates) + norm(point.measure.factor)
        # The error of the step and that of the energies are judged apart: at a flat
        # minimum a small error of the energy is a long way.
        near = missed.distance <= self.quadrature_tolerance * size
        allowed = self.quadrature_tolerance * missed.spread + missed.floor
        return near and missed.energy <= allowed and not missed.contradicted

    def _bound(self, problem: Problem, point: Point, convexity: float) -> float:
        """Return the bound of an exact step, round-off included."""
        eps = torch.finfo(problem.mu.dtype).eps
        gradient = point.size + problem.floor(point)
        # The bound is a proof, so it counts the round-off of F's own arithmetic.
        gradient += UNLIKE * round_off(problem, point)
        # Round-off of both laws as they are stored, and of their singular values.
        stored = norm(problem.mu.state) + norm(point.measure.state)
        return gradient / convexity + STORED * eps * stored

    def _certificate(
        self, problem: Problem, start: Point, point: Point, missed: Missed | None
    ) -> Certificate:
        moved, dt, used = norm(point.coordinates), problem.dt, problem.used
        modulus = problem.functional.modulus(problem.mu.dim)
        convexity = 1 + dt * modulus if modulus is not None else 0.0
        converged = self._converged(problem, point)
        why: dict[str, Any] = {}
        bound = None
        if not point.is_optimal:
            guarantee = "upper-bound"
        elif missed is NOTHING and convexity > 0:
            guarantee = "exact"
            bound = self._bound(problem, point, convexity)
        else:
            guarantee = "stationary"
        # A contradiction counts at any residual: the gradient itself is wrong.
        contradicted = missed is not None and missed.contradicted
        if contradicted or (converged and not self._resolved(point, missed)):
            converged, why = False, self._why(problem, missed)
        elif problem.stalled:
            why = STALLED
        # The noise of a point is that of the objective, dt F and half of the cost.
        noise = (start.noise + point.noise) / dt
        noise += 0.0 if missed is None else missed.energy
        known = partial(
            certify,
            energy_before=start.energy,
            energy_after=point.energy,
            dt=dt,
            w2=moved,
            residual=point.size / moved if moved > 0 else point.size,
            guarantee=guarantee,
            bound=bound,
            noise=noise,
            # Read before `_bound`, whose evaluations prove the step and do not make it.
            iterations=used,
            details=GaussianDetails(
                map_optimal=point.is_optimal,
                quadrature_error=None if missed is None else missed.distance,
                energy_error=None if missed is None else missed.energy,
                nodes=problem.mu.n,
                stalled=problem.stalled and not converged,
            ),
        )
        report = known(converged=converged, **why)
        if report.converged and report.guarantee == Guarantee.NONE:
            # The gradient is 0, but the objective is above that of the start: the nodes
            # have a critical point there that F does not have.
            report = known(converged=False, **ROSE)
        return report

    def _why(self, problem: Problem, missed: Missed | None) -> dict[str, Any]:
        """Return the cause and the cure of a quadrature error."""
        size = "by an unknown length"
        if missed is not None:
            off, energy = missed.distance, missed.energy
            size = f"by about {off:.2g} in W2, the energy by about {energy:.2g}"
        if missed is not None and missed.contradicted:
            return {
                "cause": f"the derivatives of F are not those of its values, as at a "
                f"jump, a spike between the nodes or a part that is detached: the step "
                f"is off {size}",
                "cure": "smooth F (1[x > a] by sigmoid((x - a) / eps)), or flow a "
                "GridDensity, which takes values",
            }
        return {
            "cause": f"{problem.mu.n} nodes integrate F so that the step is off {size}",
            "cure": "allow more nodes by GaussianProximal(max_nodes=...), smooth F, or "
            "flow Quantiles or a GridDensity",
        }
