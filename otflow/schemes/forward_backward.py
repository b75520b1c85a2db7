"""Forward-backward: explicit on the smooth terms, implicit on one group of others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from otflow._validation import check_kind, non_negative_int
from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional, Sum
from otflow.functionals.of_part import OfPart
from otflow.functionals.stated_terms import check_terms
from otflow.measures import Measure
from otflow.proximal import ProximalSolver, ProxResult, default_solver
from otflow.proximal.base import solved
from otflow.proximal.certificate import Certificate
from otflow.proximal.terms import sort_terms, split_maps
from otflow.schemes.base import Scheme, Step
from otflow.schemes.euler import Past, Trials, halvings_to_try

__all__ = ["ForwardBackward"]

# Round-off of an energy in units of that of the dtype: an energy is a long sum.
NOISE = 64.0
KINK = (
    "state the term that has a kink or a wall as Potential(V, prox=...), which is then "
    "implicit, and on particles exact"
)
SHRUNK = {"cause": "steps shrink without end, as at a kink or a wall", "cure": KINK}


class ForwardBackward(Scheme):
    r"""Explicit on the smooth terms, then implicit on one group of the others.

    .. math:: F = G + H, \qquad
        \mu^{k+1/2} = (\mathrm{id} - dt\,\nabla G'[\mu^k])_\#\mu^k, \qquad
        \mu^{k+1} = \operatorname{argmin}_\nu H(\nu)
        + \frac{W_2^2(\mu^{k+1/2}, \nu)}{2\,dt}

    :cite:p:`salim2020wasserstein`. H is the sum of all internal energies of F, or one
    potential with a proximal map of its own, ``Potential(V, prox=...)``. G is the sum
    of all other terms. The fixed points are those of the flow for every dt: a spring
    with entropy rests at its Gibbs law, where Langevin's steps have a bias of order dt.
    A potential with a kink, as :math:`|x|`, holds atoms at the kink exactly.

    A step must be at most 1/L, where L is the smoothness of G along the step. It is
    halved until

    .. math:: G(\mu^{k+1/2}) \le G(\mu^k) - \tfrac{dt}2 \|\nabla G'[\mu^k]\|^2, \qquad
        F(\mu^{k+1}) \le F(\mu^k),

    up to round-off. The first trial is the smaller of dt and twice the last accepted
    step, and ``info["dt"]`` is the time taken.

    On a grid the explicit half is ``transport``, which remaps in second order and has
    no limit of the cells on dt.

    Parameters
    ----------
    solver : ProximalSolver, optional
        Solves for the implicit half. By default `proximal.default_solver` chooses it by
        the representation and by H.
    max_halvings : int
        Largest number of halvings. After these the measure does not move and no time
        passes.

    Attributes
    ----------
    solver, max_halvings
        As above.

    Raises
    ------
    ValueError
        From `init`, if F has no term with a proximal map, or two groups of them. The
        proximal map of a sum is not one map after the other.
    Unsupported
        From `init`, if H has no value on the representation, as an entropy on
        particles.
    NonFinite
        From `init`, if H is infinite at the start; from `step`, if no trial step has a
        finite energy.
    Diverged
        From `step`, if every trial step leaves the finite numbers.

    See Also
    --------
    otflow.JKO : Implicit on all terms.
    otflow.functionals.l1_norm : Potentials with maps, as ``group_norm`` and ``box``.

    Notes
    -----
    ``info`` holds the energies of F at both ends and

    ``dt``, ``halvings``, ``trials``, ``stalled``
        The time taken, the halvings from the requested dt, the number of trial steps,
        and whether none was accepted, or one so short that the energy hardly falls.
    ``residual``, ``iterations``, ``noise``, ``converged``
        Those of the implicit half. A step that has stalled has not converged.
    ``w2``, ``decrease``
        Where points move, the length of the tangent between both ends, an upper bound
        of their distance; None on a grid. ``decrease`` is :math:`\ge 0` for
        :math:`dt \le 1/L` if H is convex along this tangent.
    ``stages``
        The certificate of the implicit half, for H from :math:`\mu^{k+1/2}`. The step
        as a whole minimises nothing and claims no guarantee.
    ``solver``
        Name of the class of the solver.

    Cost: one velocity of G, and for each trial two values of G and the implicit half.

    Examples
    --------
    >>> import torch, otflow as of
    >>> spring = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Gaussian(torch.ones(1).double(), 4.0 * torch.ones(1, 1).double())
    >>> scheme = of.schemes.ForwardBackward()
    >>> run = of.flow(spring + of.Entropy(), mu, scheme, dt=0.5, steps=60)
    >>> abs(run.final.covariance.item() - 1) < 1e-10  # the exact law, whatever dt is
    True
    >>> run = of.flow(spring + of.Entropy(), mu, scheme, dt=9.0, steps=1)
    >>> run.info[0].dt, run.info[0]["halvings"]
    (0.5625, 4)
    """

    def __init__(
        self, solver: ProximalSolver[Any] | None = None, *, max_halvings: int = 60
    ) -> None:
        if solver is not None:
            cure = "leave it out, or take one, e.g. proximal.GaussianProximal()"
            check_kind(solver, ProximalSolver, "solver", cure=cure)
        self.solver = solver
        self.max_halvings = non_negative_int(max_halvings, "max_halvings")

    def init(self, F: Functional, mu: Measure) -> _Plan:
        plan = self._pick(F, mu)
        check_terms(F, mu)
        plan.implicit.value(mu)
        return plan

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        plan = self._plan(F, mu, state)
        start = _Start(plan, mu)
        last = plan.past.dt if plan.past else math.inf
        tried = halvings_to_try(dt, last, self.max_halvings)
        errors: list[Exception] = []
        for k in tried:
            try:
                half, energy = start.accepted(dt * 0.5**k, plan.warm)
            except (Diverged, NonFinite) as error:
                errors.append(error)
                continue
            if half is not None:
                trial, before = dt * 0.5**k, float(start.energy)
                past = plan.past or Past(dt, 0.0, before)
                fall = trial * start.speed + before - energy
                shrunk = past.shrinks(trial, fall, before)
                own = Trials(k, k + 1 - tried.start, stalled=shrunk)
                info = start.report(half, energy, trial, own)
                now = replace(plan, warm=half.warm, past=past.after(trial))
                return Step(half.measure, now, info, start.energy)
        # That no step lowered the energy would not be the reason.
        if len(errors) == len(tried):
            raise errors[-1]
        own = Trials(self.max_halvings, len(tried), stalled=True)
        before = float(start.energy)
        cause = (
            f"no step lowered the energy, of lengths from {dt * 0.5**tried.start:.3g} "
            f"down to {dt * 0.5**self.max_halvings:.3g}"
        )
        if errors:
            cause = f"{cause}, and {len(errors)} of them failed: {errors[-1]}"
        why = {
            "cause": cause,
            "cure": f"take a smaller dt; if F is at rest there, stop; else {KINK}",
        }
        info = Certificate(
            before, before, dt=0.0, converged=False, details=own, entries=why
        )
        return Step(mu, plan, info, start.energy)

    def state_dict(self, state: _Plan) -> Any:
        return {
            "solver": type(state.solver).__name__,
            "warm": state.solver.state_dict(state.warm),
            "past": None if state.past is None else list(state.past),
        }

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> _Plan:
        past = kept["past"]
        plan = replace(self.init(F, mu), past=None if past is None else Past(*past))
        # Another solver for another F, of which the flow has warned, starts cold.
        if kept["solver"] != type(plan.solver).__name__:
            return plan
        return replace(plan, warm=plan.solver.load_state(F, mu, kept["warm"]))

    def _pick(self, F: Functional, mu: Measure) -> _Plan:
        smooth, implicit = split_terms(F)
        solver = self.solver or default_solver(mu, implicit)
        return _Plan(F, type(mu), solver, smooth, implicit)

    def _plan(self, F: Functional, mu: Measure, state: _Plan | None) -> _Plan:
        """Return the plan of the step before, or another one for another draw of F."""
        if state and state.functional is F and state.kind is type(mu):
            return state
        # The terms of a draw are not checked again at each step.
        plan = self._pick(F, mu) if state else self.init(F, mu)
        if state is None:
            return plan
        same = type(state.solver) is type(plan.solver)
        return replace(plan, warm=state.warm if same else None, past=state.past)


def _of_parts(F: Functional) -> str:
    """Return what takes the maps of terms of single parts, if there are such terms."""
    keys = [term.part for _, term in F.terms() if isinstance(term, OfPart)]
    scheme = f"PartByPart({{{keys[0]!r}: ForwardBackward(), ...}})" if keys else ""
    return f" in a term of one part, and take schemes.{scheme}" if keys else ""


def split_terms(F: Functional) -> tuple[Functional | None, Functional]:
    """Return the smooth terms, None if there are none, and the implicit group.

    Raises
    ------
    ValueError
        If there is no such group, or there are two.
    """
    maps, others = split_maps(F)
    energy = sort_terms(F).energy
    groups: list[Functional] = [t if c == 1 else c * t for c, t in maps]
    if energy is not None:
        groups.append(energy)
        others = [(c, t) for c, t in others if sort_terms(t).energy is None]
    if not groups:
        msg = (
            f"F = {F!r} has no term with a proximal map; use ExplicitEuler(), or JKO() "
            f"for an implicit step on all terms, or declare the map of a term by "
            f"Potential(V, prox=...){_of_parts(F)}"
        )
        raise ValueError(msg)
    if len(groups) > 1:
        msg = (
            f"F has {len(groups)} terms with a proximal map, "
            f"{' and '.join(map(repr, groups))}, and the proximal map of a sum is not "
            f"one map after the other; declare one Potential(V, prox=...) with the map "
            f"of their sum, or leave prox= out of the smooth ones, or use JKO()"
        )
        raise ValueError(msg)
    smooth = [t if c == 1 else c * t for c, t in others]
    if not smooth:
        return None, groups[0]
    return smooth[0] if len(smooth) == 1 else Sum(tuple(smooth)), groups[0]


@dataclass(frozen=True)
class _Plan:
    """What the steps of a flow share, the past of these, and the warm start."""

    functional: Functional = field(repr=False)
    kind: type[Measure]
    solver: ProximalSolver[Any]
    smooth: Functional | None
    implicit: Functional
    past: Past | None = None
    warm: Any = None


class _Start:
    """The start of a step: its energies, and the velocity of the smooth terms."""

    def __init__(self, plan: _Plan, mu: Measure) -> None:
        self.plan, self.mu, self.velocity, self.speed = plan, mu, None, 0.0
        self.energy = plan.implicit.value(mu)
        self.smooth = 0.0
        if plan.smooth is not None:
            value, self.velocity = plan.smooth.value_and_velocity(mu)
            self.smooth = float(value)
            self.speed = float(mu.inner(self.velocity, self.velocity))
            self.energy = self.energy + value
        self.moves = not mu.on_fixed_cells
        self.noise = NOISE * torch.finfo(mu.dtype).eps

    def accepted(self, dt: float, warm: Any) -> tuple[ProxResult[Any] | None, float]:
        """Return a step and its energy; None if the step is too long for G or F."""
        plan, middle = self.plan, self.mu
        if self.velocity is not None and plan.smooth is not None:
            push = middle.push if self.moves else middle.transport
            middle = push(self.velocity, dt)
            value = float(plan.smooth.value(middle))
            slack = self.noise * max(abs(self.smooth), abs(value))
            if value > self.smooth - 0.5 * dt * self.speed + slack:
                return None, value
        half = solved(plan.solver, plan.implicit, middle, dt, warm)
        after = float(half.certificate["energy_after"])
        if plan.smooth is not None:
            after += float(plan.smooth.value(half.measure))
        before = float(self.energy)
        slack = self.noise * max(abs(before), abs(after), abs(self.smooth))
        slack += half.certificate.noise or 0.0
        return (half if after <= before + slack else None), after

    def report(
        self, half: ProxResult[Any], after: float, dt: float, own: Trials
    ) -> Certificate:
        """Return the report of an accepted step."""
        known, w2 = half.certificate, None
        if self.moves:
            w2 = float(self.mu.norm(self.mu.displacement_to(half.measure)))
        return Certificate(
            float(self.energy),
            after,
            w2=w2,
            residual=known.residual,
            iterations=known.iterations,
            converged=known.converged and not own.stalled,
            noise=known.noise,
            dt=dt,
            solver=type(self.plan.solver).__name__,
            details=own,
            entries={"stages": (known,), **(SHRUNK if own.stalled else {})},
        )
