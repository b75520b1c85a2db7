"""A new atom, and the share of it at which a functional is least."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import Particles
from otflow.schemes.sliding import round_off

__all__ = ["ENOUGH", "best_share", "lowered", "searched", "with_atom"]

# Most evaluations of F', and the slope that counts as 0, in units of that at share 0.
MOST, FLAT = 40, 1e-12
# The share of the fall by the slope alone that a step must reach.
ENOUGH = 0.1


def best_share(
    F: Functional, mu: Particles, x: Tensor, slope: float, most: float
) -> tuple[float, int]:
    r"""Return the share of least F for a new atom, and the evaluations of F'.

    Along :math:`\mu_\gamma = (1 - \gamma)\mu + \gamma\delta_x` the slope of F is
    :math:`F'[\mu_\gamma](x) - \int F'[\mu_\gamma]\,d\mu`. Its zero is bracketed, and
    found by the Illinois variant of the rule of false position: exactly for a quadratic
    F. Near the minimum slopes have twice the digits of values.

    Parameters
    ----------
    F : Functional
        What is minimised.
    mu : Particles
        The measure.
    x : Tensor, shape (d,)
        The place of the new atom.
    slope : float
        The slope at share 0.
    most : float
        The largest share.

    Returns
    -------
    share : float
        0 if the slope at 0 is not negative; `most` if F falls up to there.
    evaluations : int
        Evaluations of F' at the atoms.
    """
    if not slope < 0:
        return 0.0, 0
    points = torch.cat([mu.points, x[None]])

    def slope_at(share: float) -> float:
        masses = torch.cat([(1 - share) * mu.weights, mu.weights.new_full((1,), share)])
        rates = F.first_variation(mu.with_free_atoms(points, masses)).detach()
        return float(rates[-1] - mu.weights @ rates[:-1])

    low, high = (0.0, slope), (most, slope_at(most))
    used, flat = 1, FLAT * -slope
    if high[1] <= 0:
        return most, used
    share, held = 0.0, 0
    eps = torch.finfo(mu.dtype).eps
    while used < MOST and high[0] - low[0] > eps * high[0]:
        share = low[0] + (high[0] - low[0]) * -low[1] / (high[1] - low[1])
        found, used = slope_at(share), used + 1
        if abs(found) <= flat:
            return share, used
        if found < 0:
            # An end that stays twice counts half, or it would stay for ever.
            high = (high[0], high[1] / 2) if held < 0 else high
            low, held = (share, found), -1
        else:
            low = (low[0], low[1] / 2) if held > 0 else low
            high, held = (share, found), 1
    return share, used


def with_atom(mu: Particles, x: Tensor, share: float) -> Particles:
    """Return the mixture with an atom; atoms without mass vanish."""
    points, weights = torch.cat([mu.points, x[None]]), (1 - share) * mu.weights
    same = (mu.points == x).all(dim=1)
    if bool(same.any()):
        first = int(same.nonzero()[0])
        points, weights = mu.points, weights.clone()
        weights[first] += share
    else:
        weights = torch.cat([weights, weights.new_full((1,), share)])
    return Particles(points[weights > 0], weights[weights > 0])


def searched(
    F: Functional, mu: Particles, least: tuple[Tensor, float], dt: float, before: float
) -> tuple[Particles, dict[str, Any]]:
    """Return the mixture with the share of least F, and the words of the step."""
    x, found = least
    share, used = best_share(F, mu, x, -found, dt)
    new = with_atom(mu, x, share) if share else mu
    after = float(F.value(new))
    noise = round_off(F, mu, before)
    if after > before + noise:  # a zero of the slope is no minimum of every F
        new, share = lowered(F, mu, least, share, before)
        after = float(F.value(new))
    words: dict[str, Any] = {
        "atoms": new.n,
        "dt": share,
        "iterations": used,
        "energy_before": before,
        "energy_after": after,
        "noise": noise,
    }
    return new, words


def lowered(
    F: Functional,
    mu: Particles,
    least: tuple[Tensor, float],
    dt: float,
    value: float,
) -> tuple[Particles, float]:
    r"""Return the mixture of largest share that lowers F enough, and the share.

    It is the largest :math:`\gamma = 2^{-j}\,dt` with :math:`F(\mu_\gamma) \le F(\mu)
    - c\,\gamma\,g` for the gap g. A mixture that only does not raise F may move all
    mass to an equally good place, and back in the next step.

    Parameters
    ----------
    F : Functional
        What is lowered.
    mu : Particles
        The measure.
    least : tuple of Tensor (d,) and float
        The place of the new atom, and the gap there.
    dt : float
        The largest share.
    value : float
        F at the measure.

    Returns
    -------
    measure : Particles
        The measure itself if no share lowers F.
    share : float
        0 then.
    """
    x, gap = least
    noise = round_off(F, mu, value)
    while dt > torch.finfo(mu.dtype).eps:
        new = with_atom(mu, x, dt)
        # A fall below the round-off of F cannot be asked for.
        fall = ENOUGH * dt * gap if ENOUGH * dt * gap > noise else 0.0
        if float(F.value(new)) <= value - fall:
            return new, dt
        dt *= 0.5
    return mu, 0.0
