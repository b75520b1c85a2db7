"""Newton's method for a dual step together with its nonlocal terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import GridDensity
from otflow.numerics.krylov import gmres
from otflow.numerics.multigrid import Multigrid
from otflow.proximal.grid.back_and_forth.newton import laplacian
from otflow.proximal.grid.pressure import Iterate, PressureProblem
from otflow.proximal.grid.push_forward import lifted, push_forward, transport_cost

__all__ = ["Coupled", "Joint", "local_objective"]

# Relative residual of the Newton systems, and most products for each.
INEXACT, PRODUCTS = 1e-2, 40
# Mass that is moved in the difference quotient of a second variation. For interactions,
# whose G' is linear, any mass gives the same quotient.
SHIFT = 1e-4
# Cells that pass less than this share of the largest flow are left out.
EMPTY = 1e-9


@dataclass(frozen=True)
class Joint:
    """A potential, the masses that it drives, and the step linearised at the masses.

    Parameters
    ----------
    phi : Tensor, shape (n,)
        The potential.
    point : Iterate
        The masses that the potential drives under the first variation at `masses`.
    problem : PressureProblem
        The problem with this first variation.
    masses : Tensor, shape (n,)
        Masses at which the first variation is taken.
    residual : float
        Mass at the wrong density, plus the mass by which the two masses differ.
    """

    phi: Tensor
    point: Iterate
    problem: PressureProblem
    masses: Tensor
    residual: float


class Coupled:
    r"""A dual step whose potential is :math:`V + G'[\nu]` at its own result.

    The unknown is :math:`\phi`. It drives the masses m, and the pressure is :math:`p =
    -\phi - V - G'[m]`. Let K be the derivative of the masses and :math:`S = (U^*)''`.
    Newton's step solves

    .. math:: (K + S + S G'' K)\,\delta\phi = (U^*)'(p) - m

    where the pressure acts, and :math:`(1 + G'' K)\,\delta\phi = 0` elsewhere. GMRES
    solves the system. :math:`G''` is smooth, so the inverse of the system without
    :math:`G''` is a good preconditioner.

    Parameters
    ----------
    G : Functional
        The nonlocal terms.
    mu : GridDensity
        A measure on the grid, in the dtype in which G is evaluated.
    problem : PressureProblem
        The local part.
    is_linear : bool
        Whether G' is linear in the masses.
    """

    def __init__(
        self,
        G: Functional,
        mu: GridDensity,
        problem: PressureProblem,
        *,
        is_linear: bool,
    ) -> None:
        self.G, self.mu, self.problem = G, mu, problem
        self.is_free, self.is_linear = problem.room > 0, is_linear
        self.by_log = math.isinf(problem.lowest)

    def slope(self, masses: Tensor) -> Tensor:
        """Return G' at the masses, 0 in obstacles.

        Those of interactions are linear in the masses, which may then be negative.
        """
        if not self.is_linear:
            masses = masses.clamp_min(0.0)
            masses = masses / masses.sum()
        nu = self.mu.with_free_weights(masses.to(self.mu.dtype))
        found = self.G.first_variation(nu).detach().double()
        return torch.where(self.is_free, found, 0.0)

    def at(self, phi: Tensor, masses: Tensor) -> Joint:
        """Return the joint state of a potential, with G' at these masses."""
        problem = replace(self.problem, V=self.problem.V + self.slope(masses))
        s = torch.where(self.is_free, -phi - problem.V, 0.0)
        # A constant in the potential does not change the map: it is set by the mass.
        if self.by_log:
            s = s - problem.constant(s)
        point = problem.at(s.clamp_min(problem.lowest))
        moved = float((point.masses - masses).abs().sum())
        phi = -problem.V - point.pressure
        return Joint(phi, point, problem, masses, point.residual + moved)

    def settled(self, phi: Tensor, local: PressureProblem, point: Iterate) -> Joint:
        """Return the joint state of the solution of a local problem.

        The first variation has a free constant. It is set so that the mean of the
        potential energy, where the pressure acts, stays that of the local problem.
        """
        # The potential is raised where it wins no mass.
        box, dt = self.problem.box, self.problem.dt
        phi = torch.where(self.is_free, phi, -math.inf)
        phi = lifted(phi.reshape(box.shape), box, dt).reshape(-1)
        masses = push_forward(self.problem.masses, phi, box, dt)[0]
        acts = point.masses * (point.pressure > local.lowest)
        weights = acts if float(acts.sum()) > 0 else point.masses
        change = self.problem.V + self.slope(masses) - local.V
        return self.at(phi - (weights @ change) / weights.sum(), masses)

    def objective(self, joint: Joint) -> float:
        """Return the objective, with all terms, of a joint state."""
        masses = joint.point.masses
        nu = self.mu.with_free_weights(masses.to(self.mu.dtype))
        square = transport_cost(joint.point.sweeps, self.problem.box, 0.0)
        return local_objective(self.problem, masses, square) + float(self.G.value(nu))

    def falls(self, old: Joint, new: Joint) -> bool:
        """Return whether the objective fell, up to the error of the residuals."""
        noise = 0.0
        for joint in (old, new):
            reach = joint.phi[self.is_free & (joint.point.masses > 0)]
            noise += joint.residual * float(reach.max() - reach.min())
        return self.objective(new) <= self.objective(old) + noise

    def direction(self, joint: Joint, damping: float) -> tuple[Tensor, Tensor]:
        """Return Newton's changes of the potential and of the masses.

        Parameters
        ----------
        joint : Joint
            The state to step from.
        damping : float
            Additional mass that nearly empty cells count as passing, as a share of the
            residual.
        """
        problem, point = joint.problem, joint.point
        shape = problem.box.shape
        L = laplacian(problem, point, damping)
        softness = L.rest.reshape(-1)
        diagonal = L.diagonal.reshape(-1)
        above = point.pressure - problem.lowest
        passes = diagonal > EMPTY * float(diagonal.max())
        acts = (above * diagonal + point.excess > 0) & passes
        cycle = Multigrid.of(L.inside(acts.reshape(shape)))
        # Where almost no mass passes, the pressure stays.
        drop = torch.where(passes & ~acts & self.is_free, above, 0.0)
        # Rows and columns get the same weights: the matrix is nearly symmetric.
        weights = torch.where(acts, diagonal, diagonal.max()).sqrt()
        behind = point.masses - joint.masses
        lag = self.second(joint.masses, behind)

        def moved(change: Tensor) -> Tensor:
            return L.apply(change.reshape(shape)).reshape(-1) - softness * change

        def apply(y: Tensor) -> Tensor:
            change = y / weights
            passed = moved(change)
            answer = change + self.second(joint.masses, passed)
            inside = (passed + softness * answer) / weights
            return torch.where(acts, inside, answer * weights)

        def precondition(r: Tensor) -> Tensor:
            outside = (r / weights).masked_fill(acts, 0.0)
            inside = r * weights - L.apply(outside.reshape(shape)).reshape(-1)
            inside = inside.masked_fill(~acts, 0.0).reshape(shape)
            change = torch.where(acts, cycle(inside).reshape(-1), outside)
            return change * weights

        inside = -(point.excess + softness * lag) / weights
        right = torch.where(acts, inside, (drop - lag) * weights)
        change = gmres(apply, precondition, right, INEXACT, PRODUCTS)[0] / weights
        return change, behind + moved(change)

    def second(self, masses: Tensor, change: Tensor) -> Tensor:
        """Return the second variation at masses, applied to a change of masses."""
        size = float(change.abs().sum())
        if not size > 0:
            return torch.zeros_like(change)
        # G' is evaluated at positive masses only: one difference of two of them.
        step = SHIFT / size
        gained = self.slope(masses + step * change.clamp_min(0.0))
        lost = self.slope(masses - step * change.clamp_max(0.0))
        return (gained - lost) / step


def local_objective(problem: PressureProblem, masses: Tensor, square: float) -> float:
    """Return the local energy of masses plus the cost of a squared distance."""
    filled, internal = masses > 0, problem.internal
    density = masses[filled] / problem.room[filled]
    # By round-off a density may lie above the bound, where the energy is infinite.
    energy = internal.e(density.clamp_max(internal.max_density)) @ masses[filled]
    return float(energy + problem.V @ masses) + square / (2 * problem.dt)
