r"""The plan of entropic transport, balanced or relaxed, with the value it attains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow._known import known_derivatives
from otflow._validation import positive
from otflow.errors import NotConverged
from otflow.metrics.implicit import Atoms, dual_value, half_squares
from otflow.metrics.inputs import CloudLike, clouds
from otflow.metrics.semidual import Entropy
from otflow.metrics.sides import (
    WIDE,
    Side,
    check_blur,
    check_size,
    falling_blurs,
    inverse_square,
    length_of,
    soft_minimum,
)

__all__ = ["EntropicPlan", "entropic_plan"]

# Ratio of successive blurs of the sweeps that find a start.
SCALING = 0.9
# Largest sum of the errors of the marginals.
RESIDUAL = 1e-9


@dataclass(frozen=True, eq=False)
class EntropicPlan:
    r"""The plan :math:`P_{ij} = a_i b_j e^{(f_i + g_j - |x_i - y_j|^2/2)/\varepsilon}`.

    It is kept as the mass of each row and the law of its targets, so that rows of tiny
    mass keep their digits.

    Parameters
    ----------
    masses : Tensor, shape (n,)
        Row sums of the plan. They are the weights of :math:`\mu` in the balanced case,
        and :math:`a_i e^{-f_i/\rho}` with a reach.
    shares : Tensor, shape (n, m)
        The law of the target of each point, with row sums 1; also for points without
        mass.
    targets : Tensor, shape (m, d)
        The points of :math:`\nu`, detached.
    f, g : Tensor, shapes (n,) and (m,)
        Potentials, detached, also at points without mass. In the balanced case
        :math:`\sum a_i f_i = \sum b_j g_j`.
    value : Tensor
        The minimum, 0-d, differentiable in points and weights up to three times.
    transport_cost : Tensor
        :math:`\sum P_{ij} |x_i - y_j|^2/2`, 0-d, detached.
    residual : float
        Sum of the errors of both marginals, in float64.

    Attributes
    ----------
    masses, shares, targets, f, g, value, transport_cost, residual
        As above.

    See Also
    --------
    otflow.metrics.entropic_plan : Computes it.

    Notes
    -----
    In the balanced case the potential at any other place is :math:`f(x) = -\varepsilon
    \log \sum_j b_j e^{(g_j - |x - y_j|^2/2)/\varepsilon}`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> plan = of.metrics.entropic_plan(x, x, blur=1.0)
    >>> plan.dense()
    tensor([[0.3112, 0.1888],
            [0.1888, 0.3112]])
    >>> plan.barycentric()
    tensor([[0.3775],
            [0.6225]])
    """

    masses: Tensor
    shares: Tensor
    targets: Tensor
    f: Tensor
    g: Tensor
    value: Tensor
    transport_cost: Tensor
    residual: float

    def dense(self) -> Tensor:
        """Return the plan as a matrix.

        Returns
        -------
        Tensor, shape (n, m)
            Masses; row sums are `masses`.
        """
        return self.masses[:, None] * self.shares

    def barycentric(self) -> Tensor:
        r"""Return :math:`\sum_j P_{ij} y_j / \sum_j P_{ij}`, the mean targets.

        Returns
        -------
        Tensor, shape (n, d)
            One mean target for each point of :math:`\mu`.
        """
        return self.shares @ self.targets

    def __repr__(self) -> str:
        n, m = self.shares.shape
        value, cost = float(self.value.detach()), float(self.transport_cost)
        return (
            f"EntropicPlan(value={value:.6g}, transport_cost={cost:.6g}, "
            f"residual={self.residual:.2g}, {n} points to {m})"
        )

    def to(self, like: Tensor) -> EntropicPlan:
        """Return the plan in the dtype and on the device of a tensor.

        Parameters
        ----------
        like : Tensor
            Tensor of the dtype and the device.

        Returns
        -------
        EntropicPlan
            Plan of the same numbers.
        """
        names = "masses", "shares", "targets", "f", "g", "value", "transport_cost"
        return replace(self, **{name: getattr(self, name).to(like) for name in names})


def entropic_plan(
    mu: CloudLike,
    nu: CloudLike,
    *,
    blur: float,
    reach: float | None = None,
    masses: tuple[float, float] = (1.0, 1.0),
) -> EntropicPlan:
    r"""Return the plan of the static Schroedinger bridge, or of relaxed transport.

    It minimises over :math:`P \ge 0`

    .. math:: \sum_{ij} P_{ij} \tfrac12|x_i - y_j|^2
        + \varepsilon \mathrm{KL}(P \,|\, a \otimes b)
        + \rho\, \mathrm{KL}(P 1 \,|\, a) + \rho\, \mathrm{KL}(P^\top 1 \,|\, b),
        \qquad \varepsilon = \mathrm{blur}^2, \quad \rho = \mathrm{reach}^2,

    where :math:`\mathrm{KL}(p|q) = \sum p \log(p/q) - p + q`. Without a reach the
    marginals of P are a and b, and the last two terms are absent: the Schroedinger
    problem :cite:p:`leonard2014survey` of Brownian motion at time blur^2. With a reach
    mass may be destroyed :cite:p:`chizat2018scaling`. The value is that of the problem
    itself: it is positive where mass moves, and does not vanish between a measure and
    itself.

    Parameters
    ----------
    mu, nu : Particles, Tensor or ndarray
        Measures; points (n, d) stand for equal weights 1/n. Weights are divided by
        their sums.
    blur : float
        Length over which the plan spreads, > 0.
    reach : float, optional
        Length beyond which mass is destroyed and created rather than moved. The default
        is the balanced problem.
    masses : tuple of float
        Total masses of a and b, since the weights of a measure have the sum 1. They may
        differ if there is a reach.

    Returns
    -------
    EntropicPlan
        The plan, its potentials and its value, in the dtype and on the device of `mu`.

    Raises
    ------
    ValueError
        If a number is out of range, if masses differ without a reach, if the blur is
        below the round-off of the points in their dtype, if the reach is below 1e-140,
        if the measures differ in dimension or device, or if a point is not finite.
    TypeError
        If dtypes differ, or a measure is not made of atoms.
    MemoryError
        If the arrays exceed half of the memory.
    NotConverged
        If the errors of the marginals exceed 1e-9 in sum, as for a blur far below the
        spacing of the points. The error's ``result`` holds the plan.

    See Also
    --------
    otflow.metrics.sinkhorn_divergence : Debiased: 0 between a measure and itself.
    otflow.metrics.transport_plan : The limit blur -> 0 without a reach.

    Notes
    -----
    Solved in float64 as `sinkhorn_divergence`, by Sinkhorn sweeps and Newton's method.
    Time O(n m (d + sweeps)); memory 80 bytes for each of max(n, m)^2 pairs at the
    peak, and n m numbers in the result.

    POT and the new functions of GeomLoss use the cost :math:`|x - y|^2` without the
    factor 1/2: their problem with ``reg`` and ``unbalanced`` is twice this one with
    ``blur**2 = reg / 2`` and ``reach**2 = unbalanced / 2``.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    >>> plan = of.metrics.entropic_plan(x, x + 3.0, blur=0.1)
    >>> float(plan.transport_cost)
    4.5
    >>> part = of.metrics.entropic_plan(x, x + 3.0, blur=0.1, reach=1.0)
    >>> bool(part.value < plan.value), round(float(part.masses.sum()), 1)
    (True, 0.2)
    """
    blur = length_of(blur)
    reach = None if reach is None else positive(reach, "reach")
    p, q = clouds(mu, nu)
    check_size(len(p.points), len(q.points), p.points.device)
    mass, other = (positive(mass, "masses") for mass in masses)
    if reach is None and mass != other:
        msg = (
            f"masses {mass:g} and {other:g} differ, so mass must be destroyed "
            f"or created; give a reach, e.g. reach=1.0"
        )
        raise ValueError(msg)
    inverse_rho = 0.0 if reach is None else inverse_square(reach, blur)
    units = Entropy(blur * blur, inverse_rho)
    problem = _Problem.of(units, Side.of(p), Side.of(q))
    diameter = problem.diameter
    check_blur(blur, diameter, p.points.dtype)
    plan = problem.solved(falling_blurs(blur, diameter, SCALING))
    plan = _with_masses(plan, units, mass, other).to(p.points)
    if not plan.residual <= RESIDUAL * max(mass, other) or not bool(
        plan.value.isfinite()
    ):
        msg = (
            f"the entropic plan has marginals wrong by {plan.residual:.3g} in sum at "
            f"the blur {blur:.3g}; take a larger blur, or the exact transport_plan"
        )
        info = {"residual": plan.residual}
        raise NotConverged(msg, info=info, result=plan)
    return plan


def _with_masses(
    plan: EntropicPlan, units: Entropy, m: float, k: float
) -> EntropicPlan:
    r"""Return the plan for the masses m and k, from that for the masses 1 and 1.

    If P and f, g solve the latter, then :math:`\theta P` and f + s, g + t solve the
    former, where

    .. math:: m e^{-s/\rho} = k e^{-t/\rho} = m k e^{(s + t)/\varepsilon} = \theta.
    """
    if m == k == 1.0:
        return plan
    eps, inverse = units.epsilon, units.inverse_rho
    both = math.log(m) + math.log(k)
    if inverse:
        # log theta = both (eps + rho) / (eps + 2 rho), and m k - theta by expm1: for a
        # large epsilon theta is close to m k.
        less = both / (2.0 + eps * inverse)
        log = both - less
        s, t = ((math.log(z) - log) / inverse for z in (m, k))
        theta = math.exp(log)
        lost = (m - theta + k - theta) / inverse
        lost += eps * (m * k) * -math.expm1(-less)
    else:
        s = t = -0.5 * eps * math.log(m)
        theta, lost = m, 2.0 * m * s + eps * (m * k - m)
    value = theta * plan.value + lost
    return replace(
        plan,
        masses=theta * plan.masses,
        f=plan.f + s,
        g=plan.g + t,
        value=value,
        transport_cost=theta * plan.transport_cost,
        residual=theta * plan.residual,
    )


@dataclass(frozen=True)
class _Problem:
    """Both sides near the origin, moved to one mean in the balanced case.

    That keeps the plan. Then potentials between distant clouds have no large linear
    part, whose round-off over epsilon would enter the plan, and sums over points far
    from the origin lose no digits. The mean move ``shift`` is detached; ``targets`` are
    the points of the second measure where they were given.
    """

    units: Entropy
    mu: Side
    nu: Side
    shift: Tensor
    targets: Tensor

    @classmethod
    def of(cls, units: Entropy, mu: Side, nu: Side) -> _Problem:
        # An atom: its differences to atoms that are close are exact.
        middle = mu.x.detach().median(0).values
        mu = Side(mu.x - middle, mu.a, mu.full)
        y = nu.x - middle
        shift = nu.a.detach() @ y.detach() - mu.a.detach() @ mu.x.detach()
        if units.inverse_rho:
            shift = torch.zeros_like(shift)
        return cls(units, mu, Side(y - shift, nu.a, nu.full), shift, nu.x.detach())

    @property
    def diameter(self) -> float:
        both = torch.cat([self.mu.x.detach(), self.nu.x.detach()])
        return float((both.amax(0) - both.amin(0)).norm())

    def solved(self, blurs: tuple[list[float], list[float]]) -> EntropicPlan:
        units, eps = self.units, self.units.epsilon
        x, a, y, b = (t.detach() for t in (self.mu.x, self.mu.a, self.nu.x, self.nu.a))
        cost = half_squares(x, y)
        if eps**0.5 > WIDE * self.diameter:
            near_f, near_g = self._wide(cost, a, b)
        else:
            i, j = self.mu.full, self.nu.full
            found = units.solve(cost[i][:, j], a[i], b[j], *blurs)
            # At atoms without mass a potential is optimal for those of the others.
            near_g = soft_minimum(units, cost.T[:, i], found.f, a[i])
            near_g[j] = found.g
            near_f = soft_minimum(units, cost[:, j], found.g, b[j])
        shares = units.shares(cost, near_g, b)
        rows = _kept(units, a, near_f)
        columns = rows @ shares
        residual = float((columns - _kept(units, b, near_g)).abs().sum())

        state = self.mu.x, self.mu.a, self.nu.x, self.nu.a
        i, j = self.mu.full, self.nu.full
        value = a[i] @ units.worth(near_f[i], eps) + b[j] @ units.worth(near_g[j])
        known = _Known(units, near_f, near_g)
        value = known_derivatives(value, state, known.gradients, known.value)
        f, g = near_f, near_g
        if bool(self.shift.any()):
            value = value + self._drift(*state)
            middle = x.mean(0)
            f = f - (x - middle) @ self.shift
            g = g + (y - middle) @ self.shift + 0.5 * self.shift @ self.shift
        if not units.inverse_rho:
            level = 0.5 * (a @ f - b @ g)
            f, g = f - level, g + level
        y = y + self.shift
        per_row = shares * half_squares(x, y)
        transport = rows @ per_row.sum(1)
        targets = self.targets
        return EntropicPlan(rows, shares, targets, f, g, value, transport, residual)

    def _wide(self, cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the potentials to first order in cost / eps: a plan near a x b."""
        damping = self.units.damping
        means, across = cost @ b, a @ cost
        # The mean potential F of both sides: F (2 / eps + 1 / rho) = <P, c> / eps.
        middle = (a @ means) / (2.0 + self.units.epsilon * self.units.inverse_rho)
        return damping * (means - middle), damping * (across - middle)

    def _drift(self, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
        """Return what the common move adds to the value: y is already moved."""
        apart = b @ y - a @ x
        return apart @ self.shift + 0.5 * self.shift @ self.shift


def _kept(units: Entropy, masses: Tensor, f: Tensor) -> Tensor:
    """Return the mass that moves, 0 at atoms without mass: there exp may overflow."""
    return (masses * units.kept(f)).masked_fill(masses == 0, 0.0)


@dataclass(frozen=True)
class _Known:
    """The optimal potentials, which give the derivatives of the value."""

    units: Entropy
    f: Tensor
    g: Tensor

    def gradients(self, *state: Tensor) -> list[Tensor]:
        """Return the derivatives in points and masses of both, detached."""
        x, a, y, b = (t.detach() for t in state)
        units, eps = self.units, self.units.epsilon
        cost, grads = half_squares(x, y), []
        for points, masses, others, weights, f, g, c in (
            (x, a, y, b, self.f, self.g, cost),
            (y, b, x, a, self.g, self.f, cost.T),
        ):
            pull = points - units.shares(c, g, weights) @ others
            slope = _kept(units, masses, f)[:, None] * pull
            grads += [slope, units.worth(f, eps)]
        return grads

    def value(self, *state: Tensor) -> Tensor:
        """Return the value with the graphs of points and masses, to third order."""
        x, a, y, b = state
        return dual_value(self.units, Atoms(x, a, self.f), Atoms(y, b, self.g))
