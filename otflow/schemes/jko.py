"""The JKO scheme: implicit Euler in Wasserstein space, each step certified."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from otflow._validation import check_kind, non_negative_int
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.stated_terms import check_terms
from otflow.measures import Measure
from otflow.proximal import ProximalSolver, default_solver
from otflow.proximal.base import solved
from otflow.proximal.terms import sort_terms
from otflow.schemes.base import Scheme, Step
from otflow.schemes.stages import TABLEAUS, runge_kutta_step
from otflow.schemes.trapezoid import trapezoidal_step

__all__ = ["JKO"]


class JKO(Scheme):
    r"""Minimising movements: implicit Euler in Wasserstein space, or a higher order.

    .. math:: \mu^{k+1} = \operatorname{argmin}_\nu F(\nu)
        + \frac{W_2^2(\mu^k, \nu)}{2\,dt}

    The scheme of :cite:t:`jordan1998variational` is of first order in dt. For every dt
    a step dissipates, :math:`F(\mu^{k+1}) + W_2^2/(2\,dt) \le F(\mu^k)`. If F is
    :math:`\lambda`-convex then :math:`W_2(\mu^k, \mu^*) \le
    (1 + \lambda\,dt)^{-k}\, W_2(\mu^0, \mu^*)`.

    Where W2 is flat (`Particles`, `Quantiles`, `Gaussian`) tangents add up. There
    ``order`` 2 or 3 selects an L-stable Runge-Kutta method of
    :cite:t:`alexander1977diagonally`: two or three proximal steps of length
    :math:`\gamma\,dt`, each from a shifted point,

    .. math:: y_i = \operatorname{prox}_{\gamma\,dt}\Big(x + dt\sum_{j<i} a_{ij} k_j
        \Big), \qquad k_i = \frac{y_i - x - dt\sum_{j<i}a_{ij}k_j}{\gamma\,dt},
        \qquad x^+ = y_s.

    On a grid ``order=2`` is the trapezoidal rule along the paths of particles: half a
    step along :math:`-\nabla F'` by ``transport``, then a JKO step of dt/2. If that
    raises F, or if the velocity is not finite (an entropy beside empty cells), a step
    of order 1 replaces it, and ``fallback`` is True.

    Parameters
    ----------
    solver : ProximalSolver, optional
        Solves for the step. By default `proximal.default_solver` chooses it by the
        representation and the terms of F. Its certificate is the step's `info`.
    order : int
        1, 2 or 3.

    Attributes
    ----------
    solver, order
        As above.

    Raises
    ------
    Unsupported
        From `init`, before the first step, if the representation does not carry this
        order, or if F bounds the density and the order is not 1.
    ValueError
        From `init`, if F states terms that do not sum to its value.
    Diverged
        If a stage would start from a point that is no measure.

    See Also
    --------
    otflow.schemes.Adaptive : Chooses dt from the estimated error.

    Notes
    -----
    ``info`` is the solver's certificate (energies at both ends, W2, residual,
    iterations, bound, guarantee, certified). If a solve did not converge,
    ``info["converged"]`` is False and the step is not certified. On particles,
    quantiles and Gaussians the energy has then not increased, and the measure may not
    have moved; on a grid the energy may have risen. ``info`` also holds

    ``solver``
        Name of the class of the solver.
    ``dt``, ``order``, ``modulus``
        The step, its order, and the convexity of F in this dimension, None if unknown.
        `Trajectory.time_error` needs them.

    With order 2 or 3 the words of ``info`` describe the whole step:

    ``decrease``
        F(before) - F(after) - w2^2 / (2 dt). No theorem keeps this number positive.
        Off a grid a step of order 2 or 3 may raise the energy; then it is not
        certified.
    ``w2``
        Length of the step in tangents, an upper bound on the distance of its ends; on
        a grid up to the error of the remap.
    ``error``, ``error_order``
        Where W2 is flat: distance to a companion method of order p = ``error_order`` on
        the same stages, :math:`O(dt^{p+1})`. For order 2 it is :math:`|x^+ - (x +
        dt\,k_1)|`, p = 1.
    ``fallback``
        On a grid: whether a step of order 1 replaced the step of order 2. The words are
        then those of order 1. The rejected step costs one proximal step, or one
        velocity if the velocity is not finite.
    ``stages``
        The solver's certificates, one a stage. A ``gap`` or ``w2_upper`` in a stage
        describes that stage alone. ``converged`` means that all stages converged. If
        all are certified, and the energy and ``decrease`` of the whole step are good,
        ``guarantee`` is ``"stages"`` and the step ``certified``. ``bound`` is None.

    A step of order p costs p proximal steps; on a grid order 2 costs one proximal step
    and one velocity. The later stages of order 2 or 3 start from extrapolated points.
    Where quantiles cross there, the step raises Diverged; a smaller dt is the cure.

    Order 3 and BDF2 :cite:p:`matthes2019variational,gallouet2024geodesic` need measures
    extrapolated along optimal maps, which a grid solver knows only up to its blur.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[8.0], [4.0]], dtype=torch.float64))
    >>> run = of.flow(F, mu, of.JKO(), dt=1.0, steps=2)
    >>> run.final.points
    tensor([[2.],
            [1.]], dtype=torch.float64)
    >>> all(info["certified"] for info in run.info)
    True
    >>> run = of.flow(F, mu, of.JKO(order=3), dt=0.1, steps=10)
    >>> run.final.points * torch.e
    tensor([[7.9998],
            [3.9999]], dtype=torch.float64)
    """

    def __init__(
        self, solver: ProximalSolver[Any] | None = None, *, order: int = 1
    ) -> None:
        if solver is not None:
            cure = "leave it out, or take one, e.g. proximal.ParticleProximal()"
            check_kind(solver, ProximalSolver, "solver", cure=cure)
        self.solver = solver
        self.order = non_negative_int(order, "order", minimum=1)
        if self.order > 1 and self.order not in TABLEAUS:
            msg = f"order must be 1, 2 or 3, got {order}"
            raise ValueError(msg)

    def init(self, F: Functional, mu: Measure) -> _Plan:
        plan = self._pick(F, mu)
        check_terms(F, mu)
        return plan

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        plan = self._plan(F, mu, state)
        solver, warm = plan.solver, plan.warm[0] if plan.warm else None
        if self.order == 1:
            result = solved(solver, F, mu, dt, warm)
            step = Step(result.measure, (result.warm,), result.certificate)
        elif solver.adds_tangents(mu):
            step = runge_kutta_step(solver, F, mu, dt, TABLEAUS[self.order], plan.warm)
        else:
            step = trapezoidal_step(solver, F, mu, dt, warm)
            step = replace(step, state=(step.state,))
        info = replace(
            step.info,
            solver=type(solver).__name__,
            dt=dt,
            order=self.order,
            modulus=plan.modulus,
        )
        before = torch.as_tensor(info.energy_before, dtype=mu.dtype, device=mu.device)
        return Step(step.measure, replace(plan, warm=step.state), info, before)

    def state_dict(self, state: _Plan) -> Any:
        solver = state.solver
        warm = [solver.state_dict(warm) for warm in state.warm]
        return {"solver": type(solver).__name__, "warm": warm}

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> _Plan:
        plan = self.init(F, mu)
        # Another solver for another F, of which the flow has warned, starts cold.
        if kept["solver"] != type(plan.solver).__name__:
            return plan
        warm = (plan.solver.load_state(F, mu, one) for one in kept["warm"])
        return replace(plan, warm=tuple(warm))

    def _pick(self, F: Functional, mu: Measure) -> _Plan:
        """Return a plan, its solver picked and its order checked."""
        solver = self.solver or default_solver(mu, F)
        if self.order > 1:
            self._check_order(solver, F, mu)
        return _Plan(F, type(mu), solver, F.modulus(mu.dim))

    def _plan(self, F: Functional, mu: Measure, state: _Plan | None) -> _Plan:
        """Return the plan of the step before, or another one for another draw of F."""
        if state and state.functional is F and state.kind is type(mu):
            return state
        # The terms of a draw are not checked again at each step.
        plan = self._pick(F, mu) if state else self.init(F, mu)
        same = state and type(state.solver) is type(plan.solver)
        return replace(plan, warm=state.warm) if state and same else plan

    def _check_order(
        self, solver: ProximalSolver[Any], F: Functional, mu: Measure
    ) -> None:
        """Raise Unsupported for an order above 1 that the step cannot have."""
        name = type(solver).__name__
        if sort_terms(F).max_density < torch.inf:
            msg = (
                f"JKO(order={self.order}) takes stages from extrapolated densities, "
                f"which a bound on the density does not admit; use order=1, or "
                f"PowerEntropy(m) with a large m"
            )
        elif not solver.carries_order_2:
            msg = (
                f"{name} is of first order in time, and so is a step "
                f"beside obstacles: use JKO() with order=1 and a smaller dt"
            )
        elif solver.adds_tangents(mu):
            return
        elif not mu.on_fixed_cells:
            other = "represent the measure by Quantiles, a Gaussian or Particles"
            if self.solver:
                other = f"use JKO(order={self.order}) without a solver"
            msg = (
                f"order {self.order} adds up tangents of several measures, and {name} "
                f"does not say that those of {type(mu).__name__} add up; let the class "
                f"of the measure (for TangentProximal) or of the solver state "
                f"flat = True if they do, or use order=1 and a smaller dt, or {other}"
            )
        elif self.order == 3:
            msg = (
                f"order 3 adds up tangents of several measures, and a "
                f"{type(mu).__name__} has fixed cells: use JKO(order=2), or represent "
                f"the measure by Quantiles, a Gaussian or Particles"
            )
        else:
            return
        raise Unsupported(msg)


@dataclass(frozen=True)
class _Plan:
    """What the steps of a flow share, and the warm starts of the next solves."""

    functional: Functional = field(repr=False)
    kind: type[Measure]
    solver: ProximalSolver[Any]
    modulus: float | None
    warm: tuple[Any, ...] = ()
