r"""Entropic optimal transport solved to round-off: Newton on the semi-dual.

The problem is the maximum over potentials f, g of

.. math:: \langle a, \phi(f)\rangle + \langle b, \phi(g)\rangle
    - \varepsilon \sum_{ij} a_i b_j (e^{(f_i + g_j - c_{ij})/\varepsilon} - 1), \qquad
    \phi(f) = \rho (1 - e^{-f/\rho}),

with :math:`\phi(f) = f` in the balanced case :cite:p:`peyre2019computational`. Every
mass is positive and every tensor float64.

The unit of the potentials is :math:`\varepsilon\rho / (\varepsilon + \rho)`, about the
smaller of both numbers. Masses depend on :math:`f / \varepsilon` and :math:`f / \rho`,
so an error of f matters relative to this unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.metrics.curvature import Curvature

__all__ = ["Entropy", "Outcome", "noise"]

# A Newton step below this share of the unit leaves an error of about its square.
STEP = 1e-7
# Error of the marginals at round-off, for masses of sum 1.
EXACT = 1e-14
# Most Newton steps at one blur.
MAX_NEWTON = 120
# Error of the marginals at the coarser blurs, which only give a start for the next.
ON_THE_WAY = 1e-2
# Most averaged iterations. Each contracts by 1/3, so about 35 reach round-off.
MAX_AVERAGED = 400


class Outcome(NamedTuple):
    """Potentials and the accuracy reached.

    ``step`` is the last change of the potentials over their unit, ``residual`` the sum
    of the errors of the marginals, and ``sweeps`` counts evaluations of a soft minimum.
    """

    f: Tensor
    g: Tensor
    step: float
    residual: float
    iterations: int
    sweeps: int


@dataclass(frozen=True)
class Entropy:
    """The units of a problem: epsilon, and 1/rho, which is 0 in the balanced case."""

    epsilon: float
    inverse_rho: float = 0.0

    @property
    def damping(self) -> float:
        """The factor rho / (rho + epsilon) of the soft minimum."""
        return 1.0 / (1.0 + self.epsilon * self.inverse_rho)

    @property
    def bend(self) -> float:
        """The number 1 - damping = epsilon / (rho + epsilon), without cancellation."""
        return self.epsilon * self.inverse_rho * self.damping

    @property
    def is_flat(self) -> bool:
        """Whether f + t, g - t has the dual value of f, g, up to round-off."""
        # The bend is the curvature along (t, -t); below 1e-13 round-off hides it.
        return self.bend < 1e-13

    @property
    def unit(self) -> float:
        """The scale of the potentials, epsilon rho / (epsilon + rho)."""
        return self.epsilon * self.damping

    def potential(self, cost: Tensor, g: Tensor, b: Tensor) -> Tensor:
        """Return the optimal f for g: a soft minimum over the columns of the cost."""
        rows = (g - cost) / self.epsilon + b.log()
        return -self.unit * rows.logsumexp(1)

    def shares(self, cost: Tensor, g: Tensor, b: Tensor) -> Tensor:
        """Return the share of each row's mass that each column receives, (n, m)."""
        return ((g - cost) / self.epsilon + b.log()).softmax(1)

    def kept(self, f: Tensor) -> Tensor:
        """Return the derivative of phi: the share of the mass that is transported."""
        return (-self.inverse_rho * f).exp()

    def worth(self, f: Tensor, extra: float = 0.0) -> Tensor:
        r"""Return :math:`(\rho + \text{extra}) (1 - e^{-f/\rho})`, f if balanced."""
        if self.inverse_rho == 0.0:
            return f
        return -(1.0 / self.inverse_rho + extra) * torch.expm1(-self.inverse_rho * f)

    def symmetric(self, cost: Tensor, a: Tensor) -> Outcome:
        """Solve between a measure and itself, f = g, by an averaged iteration.

        The kernel is positive, so the derivative of the soft minimum has its
        eigenvalues in [-1, 0]: with two thirds of each change the error contracts by
        1/3, whatever epsilon is.
        """
        f, step, count = torch.zeros_like(a), float("inf"), 0
        for count in range(1, MAX_AVERAGED + 1):  # noqa: B007 - reported
            change = (self.potential(cost, f, a) - f) * (2.0 / 3.0)
            f = f + change
            step = float(change.abs().max()) / self.unit
            if step <= 1e-14 * (1.0 + float(f.abs().max()) / self.unit):
                break
        return Outcome(f, f, step, step, count, count)

    def solve(
        self,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        sweeps: Sequence[float],
        stages: Sequence[float],
    ) -> Outcome:
        """Solve by Sinkhorn sweeps at falling blurs, then Newton at falling blurs.

        Each blur starts from the potentials of the blur before, which are a few epsilon
        from the solution. From far away Newton's method makes slow progress along flat
        directions: the potentials of parts that exchange no mass yet.
        """
        if cost.shape[1] > cost.shape[0]:
            swapped = self.solve(cost.T.contiguous(), b, a, sweeps, stages)
            return swapped._replace(f=swapped.g, g=swapped.f)
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        across, count, used = cost.T.contiguous(), 0, 2 * len(sweeps) + 2
        for blur in sweeps:
            at = Entropy(blur * blur, self.inverse_rho)
            both = at.potential(cost, g, b), at.potential(across, f, a)
            f, g = 0.5 * (f + both[0]), 0.5 * (g + both[1])
        g = self.potential(across, self.potential(cost, g, b), a)
        for blur in stages:
            at = Entropy(blur * blur, self.inverse_rho)
            out = _newton(at, cost, a, b, g, ON_THE_WAY)
            g, count, used = out.g, count + out.iterations, used + out.sweeps
        out = _newton(self, cost, a, b, g, EXACT)
        return out._replace(iterations=count + out.iterations, sweeps=used + out.sweeps)


def noise(sums: Tensor) -> Tensor:
    """Return a sample of the round-off of these sums, the same at every call."""
    generator = torch.Generator(device=sums.device).manual_seed(0)
    signs = torch.randn(
        sums.shape, generator=generator, dtype=sums.dtype, device=sums.device
    )
    return torch.finfo(sums.dtype).eps * sums * signs


def _newton(
    units: Entropy, cost: Tensor, a: Tensor, b: Tensor, g: Tensor, tolerance: float
) -> Outcome:
    """Maximise the semi-dual in g, a concave and smooth function; f is optimal for g.

    Only steps that raise the semi-dual are taken. No step changes a potential by more
    than a radius, which grows after good steps and shrinks after rejected ones. Moves
    are in the unit of the potentials; the curvature then has the size of the masses.
    """
    eps, unit = units.epsilon, units.unit

    def evaluate(g: Tensor) -> tuple[float, float, Tensor]:
        f = units.potential(cost, g, b)
        parts = torch.cat([a * units.worth(f, eps), b * units.worth(g)])
        height, size = float(parts.sum()), float(parts.abs().sum())
        return height, 1e-15 * (eps + size), f

    (height, round_off, f), used = evaluate(g), 1
    step, residual, radius, count = float("inf"), float("inf"), 4.0, 0
    for count in range(1, MAX_NEWTON + 1):  # noqa: B007 - reported
        shares = units.shares(cost, g, b)
        rows, kept = a * units.kept(f), b * units.kept(g)
        sums = rows @ shares
        slope = kept - sums
        residual = float(slope.abs().sum())
        if step <= STEP or (residual <= tolerance and tolerance > EXACT):
            break
        curvature = Curvature(
            shares,
            rows * units.damping**2,
            units.bend * kept + units.damping * sums,
            is_singular=units.is_flat,
        )
        solve = curvature.solver()
        if residual <= EXACT:
            # The slope is round-off: measure how far round-off moves the potentials.
            step = float(solve(noise(sums), 4.0).abs().max())
            break
        while True:
            move = solve(slope, radius)
            new_step = float(move.abs().max())
            new_height, new_round_off, new_f = evaluate(g + unit * move)
            used += 1
            expected = unit * float(slope @ move)
            # A rise below round-off cannot be measured: trust the quadratic model.
            blind = expected <= round_off and new_step <= 1.0
            good = new_height - height >= 0.1 * expected or blind
            if good or not new_step > 1e-3 * STEP:
                break
            radius = 0.25 * min(radius, new_step)
        if not good:
            break
        step = new_step
        if step >= 0.5 * radius:
            radius = min(4.0 * radius, 1e6)
        g, f, height, round_off = g + unit * move, new_f, new_height, new_round_off
    return Outcome(f, g, step, residual, count, used + count)
