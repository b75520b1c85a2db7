"""The JKO step on particles: a Euclidean prox, certified by the exact assignment."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import positive
from otflow.functionals import Functional
from otflow.measures import Particles
from otflow.metrics import Plan, assignment, sinkhorn_divergence, transport_plan
from otflow.numerics.lbfgs import last_places
from otflow.proximal.base import ProxResult
from otflow.proximal.tangent import (
    Objective,
    Place,
    TangentDetails,
    TangentProximal,
    descend,
)

__all__ = ["ParticleObjective", "ParticleProximal", "SinkhornParticles"]

# Cheaper couplings taken before the solver stops.
MAX_RELABELLINGS = 20


@dataclass(frozen=True)
class ParticleDetails(TangentDetails):
    """What `ParticleProximal` reports besides the words of a certificate.

    Parameters
    ----------
    stalled : bool
        Whether neither the objective nor its gradient fell any more.
    relabellings : int
        Times that a cheaper coupling was found and taken.
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
        Whether neither the objective nor its gradient fell any more.
    blur : float
        The blur of the divergence.

    Attributes
    ----------
    stalled, blur
        As above.
    """

    blur: float


class ParticleProximal(TangentProximal[Particles]):
    r"""Solve :math:`\min_y F(\nu_y) + W_2^2(\mu, \nu_y)/(2\,dt)` over positions y.

    Here :math:`\nu_y = \sum_i w_i\delta_{y_i}`. While the coupling :math:`x_i \to y_i`
    is kept the objective is

    .. math:: \Psi(y) = F(y) + \frac{1}{2\,dt}\sum_i w_i |y_i - x_i|^2, \qquad
        \tfrac{1}{w_i}\partial_{y_i}\Psi = \tfrac{1}{dt}(y_i - x_i) - v[\nu_y](y_i),

    minimised by L-BFGS :cite:p:`nocedal2006numerical` in :math:`L^2(\mu)`, so that
    weights are scaled right. For equal weights the minimum over y is that of the JKO
    step :cite:p:`jordan1998variational` over n equal atoms: relabelling y lowers the
    cost and leaves F alone. So the exact assignment between both ends is a
    certificate, and if it finds a cheaper coupling the solver relabels and goes on.

    For unequal weights a minimiser may split atoms, which fixed weights cannot. The
    coupling is then POT's optimal plan, alternated with y; W2 is exact, the objective
    an upper bound of the JKO value, and the guarantee says so.

    Parameters
    ----------
    tolerance : float
        Stop when the gradient of :math:`dt\,\Psi` is below it times the displacement,
        both in :math:`L^2(\mu)`, or is at round-off: within a unit in the last place of
        each coordinate, or what such units change it by.
    max_gradients : int
        Budget of evaluations of F with its velocity, per step.
    certify : bool
        Whether to prove the coupling optimal. Without it ``w2`` is an upper bound.
    blur : float, optional
        Deprecated: use `SinkhornParticles`.
    memory : int
        Pairs that L-BFGS keeps; 2 memory n d numbers.

    Attributes
    ----------
    tolerance, max_gradients, certify, blur, memory
        As above.
    flat : bool
        True: positions of atoms, coupled by their index, may be added.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``, ``w2``, ``residual``, ...
        What "Words of a certificate" says in the conventions. ``w2`` is exact if
        ``coupling_optimal``; ``residual`` is relative.
    ``stalled``
        Whether the descent ended because neither the objective nor its gradient fell,
        as at a kink of F, and not at the round-off of the gradient. Then ``cause`` and
        ``cure`` say what helps.
    ``iterations``
        Evaluations of F with its velocity.
    ``relabellings``
        Times that a cheaper coupling was found and taken.
    ``coupling_optimal``
        Whether the coupling of the objective was proved optimal.
    ``bound``
        Where the functional's modulus :math:`\lambda` is known and :math:`1 +
        dt\,\lambda > 0`: :math:`\|dt\nabla\Psi\| / (1 + dt\,\lambda)`, the round-off
        of the gradient added, an upper bound on the W2 distance to the exact JKO step.
    ``guarantee``
        ``"exact"``: the JKO step is unique and within ``bound``; this holds for any
        weights, since a convex functional of the law gains nothing by splitting atoms.
        ``"stationary"``: a critical point of the JKO objective, with the optimal
        coupling; a lower minimum elsewhere is not excluded. ``"upper-bound"``: the same
        with weights unequal, among measures of these weights; atoms that split could do
        better. ``"none"``: not converged, or coupling not proved optimal.

    Atoms of weight zero do not count in the objective; they move by explicit Euler.

    Time: `iterations` times the cost of F, plus one assignment, O(n^2 d) when both ends
    are close and O(n^3) at worst; memory O(n^2) for the assignment alone.

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
        if not isinstance(certify, bool):
            msg = f"certify must be True or False, got {certify!r}"
            raise TypeError(msg)
        self.certify = certify
        self.blur = None if blur is None else positive(blur, "blur")
        if blur is not None:
            msg = (
                "ParticleProximal(blur=...) certifies nothing and will go; "
                "use otflow.proximal.SinkhornParticles(blur)"
            )
            warnings.warn(msg, DeprecationWarning, stacklevel=2)

    def solve(
        self, F: Functional, mu: Particles, dt: float, warm: Any = None
    ) -> ProxResult[Particles]:
        """Return the proximal step of length `dt` from `mu`.

        Parameters
        ----------
        F : Functional
            What to minimise; it must be finite on particles.
        mu : Particles
            Where to step from.
        dt : float
            Step, > 0.
        warm : object, optional
            ``ProxResult.warm`` of the step before.

        Returns
        -------
        ProxResult
            The new particles and the certificate.

        Raises
        ------
        Unsupported
            If `mu` is not `Particles`, or F holds an entropy.
        """
        dt = self._admit(F, mu, dt, Particles)
        if self.blur is not None:
            names = ("tolerance", "max_gradients", "memory")
            options = {name: getattr(self, name) for name in names}
            return SinkhornParticles(self.blur, **options).solve(F, mu, dt, warm)
        objective = ParticleObjective(F, mu, dt, centre=mu)
        start = point = objective.start()
        memory = self._memory(objective, start, warm)
        used, relabellings, stalled, known = 1, 0, False, 0.0
        coupling: _Coupling | None = None
        while True:
            # Where the descent has stalled a cheaper coupling is taken, no more.
            budget = 0 if stalled else self.max_gradients - used
            end = descend(objective, point, memory, self.tolerance, budget)
            used, known = used + end.used, max(known, end.known)
            stalled = stalled or end.stalled
            if not self.certify:
                break
            coupling = objective.couple(end.point)
            if coupling.is_kept or used >= self.max_gradients:
                break
            if relabellings == MAX_RELABELLINGS:
                break
            relabellings, used = relabellings + 1, used + 1
            objective, memory = coupling.objective, end.memory.empty()
            point = objective.reach(coupling.measure)

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

    It is :math:`\min_y F(\nu_y) + S_\varepsilon(\mu, \nu_y)/dt` over positions y,
    where :math:`S_\varepsilon` :cite:p:`feydy2019interpolating` is near
    :math:`W_2^2/2`. The cost is differentiable and couples no atoms by their index;
    nothing is certified.

    Parameters
    ----------
    blur : float
        The length :math:`\varepsilon^{1/2}` below which the cost does not see, > 0.
    **options : object
        ``tolerance``, ``max_gradients`` and ``memory`` of `TangentProximal`.

    Attributes
    ----------
    blur, tolerance, max_gradients, memory
        As above.

    Notes
    -----
    The certificate is that of `TangentProximal`, with ``w2`` None and the entry
    ``blur``. The guarantee is ``"sinkhorn"``: a critical point with that cost; or
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
        """Return the proximal step of length `dt` from `mu`; see `ParticleProximal`."""
        dt = self._admit(F, mu, dt, Particles)
        objective = ParticleObjective(F, mu, dt, centre=mu, blur=self.blur)
        start, end = self._descend(objective, warm)
        details = SinkhornDetails(end.stalled, self.blur)
        return self._result(objective, start, end, None, "sinkhorn", details=details)


@dataclass(frozen=True)
class _Coupling:
    """The optimal coupling of both ends, beside the one that the objective kept."""

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
        """Move the atoms; the tangent is then exact up to half a last place of them."""
        return self.reach(point.measure.push(vector, length))

    def difference(self, start: Place[Particles], end: Place[Particles]) -> Tensor:
        """Return how far the atoms are apart: closer ones than their tangents tell."""
        return start.measure.displacement_to(end.measure)

    def at(self, nu: Particles, u: Tensor) -> Place[Particles]:
        """Evaluate F and the cost; atoms without mass have no gradient."""
        value, velocity = self.functional.value_and_velocity(nu)
        half, slope, blur = None, u, self.blur
        if blur is not None:
            half, slope = nu.value_and_position_gradient(
                lambda y: sinkhorn_divergence(self.source, y, blur=blur)
            )
        gradient = slope - self.dt * velocity
        if not nu.is_uniform:
            gradient = gradient.masked_fill(nu.weights[:, None] == 0, 0.0)
        return self.place(nu, u, float(value), gradient, half, velocity)

    def unit(self, point: Place[Particles]) -> Tensor:
        """Return a unit in the last place of each coordinate, of mixed signs."""
        return last_places(point.measure.points)

    def _size(self, point: Place[Particles]) -> Tensor:
        # The nearest point of the dtype is off by half a unit in its last place: with
        # dt Hess F up to 1 the gradient there is within a whole one. Close numbers
        # differ exactly.
        return torch.maximum(self.source.points.abs(), point.measure.points.abs())

    def bound(self, gradient: float) -> float | None:
        """Return a bound on the distance to the exact step, None if there is none."""
        modulus = self.functional.modulus(self.source.dim)
        # With the plan's barycentres in place of the atoms, the bound is not one on
        # the distance to the JKO step.
        if self.centre is not self.source or modulus is None:
            return None
        slope = 1 + self.dt * modulus
        return gradient / slope if slope > 0 else None

    def cost(self, point: Place[Particles]) -> float:
        """Return the transport cost of the kept coupling."""
        return point.moved**2 + self.constant

    def couple(self, point: Place[Particles]) -> _Coupling:
        """Find the optimal coupling from the source to a point."""
        nu, kept = point.measure, self.cost(point)
        objective, best = self, kept
        if not nu.is_uniform:
            plan = transport_plan(self.source, nu)
            best, objective = float(plan.cost), self._around(plan, nu)
        else:
            index = assignment(self.source.points, nu.points)
            if not bool((index.diff() == 1).all()):
                nu = nu.push(nu.points[index] - nu.points, 1.0)
                best = self.norm(self.source.displacement_to(nu)) ** 2
        # Sums of squares of differences are exact up to round-off of their own size;
        # that of the new points is more, far from the origin.
        rounded = self.norm(nu.points) * max(kept, 0.0) ** 0.5
        slack = 16 * torch.finfo(nu.dtype).eps * (kept + rounded)
        w2 = max(min(best, kept), 0.0) ** 0.5
        return _Coupling(w2, best >= kept - slack, objective, nu)

    def final(self, start: Place[Particles], nu: Particles) -> Particles:
        """Move the atoms without mass by explicit Euler; the measure is the same."""
        empty = nu.weights[:, None] == 0
        if nu.is_uniform or not bool(empty.any()):
            return nu
        assert start.velocity is not None
        goal = start.measure.points + self.dt * start.velocity
        return nu.push((goal - nu.points).masked_fill(~empty, 0.0), 1.0)

    def _around(self, plan: Plan, nu: Particles) -> ParticleObjective:
        """Keep a plan: its barycentres replace the source, up to a constant."""
        x = self.source.points
        total = torch.zeros_like(x)
        total.index_add_(0, plan.columns, plan.masses[:, None] * x[plan.rows])
        empty = nu.weights == 0
        centres = total / nu.weights.masked_fill(empty, 1.0)[:, None]
        centres = torch.where(empty[:, None], x, centres)
        centre = self.source.push(centres - x, 1.0)
        moved = self.norm(centre.displacement_to(nu))
        constant = float(plan.cost) - moved * moved
        return replace(self, centre=centre, constant=constant)
