r"""The cheapest signed measure of ReLU neurons through data, by generated columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import NotConverged
from otflow.meanfield.cones import largest_on_sphere
from otflow.meanfield.kinks import EPS, Kinks, Maximum
from otflow.meanfield.norms.neurons import EXCESS, Pool
from otflow.meanfield.norms.repairs import Repair, refined

__all__ = ["Cheapest", "cheapest", "program"]

RELU = (0.0, 1.0)
MISSED = 1e-7
TOLERANCE = 1e-10
# A larger share of the values is no round-off of theirs.
ROUNDING = 1e-12
# A round of drawn columns that gains less than this share is idle, and so many idle
# ones end the search.
GAIN = 1e-4
IDLE = 3
# From so many neurons the proof of the dual ascends, by so many steps.
STARTS = 64
ASCENTS = 30


@dataclass(frozen=True, eq=False)
class Cheapest:
    r"""A cheapest measure of neurons through data, with its dual.

    Parameters
    ----------
    atoms : Tensor, shape (K, d + 1)
        Inner weights of norm 1.
    coefficients : Tensor, shape (K,)
        Their outer weights, none of which is 0.
    dual : Tensor, shape (n,)
        A dual vector, whose product with f is `lower` to round-off.
    lower, upper : float
        Bounds of the least cost, with round-off.
    found : float
        The lower bound, if the search has missed no neuron.
    rounds : int
        Number of linear programs.
    repair : Repair
        The cost of other outputs.
    """

    atoms: Tensor
    coefficients: Tensor
    dual: Tensor
    lower: float
    upper: float
    found: float
    rounds: int
    repair: Repair


def cheapest(X: Tensor, f: Tensor, norm: str, budget: int, rounds: int) -> Cheapest:
    """Return the cheapest measure through (X, f) of finite columns, and its bracket.

    X (n, d) and f (n,) are in float64 on the CPU; the rows of X differ.
    """
    pool = Pool(X, norm)
    z = pool.z
    atoms, best, idle, count = pool.ramps(), math.inf, 0, 0
    while True:
        count += 1
        features = (z @ atoms.T).clamp_min(0)
        c, dual, value = _solve(features, f)
        best, gain = min(best, value), best - value
        new = pool.better(dual, f, atoms[c != 0])
        idle = 0 if pool.all is not None or gain > GAIN * value else idle + 1
        closed = best - pool.low <= EXCESS * best
        if not closed and len(new) and idle < IDLE and count < rounds:
            atoms = torch.cat([pool.kept(atoms, c, dual), new])
            continue
        used = c != 0
        top = _largest(pool, atoms[used], budget)
        if top.lower <= 1 + MISSED or count == rounds:
            break
        # The proof has found a neuron that the search had missed.
        pool.low, pool.center = pool.low / top.lower, pool.center / top.lower
        atoms = torch.cat([pool.kept(atoms, c, dual), top.place[None]])
    dual = pool.center
    products = dual * f
    total = float(products.sum())
    slack = (len(f) + 8) * EPS * float(products.abs().sum())
    lower = max((total - slack) / top.upper * (1 - 4 * EPS), 0.0)
    found = max(total / max(top.lower, 1.0), lower)
    repair = Repair.of(z, atoms)
    atoms = atoms[used]
    c, upper = refined(z, atoms, c[used], f, repair)
    some = c != 0
    return Cheapest(
        atoms[some], c[some], dual * (lower / total), lower, upper, found, count, repair
    )


def _solve(features: Tensor, f: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return coefficients, dual and value of: min |c|_1 subject to features c = f."""
    answer = program(features, f, "highs-ds")
    if answer.status == 0:
        c, dual = _parts(answer)
    else:
        c, dual = _solve_orthonormal(features, f, answer.message)
    c = _polished(features, c, f)
    return c, dual, float(c.abs().sum())


def _solve_orthonormal(
    features: Tensor, f: Tensor, message: str
) -> tuple[Tensor, Tensor]:
    """Return coefficients and dual by orthonormal combinations of the conditions.

    Conditions of data that nearly coincide differ by less than HiGHS takes notice of.
    Those of the combinations do not, and have the same solutions.
    """
    rows, triangle = torch.linalg.qr(features.T)
    goal, _ = torch.linalg.solve_ex(triangle.T, f[:, None])
    unit = float(goal.abs().max())
    if math.isfinite(unit) and unit > 0:
        for method in ("highs-ds", "highs-ipm"):
            answer = program(rows.T, goal[:, 0] / unit, method)
            if answer.status == 0:
                c, dual = _parts(answer)
                dual = torch.linalg.solve_triangular(
                    triangle, dual[:, None], upper=True
                )
                return c * unit, dual[:, 0]
            message = answer.message
    n, size = features.shape
    msg = (
        f"the linear program of {n} data and {size} neurons stopped: {message}; leave "
        f"out data that nearly coincide, or take fewer"
    )
    raise NotConverged(msg, info={"data": n, "neurons": size})


def program(features: Tensor, f: Tensor, method: str) -> Any:
    """Return the answer of HiGHS to: min |c|_1 subject to features c = f."""
    optimize = lazy_import("scipy.optimize")
    signed = torch.cat([features, -features], dim=1)
    return optimize.linprog(
        torch.ones(signed.shape[1], dtype=f.dtype).numpy(),
        A_eq=signed.numpy(),
        b_eq=f.numpy(),
        method=method,
        options={
            "primal_feasibility_tolerance": TOLERANCE,
            "dual_feasibility_tolerance": TOLERANCE,
        },
    )


def _parts(answer: Any) -> tuple[Tensor, Tensor]:
    """Return coefficients and dual of an answer."""
    plus, minus = torch.from_numpy(answer.x).reshape(2, -1)
    return plus - minus, torch.from_numpy(answer.eqlin.marginals.copy())


def _polished(features: Tensor, c: Tensor, f: Tensor) -> Tensor:
    """Return coefficients of the same neurons, refined to round-off once.

    Where the program has left out a neuron that the values need, all take part.
    """
    for some in (c != 0, torch.ones_like(c, dtype=torch.bool)):
        part, gap = features[:, some], f - features @ c
        before = float(gap.norm())
        if before > 0 and bool(some.any()):
            move = torch.linalg.lstsq(part, gap[:, None], driver="gelsd")
            better = c.clone()
            better[some] += move.solution[:, 0]
            after = float((f - features @ better).norm())
            if after < before:
                c, before = better, after
        if before <= ROUNDING * float(f.norm()):
            break
    return c


def _largest(pool: Pool, starts: Tensor, budget: int) -> Maximum:
    """Return the bracket of the largest feature under the best dual, on the sphere."""
    dual, z = pool.center, pool.z
    by_rays = pool.largest(dual)
    # A power of two keeps squares of the dual finite.
    unit = 2.0 ** math.frexp(float(dual.abs().max()))[1]
    g = Kinks(z, dual[:, None] / unit, RELU, pool.norm)
    first = starts[:STARTS] if len(starts) else torch.eye(z.shape[1], dtype=z.dtype)
    if by_rays <= 1 + MISSED:
        return Maximum(1.0, by_rays, first[0], g.direction(g(first[:1])[0]), True)
    top = largest_on_sphere(
        g,
        first,
        budget=budget,
        ascents=ASCENTS,
        level=lambda found: found * (1 + EXCESS),
    )
    upper = max(min(top.upper * unit, by_rays), math.ulp(0.0))
    return Maximum(top.lower * unit, upper, top.place, top.direction, top.closed)
