"""The scaling iteration, accelerated where its dual value rises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from otflow.errors import Diverged
from otflow.proximal.anderson import Anderson
from otflow.proximal.grid_problem import Warm, damping_of, start_of
from otflow.proximal.scaling import Iterate, Scaling

__all__ = ["Solved", "iterate"]

# Share of the largest density that is added to the weights of the acceleration's norm:
# in far tails the plain map is slow, and a norm that is blind there runs off.
FLOOR = 1e-6
# Mass that may be lost to underflow, in units of round-off.
MOST_LOST = 64.0


class Solved(NamedTuple):
    """A scaling problem and where its iteration stopped."""

    problem: Scaling  # in the log domain if that was needed
    x: Tensor  # the last accepted variable
    iterate: Iterate  # evaluated there
    used: int  # evaluations of the map


def iterate(
    problem: Scaling,
    start: Tensor | Warm | None,
    *,
    memory: int,
    tolerance: float,
    budget: int,
) -> Solved:
    r"""Return the fixed point of the map, the maximum of the concave dual.

    An accelerated point is kept if the dual value rises. If not, the plain step is
    taken from the last point kept, and what was learnt is forgotten. If that does not
    rise either, the step is damped to what is proved to rise: see `Scaling`.

    Parameters
    ----------
    problem : Scaling
        With local terms, or with the first variation of others in its potential.
    start : Tensor, Warm or None
        Where to start.
    memory : int
        Differences that the acceleration keeps.
    tolerance : float
        Of the residual.
    budget : int
        Evaluations, at least one.

    Returns
    -------
    Solved
        The last point that was kept.

    Raises
    ------
    Diverged
        If the iteration leaves the finite numbers in the log domain.
    """
    mu = problem.source.grid
    most_lost = MOST_LOST * torch.finfo(mu.dtype).eps
    anderson = Anderson(memory, mu + FLOOR * mu.max())
    usual, proved = damping_of(problem), problem.proved_damping
    x, guess = start_of(problem, start), None
    kept: tuple[Tensor, Iterate] | None = None
    steps: list[float] = []  # plain steps to fall back on
    for k in range(1, max(budget, 1) + 1):
        now = problem.evaluate(x, guess)
        sound = math.isfinite(now.residual) and now.lost <= most_lost
        solved = sound and now.residual <= tolerance
        if sound and (
            solved or not steps or kept is None or now.rises_from(kept[1], x - kept[0])
        ):
            kept, guess = (x, now), now.log_density
            if solved:
                break
            steps = [usual] if anderson.has_learnt else []
            steps += [proved] if proved < usual else []
            x = anderson.advance(x, usual * now.change)
        elif steps and kept is not None:
            anderson.forget()
            x, guess = kept[0] + steps.pop(0) * kept[1].change, None
        elif not problem.safely:
            problem, guess = replace(problem, safely=True), None
            x = start_of(problem, start) if kept is None else kept[0]
        else:
            msg = (
                f"the scaling iteration left the finite numbers after {k} "
                f"evaluations; take a smaller dt or a larger eps"
            )
            raise Diverged(msg, measure=problem.source)
    x, now = (x, now) if kept is None else kept
    return Solved(problem, x, now, k)
