r"""The cheapest signed measure of ReLU neurons through data, by generated columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._lazy import lazy_import
from otflow.errors import NotConverged
from otflow.meanfield.cones import largest_on_sphere
from otflow.meanfield.kinks import EPS, Kinks, Maximum
from otflow.meanfield.norms.rays import (
    MOST_RAYS,
    SAME,
    distinct,
    hyperplanes,
    ray_count,
    rays_of,
)

__all__ = ["Cheapest", "cheapest", "repair_cost"]

RELU = (0.0, 1.0)
# Prices of columns are products of features and duals: below this excess a column is
# no better than those of the program, whose tolerance is the least that HiGHS takes.
EXCESS = 1e-9
MISSED = 1e-7
TOLERANCE = 1e-10
# Columns that enter at once, and most that stay, as multiples of the number of data;
# one enters of each cube of this side; the weight of the best dual so far in the mean.
ENTER = 2
KEPT = 20
NEAR = 0.1
SMOOTH = 0.7
# Neurons of one round that are drawn where not all rays are known; numbers of a block.
DRAWN = 4_000
BLOCK = 2**22
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
        A dual vector.
    lower, upper : float
        Bounds of the least cost, with round-off.
    found : float
        The lower bound, if the search has missed no neuron.
    rounds : int
        Number of linear programs.
    least : float
        The least singular value of the features, from below.
    columns : int
        The number of columns in it.
    """

    atoms: Tensor
    coefficients: Tensor
    dual: Tensor
    lower: float
    upper: float
    found: float
    rounds: int
    least: float
    columns: int


def cheapest(X: Tensor, f: Tensor, norm: str, budget: int, rounds: int) -> Cheapest:
    """Return the cheapest measure through (X, f) of finite columns, and its bracket.

    X (n, d) and f (n,) are in float64 on the CPU; the rows of X differ.
    """
    z = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    pool = _Pool(X, z, norm)
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
        top = _largest(z, pool.center, norm, atoms[used], budget)
        if top.lower <= 1 + MISSED or count == rounds:
            break
        # The proof has found a neuron that the search had missed.
        pool.low, pool.center = pool.low / top.lower, pool.center / top.lower
        atoms = torch.cat([pool.kept(atoms, c, dual), top.place[None]])
    dual = pool.center
    largest = min(top.upper, pool.largest(dual))
    products = dual * f
    slack = (len(f) + 8) * EPS * float(products.abs().sum())
    lower = max((float(products.sum()) - slack) / largest * (1 - 4 * EPS), 0.0)
    found = max(float(products.sum()) / max(top.lower, 1.0), lower)
    least = _least_singular_value(features)
    cost = float(c.abs().sum())
    residual = f - features[:, used] @ c[used]
    terms = int(used.sum()) + z.shape[1]
    upper = cost * (1 + (terms + 8) * EPS) + repair_cost(
        residual, cost, terms, least, len(atoms)
    )
    return Cheapest(
        atoms[used], c[used], dual, lower, upper, found, count, least, len(atoms)
    )


def repair_cost(
    residual: Tensor, size: float, terms: int, least: float, columns: int
) -> float:
    r"""Return a bound of the cost of neurons that make up for a residual.

    Features of the least singular value s reach any r by coefficients c of
    :math:`|c|_1 \le \sqrt K\,|c|_2 \le \sqrt K\,|r|_2/s`.
    """
    noise = (terms + 8) * EPS * size * math.sqrt(len(residual))
    length = float(residual.norm()) + noise
    return math.sqrt(columns) * length / least


def _solve(features: Tensor, f: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return coefficients, dual and value of: min |c|_1 subject to features c = f."""
    optimize = lazy_import("scipy.optimize")
    signed = torch.cat([features, -features], dim=1)
    answer = optimize.linprog(
        torch.ones(signed.shape[1], dtype=f.dtype).numpy(),
        A_eq=signed.numpy(),
        b_eq=f.numpy(),
        method="highs-ds",
        options={
            "primal_feasibility_tolerance": TOLERANCE,
            "dual_feasibility_tolerance": TOLERANCE,
        },
    )
    if answer.status != 0:
        n, size = features.shape
        msg = (
            f"the linear program of {n} data and {size} neurons stopped: "
            f"{answer.message}; leave out data that nearly coincide, or take fewer"
        )
        raise NotConverged(msg, info={"status": int(answer.status)})
    both = torch.from_numpy(answer.x).reshape(2, -1)
    dual = torch.from_numpy(answer.eqlin.marginals.copy())
    c = _polished(features, both[0] - both[1], f)
    return c, dual, float(c.abs().sum())


def _polished(features: Tensor, c: Tensor, f: Tensor) -> Tensor:
    """Return coefficients of the same neurons, refined to round-off once."""
    used = c != 0
    if not bool(used.any()):
        return c
    part = features[:, used]
    move = torch.linalg.lstsq(part, (f - part @ c[used])[:, None], driver="gelsd")
    better = c.clone()
    better[used] = c[used] + move.solution[:, 0]
    before, after = (float((f - part @ x[used]).norm()) for x in (c, better))
    return better if after < before else c


def _largest(
    z: Tensor, dual: Tensor, norm: str, starts: Tensor, budget: int
) -> Maximum:
    """Return the bracket of the largest feature under the dual, on the sphere."""
    # A power of two keeps squares of the dual finite.
    unit = 2.0 ** math.frexp(float(dual.abs().max()))[1]
    g = Kinks(z, dual[:, None] / unit, RELU, norm)
    first = starts[:STARTS] if len(starts) else torch.eye(z.shape[1], dtype=z.dtype)
    top = largest_on_sphere(
        g,
        first,
        budget=budget,
        ascents=ASCENTS,
        level=lambda found: found * (1 + EXCESS),
    )
    upper = max(top.upper * unit, math.ulp(0.0))
    return Maximum(top.lower * unit, upper, top.place, top.direction, top.closed)


def _least_singular_value(features: Tensor) -> float:
    """Return the least singular value of features, less its round-off."""
    values = torch.linalg.svdvals(features)
    noise = 8 * EPS * max(features.shape) * float(values[0])
    least = float(values[-1]) - noise
    if features.shape[1] < len(features) or least <= 0:
        msg = (
            f"the features of {len(features)} data have no full rank in float64: some "
            f"data nearly coincide; leave those out"
        )
        raise NotConverged(msg, info={"least singular value": float(values[-1])})
    return least


class _Pool:
    """Neurons to choose from: all rays where they are few, and else drawn ones."""

    def __init__(self, X: Tensor, z: Tensor, norm: str) -> None:
        self.X, self.z, self.norm = X, z, norm
        self.planes = hyperplanes(X)
        self.generator = torch.Generator().manual_seed(0)
        self.all = self.volumes = None
        self.low, self.center = -math.inf, X.new_zeros(len(X))
        if ray_count(*X.shape) <= MOST_RAYS:
            choices = torch.combinations(torch.arange(len(self.planes)), X.shape[1])
            v, volumes = rays_of(self.planes, choices)
            first = distinct(v)
            self.all, self.volumes = self._unit(v[first]), volumes[first]

    def largest(self, dual: Tensor) -> float:
        r"""Return a bound of the largest feature under a dual by all rays.

        A ray of rows of the volume V is known to within about :math:`d!\,\epsilon/V`,
        and features are 1-Lipschitz in it. Rows that are parallel to within `SAME` bend
        them by no more than that.
        """
        if self.all is None or self.volumes is None or self.norm == "l2":
            return math.inf
        n, q = self.z.shape
        errors = 4 * q * math.factorial(q) * EPS / self.volumes
        size = float(dual.abs().sum())
        noise = size * (q * SAME + (n + q + 8) * EPS)
        return float((self._prices(self.all, dual) + size * errors).max()) + noise

    def kept(self, atoms: Tensor, c: Tensor, dual: Tensor) -> Tensor:
        """Return the ramps, the neurons in use, and others of the largest prices."""
        most = KEPT * len(self.X)
        if len(atoms) <= most:
            return atoms
        prices = self._prices(atoms, dual)
        prices[c != 0] = math.inf
        prices[: len(self.X)] = math.inf  # the ramps, which span all values
        return atoms[prices.topk(most).indices.sort().values]

    def ramps(self) -> Tensor:
        """Return neurons through which any data can be interpolated, (n, d + 1).

        They are a constant and the ramps along the direction in which the data are
        farthest apart, of several: their features are a triangular matrix.
        """
        d = self.X.shape[1]
        u = torch.randn(d, 64, generator=self.generator, dtype=self.X.dtype)
        u = torch.cat([torch.eye(d, dtype=u.dtype), u / u.abs().sum(0)], dim=1)
        heights = (self.X @ u).sort(dim=0).values
        gaps = heights.diff(dim=0)
        k = int(gaps.amin(0).argmax()) if len(gaps) else 0
        knots = heights[:-1, k, None]
        ramps = torch.cat([u[:, k].expand(len(knots), d), -knots], dim=1)
        constant = torch.eye(d + 1, dtype=u.dtype)[-1:]
        return self._unit(torch.cat([constant, ramps]))

    def better(self, dual: Tensor, f: Tensor, used: Tensor) -> Tensor:
        """Return neurons of prices above 1, at most a few per datum.

        Those are taken which a mean of the dual and of the best one so far prices
        highest: so duals oscillate less from program to program.
        """
        v = self.all if self.all is not None else self._drawn()
        if self.norm == "l2" or self.all is None:
            v = self._climbed(v, dual, used)
        prices = self._prices(v, dual)
        top = max(float(prices.max()), math.ulp(0.0))
        if float(dual @ f) > self.low * top:
            self.low, self.center = float(dual @ f) / top, dual / top
        v = v[prices > 1 + EXCESS]
        mean = torch.lerp(dual, self.center, SMOOTH)
        v = v[self._prices(v, mean).argsort(descending=True)]
        if len(v):  # neighbours of a good neuron are good, and add little beside it
            v = v[distinct(v, NEAR).sort().values]
        return v[: ENTER * len(self.X)]

    def _prices(self, v: Tensor, dual: Tensor) -> Tensor:
        rows = max(1, BLOCK // len(self.z))
        if not len(v):
            return v.new_zeros(0)
        return torch.cat(
            [
                ((part @ self.z.T).clamp_min(0) @ dual).abs()
                for part in torch.split(v, rows)
            ]
        )

    def _drawn(self) -> Tensor:
        """Return rays of hyperplanes that are drawn at random."""
        d = self.X.shape[1]
        drawn = torch.rand(DRAWN, len(self.planes), generator=self.generator)
        v, _ = rays_of(self.planes, drawn.topk(d, dim=1).indices)
        return self._unit(v)

    def _climbed(self, v: Tensor, dual: Tensor, used: Tensor) -> Tensor:
        """Return neurons after ascents of their prices, from the best ones."""
        prices = self._prices(v, dual)
        _, order = prices.topk(min(DRAWN // 4, len(v)))
        v = torch.cat([v[order], used])
        # At a kink the slope is that of one side; nearby places tell those of all.
        noise = torch.randn(v.shape, generator=self.generator, dtype=v.dtype)
        reach = 10 ** (-1 - 4 * torch.rand(len(v), 1, generator=self.generator))
        v = self._unit(torch.cat([v, v + reach * noise]))
        prices = self._prices(v, dual)
        step = torch.ones_like(prices)
        for _ in range(ASCENTS):
            active = (v @ self.z.T > 0).to(v)
            sums = active * (v @ self.z.T)
            sign = (sums @ dual).sign()[:, None]
            slope = sign * ((active * dual) @ self.z)
            length = slope.norm(dim=1, keepdim=True)
            goal = torch.where(length > 0, slope / length.clamp_min(1e-300), v)
            new = self._unit((1 - step)[:, None] * v + step[:, None] * goal)
            found = self._prices(new, dual)
            rise = found > prices
            v = torch.where(rise[:, None], new, v)
            prices = torch.where(rise, found, prices)
            step = torch.where(rise, (2 * step).clamp_max(1), step / 2)
        return v

    def _unit(self, v: Tensor) -> Tensor:
        order = 1 if self.norm == "l1" else 2
        length = torch.linalg.vector_norm(v, order, dim=1, keepdim=True)
        some = length[:, 0] > 0
        unit: Tensor = v[some] / length[some]
        return unit
