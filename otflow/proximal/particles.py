"""The JKO step on particles: a Euclidean prox, certified by the exact assignment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from otflow._validation import non_negative_int, positive
from otflow.functionals import Functional
from otflow.measures import Particles
from otflow.metrics import Plan, assignment, sinkhorn_divergence, transport_plan
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import KINK, Certificate, certify
from otflow.proximal.quasi_newton import Memory, Point, minimise, round_off

__all__ = ["ParticleProximal"]

# Cheaper couplings taken before the solver stops.
MAX_RELABELLINGS = 20
# A gradient within so many times what it is known to is as small as can be asked.
KNOWN = 3.0
# Last places of the points that a bound allows the gradient.
SUMS = 8.0
# Round-off of an energy, in units of that of the dtype.
NOISE = 64.0


class ParticleProximal(ProximalSolver[Particles]):
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
        Replace :math:`W_2^2/2` by the debiased Sinkhorn divergence of this blur
        :cite:p:`feydy2019interpolating`; then nothing is certified.
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
        ``coupling_optimal``, and None with a blur; ``residual`` is relative.
    ``stalled``
        Whether the descent ended because neither the objective nor its gradient fell,
        as at a kink of F, and not at the round-off of the gradient. Then ``cause`` and
        ``cure`` say what helps.
    ``gradients``
        Evaluations spent.
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
        better. ``"sinkhorn"``: a critical point with the Sinkhorn divergence in place
        of W2. ``"none"``: not converged, or coupling not proved optimal.

    Atoms of weight zero do not count in the objective; they move by explicit Euler.

    Time: `gradients` times the cost of F, plus one assignment, O(n^2 d) when both ends
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

    flat: ClassVar[bool] = True

    def __init__(
        self,
        *,
        tolerance: float = 1e-4,
        max_gradients: int = 200,
        certify: bool = True,
        blur: float | None = None,
        memory: int = 20,
    ) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_gradients = non_negative_int(max_gradients, "max_gradients", minimum=1)
        if not isinstance(certify, bool):
            msg = f"certify must be True or False, got {certify!r}"
            raise TypeError(msg)
        self.certify = certify
        self.blur = None if blur is None else positive(blur, "blur")
        self.memory = non_negative_int(memory, "memory", minimum=1)

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
        problem = _Problem(F, mu, dt, mu, blur=self.blur)
        start = problem.at(mu)
        memory = Memory(size=self.memory)
        if isinstance(warm, _Warm) and warm.fits(mu, dt):
            memory = warm.memory

        point, used, relabellings, stalled = start, 1, 0, False
        settled, known = False, 0.0
        coupling: _Coupling | None = None
        while True:
            outcome = minimise(
                problem.at,
                point,
                memory,
                converged=lambda p, x=problem: self._converged(p, x),  # type: ignore[misc]
                # Where the descent has stalled a cheaper coupling is taken, no more.
                budget=0 if stalled else self.max_gradients - used,
            )
            point, memory = outcome.point, outcome.memory
            used += outcome.used
            if outcome.stalled:
                # At a kink, or at the level at which the gradient is known?
                known, used = round_off(point, problem.at), used + 2
                settled = float(point.measure.norm(point.gradient)) <= KNOWN * known
                stalled = not settled
            if self.blur is not None or not self.certify:
                break
            coupling = problem.couple(point)
            if coupling.is_kept or used >= self.max_gradients:
                break
            if relabellings == MAX_RELABELLINGS:
                break
            relabellings, settled = relabellings + 1, False
            problem = coupling.problem
            memory = replace(memory, pairs=())
            point = problem.at(coupling.measure)
            used += 1

        converged = settled or self._converged(point, problem)
        known = max(known, problem.floor(point) * memory.stiffness(point.measure))
        certificate = self._certificate(
            problem,
            start,
            point,
            coupling,
            converged=converged,
            known=known,
            iterations=used,
            relabellings=relabellings,
            stalled=stalled and not converged,
            **(KINK if stalled and not converged else {}),
        )
        return ProxResult(
            _with_empty_atoms(point.measure, start, dt),
            _Warm(memory, dt),
            certificate=certificate,
        )

    def _converged(self, point: Point[Particles], problem: _Problem) -> bool:
        mu = point.measure
        moved = float(mu.norm(point.displacement))
        # What rounding does not explain; no far atom or coordinate lets others stop.
        excess = (point.gradient.abs() - problem.places(point)).clamp_min(0.0)
        return float(mu.norm(excess)) <= self.tolerance * moved

    def _certificate(
        self,
        problem: _Problem,
        start: Point[Particles],
        point: Point[Particles],
        coupling: _Coupling | None,
        *,
        converged: bool,
        known: float,
        **own: Any,
    ) -> Certificate:
        mu, dt = point.measure, problem.dt
        absolute = float(mu.norm(point.gradient))
        moved = float(mu.norm(point.displacement))
        optimal = coupling is not None and coupling.is_kept
        w2 = None
        if self.blur is None:
            w2 = problem.cost(point) ** 0.5 if coupling is None else coupling.w2
        # With the plan's barycentres in place of the atoms, the bound is not one on
        # the distance to the JKO step.
        bound, modulus = None, problem.functional.modulus(mu.dim)
        is_own = self.blur is None and problem.centre is problem.source
        if is_own and modulus is not None and 1 + dt * modulus > 0:
            bound = (absolute + known) / (1 + dt * modulus)
        if self.blur is not None:
            guarantee = "sinkhorn"
        elif bound is not None:
            guarantee = "exact"
        elif not optimal:
            guarantee = "none"
        else:
            guarantee = "stationary" if mu.is_uniform else "upper-bound"
        # What the objective is known to: its round-off, and that of its gradient along
        # the step.
        noise = NOISE * torch.finfo(mu.dtype).eps
        noise *= max(abs(start.energy), abs(point.energy), moved**2 / dt)
        return certify(
            energy_before=start.energy,
            energy_after=point.energy,
            dt=dt,
            w2=w2,
            residual=absolute / moved if moved > 0 else absolute,
            converged=converged,
            guarantee=guarantee,
            bound=bound,
            noise=noise + known * (moved + known) / dt,
            coupling_optimal=optimal,
            blur=self.blur,
            **own,
        )


@dataclass(frozen=True)
class _Warm:
    """Curvature pairs of the step before, good for the same dt and size."""

    memory: Memory
    dt: float

    def fits(self, mu: Particles, dt: float) -> bool:
        """Whether the pairs are tangents at `mu` of the same objective."""
        return self.dt == dt and all(
            s.shape == mu.points.shape and s.dtype == mu.dtype and s.device == mu.device
            for s, _ in self.memory.pairs
        )


@dataclass(frozen=True)
class _Coupling:
    """The optimal coupling of both ends, beside the one that the objective kept."""

    w2: float
    is_kept: bool
    problem: _Problem
    measure: Particles


@dataclass(frozen=True)
class _Problem:
    """The objective dt F(y) + |y - centre|^2 / 2 + constant, in L2(mu)."""

    functional: Functional
    source: Particles
    dt: float
    centre: Particles
    constant: float = 0.0
    blur: float | None = None

    def at(self, nu: Particles) -> Point[Particles]:
        """Evaluate the objective and its gradient at `nu`."""
        value, velocity = self.functional.value_and_velocity(nu)
        displacement = self.centre.displacement_to(nu)
        if self.blur is None:
            half, slope = 0.5 * nu.inner(displacement, displacement), displacement
        else:
            half, slope = nu.value_and_position_gradient(self._sinkhorn)
        gradient = slope - self.dt * velocity
        if not nu.is_uniform:
            gradient = gradient.masked_fill(nu.weights[:, None] == 0, 0.0)
        energy = float(value)
        return Point(
            measure=nu,
            energy=energy,
            objective=self.dt * energy + float(half) + 0.5 * self.constant,
            gradient=gradient,
            displacement=displacement,
            velocity=velocity,
        )

    def floor(self, point: Point[Particles]) -> float:
        """Return to what the gradient is known at least, all its sums counted."""
        return SUMS * float(point.measure.norm(self.places(point)))

    def places(self, point: Point[Particles]) -> Tensor:
        """Return a unit in the last place of each coordinate, (n, d)."""
        # The nearest point of the dtype is off by half of it: with dt Hess F up to 1
        # the gradient there is within a whole one. Close numbers differ exactly.
        x, y = self.source.points, point.measure.points
        return torch.finfo(y.dtype).eps * torch.maximum(x.abs(), y.abs())

    def _sinkhorn(self, nu: Particles) -> Tensor:
        assert self.blur is not None
        return sinkhorn_divergence(self.source, nu, blur=self.blur)

    def cost(self, point: Point[Particles]) -> float:
        """Return the transport cost of the kept coupling."""
        moved = float(point.measure.inner(point.displacement, point.displacement))
        return moved + self.constant

    def couple(self, point: Point[Particles]) -> _Coupling:
        """Find the optimal coupling from the source to a point."""
        nu, kept = point.measure, self.cost(point)
        if nu.is_uniform:
            index = assignment(self.source.points, nu.points)
            relabelled = nu.push(nu.points[index] - nu.points, 1.0)
            moved = self.source.displacement_to(relabelled)
            best, problem = float(nu.inner(moved, moved)), self
        else:
            plan = transport_plan(self.source, nu)
            best, relabelled = float(plan.cost), nu
            problem = self._around(plan, nu)
        # Sums of squares of differences are exact up to round-off of their own size;
        # that of the new points is more, far from the origin.
        rounded = float(nu.norm(nu.points)) * max(kept, 0.0) ** 0.5
        slack = 16 * torch.finfo(nu.dtype).eps * (kept + rounded)
        return _Coupling(
            w2=max(min(best, kept), 0.0) ** 0.5,
            is_kept=best >= kept - slack,
            problem=problem,
            measure=relabelled,
        )

    def _around(self, plan: Plan, nu: Particles) -> _Problem:
        """Keep a plan: its barycentres replace the source, up to a constant."""
        x = self.source.points
        total = torch.zeros_like(x)
        total.index_add_(0, plan.columns, plan.masses[:, None] * x[plan.rows])
        empty = nu.weights == 0
        centres = total / nu.weights.masked_fill(empty, 1.0)[:, None]
        centres = torch.where(empty[:, None], x, centres)
        centre = self.source.push(centres - x, 1.0)
        moved = centre.displacement_to(nu)
        constant = float(plan.cost) - float(nu.inner(moved, moved))
        return replace(self, centre=centre, constant=constant)


def _with_empty_atoms(nu: Particles, start: Point[Particles], dt: float) -> Particles:
    """Move the atoms without mass by explicit Euler; the measure is the same."""
    if nu.is_uniform or not bool((nu.weights == 0).any()):
        return nu
    goal = start.measure.points + dt * start.velocity
    empty = nu.weights[:, None] == 0
    return nu.push(torch.where(empty, goal - nu.points, torch.zeros_like(goal)), 1.0)
