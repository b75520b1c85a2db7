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
# Most data of a problem of least squares, and most problems; steps that shift weight
# between two data, where these do not suffice.
MOST_DATA = 1000
PROGRAMS = 20
STEPS = 1000
# A program sees numbers of the order of its value, but none of more than the inverse.
RANGE = 1e-9


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
    # Round-off of a neuron, whose kink may be far smaller than its terms.
    steep = abs(unit[0]) + abs(unit[1])
    noise = (z.shape[1] + 8) * EPS * steep * float(z.abs().sum(1).max())
    for p in trials:
        bound, place = _largest(z, p * labels, v, unit, norm, budget)
        upper, v = min(upper, bound), torch.cat([v, place])
    while done < rounds and upper - lower > SHARP * upper:
        done += 1
        values, p = _game(labels[:, None] * _unit(v @ z.T, unit).T, upper)
        lower = max(lower, values - noise)
        bound, place = _largest(z, p * labels, v[-64:], unit, norm, budget)
        upper, v = min(upper, bound), torch.cat([v, place])
    return lower, upper


def best_in_f2(rows: Tensor, trials: list[Tensor], noise: float) -> tuple[float, float]:
    """Return bounds of the largest margin of functions f.row_k, with |f| at most 1.

    The rows (n, M) are features times labels. The margin is the length of the shortest
    mixture of rows. Any mixture f bounds it from above by |f|, and from below by the
    least f.row_k over |f|. The noise is a bound of the round-off of mixtures.
    """
    lower, upper = 0.0, math.inf
    tall = float(torch.linalg.vector_norm(rows, dim=1).max())
    p = trials[0]

    def heights(q: Tensor) -> Tensor:
        nonlocal lower, upper, p
        f = q @ rows
        found, length = rows @ f, float(f.norm())
        if length + noise < upper:
            upper, p = length + noise, q
        least = float(found.min()) - 2 * noise * tall
        lower = max(lower, least / (length + noise) if least > 0 else 0.0)
        return found

    for trial in trials:
        heights(trial)
    scale, known = tall, torch.zeros_like(p)
    for _ in range(PROGRAMS if tall > 0 else 0):
        found, before = heights(p), upper
        # The data of the mixture so far, and those that it is the worst for.
        first = torch.where(known > 0, -math.inf, found).argsort()[:MOST_DATA]
        q = torch.zeros_like(p)
        q[first] = _shortest(rows[first] / scale)
        heights(q)
        known, scale = q, max(upper, RANGE * tall)
        if upper - lower <= SHARP * upper + 4 * noise or upper > (1 - EPS) * before:
            break
    for _ in range(STEPS):
        found = heights(p)
        if upper - lower <= SHARP * upper + 4 * noise:
            break
        # From the worst datum with a share to the best one, exact along the segment.
        near, far = int(found.argmin()), int(found.where(p > 0, -math.inf).argmax())
        bend = float((rows[near] - rows[far]).square().sum())
        gain = float(found[far] - found[near])
        if not (gain > 0 and bend > 0):
            break
        share = min(gain / bend, float(p[far]))
        p = p.clone()
        p[far] -= share
        p[near] += share
    return lower, upper


def _shortest(rows: Tensor) -> Tensor:
    """Return the weights of the shortest mixture, by SciPy on the CPU.

    Non-negative least squares for q of R q = 0 and sum q = 1, where R^T R is the Gram
    matrix: the best q is a multiple of the weights.
    """
    optimize = lazy_import("scipy.optimize")
    root = torch.linalg.qr(rows.T, mode="r").R
    system = torch.cat([root, torch.ones_like(root[:1])]).cpu().numpy()
    try:
        found = optimize.nnls(system, [0.0] * len(root) + [1.0])[0]
    except RuntimeError:  # it has not ended
        found = [1.0] * len(rows)
    q = torch.as_tensor(found).to(rows).clamp_min(0)
    total = float(q.sum())
    return q / total if total > 0 else torch.full_like(q, 1 / len(q))


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


def _game(signed: Tensor, value: float) -> tuple[float, Tensor]:
    """Return the margin of the best mixture of columns of both signs, and the weights.

    By SciPy, on the CPU. The margin is computed again from the mixture. The tolerances
    of the program are absolute, so that entries of the order of its value are given.
    """
    optimize = lazy_import("scipy.optimize")
    tallest = float(signed.abs().max())
    size = max(min(value, tallest), RANGE * tallest)
    uniform = torch.full_like(signed[:, 0], 1 / len(signed))
    if not size > 0:
        return 0.0, uniform
    n, both = len(signed), torch.cat([signed, -signed], dim=1) / size
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
    if answer.status != 0:
        return 0.0, uniform
    c = torch.from_numpy(answer.x[:K].copy()).to(signed).clamp_min(0)
    p = -torch.from_numpy(answer.ineqlin.marginals.copy()).to(signed)
    p = p.clamp_min(0)
    total, mass = float(c.sum()), float(p.sum())
    if not total > 0 or not mass > 0:
        return 0.0, uniform
    noise = (K + 8) * EPS * tallest / size
    return size * (float((both @ c).min()) / total - noise), p / mass
