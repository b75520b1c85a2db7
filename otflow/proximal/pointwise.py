"""The JKO step of a potential on particles: its proximal map, atom by atom."""

from __future__ import annotations

import math
from typing import Any

import torch

from otflow.errors import NonFinite, Unsupported
from otflow.functionals import Functional, Potential
from otflow.measures import Particles
from otflow.proximal.base import ProximalSolver, ProxResult
from otflow.proximal.certificate import Guarantee, certify
from otflow.proximal.tangent import TangentDetails
from otflow.proximal.terms import mapped_potential

__all__ = ["PointwiseProximal"]

# Error of the objective, and of the points, in units in their last places.
NOISE, PLACES = 64.0, 8.0


class PointwiseProximal(ProximalSolver[Particles]):
    r"""Take the JKO step of a multiple c V of a potential by its proximal map.

    .. math:: \min_\nu c\int V\,d\nu + \frac{W_2^2(\mu, \nu)}{2\,dt}
        = \sum_i w_i \min_y \Bigl(c\,V(y) + \frac{|y - x_i|^2}{2\,dt}\Bigr).

    Each atom goes to :math:`\operatorname{prox}_{c\,dt\,V}(x_i)`, by the map that
    ``Potential(V, prox=...)`` declares :cite:p:`parikh2014proximal`. The step is the
    exact minimiser over all measures, for any weights: to split an atom gains nothing,
    and the index is an optimal coupling, since each atom has its least objective.

    Attributes
    ----------
    flat : bool
        True: displacements of atoms, coupled by their index, may be added.

    Raises
    ------
    Unsupported
        From `solve`, if F is not a positive multiple of one potential with a map.
    ValueError
        From `solve`, if the map has no value for the step c dt.
    InvalidFunctional
        From `solve`, if the map is no proximal map at a point that is tried.

    Notes
    -----
    ``iterations`` is 1. ``residual`` is 0 unless the objective rose: then the map is
    none, and the step has not converged. The guarantee is ``"exact"`` if the modulus
    :math:`\lambda` of F is known and :math:`1 + dt\,\lambda > 0`, with a ``bound`` of
    the round-off of the points; else ``"optimal"``. Both rest on the map.

    An indicator, as `functionals.box`, is infinite at atoms outside. The step takes
    them in, and ``energy_before`` is infinite.

    Cost: one call of the map and two values of F, O(n d) memory.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F, mu = of.functionals.l1_norm(), of.Particles(torch.tensor([[2.0], [-0.5]]))
    >>> result = of.proximal.PointwiseProximal().solve(F, mu, dt=1.0)
    >>> result.measure.points, result.certificate.guarantee
    (tensor([[1.],
            [0.]]), 'exact')
    """

    flat = True

    def solve(
        self, F: Functional, mu: Particles, dt: float, warm: Any = None
    ) -> ProxResult[Particles]:
        dt = self._admit(F, mu, dt, Particles)
        found = mapped_potential(F)
        if found is None:
            msg = (
                f"PointwiseProximal steps a positive multiple of one potential with a "
                f"proximal map, Potential(V, prox=...), and F = {F!r} is none; use "
                f"ParticleProximal(), or schemes.ForwardBackward() for a sum with such "
                f"a term"
            )
            raise Unsupported(msg)
        factor, term = found
        before = _energy(F, term, mu)
        # Not by `push`: x + (y - x) is off by round-off, beside a kink or a wall.
        nu = mu.with_free_atoms(term.proximal(mu.points, factor * dt))
        after = float(F.value(nu))
        w2 = float(mu.norm(mu.displacement_to(nu)))
        noise = NOISE * torch.finfo(mu.dtype).eps
        noise *= max(abs(x) for x in (before, after, w2**2 / dt) if x < math.inf)
        # The objective at the image is at most that at the atom itself.
        rise = max(after + w2**2 / (2 * dt) - before - noise, 0.0)
        modulus = F.modulus(mu.dim)
        slope = 0.0 if modulus is None else 1 + dt * modulus
        size = max(float(mu.norm(mu.points)), float(mu.norm(nu.points)))
        rounded = PLACES * torch.finfo(mu.dtype).eps * size
        certificate = certify(
            energy_before=before,
            energy_after=after,
            dt=dt,
            w2=w2,
            residual=(2 * dt * rise) ** 0.5 / w2 if rise else 0.0,
            converged=not rise,
            guarantee=Guarantee.EXACT if slope > 0 else Guarantee.OPTIMAL,
            bound=rounded / slope if slope > 0 else None,
            noise=noise,
            iterations=1,
            details=TangentDetails(stalled=False),
        )
        return ProxResult(nu, None, certificate=certificate)


def _energy(F: Functional, term: Potential, mu: Particles) -> float:
    """Return F, a positive multiple of a potential, which may be infinite at atoms."""
    try:
        return float(F.value(mu))
    except NonFinite:
        values = term.V(mu.points)[mu.weights > 0]
        if bool((values == math.inf).any()) and not bool(values.isnan().any()):
            return math.inf
        raise
