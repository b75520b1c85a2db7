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

__all__ = ["GaussianDetails", "GaussianProximal"]

# Halvings of a trial step before the search gives up, and Armijo's constant.
MAX_HALVINGS = 30
DECREASE = 1e-4

# The quadratic model is tried again while it cuts the gradient by this factor.
CONTRACTION = 0.25

NOTHING = Missed(0.0, 0.0, 0.0, 0.0)  # what nodes that are exact leave out
ROSE: dict[str, Any] = {
    "cause": "the rule of the nodes has a critical point whose objective is above that "
    "of the start: the derivatives of F are not those of its values there",
    "cure": "smooth F, or flow a GridDensity, which takes values",
}
# Round-off of two rules differs, most often, by more than a part of either.
UNLIKE = 4.0
# Round-off of a law: of its factor's singular vectors, products and sums.
STORED = 16.0


@dataclass(frozen=True)
class GaussianDetails:
    """What `GaussianProximal` reports besides the words of a certificate.

    Parameters
    ----------
    map_optimal : bool
        Whether the map of the step is optimal, B >= 0.
    quadrature_error, energy_error : float or None
        What the nodes leave out of the step and of the energies.
    nodes : int
        Nodes that the step was made on.

    Attributes
    ----------
    map_optimal, quadrature_error, energy_error, nodes
        As above.
    """

    map_optimal: bool
    quadrature_error: float | None
    energy_error: float | None
    nodes: int


class GaussianProximal(ProximalSolver[Gaussian]):
    r"""Solve :math:`\min_\nu F(\nu) + W_2^2(\mu, \nu)/(2\,dt)` over Gaussians.

    Every Gaussian is reached from :math:`\mu = N(m, LL^\top)` by one optimal map
    :math:`x \mapsto m' + B(x - m)` with B symmetric :cite:p:`bhatia2019bures`, and
    :math:`W_2^2 = |m' - m|^2 + |BL - L|_F^2`. So the JKO step is

    .. math:: \min_{m',\,B = B^\top} dt\, F\big(N(m', BLL^\top B)\big)
        + \tfrac12 |m' - m|^2 + \tfrac12 \|BL - L\|_F^2,

    over B >= 0; strongly convex where F is convex along generalised geodesics. All
    matrices B have the same minimum, as the optimal map is the cheapest.

    For a potential with Hessian A, with entropy at temperature :math:`\kappa`, the step
    is in closed form, whether A commutes with the covariance or not. With
    :math:`RR^\top = I + dt\,A` and the singular values :math:`R^{-1}L = U s V^\top`,

    .. math:: L' = R^{-\top} U\,\tfrac12\big(s + \sqrt{s^2 + 4\,dt\,\kappa}\big)V^\top.

    It solves the optimality condition :math:`\Sigma = C\Sigma'C` with :math:`C = I +
    dt\,(A - \kappa\Sigma'^{-1})`; for A = 0 it is the entropy's proximal map of
    :cite:t:`diao2023forward`. Any F has such a quadratic model at a Gaussian, from its
    gradient: it is used while it converges fast, once if F is quadratic. Then Newton's
    method with conjugate gradients takes over, with the Hessian of the entropy in
    closed form and that of the rest by differences of its velocity.

    V must be continuous, and so must kernels and features: derivatives do not see a
    jump, though F is smooth on Gaussians. So finer rules at the step also form the
    gradient from values, by Stein's identity :math:`E f z = E\,\nabla f`. Where it is
    not that of derivatives the difference is part of ``quadrature_error``, and a step
    where it is more than a twentieth of the derivatives on 65,536 nodes too, or makes
    the step too far off, has not converged. So are told a jump, a spike that nodes meet
    by chance and a detached part of V. A spike that no node meets is seen by no rule:
    one of width w and height h, w below the distance of the nodes (on the line 0.005
    deviations), adds about h w over a deviation to the energy, and nothing says so. For
    d > 1 values are compared on 64 random lines too, for d > 3 on these alone: there
    the size of a jump is known to a factor of 3.

    Parameters
    ----------
    tolerance : float
        Stop when the gradient of the objective is below it times the displacement, both
        in :math:`L^2(\mu)`, or is at round-off.
    max_gradients : int
        Budget of evaluations of F with its velocity, per step.
    quadrature_tolerance : float
        What the nodes may leave out of a step, over the length of the step plus the
        deviation of its law, both in W2. Where ``quadrature_error`` is larger the step
        is made on a finer rule.
    max_nodes : int
        Most nodes that a finer rule may have; 0 keeps to those of the measure.

    Attributes
    ----------
    tolerance, max_gradients, quadrature_tolerance, max_nodes
        As above.
    flat : bool
        True: tangents at different Gaussians may be added, node by node.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``
        F at both ends, and F(before) - F(after) - w2^2 / (2 dt), >= 0.
    ``w2``
        Distance between both ends, an upper bound unless ``map_optimal``.
    ``residual``, ``converged``, ``map_optimal``, ``iterations``
        Relative residual, whether it met the tolerance or is at round-off and the
        nodes met theirs without a rise of the objective, whether B >= 0, evaluations
        spent.
    ``quadrature_error``
        0.0 where the nodes are shown to integrate F exactly: entropy, powers of the
        density, Gaussian kernels, and polynomial potentials, kernels and features of a
        degree that the rule is exact for (any function that computes its polynomial by
        sums, products and integer powers). Else an estimate of the W2 distance by which
        the step misses that of the integrals, by two finer rules that do not alias
        alike: Newton's step for the gradient that the nodes leave out, with the Hessian
        of the finer rule, or that gradient itself where the two do not agree on a
        Hessian; the gradient is by derivatives and by values. And what a kernel that is
        narrow about 0 may hide between the nodes.
        It proves nothing. None if F is not finite at finer nodes.
    ``energy_error``
        By how much the energies of both ends are off, by the same rules, at most. It
        must be below ``quadrature_tolerance`` times the mean deviation of the values
        that F integrates, and is part of ``noise``. None as above.
    ``nodes``
        Nodes that the step was made on. Those of the measure, unless the quadrature
        error called for more: then both energies are by the finer rule, and the measure
        returned has its nodes, so that the next step starts with it. Where
        ``max_nodes`` does not suffice the step has not converged; ``cause`` and
        ``cure`` say so.
    ``bound``
        Where ``quadrature_error`` is 0.0, the functional's modulus :math:`\lambda` is
        known, the map is optimal and :math:`1 + dt\,\lambda > 0`: the norm of the
        gradient over :math:`1 + dt\,\lambda`, an upper bound on the W2 distance to the
        exact step. Round-off is added: that of the formulas, and that of F's own
        arithmetic as other exact rules show it. Else None.
    ``guarantee``
        ``"exact"``: the step among Gaussians is unique and within ``bound``; for
        quadratic energies and entropy it is that among all measures. ``"stationary"``:
        a critical point of the JKO objective, as the nodes integrate it, with the
        optimal map. ``"upper-bound"``: a critical point of an upper bound of it, the
        map not optimal; where nodes are too few for F and dt is huge. ``"none"``: not
        converged, or the energy rose.
    ``certified``
        Whether the guarantee is ``"exact"`` or ``"stationary"``.

    Time: ``iterations`` times the cost of F at the nodes and O(d^3). Each finer rule
    starts from the step of the one before.

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
        """Return the proximal step of length `dt` from `mu`.

        Parameters
        ----------
        F : Functional
            What to minimise.
        mu : Gaussian
            Where to step from.
        dt : float
            Step, > 0.
        warm : object, optional
            Not used.

        Returns
        -------
        ProxResult
            The new Gaussian and the certificate.

        Raises
        ------
        Unsupported
            If `mu` is not a `Gaussian`, or F bounds the density.
        ValueError
            If the entropy has a negative factor.
        """
        dt = self._admit(F, mu, dt, Gaussian)
        with warnings.catch_warnings():  # the certificate says what nodes do not see
            warnings.simplefilter("ignore", KernelWarning)
            return self._solve(F, mu, dt)

    def _solve(self, F: Functional, mu: Gaussian, dt: float) -> ProxResult[Gaussian]:
        problem = Problem.of(F, mu, dt)
        start = problem.at(torch.zeros_like(mu.state))
        point = self._by_newton(problem, self._by_models(problem, start))
        is_exact = integrates_exactly(F, mu)
        missed = NOTHING if is_exact else self._missed(problem, start, point)
        while missed is not None and not self._resolved(point, missed):
            if missed.contradicted:  # no finer rule will do
                break
            finer = refined(problem, self.max_nodes)
            if finer is None or problem.used >= self.max_gradients:
                break
            begin = finer.try_at(torch.zeros_like(mu.state))
            if begin is None:  # F is not finite at the finer nodes
                missed = None
                break
            problem, start = finer, begin
            # The step of a coarse rule may be worse than none by a finer one.
            trial = problem.try_at(point.coordinates)
            falls = trial is not None and trial.objective <= start.objective
            point = self._by_newton(problem, trial if trial and falls else start)
            missed = self._missed(problem, start, point)
        known = self._certificate(problem, start, point, missed)
        return ProxResult(point.measure, certificate=known)

    def _by_models(self, problem: Problem, start: Point) -> Point:
        """Minimise quadratic models for as long as each cuts the gradient well."""
        point = start
        while not self._converged(problem, point) and problem.used < self.max_gradients:
            guess = problem.minimise_model(point)
            trial = None if guess is None else problem.try_at(guess)
            if trial is None or trial.objective > point.objective + point.noise:
                return point
            before, point = point, trial
            if point.size > CONTRACTION * before.size:
                return point if point.size < before.size else before
        return point

    def _by_newton(self, problem: Problem, point: Point) -> Point:
        """Minimise by Newton's method, over optimal maps if that succeeds."""
        point = self._descend(problem, point)
        # Turned back to its optimal map a law costs less, and no minimum was lost,
        # unless the quadrature sees the turn.
        if not self._converged(problem, point):
            problem.inside = False
            point = self._descend(problem, point)
        return point

    def _descend(self, problem: Problem, point: Point) -> Point:
        """Take steps of Newton's method; the objective never increases."""
        first = point.size
        while not self._converged(problem, point) and problem.used < self.max_gradients:
            accuracy = min(0.1, point.size / first if first > 0 else 0.1)
            budget = self.max_gradients - problem.used
            step = newton_step(problem, point, point.gradient, accuracy, budget)
            found = self._search(problem, point, step)
            if found is None:
                break
            point = found
        return point

    def _search(self, problem: Problem, point: Point, p: Tensor) -> Point | None:
        """Backtrack until the objective falls enough; None if it never does."""
        slope = float((point.gradient * p).sum())
        if not slope < 0:
            p, slope = -point.gradient, -(point.size**2)
        length = 1.0
        for _ in range(MAX_HALVINGS):
            if problem.used >= self.max_gradients:
                return None
            found = problem.try_at(point.coordinates + length * p)
            if found is not None:
                if found.objective <= point.objective + DECREASE * length * slope:
                    return found
                # A decrease that drowns in round-off: a smaller gradient is progress.
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
        near = missed.distance <= self.quadrature_tolerance * size
        allowed = self.quadrature_tolerance * missed.spread + missed.floor
        return near and missed.energy <= allowed and not missed.contradicted

    def _bound(self, problem: Problem, point: Point, convexity: float) -> float:
        """Return the bound of an exact step, round-off included."""
        eps = torch.finfo(problem.mu.dtype).eps
        gradient = point.size + problem.floor(point)
        gradient += UNLIKE * round_off(problem, point)
        # The numbers of both ends, and what singular values make of them.
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
        contradicted = missed is not None and missed.contradicted
        if contradicted or (converged and not self._resolved(point, missed)):
            converged, why = False, self._why(problem, missed)
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
            iterations=used,  # those of the proof are not counted
            details=GaussianDetails(
                map_optimal=point.is_optimal,
                quadrature_error=None if missed is None else missed.distance,
                energy_error=None if missed is None else missed.energy,
                nodes=problem.mu.n,
            ),
        )
        report = known(converged=converged, **why)
        if report.converged and report.guarantee == Guarantee.NONE:
            # A zero of the gradient above where it began is no minimum of F.
            report = known(converged=False, **ROSE)
        return report

    def _why(self, problem: Problem, missed: Missed | None) -> dict[str, Any]:
        """Say what the nodes leave out, and what helps."""
        size = "by an unknown length"
        if missed is not None:
            size = f"by about {missed.distance:.2g} in W2, the energy by about "
            size += f"{missed.energy:.2g}"
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
