"""Explicit Euler: push along the velocity, with descent guaranteed on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otflow._validation import non_negative_int, real, true_or_false
from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step

__all__ = ["ExplicitEuler", "Past", "Trials", "halvings_to_try"]

# A step has stalled if it is shorter than this share of the longest accepted step, and
# if the predicted fall of the energy is below this share of the fall since the start.
SHORT = 1e-4
FLAT = 1e-5


class ExplicitEuler(Scheme):
    r"""Explicit Euler, :math:`\mu^{k+1} = (\mathrm{id} + dt\, v[\mu^k])_\# \mu^k`.

    On particles it is gradient descent with step n dt on uniform weights: :math:`x_i
    \leftarrow x_i - \frac{dt}{w_i}\,\partial_{x_i} F`. With ``backtracking=True`` the
    step is halved until the energy falls enough :cite:p:`armijo1966minimization`,

    .. math:: F(\mu^{k+1}) \le F(\mu^k) - c\,dt\,\|v\|^2_{L^2(\mu^k)},

    so the recorded energies never increase. The first trial is the smaller of dt and
    twice the last accepted step. ``info["dt"]`` is the time taken.

    Parameters
    ----------
    backtracking : bool
        Whether to halve dt until the Armijo condition holds.
    sufficient_decrease : float
        The constant c, in (0, 1). With c near 0 steps at the limit of stability are
        accepted, which make little progress. With c near 1 steps are short.
    max_halvings : int
        Largest number of halvings. After these the measure does not move and no time
        passes, as at a minimum, where only round-off is left.
    remap : bool
        On a grid, whether to move by ``transport``. It remaps in second order in the
        spacing, and has no limit of the cells on dt. `push` is upwind, of first order,
        and raises Diverged where mass would leave a cell. For dt above 1/L, with L the
        smoothness of F', the map folds: mass sticks together where particles would
        pass one another, and at the border. Nothing reports it but the energy.

    Attributes
    ----------
    backtracking, sufficient_decrease, max_halvings, remap
        As above.

    Raises
    ------
    Unsupported
        From `step`, with ``remap=True`` on a measure without fixed cells.

    Notes
    -----
    Cost: one value and velocity of F a step; with backtracking one more value a trial.
    With backtracking ``info`` also holds

    ``dt``, ``halvings``, ``trials``
        The time taken, the halvings from the requested dt, the number of trial steps.
    ``stalled``
        Whether no step was accepted, or a step so short that the energy hardly falls.
        At a kink of F steps shrink without end.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0]]))
    >>> of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=2).final.points
    tensor([[0.2500]])
    >>> run = of.flow(F, mu, of.ExplicitEuler(backtracking=True), dt=1e6, steps=3)
    >>> bool((run.records["energy"].diff() <= 0).all())
    True
    """

    def __init__(
        self,
        backtracking: bool = False,
        *,
        sufficient_decrease: float = 0.1,
        max_halvings: int = 60,
        remap: bool = False,
    ) -> None:
        self.backtracking = true_or_false(backtracking, "backtracking")
        self.sufficient_decrease = real(sufficient_decrease, "sufficient_decrease")
        if not 0 < self.sufficient_decrease < 1:
            msg = f"sufficient_decrease must lie in (0, 1), got {sufficient_decrease}"
            raise ValueError(msg)
        self.max_halvings = non_negative_int(max_halvings, "max_halvings")
        self.remap = true_or_false(remap, "remap")

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        energy, velocity = F.value_and_velocity(mu)
        if not self.backtracking:
            return self.along(mu, energy, velocity, dt, state)
        start, push = energy.item(), self._push(mu)
        speed = float(mu.inner(velocity, velocity).detach())
        past = state if isinstance(state, Past) else Past(dt, 0.0, start)
        tried = halvings_to_try(dt, past.dt, self.max_halvings)
        for k in tried:
            trial = dt * 0.5**k
            try:
                moved = push(velocity, trial)
                with torch.no_grad():
                    value = float(F.value(moved))
            except (Diverged, NonFinite):
                continue
            if value <= start - self.sufficient_decrease * trial * speed:
                own = Trials(
                    k,
                    k + 1 - tried.start,
                    stalled=past.shrinks(trial, trial * speed, start),
                )
                now = past.after(trial)
                info = Certificate(start, value, dt=trial, details=own)
                return Step(moved, now, info, energy)
        own = Trials(self.max_halvings, len(tried), stalled=True)
        info = Certificate(start, start, dt=0.0, details=own)
        return Step(mu, past, info, energy)

    def along(
        self, mu: Measure, energy: Tensor, velocity: Tensor, dt: float, state: Any
    ) -> Step[Any]:
        """Return the step without backtracking, of known energy and velocity.

        Parameters
        ----------
        mu : Measure
            Where the step starts.
        energy : Tensor
            F there, 0-d.
        velocity : Tensor
            The tangent of the step.
        dt, state
            As in `step`.

        Returns
        -------
        Step
            As of `step`.
        """
        info = Certificate.of_start(energy.item())
        return Step(self._push(mu)(velocity, dt), state, info, energy)

    def __repr__(self) -> str:
        shown = super().__repr__()
        return shown if self.remap else shown.replace(", remap=False", "")

    def _push(self, mu: Measure) -> Callable[[Tensor, float], Measure]:
        return mu.transport if self.remap else mu.push


@dataclass(frozen=True)
class Trials:
    """What backtracking reports of a step.

    Parameters
    ----------
    halvings : int
        Halvings from the requested dt to the time taken.
    trials : int
        Number of trial steps.
    stalled : bool
        Whether no step was accepted, or a step so short that the energy hardly falls.

    Attributes
    ----------
    halvings, trials, stalled
        As above.
    """

    halvings: int
    trials: int
    stalled: bool


def halvings_to_try(dt: float, last: float, most: int) -> range:
    """Return the numbers of halvings of dt to try, at most `most`.

    The first trial is the smaller of dt and twice the last accepted length, so that
    the steps can grow again.
    """
    first = 0
    while dt * 0.5**first > 2 * last and first < most:
        first += 1
    return range(first, most + 1)


class Past(NamedTuple):
    """The last accepted step, the longest one, the energy at the start of the flow."""

    dt: float
    longest: float
    first: float

    def shrinks(self, dt: float, fall: float, energy: float) -> bool:
        """Return whether a step is so short that the energy hardly falls.

        Parameters
        ----------
        dt, fall, energy : float
            The step, the fall of the energy that it predicts, the energy before it.

        Returns
        -------
        bool
            So it is at a kink or a wall, where steps shrink without end.
        """
        return dt <= SHORT * self.longest and fall <= FLAT * (self.first - energy)

    def after(self, dt: float) -> Past:
        """Return the past after a step that was accepted."""
        return Past(dt, max(dt, self.longest), self.first)
