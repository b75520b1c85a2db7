r"""The entropic interpolation of two large grids, axis by axis.

The entropic plan :math:`P = e^{f/\varepsilon}\mu \otimes e^{g/\varepsilon}\nu\;
e^{-|x-y|^2/\varepsilon}` has too many cells to be listed. With a Gaussian Z the law of
:math:`(1-t)X + tY + (t(1-t)\varepsilon/2)^{1/2} Z` is the bridge of Schroedinger,

.. math:: \rho_t(z) \propto \int e^{f/\varepsilon - |x-z|^2/t\varepsilon}\,d\mu(x)
    \int e^{g/\varepsilon - |z-y|^2/(1-t)\varepsilon}\,d\nu(y),

two sums of Gaussians, each a product over the axes :cite:p:`leonard2014survey`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow.measures import Box
from otflow.metrics.grids import (
    ITERATIONS,
    ROUNDS,
    _bounds,
    _least,
    _next,
    _on_the_lattices,
    _Potentials,
)
from otflow.metrics.lattices import Lattice, soft_moments, soft_sums
from otflow.metrics.shares import hats, shared

__all__ = ["Bridge"]

# Iterations at the last eps: the second marginal is then right to about 1e-4.
FINAL = 60
# Deviation of Z, in cells, from which its values at the centres sum to 1 up to 1e-3.
# Where it is less, the law is computed on a lattice of up to FINEST times more nodes.
SEEN, FINEST = 0.6, 16
# Deviations beyond which Z has no mass: 6e-5.
TAIL = 4.0
# Exponents below the largest that count in a sum.
TERMS = 36.0


@dataclass(frozen=True, eq=False)
class Bridge:
    """Entropic potentials between two lattices, each about its own mean.

    Parameters
    ----------
    point : _Potentials
        The potentials, in squares of the unit.
    means : tuple of Tensor
        The means of both measures, (d,), in the unit.
    unit : float
        Length by which coordinates are divided.
    """

    point: _Potentials
    means: tuple[Tensor, Tensor]
    unit: float

    @classmethod
    def between(cls, mu: Lattice, nu: Lattice, tolerance: float) -> Bridge | None:
        """Return the bridge; None if the tolerance needs a blur below the cells.

        The cost of the plan is proved to exceed the least one by at most the tolerance.
        """
        unit = unit_of(*mu.axes, *nu.axes)
        mu, nu = mu.over(unit), nu.over(unit)
        means = mu.mean, nu.mean
        far = float((means[1] - means[0]).square().sum())
        own, other = (
            m.moved(-c).trimmed()[0] for m, c in zip((mu, nu), means, strict=True)
        )
        past = _on_the_lattices(own, other, far, tolerance, always=False)
        if past is None:
            return None
        for _ in range(ROUNDS):
            point = past[-1].iterated(FINAL)
            proof = _bounds(point, own, other)
            gap = proof.upper - proof.lower + 2 * proof.noise
            if gap <= tolerance * (proof.upper + far):
                return cls(point, means, unit)
            eps = max(0.5 * point.eps, _least(own, other))
            past = _next([past[0], point], eps, ITERATIONS)
        return None

    def at(self, time: float, box: Box) -> Tensor:
        """Return the masses of the cells of a box (n,) at a time inside (0, 1)."""
        mean = torch.lerp(*self.means, time)
        low = torch.tensor(box.lower, dtype=torch.float64) / self.unit - mean
        sides = [h / self.unit for h in box.spacing]
        width = math.sqrt(0.5 * time * (1 - time) * self.point.eps)
        finer = math.ceil(SEEN * max(sides) / width)
        if finer ** len(sides) > FINEST:
            return self._near_an_end(time, low, sides, box.shape)
        pads = [math.ceil(TAIL * width / h) for h in sides]
        nodes = [(n + 2 * k) * finer for n, k in zip(box.shape, pads, strict=True)]
        places = [
            (torch.arange(n, dtype=torch.float64) + 0.5) / finer - k
            for n, k in zip(nodes, pads, strict=True)
        ]
        targets = tuple(a + h * p for a, h, p in zip(low, sides, places, strict=True))
        mu, nu, eps = self.point.mu, self.point.nu, self.point.eps
        logs = soft_sums(
            self.point.f / eps + mu.log, mu.axes, targets, time * eps, TERMS
        )
        logs = logs + soft_sums(
            self.point.g / eps + nu.log, nu.axes, targets, (1 - time) * eps, TERMS
        )
        masses = (logs - logs.max()).exp()
        for axis, (place, n) in enumerate(zip(places, box.shape, strict=True)):
            matrix = hats((place - 0.5).clamp(0, n - 1), n)
            masses = torch.tensordot(matrix, masses, ([1], [axis])).movedim(0, axis)
        return masses.reshape(-1) / masses.sum()

    def _near_an_end(
        self, time: float, low: Tensor, sides: Sequence[float], shape: Sequence[int]
    ) -> Tensor:
        """Return the masses where each atom of the end goes towards the mean it meets.

        The deviation from this mean counts by the share of the time, below 1/20.
        """
        point = self.point
        if time > 0.5:
            point = replace(point, mu=point.nu, nu=point.mu, f=point.g, g=point.f)
            time = 1 - time
        mu, nu = point.mu, point.nu
        v = point.g / point.eps + nu.log
        _, means, _ = soft_moments(v, nu.axes, mu.axes, point.eps)
        full = mu.masses > 0
        places = []
        for k, (x, a, h) in enumerate(zip(mu.axes, low, sides, strict=True)):
            start = mu.on(k, x).expand_as(full)[full]
            end = means[..., k][full]
            place = (torch.lerp(start, end, time) - a) / h - 0.5
            places.append(place.clamp(0, shape[k] - 1))
        return shared(places, mu.masses[full] / mu.masses.sum(), shape)
