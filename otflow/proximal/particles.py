"""The JKO step on particles: a Euclidean prox, certified by the exact assignment."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import positive, true_or_false
from otflow._warn import warn
from otflow.errors import InvalidFunctional, Unsupported
from otflow.functionals import Functional
from otflow.functionals.order import is_exchangeable
from otflow.measures import Particles
from otflow.measures.labelled import LabelledParticles
from otflow.metrics import sinkhorn_divergence
from otflow.numerics.lbfgs import beside, last_places
from otflow.proximal.base import ProxResult
from otflow.proximal.labels import Coupled, assigned, planned
from otflow.proximal.tangent import TangentDetails, TangentProximal
from otflow.proximal.tangent_descent import descend
from otflow.proximal.tangent_objective import Objective, Place

__all__ = ["ParticleObjective", "ParticleProximal", "SinkhornParticles"]

# Most relabellings in a step. Each lowers the objective, so they end; the limit bounds
# the cost, one assignment each.
MAX_RELABELLINGS = 20


@dataclass(frozen=True)
class ParticleDetails(TangentDetails):
    """What `ParticleProximal` reports besides the words of a certificate.

    Parameters
    ----------
    stalled : bool
        Whether the descent ended because the objective and its gradient stopped
        falling.
    relabellings : int
        Number of cheaper couplings that the solver found and continued with.
    coupling_optimal : bool
        Whether the coupling of the objective was proved optimal.

    Attributes
    ----------
    stalled, relabellings, coupling_optimal
        As above.
    """

    relabellings: int
    coupling_optimal: bool


@dataclass(frozen=True)
class SinkhornDetails(TangentDetails):
    """What `SinkhornParticles` reports besides the words of a certificate.

    Parameters
    ----------
    stalled : bool
        Whether the descent ended because the objective and its gradient stopped
        falling.
    blur : float
        The blur of the divergence, a length.

    Attributes
    ----------
    stalled, blur
        As above.
    """

    blur: float


class ParticleProximal(TangentProximal[Particles]):
    r"""Solve :math:`\min_y F(\nu_y) + W_2^2(\mu, \nu_y)/(2\,dt)` over positions y.

    Here :math:`\nu_y = \sum_i w_i\delta_{y_i}`. With a fixed coupling :math:`x_i \to
    y_i` the objective is

    .. math:: \Psi(y) = F(y) + \frac{1}{2\,dt}\sum_i w_i |y_i - x_i|^2, \qquad
        \tfrac{1}{w_i}\partial_{y_i}\Psi = \tfrac{1}{dt}(y_i - x_i) - v[\nu_y](y_i),

    L-BFGS :cite:p:`nocedal2006numerical` in :math:`L^2(\mu)` minimises the objective.

    For equal weights the minimum over y is that of the JKO step
    :cite:p:`jordan1998variational` over n equal atoms: a relabelling of y changes the
    cost and leaves F alone. The exact assignment between both ends proves the coupling
    optimal. If it finds a cheaper coupling, the solver relabels y and continues. An F
    that reads atoms by their index raises: it is no functional of the law.

    For unequal weights a minimiser may split atoms, which fixed weights do not allow.
    The coupling is then the optimal plan between both ends, computed by POT, and the
    solver alternates between the plan and y. W2 is exact. The objective is an upper
    bound of the JKO value, and the guarantee is ``"upper-bound"``.

    Parameters
    ----------
    tolerance : float
        Stop when the gradient of :math:`dt\,\Psi` is below `tolerance` times the
        displacement, both in :math:`L^2(\mu)`. Also stop when the gradient is at
        round-off: when one unit in the last place of each coordinate explains it.
    max_gradients : int
        Most evaluations of F with its velocity in a step.
    certify : bool
        Whether to prove the coupling optimal. If False, ``w2`` is an upper bound.
    blur : float, optional
        Deprecated: use `SinkhornParticles`.
    memory : int
        Pairs that L-BFGS keeps. They hold 2 memory n d numbers.

    Attributes
    ----------
    tolerance, max_gradients, certify, blur, memory
        As above.
    flat : bool
        True: displacements of atoms, coupled by their index, may be added.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``, ``w2``, ``residual``, ...
        The words that "Words of a certificate" in the conventions defines. ``w2`` is
        exact if ``coupling_optimal``. ``residual`` is relative to the displacement.
    ``stalled``
        Whether the descent ended above round-off because the objective and its gradient
        stopped falling, as at a kink of F. Then ``cause`` and ``cure`` say what helps.
    ``iterations``
        Evaluations of F with its velocity.
    ``relabellings``
        Number of cheaper couplings that the solver found and continued with.
    ``coupling_optimal``
        Whether the coupling of the objective was proved optimal.
    ``bound``
        A bound on the W2 distance to the exact JKO step: :math:`\|dt\nabla\Psi\| / (1 +
        dt\,\lambda)`, with the round-off of the gradient added to the norm. It needs a
        known modulus :math:`\lambda` of F and :math:`1 + dt\,\lambda > 0`.
    ``guarantee``
        ``"exact"``: the JKO step is unique and within ``bound``. This holds for any
        weights, since a convex functional of the law gains nothing by splitting atoms.
        ``"stationary"``: a critical point of the JKO objective, with the optimal
        coupling. A lower minimum elsewhere is not excluded. ``"upper-bound"``: the same
        for unequal weights, among measures of these weights. Split atoms may reach a
        lower value. ``"none"``: not converged, or coupling not proved optimal.

    Atoms of weight zero do not count in the objective. They move by explicit Euler.

    Time: `iterations` times the cost of F, plus one assignment. The assignment takes
    O(n^2 d) if both ends are close and O(n^3) at worst, with O(n^2) memory.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[2.0], [4.0]], dtype=torch.float64))
    >>> of.proximal.ParticleProximal().solve(F, mu, dt=1.0).measure.points
    tensor([[1.],
            [2.]], dtype=torch.float64)
    """

    flat = True

    def __init__(
        self,
        *,
        tolerance: float = 1e-4,
        max_gradients: int = 200,
        certify: bool = True,
        blur: float | None = None,
        memory: int = 20,
    ) -> None:
        super().__init__(
            tolerance=tolerance, max_gradients=max_gradients, memory=memory
        )
        self.certify = true_or_false(certify, "certify")
        self.blur = None if blur is None else positive(blur, "blur")
        if blur is not None:
            msg = (
                "ParticleProximal(blur=...) certifies nothing and will go; "
                "use otflow.proximal.SinkhornParticles(blur)"
            )
            warn(msg, DeprecationWarning)

    def solve(
        self, F: Functional, mu: Particles, dt: float, warm: Any = None
    ) -> ProxResult[Particles]:
        dt = self._admit(F, mu, dt, Particles)
        if self.blur is not None:
            names = ("tolerance", "max_gradients", "memory")
            options = {name: getattr(self, name) for name in names}
            return SinkhornParticles(self.blur, **options).solve(F, mu, dt, warm)
        if not is_exchangeable(F):
            raise Unsupported(_reads_order(F, "says so itself"))
        objective = ParticleObjective(F, mu, dt, centre=mu)
        start = point = objective.start()
        memory = self._memory(objective, start, warm)
        used, relabellings, stalled, known = 1, 0, False, 0.0
        coupling: _Coupling | None = None
        while True:
            # After a stall the solver takes a cheaper coupling, without a descent.
            budget = 0 if stalled else self.max_gradients - used
            end = descend(objective, point, memory, self.tolerance, budget)
            used, known = used + end.used, max(known, end.known)
            stalled = stalled or end.stalled
            if not self.certify:
                break
            # The assignment costs O(n^3) at worst, so it is taken once per descent and
            # not at each evaluation.
            coupling = objective.couple(end.point)
            if coupling.is_kept or used >= self.max_gradients:
                break
            if relabellings == MAX_RELABELLINGS:
                break
            relabellings, used = relabellings + 1, used + 1
            # The atoms have changed places, so the old curvature pairs do not fit.
            objective, memory = coupling.objective, end.memory.empty()
            point = objective.reach(coupling.measure)
            _check_relabelled(objective, end.point, point)

        stalled = stalled and not end.converged
        end = replace(end, used=used, known=known, stalled=stalled)
        optimal = coupling is not None and coupling.is_kept
        bound = objective.bound(end.point.size + known)
        guarantee = "stationary" if mu.is_uniform else "upper-bound"
        if bound is not None:
            guarantee = "exact"
        elif not optimal:
            guarantee = "none"
        return self._result(
            objective,
            start,
            end,
            coupling.w2 if coupling else objective.cost(end.point) ** 0.5,
            guarantee,
            bound=bound,
            details=ParticleDetails(stalled, relabellings, optimal),
        )


class SinkhornParticles(TangentProximal[Particles]):
    r"""Solve the particle step with the debiased Sinkhorn divergence in place of W2.

    The step is :math:`\min_y F(\nu_y) + S_\varepsilon(\mu, \nu_y)/dt` over positions y,
    where :math:`S_\varepsilon` :cite:p:`feydy2019interpolating` is near
    :math:`W_2^2/2`. The cost is differentiable and does not couple atoms by their
    index. The step is never certified.

    Parameters
    ----------
    blur : float
        The length :math:`\varepsilon^{1/2}` > 0; the cost blurs smaller details.
    **options : object
        ``tolerance``, ``max_gradients`` and ``memory`` of `TangentProximal`.

    Attributes
    ----------
    blur, tolerance, max_gradients, memory
        As above.

    Notes
    -----
    The certificate is that of `TangentProximal`, with ``w2`` None and a further entry
    ``blur``. The guarantee is ``"sinkhorn"`` (a critical point with this cost) or
    ``"none"``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[2.0], [4.0]], dtype=torch.float64))
    >>> solver = of.proximal.SinkhornParticles(0.05, tolerance=1e-2)
    >>> solver.solve(F, mu, dt=1.0).certificate.guarantee
    'sinkhorn'
    """

    flat = True

    def __init__(self, blur: float, **options: Any) -> None:
        super().__init__(**options)
        self.blur = positive(blur, "blur")

    def solve(
        self, F: Functional, mu: Particles, dt: float, warm: Any = None
    ) -> ProxResult[Particles]:
        dt = self._admit(F, mu, dt, Particles)
        if isinstance(mu, LabelledParticles):
            msg = (
                "SinkhornParticles couples atoms of other labels, so it has no step "
                "with fixed coordinates; use JKO() without a solver"
            )
            raise Unsupported(msg)
        objective = ParticleObjective(F, mu, dt, centre=mu, blur=self.blur)
        start, end = self._descend(objective, warm)
        details = SinkhornDetails(end.stalled, self.blur)
        return self._result(objective, start, end, None, "sinkhorn", details=details)


def _check_relabelled(
    objective: ParticleObjective, before: Place[Particles], after: Place[Particles]
) -> None:
    """Raise InvalidFunctional if F has changed as atoms of equal mass were relabelled.

    Round-off of F is measured, since terms of F may cancel: but only if F has changed.
    """
    change = abs(after.energy - before.energy)
    eps = torch.finfo(after.gradient.dtype).eps
    if change <= eps**0.5 * max(abs(after.energy), abs(before.energy)):
        return
    near = beside(objective, after)
    error = max((abs(place.energy - after.energy) for place in near), default=0.0)
    if change > error / eps**0.25:
        both = f"from {before.energy:g} to {after.energy:g}"
        what = f"changes {both} as atoms swap places"
        raise InvalidFunctional(_reads_order(objective.functional, what))


def _reads_order(F: Functional, what: str) -> str:
    return (
        f"ParticleProximal relabels atoms, and F = {F!r:.80} depends on their order: "
        f"it {what}; use JKO(proximal.TangentProximal()), which keeps the order, and "
        f"state exchangeable = False in the class of F, so that JKO() takes it itself"
    )


@dataclass(frozen=True)
class _Coupling:
    """The optimal coupling of both ends, compared with that of the objective."""

    w2: float
    is_kept: bool
    objective: ParticleObjective
    measure: Particles


@dataclass(frozen=True)
class ParticleObjective(Objective[Particles]):
    """The objective dt F(y) + (|y - centre|^2 + constant) / 2 over positions y."""

    centre: Particles = field(kw_only=True)
    blur: float | None = None

    def reach(self, nu: Particles) -> Place[Particles]:
        """Return the objective at a measure."""
        return self.at(nu, self.centre.displacement_to(nu))

    def move(
        self, point: Place[Particles], vector: Tensor, length: float
    ) -> Place[Particles]:
        # The tangent is taken from the moved atoms: it is then exact up to half a unit
        # in their last place, however many moves came before.
        return self.reach(point.measure.push(vector, length))

    def difference(self, start: Place[Particles], end: Place[Particles]) -> Tensor:
        # Close atoms differ exactly; the difference of their tangents is rounded.
        return start.measure.displacement_to(end.measure)

    def at(self, nu: Particles, u: Tensor) -> Place[Particles]:
        value, velocity = self.functional.value_and_velocity(nu)
        half, slope, blur = None, u, self.blur
        if blur is not None:
            half, slope = nu.value_and_position_gradient(
                lambda y: sinkhorn_divergence(self.source, y, blur=blur)
            )
        gradient = slope - self.dt * velocity
        # Atoms without mass do not change the objective; their velocity is that of a
        # test particle and must not steer the descent.
        if not nu.is_uniform:
            gradient = gradient.masked_fill(nu.weights[:, None] == 0, 0.0)
        return self.place(nu, u, float(value), gradient, half, velocity)

    def unit(self, point: Place[Particles]) -> Tensor:
        return last_places(point.measure.points)

    def _size(self, point: Place[Particles]) -> Tensor:
        # The point of the dtype nearest to the minimum is off by half a unit in its
        # last place. With dt Hess F up to 1, the gradient there is at most one unit.
        return torch.maximum(self.source.points.abs(), point.measure.points.abs())

    def bound(self, gradient: float) -> float | None:
        """Return a bound on the distance to the exact step; None if none is known."""
        modulus = self.functional.modulus(self.source.dim)
        # After a plan has replaced the atoms by its barycentres, the objective is not
        # that of the JKO step, and its gradient bounds no distance to it.
        if self.centre is not self.source or modulus is None:
            return None
        slope = 1 + self.dt * modulus
        return gradient / slope if slope > 0 else None

    def cost(self, point: Place[Particles]) -> float:
        """Return the transport cost of the kept coupling."""
        return point.moved**2 + self.constant

    def couple(self, point: Place[Particles]) -> _Coupling:
        """Return the optimal coupling from the source to a point."""
        nu, kept = point.measure, self.cost(point)
        objective, best = self, kept
        if not nu.is_uniform:
            plan = planned(self.source, nu)
            best, objective = plan.cost, self._around(plan, nu)
        else:
            index = assigned(self.source, nu)
            # The identity needs no relabelling: its cost is the kept one, bit by bit.
            if not bool((index.diff() == 1).all()):
                nu = nu.push(nu.points[index] - nu.points, 1.0)
                best = self.norm(self.source.displacement_to(nu)) ** 2
        # Two round-offs separate the costs: that of their own sums, and, far from the
        # origin, that of the new points.
        rounded = self.norm(nu.points) * max(kept, 0.0) ** 0.5
        slack = 16 * torch.finfo(nu.dtype).eps * (kept + rounded)
        w2 = max(min(best, kept), 0.0) ** 0.5
        return _Coupling(w2, best >= kept - slack, objective, nu)

    def final(self, start: Place[Particles], nu: Particles) -> Particles:
        # The atoms without mass move by explicit Euler; the law stays the same.
        empty = nu.weights[:, None] == 0
        if nu.is_uniform or not bool(empty.any()):
            return nu
        assert start.velocity is not None
        goal = start.measure.points + self.dt * start.velocity
        return nu.push((goal - nu.points).masked_fill(~empty, 0.0), 1.0)

    def _around(self, plan: Coupled, nu: Particles) -> ParticleObjective:
        r"""Return the objective with the coupling of a plan.

        The cost of a plan is that of its barycentres up to a constant: :math:`\sum
        m_{ij} |y_j - x_i|^2 = \sum_j w_j |y_j - b_j|^2 + \mathrm{constant}`.
        """
        x = self.source.points
        total = torch.zeros_like(x)
        total.index_add_(0, plan.columns, plan.masses[:, None] * x[plan.rows])
        empty = nu.weights == 0
        centres = total / nu.weights.masked_fill(empty, 1.0)[:, None]
        centres = torch.where(empty[:, None], x, centres)
        centre = self.source.push(centres - x, 1.0)
        moved = self.norm(centre.displacement_to(nu))
        constant = plan.cost - moved * moved
        return replace(self, centre=centre, constant=constant)
