"""The JKO step of any measure: a descent over tangents, by `push` and `inner`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from otflow._validation import non_negative_int, positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.functionals.of_part import OfPart
from otflow.measures import Measure, Particles
from otflow.numerics.lbfgs import Memory
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import KINK, certify
from otflow.proximal.tangent_descent import Descent, Warm, descend
from otflow.proximal.tangent_objective import Objective, Place
from otflow.proximal.terms import split_maps

__all__ = ["TangentDetails", "TangentProximal"]

M = TypeVar("M", bound=Measure)

# Round-off of an energy in units of that of the dtype: an energy is a long sum.
NOISE = 64.0


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
        if mu.on_fixed_cells:
            msg = (
                f"TangentProximal needs a push that moves points, and that of "
                f"{type(mu).__name__} is a flux between fixed cells; use JKO() without "
                f"a solver to get the representation's own, or for a measure of parts "
                f"schemes.PartByPart(JKO())"
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
            **(_kink(objective) if end.stalled else {}),
        )
        return ProxResult(
            objective.final(start, point.measure),
            Warm(end.memory, dt, objective.source.constants()),
            certificate=certificate,
        )


def _kink(objective: Objective[Any]) -> dict[str, str]:
    """Return why a descent stalled; the cure is a map of a potential, if any."""
    if isinstance(objective.source, Particles):
        maps = split_maps(objective.functional)[0]
        if len(maps) == 1:
            cure = (
                f"take schemes.ForwardBackward(), which steps on {maps[0][1]!r:.80} by "
                f"its proximal map, exactly"
            )
            return KINK | {"cure": cure}
    if any(isinstance(term, OfPart) for _, term in objective.functional.terms()):
        cure = (
            "take schemes.PartByPart(JKO()), where the solver of each part knows the "
            "terms of that part"
        )
        return KINK | {"cure": cure}
    return KINK
