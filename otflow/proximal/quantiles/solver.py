"""The JKO step on quantiles: banded Newton between walls, a barrier under bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from otflow._arrays import coordinate_limit
from otflow._validation import non_negative_int, positive, real
from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.measures import Quantiles
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import KINK, Certificate, certify
from otflow.proximal.quantiles.newton import Solution, minimise
from otflow.proximal.quantiles.objective import Objective
from otflow.proximal.quantiles.step import Room

__all__ = ["QuantileDetails", "QuantileProximal"]

# Why a descent ends away from a minimum, and what helps. Explicit steps do not help at
# a kink: the quantiles on its two sides cross.
STALLED = {
    "cause": f"{KINK['cause']} or where large terms of F cancel",
    "cure": "smooth the kink (|x| by (x^2 + eps^2)^(1/2), relu(z) by softplus(k z) / "
    "k), subtract before squaring (E(x - m)^2 for E x^2 - m^2), or flow a GridDensity",
}


@dataclass(frozen=True)
class QuantileDetails:
    """What `QuantileProximal` reports besides the words of a certificate.

    Parameters
    ----------
    stalled : bool
        Whether the descent ended because the objective and its gradient stopped
        falling.
    excess : float
        Largest density over its bound, minus 1; 0 if the bound holds.

    Attributes
    ----------
    stalled, excess
        As above.
    """

    stalled: bool
    excess: float


class QuantileProximal(ProximalSolver[Quantiles]):
    r"""Solve :math:`\min_q F(\nu_q) + W_2^2(\mu, \nu_q)/(2\,dt)` over quantiles q.

    W2 is flat on the line. With the quantiles p of :math:`\mu` the objective is

    .. math:: \Phi(q) = F(q) + \frac{1}{2\,dt}\sum_i \ell_i (q_i - p_i)^2,

    where :math:`\ell_i` is the lumped mass of quantile i. Potentials and internal
    energies have a tridiagonal Hessian, so a Newton step takes time O(n)
    :cite:p:`nocedal2006numerical`. Backtracking makes the objective fall. It follows
    paths on which each cell obeys its own energy, so that the shortest cell does not
    shorten the step of the others. Where a concave V makes the Hessian indefinite, the
    Hessian is shifted. Interactions and all other terms enter by exact products of
    their Hessian with vectors, in conjugate gradients preconditioned by the band.

    Walls bound the two ends, and each model is minimised between them. A bound on the
    density, as of `Congestion`, is a least length of each cell. A primal-dual barrier
    in proportion to the masses keeps this length, at the same cost per iteration. Every
    iterate lies between the walls and below the bound. Mass is exact.

    Parameters
    ----------
    tolerance : float
        Stop when the Newton decrement :math:`(g^\top H^{-1} g)^{1/2}` of
        :math:`dt\,\Phi`, with its gradient g and banded Hessian H, is below `tolerance`
        times the displacement, or at round-off. The decrement is the length of the
        remaining step in the metric H. This metric weighs a cell of tiny mass by its
        stiffness; the :math:`L^2(\mu)` norm would hardly see it. With a bound on the
        density, the complementarity gap must also be below the square of 1e-6 times the
        displacement.
    max_iterations : int
        Most evaluations of F with its derivatives in a step.
    lower, upper : float, optional
        Walls: bounds on all quantiles.

    Attributes
    ----------
    tolerance, max_iterations, lower, upper
        As above.
    flat : bool
        True: tangents are displacements of quantiles and may be added.

    Notes
    -----
    The certificate holds

    ``energy_before``, ``energy_after``, ``decrease``
        F at the start and at the end, and F(before) - F(after) - W2^2 / (2 dt) >= 0.
    ``w2``
        Distance of start and end in the lumped metric, exact.
    ``residual``, ``converged``
        Newton decrement over the displacement, and whether it met the tolerance. If the
        displacement is at round-off, the residual is the decrement itself.
    ``iterations``
        Evaluations of F with its derivatives.
    ``stalled``
        Whether the descent ended because the objective and its gradient stopped
        falling, as at a kink of F. A kernel or a potential much narrower than the cells
        acts as a kink. Then ``cause`` and ``cure`` say what helps.
    ``excess``
        Largest density over its bound, minus 1; 0 if the bound holds or there is none.
    ``bound``
        A bound on the lumped W2 distance to the exact minimiser among densities with
        these masses, round-off included: (r + sqrt(r^2 + 4 c)) / (2 sqrt(m)). Here r is
        the decrement in a metric that is proved to lie below the Hessian, c the
        complementarity gap of the bounds and m = 1 + dt lambda > 0. None if no modulus
        of convexity lambda is known or the step has not converged. Repulsive kernels
        that are convex on the half-line, as the logarithm, count as convex.
    ``guarantee``
        ``"exact"``: the step is unique and within ``bound``. ``"stationary"``: a
        critical point of the objective. If F is not convex, a flow may rest at such a
        point above the least value. ``"none"``: not converged, or the energy rose.

    Linear algebra runs in float64 on the CPU, by SciPy; 2n numbers go there and back. F
    is evaluated in the dtype and on the device of the measure. The new measure has the
    same dtype and device.

    Without a bound on the density, an attraction or a kink of V may contract cells to
    an atom. Then ``solve`` raises `Diverged`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0) + of.Entropy()
    >>> mu = of.Quantiles(torch.linspace(-3.0, 3.0, 5, dtype=torch.float64))
    >>> result = of.proximal.QuantileProximal().solve(F, mu, dt=0.1)
    >>> result.certificate.guarantee, result.iterations < 10
    ('exact', True)
    """

    flat = True

    def __init__(
        self,
        *,
        tolerance: float = 1e-10,
        max_iterations: int = 200,
        lower: float | None = None,
        upper: float | None = None,
    ) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.max_iterations = non_negative_int(
            max_iterations, "max_iterations", minimum=1
        )
        self.lower = None if lower is None else real(lower, "lower")
        self.upper = None if upper is None else real(upper, "upper")
        if lower is not None and upper is not None and not lower < upper:
            msg = f"lower must be below upper, got {lower:g} and {upper:g}"
            raise ValueError(msg)

    def solve(
        self, F: Functional, mu: Quantiles, dt: float, warm: Any = None
    ) -> ProxResult[Quantiles]:
        """Return the proximal step as `ProximalSolver.solve` does; `warm` is not used.

        Raises
        ------
        ValueError
            Also if `mu` lies outside of the walls, or mass 1 does not fit between them.
        Diverged
            Also if a cell shrinks to an atom, or below the last place of the dtype.
        """
        dt = self._admit(F, mu, dt, Quantiles)
        problem = Objective(F, mu, dt)
        room = self._room(problem)
        # Newton's method starts from a density below the bound.
        if problem.terms.max_density < math.inf:
            with torch.no_grad():
                F.value(mu)  # raises NonFinite on a density above the bound
        found = minimise(problem, room, self.tolerance, self.max_iterations)
        # The descent runs in float64. The cast to float32 may close a cell.
        edges = found.point.edges.to(mu.edges)
        if bool((edges.diff() <= 0).any()):
            msg = (
                f"cells of the step are shorter than the last place of {mu.dtype} "
                f"quantiles; use float64, or less grading"
            )
            raise Diverged(msg, measure=mu)
        limit = coordinate_limit(mu.edges.dtype)
        # Beyond the limit squares of coordinates overflow.
        if not float(edges.abs().max()) < limit:
            msg = (
                f"the JKO step carries quantiles beyond {limit:g}: F with the distance "
                f"falls without end, as for a concave V and a long step; take a "
                f"smaller dt, or walls with a pressure between them, "
                f"QuantileProximal(lower=..., upper=...) and F + Entropy()"
            )
            raise Diverged(msg, measure=mu)
        nu = mu.moved(edges)
        return ProxResult(nu, certificate=_certificate(problem, found, nu))

    def _room(self, problem: Objective) -> Room:
        most = problem.terms.max_density
        first, last = float(problem.centre[0]), float(problem.centre[-1])
        # A start may pass a wall by its round-off; `Room.inside` moves it back.
        slack = 1e-6 * (last - first)
        lower = -math.inf if self.lower is None else self.lower
        upper = math.inf if self.upper is None else self.upper
        if first < lower - slack or last > upper + slack:
            msg = (
                f"the measure reaches from {first:.6g} to {last:.6g}, beyond the walls "
                f"lower = {lower:g} and upper = {upper:g}; start inside of the walls"
            )
            raise ValueError(msg)
        room = upper - lower
        if room * most <= 1:
            msg = (
                f"mass 1 does not fit: the walls are {room:g} apart and the "
                f"density at most {most:g}; raise the bound or widen the walls"
            )
            raise ValueError(msg)
        return Room(problem.weights / most, lower, upper)


def _certificate(problem: Objective, found: Solution, nu: Quantiles) -> Certificate:
    # The certificate is that of the returned measure, after the cast to its dtype.
    kept = problem.expand(nu.edges.to(found.point.edges))
    cast = abs(kept.objective - found.point.objective)
    point, off = kept, problem.norm(found.point.edges - kept.edges)
    moved = problem.norm(point.edges - problem.centre)
    # A displacement below this length is round-off: a ratio to it means nothing.
    still = 1e3 * torch.finfo(nu.dtype).eps * problem.norm(problem.centre)
    density = problem.weights / point.edges.diff()
    excess = max(0.0, float(density.max()) / problem.terms.max_density - 1.0)
    # The cast moved the quantiles by `off`: the bound is that of the returned measure.
    bound = found.bound
    if bound is not None:
        bound += off
    noise = 4 * (problem.start.noise + point.noise + problem.risen) + found.gap + cast
    return certify(
        energy_before=problem.start.energy,
        energy_after=point.energy,
        dt=problem.dt,
        w2=moved,
        residual=found.residual / moved if moved > still else found.residual,
        converged=found.converged,
        guarantee="stationary" if bound is None else "exact",
        bound=bound,
        noise=noise / problem.dt,
        iterations=found.iterations,
        details=QuantileDetails(stalled=found.stalled, excess=excess),
        **(STALLED if found.stalled and not found.converged else {}),
    )
