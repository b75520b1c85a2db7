r"""The entropic cost as a function of measures, with its second and third derivatives.

At the optimum the derivative of the dual in its potentials vanishes. So potentials that
are right to first order give a value that is right to third order. One step of Newton's
method from the optimum, a linear function of the slopes of the dual, gives potentials
that are right to first order, by the implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otflow._known import linear
from otflow.errors import NotConverged
from otflow.metrics.curvature import Curvature
from otflow.metrics.semidual import Entropy, noise

__all__ = ["Atoms", "dual_value", "half_squares"]

# Largest relative error of the derivative of the potentials that round-off may cause.
DETERMINED = 1e-4
# Exponentials beyond this overflow.
STEEPEST = 600.0


class Atoms(NamedTuple):
    """Points and masses with their graphs, and the potential of each, detached."""

    x: Tensor
    a: Tensor
    f: Tensor


def dual_value(units: Entropy, mu: Atoms, nu: Atoms) -> Tensor:
    r"""Return the dual value, with the graphs of points and masses, to third order.

    .. math:: \langle a, \phi(f)\rangle + \langle b, \phi(g)\rangle
        - \varepsilon \sum_{ij} a_i b_j (e^{(f_i + g_j - c_{ij})/\varepsilon} - 1)

    Parameters
    ----------
    units : Entropy
        Epsilon and rho.
    mu, nu : Atoms
        Atoms with optimal potentials, also at atoms without mass.

    Returns
    -------
    Tensor
        0-d.

    Raises
    ------
    NotConverged
        If round-off dominates the derivatives of the potentials.
    """
    eps = units.epsilon
    cost = _cost(mu.x, nu.x)
    slopes = _slopes(units, mu, nu, cost)
    solve = _Newton.of(units, mu, nu, cost.detach())
    f, g = linear(solve, solve, *slopes, at=(mu.f, nu.f))
    f, g = (
        _completed(units, cost, f, g, mu.a, nu.a),
        _completed(units, cost.T, g, f, nu.a, mu.a),
    )
    plan = _plan(eps, mu.a, nu.a, f, g, cost)
    total = mu.a.sum() * nu.a.sum()
    return mu.a @ units.worth(f) + nu.a @ units.worth(g) - eps * (plan.sum() - total)


def _completed(
    units: Entropy, cost: Tensor, f: Tensor, g: Tensor, a: Tensor, b: Tensor
) -> Tensor:
    """Return f, replaced at atoms without mass by the optimal f for g."""
    idle, full = (a == 0).nonzero()[:, 0], b > 0
    if len(idle) == 0:
        return f
    best = units.potential(cost[idle][:, full], g[full], b[full])
    return f.index_put((idle,), best)


def half_squares(x: Tensor, y: Tensor) -> Tensor:
    """Return |x - y|^2 / 2, without cancellation."""
    mode = "donot_use_mm_for_euclid_dist"
    return 0.5 * torch.cdist(x, y, compute_mode=mode).square()


def _cost(x: Tensor, y: Tensor) -> Tensor:
    """Return |x - y|^2 / 2, the value by differences, the graph by matrix products."""
    middle, exact = x.detach().mean(0), half_squares(x.detach(), y.detach())
    x, y = x - middle, y - middle
    live = 0.5 * (x.square().sum(1)[:, None] + y.square().sum(1)) - x @ y.T
    return exact + (live - live.detach())


def _plan(eps: float, a: Tensor, b: Tensor, f: Tensor, g: Tensor, c: Tensor) -> Tensor:
    exponents = (f[:, None] + g - c) / eps
    if float(exponents.detach().max()) > STEEPEST:
        msg = (
            "the second derivatives of the Sinkhorn divergence overflow at atoms "
            "without mass; leave these atoms out (points[weights > 0]), or take a "
            "larger blur"
        )
        raise NotConverged(msg)
    return a[:, None] * exponents.exp() * b


def _slopes(
    units: Entropy, mu: Atoms, nu: Atoms, cost: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of the dual in its potentials, at detached potentials."""
    plan = _plan(units.epsilon, mu.a, nu.a, mu.f, nu.f, cost)
    return (
        mu.a * units.kept(mu.f) - plan.sum(1),
        nu.a * units.kept(nu.f) - plan.sum(0),
    )


@dataclass(frozen=True)
class _Newton:
    """The inverse of minus the Hessian of the dual at atoms with mass; 0 elsewhere."""

    shares: Tensor
    rows: Tensor
    full: tuple[Tensor, Tensor]
    solver: Callable[[Tensor, float], Tensor]
    units: Entropy
    columns: Tensor

    @classmethod
    def of(cls, units: Entropy, mu: Atoms, nu: Atoms, cost: Tensor) -> _Newton:
        a, b = mu.a.detach(), nu.a.detach()
        full = a > 0, b > 0
        a, f, b, g = a[full[0]], mu.f[full[0]], b[full[1]], nu.f[full[1]]
        eps = units.epsilon
        plan = _plan(eps, a, b, f, g, cost[full[0]][:, full[1]])
        # The Hessian times the unit has entries of the size of the masses:
        # -unit phi'' = bend exp(-f / rho).
        sums = units.damping * plan.sum(1)
        # Where all mass is destroyed, the sums underflow, and nothing moves.
        tiny = torch.finfo(sums.dtype).tiny
        rows = (sums + units.bend * a * units.kept(f)).clamp_min(tiny)
        columns = units.damping * plan.sum(0) + units.bend * b * units.kept(g)
        shares = units.shares(cost[full[0]][:, full[1]], g, b)
        curvature = Curvature(shares, sums * (sums / rows), columns, units.is_flat)
        ratio = sums / rows
        solver = curvature.solver()
        return cls(shares * ratio[:, None], rows, full, solver, units, columns)

    def __call__(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the change of the potentials for these slopes.

        Raises NotConverged if round-off dominates the change.
        """
        if not (bool(u.any()) or bool(v.any())):
            return torch.zeros_like(u), torch.zeros_like(v)
        unit = self.units.unit
        r, s = unit * u[self.full[0]], unit * v[self.full[1]]
        g = self.solver(s - self.shares.T @ r, float("inf"))
        f = r / self.rows - self.shares @ g
        size = max(float(f.abs().max()), float(g.abs().max()))
        spread = self.columns * float(
            (r / self.rows).abs().max().maximum((s / self.columns).abs().max())
        )
        error = float(self.solver(noise(spread), float("inf")).abs().max())
        if not (error <= DETERMINED * size or size == 0) or not size < float("inf"):
            msg = (
                f"second derivatives of the Sinkhorn divergence are not determined at "
                f"the blur {self.units.epsilon**0.5:.3g}, where parts of the measures "
                f"exchange no mass; take a larger blur"
            )
            raise NotConverged(msg, info={"error": error / size})
        both = torch.zeros_like(u), torch.zeros_like(v)
        both[0][self.full[0]], both[1][self.full[1]] = f, g
        return both
