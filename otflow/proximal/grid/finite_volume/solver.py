"""The JKO step on grids by finite volumes: no mass crosses an obstacle."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from otflow._validation import non_negative_int
from otflow.errors import Diverged, Unsupported
from otflow.functionals import Congestion, Functional
from otflow.measures import GridDensity
from otflow.measures.grid.box import Box
from otflow.proximal.base import ProxResult
from otflow.proximal.certificate import certify
from otflow.proximal.grid.base import GridProximal
from otflow.proximal.grid.finite_volume.coupling import Coupling, coupling_of
from otflow.proximal.grid.finite_volume.faces import Array
from otflow.proximal.grid.finite_volume.problem import (
    Interior,
    Pointwise,
    UpwindStep,
)
from otflow.proximal.grid.finite_volume.rounds import measure_of, solve_in_rounds
from otflow.proximal.grid.finite_volume.step import Local, Move, Room, room_of
from otflow.proximal.grid.own_energy import LocalTerms, stepped
from otflow.proximal.terms import Terms, sort_terms

__all__ = ["FiniteVolume"]

# A bound that lets this mass into one cell is no bound, since all the mass is 1. The
# hundredth covers round-off.
SAFE = 1.01
# Most linear systems in the rounds of a step and its halves, over the most of one
# local step.
PATIENCE = 12


@dataclass(frozen=True)
class Scene:
    """The room of a step, and the terms of F by the method that minimises them."""

    taken: LocalTerms
    potential: Array  # at all cells
    room: Room
    coupling: Coupling | None  # the interactions

    @classmethod
    def of(cls, taken: LocalTerms, mu: GridDensity, old: Warm | None) -> Scene:
        """Return the scene of a step; it reuses the parts that `old` has in common."""
        potential = taken.potential(mu).cpu().numpy()
        room = room_of(mu, old.room if old else None)
        before = old.coupling if old else None
        coupling = coupling_of(taken.terms.interactions, mu, room.cells, before)
        return cls(taken, potential, room, coupling)

    @property
    def terms(self) -> Terms:
        """The terms of F; a user's term that is a sum over cells counts as local."""
        return self.taken.terms

    @property
    def inside(self) -> Coupling | None:
        """The interactions with few modes, which Newton's method takes.

        Beside terms in rounds the interactions must be convex, so that each round has
        one minimum.
        """
        known = self.coupling
        if known is None or known.modes is None:
            return None
        return known if known.convex or not self.terms.others else None

    @property
    def outside(self) -> Functional | None:
        """The terms that are minimised in rounds; None if there are none."""
        if self.inside is None:
            return self.terms.nonlocal_part
        return replace(self.terms, interactions=()).nonlocal_part


class Task(NamedTuple):
    """A step to take."""

    measure: GridDensity
    dt: float
    start: Interior | None  # the flow of an earlier step


@dataclass(frozen=True)
class Part:
    """A step, or one of the parts that it was divided into."""

    measure: GridDensity
    local: Local
    move: Move
    rounds: int

    @property
    def optimal(self) -> bool:
        """Whether the gap is that of the whole problem."""
        return not self.rounds and self.local.convex

    @property
    def noise(self) -> float:
        """Error of the energy: the gap, or the energy of the residual."""
        if self.optimal:
            return self.move.gap
        return self.move.residual * self.local.unit


@dataclass(frozen=True)
class Warm:
    """The last step: a start for a step on the same grid, of any dt."""

    box: Box
    room: Room
    coupling: Coupling | None
    flow: Interior


@dataclass(frozen=True)
class FiniteVolumeDetails:
    """What `FiniteVolume` reports besides the words of a certificate.

    Parameters
    ----------
    dissipation : float
        Cost of the fluxes.
    fluxes : Tensor, shape (n_faces,)
        Mass that passed each inner face, positive upwards.
    divided_into : int
        Number of steps that this step was divided into.
    rounds : int
        Linearisations of the terms outside of Newton's method.
    gap : float or None
        A proved bound on the objective minus its least value.
    device : str
        Device of the linear systems.

    Attributes
    ----------
    dissipation, fluxes, divided_into, rounds, gap, device
        As above.
    """

    dissipation: float
    fluxes: Tensor
    divided_into: int
    rounds: int
    gap: float | None
    device: str = "cpu"


class FiniteVolume(GridProximal):
    r"""Step on a grid by fluxes through the faces between free cells.

    The cost of upwind fluxes f in one step replaces :math:`W_2^2/(2\,dt)`. This is the
    LJKO scheme of :cite:t:`cances2020variational`:

    .. math:: \min_{\rho, f}\; F(\rho) + |K| \sum_f \frac{h_f^2 f^2}{2\,dt\,\rho_f},
        \qquad \rho_K = \rho^0_K - \sum_{f \text{ out of } K} f,

    where :math:`\rho_f` is the new density of the cell that the flux leaves and
    :math:`|K|` the volume of a cell. Obstacles and walls have no fluxes, so no mass
    crosses them, whatever dt. The problem is convex where F is. Its first-order
    conditions are

    .. math:: f = dt\,\rho_K\,\frac{\phi_K - \phi_L}{h_f^2}, \qquad \phi_K = F'_K -
        \frac{dt}2 \sum_{L:\,\phi_L < \phi_K} \frac{(\phi_K - \phi_L)^2}{h_f^2} .

    Newton's method has one unknown a cell. A sparse direct solver finds it. The method
    follows the minima under falling logarithmic barriers. Each iterate is a flow of the
    old density with positive masses below the bound and with their sum kept to
    round-off. Each Newton step lowers the objective plus its barrier. The method stops
    by a duality gap. For any potential :math:`\phi` the least objective is at least

    .. math:: \int \rho^0\phi - \sup_r \Bigl\{\int r\,\Bigl(\phi + \frac{dt}2
        \sum_{L:\,\phi_L < \phi_K} \frac{(\phi_K - \phi_L)^2}{h_f^2}\Bigr)
        - F(r)\Bigr\},

    where r runs over all densities of the same mass below the bound. So ``"optimal"``
    is proved.

    Interactions are part of the same minimisation. Their second derivative
    :math:`\sum_k s_k\, r_k r_k^T` has few modes for a smooth kernel, and always in
    small rooms. With k modes a linear system needs k more solutions and no further
    factorisation. If all :math:`s_k > 0` the problem is convex, and the gap proves
    ``"optimal"``. Else the tangent of F replaces F in the gap, which proves a critical
    point. Where a combination of modes is more concave than all else is convex,
    Newton's step along it is reversed, so that objective plus barrier falls. F is
    linearised in rounds if such a step fails or ends above its start, and for other
    terms of a user.

    Parameters
    ----------
    tolerance : float
        Stop when two numbers are below `tolerance`: the duality gap, and the mass that
        the next Newton step would move (or this mass is at round-off and falls no
        more). The unit of the gap is a typical difference of the first variation of the
        terms in Newton's method, where there is mass or may come.
    max_iterations : int
        Most linear systems for each attempt at a step. In rounds: for each round, and
        12 times as many in all.
    max_halvings : int
        Most halvings of a step that fails.

    Attributes
    ----------
    tolerance, max_iterations, max_halvings
        As above.

    See Also
    --------
    otflow.proximal.GridSinkhorn, otflow.proximal.BackAndForth : Without obstacles.

    Notes
    -----
    The step is of first order in dt and in the spacing. Fluxes are upwind, and the cost
    is a linearisation of the distance: it bounds the distance from below and above only
    within a factor. So ``w2``, ``decrease`` and ``bound`` are None. The certificate
    holds

    ``energy_before``, ``energy_after``
        F at the start and at the end.
    ``dissipation``
        Cost of the fluxes, :math:`\ge 0`. F(before) - F(after) is at least this cost.
    ``fluxes``
        Mass that passed each inner face, positive upwards, (n_faces,) like a tangent; 0
        at obstacles. The new masses are the old masses minus their outflow.
    ``residual``
        The duality gap in the unit of `tolerance`. Without convergence, the mass that
        the next Newton step would move if this is larger. With ``rounds`` also the mass
        that the change of the first variation would move.
    ``converged``
        Whether the residual met the tolerance.
    ``gap``
        A proved bound on the objective (F plus the cost of the fluxes) minus its least
        value, up to round-off. The bound on the density is taken a thousandth of the
        tolerance higher. None with ``rounds``, with interactions that are not convex in
        the masses, or if the step was divided.
    ``divided_into``
        Number of steps that this step was divided into after Newton's method failed; 1
        if it did not fail.
    ``rounds``
        Linearisations of the terms outside of Newton's method: 0 for interactions,
        unless their modes need more than 5e6 numbers; 1 for a user's term whose part in
        a cell depends on the density of this cell only.
    ``device``
        "cpu": SciPy solves the linear systems. Densities on another device are copied
        to the CPU and back once a step. Functions of the points and of the density, and
        interactions, are evaluated on the device of the measure.
    ``guarantee``
        ``"optimal"``: the least objective, to the tolerance. ``"stationary"``: a
        critical point, with a user's terms or with interactions that are not convex in
        the masses, such as attraction. ``"stages"``: the step was divided, and each
        part has one of these. ``"none"``: not converged, or the energy rose.

    With n cells a linear system takes time O(n^1.5) and memory O(n log n) in two
    dimensions, O(n^2) and O(n^(4/3)) in three. k modes add time O(k n log n + k^2 n +
    k^3) in two dimensions and memory O(k n). A flow finds the modes once.

    Examples
    --------
    >>> import torch, otflow as of
    >>> rho = torch.zeros(40, dtype=torch.float64)
    >>> rho[:10] = 1.0
    >>> wall = torch.arange(40) == 20
    >>> mu = of.GridDensity(rho, 0.0, 4.0, obstacles=wall, walls=True)
    >>> F = of.Potential(lambda x: -5 * x[..., 0]) + of.Congestion(2.0)
    >>> result = of.proximal.FiniteVolume().solve(F, mu, dt=10.0)
    >>> float(result.measure.weights[20:].sum()), result.certificate["certified"]
    (0.0, True)
    >>> float(result.measure.density().max()) <= 2.0
    True
    """

    # The cost is a linearisation of the distance: the step is of first order in dt.
    carries_order_2 = False

    def __init__(
        self,
        *,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
        max_halvings: int = 6,
    ) -> None:
        super().__init__(tolerance, max_iterations)
        self.max_halvings = non_negative_int(max_halvings, "max_halvings")

    def solve(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any = None
    ) -> ProxResult[GridDensity]:
        """Return the proximal step as `ProximalSolver.solve` does.

        `warm` may come from a step of any length.

        Raises
        ------
        Unsupported
            Also if an entropy has a negative factor.
        NonFinite
            Also if the potential is not finite in a free cell.
        ValueError
            Also if an internal energy is not convex or has no flow in this dimension.
        """
        dt = self._admit(F, mu, dt, GridDensity)
        terms = sort_terms(F, mu.dim)
        if terms.temperature < 0:
            msg = (
                f"an entropy of factor {terms.temperature:g} makes the step concave; "
                f"FiniteVolume needs a factor >= 0: use ExplicitEuler()"
            )
            raise Unsupported(msg)
        return stepped(terms, mu, lambda taken: self._step(F, mu, dt, warm, taken))

    def _step(
        self, F: Functional, mu: GridDensity, dt: float, warm: Any, taken: LocalTerms
    ) -> ProxResult[GridDensity]:
        """Return the step with these terms."""
        budget = PATIENCE * self.max_iterations
        kept = warm if isinstance(warm, Warm) else None
        # Fluxes through the faces of another grid are no start.
        if kept is not None and kept.box != mu.box:
            kept = None
        scene = Scene.of(taken, mu, kept)
        start = kept.flow if kept else None
        before = float(F.value(mu))
        parts = self._advance(scene, Task(mu, dt, start), self.max_halvings, budget)
        moves = [part.move for part in parts]
        nu = mu.moved(parts[-1].measure.weights)
        residual = max(move.residual for move in moves)
        if not math.isfinite(residual):
            msg = "the flow of the step left the finite numbers; take a smaller dt"
            raise Diverged(msg, measure=mu)
        after = float(F.value(nu))
        optimal = all(part.optimal for part in parts)
        guarantee = "optimal" if optimal else "stationary"
        certificate = certify(
            energy_before=before,
            energy_after=after,
            dt=dt,
            w2=None,
            residual=residual,
            converged=all(move.converged for move in moves),
            guarantee=guarantee if len(parts) == 1 else "stages",
            noise=sum(part.noise for part in parts),
            iterations=sum(move.spent for move in moves),
            details=FiniteVolumeDetails(
                dissipation=sum(move.kinetic for move in moves),
                fluxes=_fluxes(mu, parts),
                divided_into=len(parts),
                rounds=sum(part.rounds for part in parts),
                gap=moves[0].gap if len(parts) == 1 and optimal else None,
            ),
        )
        flow = parts[-1].move.state
        warm = Warm(mu.box, scene.room, scene.coupling, flow)
        return ProxResult(nu, warm, certificate=certificate)

    def state_dict(self, warm: Any) -> Any:
        if not isinstance(warm, Warm):
            return None
        flow = warm.flow
        arrays = {"numbers": flow.numbers, "multipliers": flow.multipliers}
        return {**arrays, "dt": flow.step.dt, "bound": flow.step.bound}

    def load_state(self, F: Functional, mu: GridDensity, kept: Any) -> Warm | None:
        if kept is None:
            return None
        room = room_of(mu)
        # The next step reads the flow's velocities and multipliers, and no energy.
        none = np.zeros(len(room.cells))
        energy = Pointwise(None, 0.0, mu.device)
        step = UpwindStep(room.faces, none, none, energy, kept["bound"], kept["dt"])
        flow = Interior(step, kept["numbers"], kept["multipliers"])
        return Warm(mu.box, room, None, flow)

    def _advance(
        self, scene: Scene, task: Task, halvings: int, budget: int
    ) -> list[Part]:
        """Return the step, or those of its two halves if it fails.

        Of the budget of rounds a half is for this attempt, the rest for its halves.
        """
        part = self._attempt(scene, task, budget // 2)
        # Rounds cost many systems: a half without enough left for a step is not tried.
        share = budget // 4
        spent_up = part.rounds and share < self.max_iterations
        if part.move.converged or not halvings or spent_up:
            return [part]
        half = task._replace(dt=0.5 * task.dt)
        first = self._advance(scene, half, halvings - 1, share)
        middle = first[-1]
        if not all(part.move.converged for part in first):
            return [part]
        rest = Task(middle.measure, half.dt, middle.move.state)
        return first + self._advance(scene, rest, halvings - 1, share)

    def _attempt(self, scene: Scene, task: Task, budget: int) -> Part:
        """Return the step, undivided."""
        mu, dt, start = task
        local = _pose(scene, mu, dt)
        G, spent = scene.outside, 0
        if G is None:
            move = local.solve(start, self.tolerance, self.max_iterations)
            rounds = 1 if scene.taken.own else 0
            part = Part(measure_of(mu, local, move.density), local, move, rounds)
            if local.convex or (move.converged and not local.rises(move)):
                return part
            # Without convexity a step may fail, or end above its start. Then rounds
            # begin again at the old density.
            G, spent = scene.terms.nonlocal_part, move.spent
            local = _pose(replace(scene, coupling=None), mu, dt)
        assert G is not None
        move, rounds = solve_in_rounds(
            G,
            mu,
            local,
            start,
            tolerance=self.tolerance,
            limit=self.max_iterations,
            budget=budget,
        )
        move = replace(move, spent=move.spent + spent)
        return Part(measure_of(mu, local, move.density), local, move, rounds)


def _pose(scene: Scene, mu: GridDensity, dt: float) -> Local:
    """Return what Newton's method knows of a step, in float64."""
    room, terms = scene.room, scene.terms
    V = scene.potential[room.cells]
    source = mu.weights.detach().double().cpu().numpy()[room.cells] / room.volume
    # A constant changes no step, and is not to cost digits.
    V = V - V @ source / source.sum()
    bound = terms.max_density if terms.max_density * room.volume <= SAFE else math.inf
    U = None if isinstance(terms.internal, Congestion) else terms.internal
    energy = Pointwise(U, terms.temperature, mu.device)
    step = UpwindStep(room.faces, source, V, energy, bound, dt, scene.inside)
    local = Local(room, step)
    return replace(local, unit=local.scale())


def _fluxes(mu: GridDensity, parts: list[Part]) -> Tensor:
    """Return the mass that passed each face."""
    total = torch.zeros(mu.box.n_faces, dtype=torch.float64)
    for part in parts:
        room = part.local.room
        flux = torch.from_numpy(part.move.flux * room.volume)
        total[torch.from_numpy(room.open_faces)] += flux
    return total.to(mu.weights)
