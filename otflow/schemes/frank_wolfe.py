"""Frank-Wolfe: one new atom a step, where the first variation is least."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._typing import ArrayLike
from otflow._validation import check_kind, non_negative_int, positive, true_or_false
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure, Particles
from otflow.optimality import BoxDomain, Gap, GapKind, optimality_gap
from otflow.optimality.search import descent
from otflow.schemes.base import Scheme, Step, check_exchangeable
from otflow.schemes.shares import ENOUGH, lowered, searched, with_atom
from otflow.schemes.sliding import Box, Slid, round_off, size_at, slide

__all__ = ["FrankWolfe"]

# A gap of this share of the size of F' is small.
THIN = 1e-4
NOT_STATIONARY = "masses and places did not become stationary, as at a kink"
SMOOTH_OR_PLAIN = "smooth the kink of F, or take FrankWolfe(box, sliding=False)"
NO_JUMPS = (
    "make F continuous along mixtures, or take FrankWolfe(box, sliding=False), which "
    "does not look at F"
)
# A box of more axes is not written out.
SHOWN = 4


State: TypeAlias = tuple[int, bool]
"""How many steps were made, and whether the last one converged to a minimum."""


class FrankWolfe(Scheme):
    r"""Add one atom where F' is least, and take its mass from all others.

    .. math:: x_k \in \arg\min_{x \in \mathrm{box}} F'[\mu_k](x), \qquad
        \mu_{k+1} = (1 - \gamma_k)\,\mu_k + \gamma_k\, \delta_{x_k}, \qquad
        \gamma_k = \min\Bigl(dt, \frac{\ell}{k + \ell}\Bigr)

    the conditional gradient method over all probability measures on a box. For an F
    that is convex along mixtures, :math:`\ell = 2` and dt = 1,

    .. math:: F(\mu_k) - \inf F \le \frac{2C}{k + 2}, \quad k \ge 1, \qquad
        C = \sup \frac{2}{\gamma^2}
        \bigl(F(\mu') - F(\mu) - \gamma \textstyle\int F'[\mu]\,d(\nu - \mu)\bigr),

    over :math:`\mu' = (1 - \gamma)\mu + \gamma\nu`, if each :math:`x_k` is exact
    :cite:p:`jaggi2013revisiting`. Then the gap :math:`g_k = \int F'[\mu_k]\,d\mu_k -
    \min F'[\mu_k]` bounds :math:`F(\mu_k) - \inf F`, and its least value so far is
    O(1/k). If F is not convex along mixtures, a gap of zero means that no atom lowers
    F to first order.

    The sliding variant :cite:p:`denoyelle2019sliding` then gives the atoms their best
    masses, and moves masses and places downhill together. Atoms that lose their mass,
    or meet others, vanish. F falls by construction, most often to the least value after
    about as many steps as there are atoms in the minimiser.

    Parameters
    ----------
    domain : BoxDomain
        The box in which atoms lie.
    candidates : int, or Tensor or ndarray of shape (m, d)
        Places from which F' is minimised: a number of Sobol points of the box, or the
        places themselves. The atom of least F' counts among them.
    descend : int
        Number of steps of projected gradient descent from each candidate. With 0 the
        best candidate is taken as it is.
    sliding : bool
        Whether masses and places are optimised after each insertion.
    line_search : bool
        Whether the share of the new atom is that of least F in [0, dt], in place of
        :math:`\gamma_k`. Then F never rises, and the bound above holds for dt = 1.
    prove : bool
        Whether each gap is asked from `otflow.optimality.optimality_gap`, which proves
        a bound where it can. By default the gap is that of the place found, of kind
        ``"searched"``.
    horizon : float
        The number :math:`\ell > 0`. A large one makes :math:`\gamma_k = dt`.

    Attributes
    ----------
    domain, candidates, descend, sliding, line_search, prove, horizon
        As above.

    Raises
    ------
    Unsupported
        From `step`, if the measure is not made of particles or carries a graph.
    ValueError
        If both `sliding` and `line_search` are asked for.
        From `step`, if dt > 1, if the box is unbounded or of another dimension than the
        measure, or if an atom or a candidate lies outside the box.
    NonFinite
        If F or F' is not finite.

    See Also
    --------
    otflow.optimality.optimality_gap : The gap of any measure.

    Notes
    -----
    Time is the sum of the :math:`\gamma_k`, told by ``info["dt"]``; in the sliding
    variant it is the number of steps times dt. ``dt=1.0`` is the method above, and
    ``dt=lambda k: ...`` shortens its steps. The index k counts the steps of this
    scheme, also in a resumed run.

    ``info`` holds ``gap``, ``gap_kind`` (``"proved"``, ``"searched"`` or ``"none"``)
    and ``gap_reason`` of the measure *before* the step, and ``atoms``, their number
    after it. The gap of the final measure is ``optimality_gap(F, run.final, domain)``,
    proved where it can be. A place that is an atom to the bit adds its mass to that
    atom. The line search brackets a zero of the slope of F, which takes some
    evaluations of F' at the atoms, two for a quadratic F; ``info["dt"]`` is the share.
    If F is not convex along mixtures that need not be the least F, but F does not rise.

    The sliding variant has ``converged`` if its descent ended stationary and the gap
    before the step is at most :math:`\epsilon^{2/3}` of the size of F'. With a larger
    gap ``converged`` is left out while F falls, and False if F does not fall. The
    ``residual`` is a size of the gradient of F' over that of F' itself near the
    measure: what the gradient changes by along 1 % of the box, for the whole box, at
    most the spread over the candidates. A measure whose gap is at round-off is kept if
    no slide lowers F; the residual is then that of the gap. Sliding keeps no measure at
    which F is higher by more than ``noise``, the round-off of F there. ``iterations``
    counts evaluations of F' at the candidates and at the measure, without those of a
    proof. Under `Minibatch` the gap is that of the batch.

    Cost of a step: F' and its gradient at m candidates, `descend` + 1 times; the
    sliding variant adds some hundred values with velocity of F at its few atoms.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: (x - 0.3).square().sum(-1))
    >>> box = of.optimality.BoxDomain(0.0, 1.0)
    >>> mu = of.Particles(torch.tensor([[1.0]]))
    >>> run = of.flow(F, mu, of.schemes.FrankWolfe(box), dt=1.0, steps=2)
    >>> run.final.points, round(run.info[0]["gap"], 4)
    (tensor([[0.3000]]), 0.49)
    """

    effects = frozenset({"insertion"})

    def __init__(
        self,
        domain: BoxDomain,
        candidates: int | ArrayLike = 256,
        descend: int = 50,
        *,
        sliding: bool = False,
        line_search: bool = False,
        prove: bool = False,
        horizon: float = 2.0,
    ) -> None:
        check_kind(domain, BoxDomain, "domain", cure=_box_for(domain))
        self.domain = domain
        self.candidates = (
            non_negative_int(candidates, "candidates", minimum=1)
            if isinstance(candidates, (bool, int, float, str))
            else as_points(candidates, "candidates").detach()
        )
        self.descend = non_negative_int(descend, "descend")
        self.sliding = true_or_false(sliding, "sliding")
        self.line_search = true_or_false(line_search, "line_search")
        if self.sliding and self.line_search:
            msg = (
                "the sliding variant finds the best masses of all atoms, and has no "
                "share to search for; leave sliding or line_search out"
            )
            raise ValueError(msg)
        self.prove = true_or_false(prove, "prove")
        self.horizon = positive(horizon, "horizon")

    def init(self, F: Functional, mu: Measure) -> State:
        self._ground(mu)
        check_exchangeable(F, self, does="adds atoms")
        return 0, False

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: State,
        generator: torch.Generator,
    ) -> Step[Any]:
        if not dt <= 1:
            msg = (
                f"dt is the share of mass that a new atom may take, at most 1, got "
                f"{dt:g}; take dt=1.0, which the scheme itself shortens to 2/(k + 2)"
            )
            raise ValueError(msg)
        box, places = self._ground(mu)
        assert isinstance(mu, Particles)
        at_atoms = F.first_variation(mu)
        mean = float(mu.weights @ at_atoms)
        places = torch.cat([places, mu.points[at_atoms.argmin()][None]])
        x, least, looked = _least(F, mu, places, box, self.descend)
        found = mean - least
        gap = Gap(found, x, GapKind.SEARCHED, "F' was searched for its minimum", found)
        if self.prove or not F.mixture_convex:
            gap = optimality_gap(F, mu, self.domain, descend=self.descend)
            if gap.argmin is not None and gap.found > found:
                x, found = gap.argmin.to(mu.points), gap.found
        report: dict[str, Any] = {
            "gap": gap.value,
            "gap_kind": str(gap.kind),
            "gap_reason": gap.reason,
            "iterations": looked,
        }
        made, done = state
        if not (self.sliding or self.line_search):
            gamma = min(dt, self.horizon / (made + self.horizon))
            new = with_atom(mu, x, gamma)
            return Step(new, (made + 1, False), {**report, "atoms": new.n, "dt": gamma})
        energy = F.value(mu)
        if self.line_search:
            new, words = searched(F, mu, (x, found), dt, float(energy))
            words["iterations"] += looked
            return Step(new, (made + 1, False), report | words, energy)
        around = box, _widest(F, mu, places)
        end, words = self._slid(F, mu, (x, found), dt, float(energy), around, done=done)
        report |= words | {"iterations": looked + end.used}
        done = words["converged"] is True
        return Step(end.measure, (made + 1, done), report, energy)

    def _slid(
        self,
        F: Functional,
        mu: Particles,
        least: tuple[Tensor, float],
        dt: float,
        before: float,
        around: tuple[Box, float],
        *,
        done: bool,
    ) -> tuple[Slid, dict[str, Any]]:
        """Return where a sliding step ends, and its words.

        `least` is the place of the new atom and its gap, `around` the box and the
        spread of F' over it. `done` tells whether the step before has converged.
        """
        found, (box, widest) = least[1], around
        size = size_at(F, mu, box, widest)
        # Of a residual of eps^(2/3) the gap shows the square.
        eps = torch.finfo(mu.dtype).eps
        small = found <= eps ** (5 / 6) * size + round_off(F, mu, before)
        nothing = Slid(mu, found / size if size > 0 else found, 0, converged=True)
        end = nothing
        if not (small and done):  # else the step before has found nothing to change
            new = mu if small else lowered(F, mu, least, dt, before)[0]
            # Near the minimum atoms are tried that may not be needed.
            end = slide(F, new, box, widest, thin=found < THIN * size)
        after = float(F.value(end.measure))
        noise = round_off(F, end.measure, after)
        if after > before + noise:  # such a rise is no round-off, and is not kept
            end, after = replace(end, measure=mu, converged=False), before
            noise = round_off(F, mu, before)
        if small and not end.converged and after >= before - noise:
            # No place lowers F, and at a kink no gradient tells so.
            end, after = replace(nothing, used=end.used), before
        near = small or found <= eps ** (2 / 3) * size
        words: dict[str, Any] = {
            "atoms": end.measure.n,
            "energy_before": before,
            "energy_after": after,
            "noise": noise,
            "residual": end.residual,
            "converged": end.converged if near or not end.converged else None,
        }
        if not end.converged:
            words |= {"cause": NOT_STATIONARY, "cure": SMOOTH_OR_PLAIN}
        elif not near:
            # What a quadratic F falls by, over a share of about found / size.
            told = ENOUGH * found * min(dt, found / size if size > 0 else dt)
            if after >= before - noise and told > noise:
                cause = f"the gap is {found:.3g}, but F falls for no share of the atom"
                words |= {"converged": False, "cause": cause, "cure": NO_JUMPS}
        return end, words

    def __repr__(self) -> str:
        text, places = super().__repr__(), self.candidates
        if isinstance(places, Tensor):
            text = text.replace(repr(places), f"{len(places)} places")
        return text

    def _ground(self, mu: Measure) -> tuple[Box, Tensor]:
        """Return the box and the candidates, for a measure that fits them."""
        if not isinstance(mu, Particles):
            msg = (
                f"FrankWolfe adds atoms, and {type(mu).__name__} has none; start from "
                f"{mu.as_particles}, or from one atom, which the first step forgets"
            )
            raise Unsupported(msg)
        mu.refuse_graph(
            "a step of Frank-Wolfe",
            "the place of the new atom is found by trial",
            cure="mu.detach()",
        )
        box = _box(self.domain, mu)
        if isinstance(self.candidates, Tensor):
            places = mu.check_probes(self.candidates)
        else:
            sobol = torch.quasirandom.SobolEngine(mu.dim)  # type: ignore[no-untyped-call]
            draws = sobol.draw(self.candidates, dtype=torch.float64).to(mu.points)
            places = box.place(draws)
        for name, x in (("atoms of the measure", mu.points), ("candidates", places)):
            outside = int((box.inside(x) != x).any(dim=1).sum())
            if outside:
                msg = (
                    f"{outside} of {len(x)} {name} lie outside the box; take a box "
                    f"that holds them, or leave them out"
                )
                raise ValueError(msg)
        return box, places


def _box_for(given: Any) -> str:
    """Return how the box is written for what was given in its place."""
    box, places = "BoxDomain(lower, upper)", "candidates"
    if isinstance(given, int):
        places = str(given)
    elif isinstance(given, (Tensor, np.ndarray)) and given.ndim == 2 and len(given):
        x = torch.as_tensor(given).detach()
        if x.shape[1] <= SHOWN:
            box = f"BoxDomain({x.amin(0).tolist()}, {x.amax(0).tolist()})"
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        return f"write FrankWolfe(BoxDomain({given[0]!r:.40}, {given[1]!r:.40}))"
    return f"candidates come second: write FrankWolfe({box}, {places})"


def _box(domain: BoxDomain, mu: Measure) -> Box:
    """Return the box in the dtype and on the device of a measure."""
    corners = []
    for corner in (domain.lower, domain.upper):
        if not all(map(math.isfinite, corner)):
            msg = (
                "Frank-Wolfe looks for atoms in the whole box, which must be bounded; "
                "take e.g. BoxDomain(-10, 10)"
            )
            raise ValueError(msg)
        if len(corner) not in (1, mu.dim):
            msg = (
                f"the box has dimension {len(corner)} and the measure {mu.dim}; give "
                f"BoxDomain(lower, upper) with {mu.dim} numbers for each corner"
            )
            raise ValueError(msg)
        corners.append(mu.points.new_tensor(corner).expand(mu.dim))
    return Box(corners[0], corners[1])


def _widest(F: Functional, mu: Particles, places: Tensor) -> float:
    """Return the spread of F', which does not vanish at a minimum."""
    # The spread of F' at the mean of mu and of equal masses everywhere.
    spread = places.new_full((len(places),), 0.5 / len(places))
    points = torch.cat([mu.points, places])
    rates = F.first_variation(Particles(points, torch.cat([0.5 * mu.weights, spread])))
    return float(rates.max() - rates.min())


def _least(
    F: Functional, mu: Particles, places: Tensor, box: Box, descend: int
) -> tuple[Tensor, float, int]:
    """Return the place of least F' found, the value there, and the evaluations."""
    values, used = F.first_variation(mu, places), 1
    if descend:
        still = torch.finfo(mu.dtype).eps ** 0.6  # of which F' shows the square
        places, values, steps = descent(
            F, mu, places, values, box.lower, box.upper, descend, still
        )
        used += steps
    best = int(values.argmin())
    return places[best], float(values[best]), used
