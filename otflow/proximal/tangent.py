"""The JKO step of any measure: a descent over tangents, by `push` and `inner`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._autodiff import value_and_gradient
from otflow._validation import non_negative_int, positive
from otflow.errors import Diverged, NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.numerics.krylov import gmres
from otflow.numerics.lbfgs import (
    Memory,
    Outcome,
    Point,
    beside,
    last_places,
    minimise,
)
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import KINK, certify

__all__ = [
    "Descent",
    "Objective",
    "Place",
    "TangentDetails",
    "TangentProximal",
    "Warm",
    "descend",
]

M = TypeVar("M", bound=Measure)

# A stalled descent has converged if its gradient is at most KNOWN times its own error.
# The error is measured at two points only, and so is itself known to a factor.
KNOWN = 3.0
# Error of the gradient in last places of the points. A bound adds it: the gradient sums
# many terms, each with an error of its own.
SUMS = 8.0
# Round-off of an energy in units of that of the dtype: an energy is a long sum.
NOISE = 64.0
# Most products with the metric that turn a derivative into a tangent. A diagonal metric
# needs one.
PRODUCTS = 200


@dataclass(frozen=True)
class Place(Point, Generic[M]):
    """A measure that a tangent reaches, with the objective and its gradient there."""

    measure: M
    energy: float  # F
    displacement: Tensor  # the tangent
    moved: float  # its norm
    velocity: Tensor | None = None  # minus the gradient of F'; None if not computed


@dataclass(frozen=True)
class Objective(Generic[M]):
    """The objective dt F(mu.push(u, 1)) + (|u|^2 + constant) / 2 over tangents u."""

    functional: Functional
    source: M
    dt: float
    constant: float = 0.0

    def start(self) -> Place[M]:
        """Return the objective at the source itself."""
        return self.at(self.source, self.source.displacement_to(self.source))

    def at(self, nu: M, u: Tensor) -> Place[M]:
        """Return the objective at the measure `nu` that the tangent `u` reaches."""
        mu = self.source
        # One pass of F gives the velocity; a backward pass through push costs more.
        if mu.flat or type(mu).pull_back is not Measure.pull_back:
            value, velocity = self.functional.value_and_velocity(nu)
            slope = -mu.pull_back(u, velocity)
        else:
            value, slope = _derivative(self.functional, mu, u)
        return self.place(nu, u, float(value), u + self.dt * slope)

    def place(
        self,
        nu: M,
        u: Tensor,
        energy: float,
        gradient: Tensor,
        half: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> Place[M]:
        """Return the place; `half` replaces half the cost, (|u|^2 + constant) / 2."""
        moved = self.norm(u)
        cost = 0.5 * (moved * moved + self.constant) if half is None else float(half)
        return Place(
            objective=self.dt * energy + cost,
            gradient=gradient,
            size=self.norm(gradient),
            measure=nu,
            energy=energy,
            displacement=u,
            moved=moved,
            velocity=velocity,
        )

    def final(self, start: Place[M], nu: M) -> M:
        """Return the measure to report for a step to `nu`; `nu` itself by default."""
        return nu

    # What a descent asks for ----------------------------------------------------------

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the product of two tangents at the source."""
        return self.source.inner(u, v)

    def norm(self, u: Tensor) -> float:
        """Return the length of a tangent at the source."""
        return float(self.source.norm(u))

    def move(self, point: Place[M], vector: Tensor, length: float) -> Place[M]:
        """Return the place whose tangent is that of `point` plus length * vector."""
        u = point.displacement + length * vector
        return self.at(self.source.push(u, 1.0), u)

    def difference(self, start: Place[M], end: Place[M]) -> Tensor:
        """Return the difference of two tangents."""
        return end.displacement - start.displacement

    def unit(self, point: Place[M]) -> Tensor:
        """Return a unit in the last place of each coordinate, of mixed signs."""
        return last_places(self._size(point))

    def places(self, point: Place[M]) -> Tensor:
        """Return a unit in the last place of each coordinate."""
        size = self._size(point)
        return torch.finfo(size.dtype).eps * size

    def floor(self, point: Place[M]) -> float:
        """Return a lower bound of the error of the gradient."""
        return SUMS * self.norm(self.places(point))

    def _size(self, point: Place[M]) -> Tensor:
        # A tangent that does not match the points entry by entry, as on Gaussians, gets
        # the size of the farthest point in each entry.
        x, u = point.measure.points.abs(), point.displacement.abs()
        return torch.maximum(u, x if x.shape == u.shape else x.max())


def _derivative(F: Functional, mu: Measure, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return F(mu.push(u, 1)) and its gradient in the tangent, by autodiff."""

    def value(tangent: Tensor) -> Tensor:
        nu = mu.push(tangent, 1.0)
        if not (nu.points.requires_grad or nu.weights.requires_grad):
            msg = (
                f"{type(mu).__name__}.push loses the graph of its tangent, so that no "
                f"gradient of F passes through it; write it with torch operations, "
                f"or add the verb pull_back"
            )
            raise Unsupported(msg)
        return F.value(nu)

    energy, slopes = value_and_gradient(value, u)

    def metric(v: Tensor) -> Tensor:
        """Return the derivative of w -> <w, v>: the metric times v."""
        tangent = v.reshape(u.shape)
        product = value_and_gradient(lambda w: mu.inner(w, tangent), u, unused=True)
        return product[1].flatten()

    # A tangent at an atom without mass has length 0 and slope 0: any preconditioner > 0
    # leaves that entry 0.
    diagonal = metric(torch.ones_like(u))
    diagonal = diagonal.masked_fill(diagonal == 0, 1.0)
    # GMRES squares its vectors: a unit keeps large slopes from overflowing.
    unit = unit_of(slopes)
    right = slopes.flatten() / unit
    tolerance = 64 * torch.finfo(u.dtype).eps
    found, residual = gmres(
        metric, lambda r: r / diagonal, right, tolerance, min(PRODUCTS, len(right))
    )
    # GMRES may stop above its tolerance at round-off; half of the digits are enough.
    if not residual <= tolerance**0.5:
        msg = (
            f"the product of tangents of {type(mu).__name__} is so ill-conditioned "
            f"that no gradient was found; add the verb pull_back, which gives it"
        )
        raise Unsupported(msg)
    return energy, unit * found.reshape(u.shape)


@dataclass(frozen=True)
class Descent(Outcome[Place[M]]):
    """Where a descent ended, and the error of the gradient there."""

    known: float = 0.0


def descend(
    objective: Objective[M],
    start: Place[M],
    memory: Memory,
    tolerance: float,
    budget: int,
) -> Descent[M]:
    """Descend until the gradient is small, or is within its own error."""

    def converged(point: Place[M]) -> bool:
        goal = tolerance * point.moved
        if point.size <= goal:
            return True
        # Only the part of the gradient that rounding does not explain counts. It is
        # taken coordinate by coordinate: the large round-off of a far atom must not
        # let the other atoms stop.
        excess = (point.gradient.abs() - objective.places(point)).clamp_min(0.0)
        return objective.norm(excess) <= goal

    end = minimise(objective, start, memory, converged=converged, budget=budget)
    while end.converged and budget - end.used > 3:
        tried, away = _off_false_zeros(objective, end.point)
        end = replace(end, used=end.used + tried)
        if away is None:
            break
        left = budget - end.used
        lower = minimise(
            objective, away, memory.empty(), converged=converged, budget=left
        )
        if not lower.point.objective < end.point.objective:
            break
        end = replace(lower, used=end.used + lower.used)
    point, used, known, settled = end.point, end.used, 0.0, end.converged
    if end.stalled:
        # The descent is at a kink, or the gradient is at its error. The change of the
        # gradient under one unit in the last place of each coordinate tells which.
        near = beside(objective, point)
        gaps = [objective.norm(p.gradient - point.gradient) for p in near]
        known, used = max(gaps, default=0.0), used + 2
        settled = point.size <= KNOWN * known
    # Round-off of the points enters the gradient times the curvature.
    known = max(known, objective.floor(point) * end.memory.stiffness)
    away = end.stalled and not settled
    return Descent(point, end.memory, used, settled, away, known)


def _off_false_zeros(
    objective: Objective[M], point: Place[M]
) -> tuple[int, Place[M] | None]:
    """Return the place beside kinks where the derivative 0 is false, or None.

    At a kink automatic differentiation may return 0 where no subgradient is 0. So it
    does for relu(x) - relu(-x) / 2 at 0, whose slopes are 1 and 1/2: a coordinate that
    starts there never moves. The slopes beside such a kink are of one sign. The first
    number counts the evaluations.
    """
    still = point.displacement == 0
    if not bool(still.any()):
        return 0, None
    info = torch.finfo(point.gradient.dtype)
    size = max(float(point.measure.points.abs().max()), info.tiny**0.5)
    step = still.to(point.gradient.dtype) * (info.eps * size)
    beside = []
    try:
        for side in (1.0, -1.0):
            beside.append(objective.move(point, step, side).gradient)
            still = still & (beside[-1].abs() > info.eps**0.5 * size)
            still = still & (beside[-1] * beside[0] > 0)
            if not bool(still.any()):
                return len(beside), None
        downhill = -step * beside[0].sign() * still
        return 3, objective.move(point, downhill, 1.0)
    except (Diverged, NonFinite):
        return len(beside) + 1, None


@dataclass(frozen=True)
class Warm:
    """Curvature pairs of the step before, for a step of the same dt and shape."""

    memory: Memory
    dt: float
    weights: Tensor

    def fit(self, objective: Objective[Any], start: Place[Any]) -> Memory | None:
        """Return the pairs in the product of another step, None if they do not fit.

        They fit only if tangents are flat. Elsewhere the tangents of two measures are
        no vectors of one space.
        """
        pairs, mu, like = self.memory.pairs, objective.source, start.gradient
        if not (mu.flat and self.dt == objective.dt and pairs):
            return None
        s, w = pairs[0].step, self.weights
        if (s.shape, s.dtype, s.device) != (like.shape, like.dtype, like.device):
            return None
        same = w is mu.weights or torch.equal(w, mu.weights)
        return self.memory if same else self.memory.anew(objective.inner)


@dataclass(frozen=True)
class TangentDetails:
    """What a descent reports besides the words of a certificate.

    Parameters
    ----------
    stalled : bool
        Whether the descent ended because the objective and its gradient stopped
        falling.

    Attributes
    ----------
    stalled
        As above.
    """

    stalled: bool


class TangentProximal(ProximalSolver[M]):
    r"""Solve :math:`\min_u F(\nu_u) + \|u\|_\mu^2 / (2\,dt)` over tangents u.

    Here :math:`\nu_u` is ``mu.push(u, 1)`` and the norm is that of ``mu.inner``. Every
    measure with the required verbs has this step. L-BFGS
    :cite:p:`nocedal2006numerical` in the inner product of :math:`\mu` minimises. The
    objective falls at every iteration.

    Let ``inner(v, v)`` be at least the mean squared speed of the points along `push`,
    which is not checked. Then the norm of u is an upper bound of :math:`W_2(\mu,
    \nu_u)`. So the objective is an upper bound of that of the JKO step
    :cite:p:`jordan1998variational`, and the guarantee is at most ``"upper-bound"``.

    If the measure declares its tangents `flat`, the gradient of F in u is the gradient
    at the pushed measure. Otherwise the verb ``pull_back`` of the measure gives the
    gradient. Without this verb, automatic differentiation passes through `push`. Flat
    tangents also give steps of order 2 and 3, without a certificate.

    An iteration costs one gradient of F and about 2 `memory` calls of ``mu.inner``. A
    measure whose metric is expensive should compute the metric once.

    Parameters
    ----------
    tolerance : float
        Stop when dt times the gradient of the objective is below `tolerance` times the
        displacement, both in :math:`L^2(\mu)`. Also stop when the gradient is at
        round-off: when one unit in the last place of each coordinate explains it.
    max_gradients : int
        Most evaluations of F with its gradient in a step.
    memory : int
        Pairs that L-BFGS keeps. They hold 2 memory n d numbers.

    Attributes
    ----------
    tolerance, max_gradients, memory
        As above.

    See Also
    --------
    otflow.proximal.ParticleProximal : The same descent with the exact distance.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``, ``w2``, ``residual``, ...
        The words that "Words of a certificate" in the conventions defines. ``w2`` is an
        upper bound. ``residual`` is relative to the displacement.
    ``iterations``
        Evaluations of F with its gradient.
    ``stalled``
        Whether the descent ended above round-off because the objective and its gradient
        stopped falling, as at a kink of F. Then ``cause`` and ``cure`` say what helps.
    ``guarantee``
        ``"upper-bound"``: a critical point over tangents. ``"none"``: not converged.

    ``solve`` raises `Unsupported` if the measure lies on fixed cells, or if its `push`
    loses the graph of the tangent.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Quantiles(torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64))
    >>> result = of.proximal.TangentProximal().solve(F, mu, dt=1.0)
    >>> result.measure.edges
    tensor([0., 1., 2.], dtype=torch.float64)
    >>> result.certificate.guarantee
    'upper-bound'
    """

    def __init__(
        self: TangentProximal[Any],  # of no one kind of measure
        *,
        tolerance: float = 1e-4,
        max_gradients: int = 200,
        memory: int = 20,
    ) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_gradients = non_negative_int(max_gradients, "max_gradients", minimum=1)
        self.memory = non_negative_int(memory, "memory", minimum=1)

    def adds_tangents(self, mu: M) -> bool:
        return mu.flat

    def solve(self, F: Functional, mu: M, dt: float, warm: Any = None) -> ProxResult[M]:
        dt = self._admit(F, mu, dt, Measure)
        # Only measures on fixed cells replace the transport of the base.
        if type(mu).transport is not Measure.transport:
            msg = (
                f"TangentProximal needs a push that moves points, and that of "
                f"{type(mu).__name__} is a flux between fixed cells; use JKO() without "
                f"a solver to get the representation's own"
            )
            raise Unsupported(msg)
        objective = Objective(F, mu, dt)
        start, end = self._descend(objective, warm)
        return self._result(objective, start, end, end.point.moved, "upper-bound")

    def _descend(
        self, objective: Objective[M], warm: Any
    ) -> tuple[Place[M], Descent[M]]:
        """Descend once from the source; return both ends."""
        start, budget = objective.start(), self.max_gradients - 1
        memory = self._memory(objective, start, warm)
        end = descend(objective, start, memory, self.tolerance, budget)
        return start, replace(end, used=end.used + 1)

    def _memory(self, objective: Objective[M], start: Place[M], warm: Any) -> Memory:
        kept = warm.fit(objective, start) if isinstance(warm, Warm) else None
        return Memory(size=self.memory) if kept is None else kept

    def _result(
        self,
        objective: Objective[M],
        start: Place[M],
        end: Descent[M],
        w2: float | None,
        guarantee: str,
        *,
        bound: float | None = None,
        details: TangentDetails | None = None,
    ) -> ProxResult[M]:
        """Return a step and its certificate."""
        point, dt, moved = end.point, objective.dt, end.point.moved
        # Two errors of the objective: its round-off, and the error of the gradient
        # along the step.
        noise = NOISE * torch.finfo(point.gradient.dtype).eps
        noise *= max(abs(start.energy), abs(point.energy), moved**2 / dt)
        certificate = certify(
            energy_before=start.energy,
            energy_after=point.energy,
            dt=dt,
            w2=w2,
            residual=point.size / moved if moved > 0 else point.size,
            converged=end.converged,
            guarantee=guarantee,
            bound=bound,
            noise=noise + end.known * (moved + end.known) / dt,
            iterations=end.used,
            details=details or TangentDetails(stalled=end.stalled),
            **(KINK if end.stalled else {}),
        )
        return ProxResult(
            objective.final(start, point.measure),
            Warm(end.memory, dt, objective.source.weights),
            certificate=certificate,
        )
