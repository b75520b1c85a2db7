"""The share of a new atom at which a functional is least."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.functionals import Functional
from otflow.measures import Particles

__all__ = ["best_share"]

# Most evaluations of F', and the slope that counts as 0, in units of that at share 0.
MOST, FLAT = 40, 1e-12


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
