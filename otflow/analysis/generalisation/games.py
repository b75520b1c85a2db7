"""The largest margins, as the values of games between weights of data and neurons."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.meanfield.cones import largest_on_sphere
from otflow.meanfield.kinks import EPS, Kinks

__all__ = ["best_in_f1", "best_in_f2"]

# A bracket of this relative width needs no more rounds, nor a sharper maximum.
SHARP = 1e-3
# Steps of Frank and Wolfe for the weights of data.
STEPS = 2000


def best_in_f1(
    z: Tensor,
    labels: Tensor,
    starts: Tensor,
    trials: list[Tensor],
    *,
    unit: tuple[float, float],
    norm: str,
    budget: int,
    rounds: int,
) -> tuple[float, float]:
    """Return bounds of the largest margin over the unit ball of the path norm.

    Any weights of the data bound it from above, by the largest neuron for them. The
    weights are the dual ones of the game with the neurons found so far, to which that
    largest neuron is added: generation of columns.
    """
    order = 1 if norm == "l1" else 2
    lengths = torch.linalg.vector_norm(starts, order, dim=1, keepdim=True)
    v = starts[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0]
    lower, upper, done = 0.0, math.inf, 0
    for p in trials:
        bound, place = _largest(z, p * labels, v, unit, norm, budget)
        upper, v = min(upper, bound), torch.cat([v, place])
    while done < rounds and upper - lower > SHARP * upper:
        done += 1
        values, p = _game(labels[:, None] * _unit(v @ z.T, unit).T)
        lower = max(lower, values)
        bound, place = _largest(z, p * labels, v[-64:], unit, norm, budget)
        upper, v = min(upper, bound), torch.cat([v, place])
    return lower, upper


def best_in_f2(
    kernel: Tensor, trials: list[Tensor], noise: float
) -> tuple[float, float]:
    """Return bounds of the largest margin in the space of a kernel, with its labels.

    The square of the margin is the least p.K p over weights p, by steps of Frank and
    Wolfe. The function sum_k p_k y_k k(x_k, .) has the margin min_k (K p)_k.
    """
    p = min(trials, key=lambda q: float(q @ kernel @ q))
    Kp = kernel @ p
    lower, upper = 0.0, math.inf
    for _ in range(STEPS):
        square = float(p @ Kp)
        size = math.sqrt(max(square, 0.0) + noise)
        k = int(Kp.argmin())
        upper, least = min(upper, size), float(Kp[k])
        lower = max(lower, (least - noise) / size if size > 0 else 0.0)
        if upper - lower <= SHARP * upper:
            break
        # Exact along the segment to the datum of the least margin.
        bend = square - 2 * least + float(kernel[k, k])
        if bend <= 0:
            break
        share = min((square - least) / bend, 1.0)
        p, Kp = (1 - share) * p, (1 - share) * Kp + share * kernel[:, k]
        p[k] += share
    return lower, upper


def _unit(t: Tensor, unit: tuple[float, float]) -> Tensor:
    return unit[0] * t + unit[1] * t.clamp_min(0)


def _largest(
    z: Tensor,
    q: Tensor,
    starts: Tensor,
    unit: tuple[float, float],
    norm: str,
    budget: int,
) -> tuple[float, Tensor]:
    """Return a bound of the largest correlation with q, and a neuron that is large."""
    g = Kinks(z, q[:, None], unit, norm)
    top = largest_on_sphere(
        g, starts, budget=budget, ascents=20, level=lambda found: (1 + SHARP) * found
    )
    return max(top.upper, top.lower), top.place[None].to(z)


def _game(signed: Tensor) -> tuple[float, Tensor]:
    """Return the margin of the best mixture of columns of both signs, and the weights.

    By SciPy, on the CPU. The margin is computed again from the mixture.
    """
    optimize = lazy_import("scipy.optimize")
    n, both = len(signed), torch.cat([signed, -signed], dim=1)
    K = both.shape[1]
    # Maximise g for A c >= g, c >= 0, sum c = 1; variables (c, g).
    rows = torch.cat([-both, both.new_ones(n, 1)], dim=1).cpu()
    answer = optimize.linprog(
        torch.cat([torch.zeros(K), -torch.ones(1)]).double().numpy(),
        A_ub=rows.numpy(),
        b_ub=torch.zeros(n).double().numpy(),
        A_eq=torch.cat([torch.ones(K), torch.zeros(1)]).double()[None].numpy(),
        b_eq=[1.0],
        bounds=[(0, None)] * K + [(None, None)],
        method="highs",
    )
    uniform = torch.full_like(signed[:, 0], 1 / n)
    if answer.status != 0:
        return 0.0, uniform
    c = torch.from_numpy(answer.x[:K].copy()).to(signed).clamp_min(0)
    p = -torch.from_numpy(answer.ineqlin.marginals.copy()).to(signed)
    p = p.clamp_min(0)
    total, mass = float(c.sum()), float(p.sum())
    if not total > 0 or not mass > 0:
        return 0.0, uniform
    noise = (K + 8) * EPS * float(signed.abs().max())
    return float((both @ c).min()) / total - noise, p / mass
