r"""The neurons from which a linear program of norms chooses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow.meanfield.kinks import EPS
from otflow.meanfield.norms.rays import (
    distinct,
    drawn_rays,
    half_rays,
    hyperplanes,
    ray_count,
)

__all__ = ["EXCESS", "Pool"]

# Prices of columns are products of features and duals: below this excess a column is
# no better than those of the program, whose tolerance is the least that HiGHS takes.
EXCESS = 1e-9
# Most rays that are kept, and most operations to make them, in units of a nanosecond.
MOST_PRICED = 5_000_000
MOST_WORK = 2e10
# Columns that enter at once, and most that stay, as multiples of the number of data;
# one enters of each cube of this side; the weight of the best dual so far in the mean.
ENTER = 2
KEPT = 20
NEAR = 0.1
SMOOTH = 0.7
# Candidates that are compared with each other, for each column that enters.
COMPARED = 50
SIGNED = 100_000
# Neurons of one round that are drawn where not all rays are known, and ascents; numbers
# of a block.
DRAWN = 4_000
ASCENTS = 30
# So many of the best neurons climb, and so many others, one of each cube of this side,
# of so many times as many.
CLIMBERS = 500
APART = 0.1
WIDE = 40
# Most kinks of a ridge on which a neuron is sought, and how often.
RIDGES = 4
SETTLES = 3
BLOCK = 2**22


class Pool:
    """Neurons to choose from: all rays where they are few, and else drawn ones.

    Parameters
    ----------
    X : Tensor, shape (n, d)
        Data.
    norm : str
        "l1" or "l2".

    Attributes
    ----------
    low, center : float, Tensor
        The largest lower bound so far, if no neuron was missed, and its dual.
    """

    def __init__(self, X: Tensor, norm: str) -> None:
        self.X, self.norm = X, norm
        self.z = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
        self.planes = hyperplanes(X)
        self.generator = torch.Generator().manual_seed(0)
        self.low, self.center = -math.inf, X.new_zeros(len(X))
        self.all: Tensor | None = None
        (n, d), q = X.shape, X.shape[1] + 1
        count = ray_count(n, d)
        if count <= MOST_PRICED and count * q**3 <= MOST_WORK:
            v, errors, self.lost = half_rays(self.planes)
            self.all, self.errors = self._unit(v), errors
        self.draws = min(DRAWN, max(1, int(MOST_WORK / (20 * q**3))))

    @property
    def exhaustive(self) -> bool:
        """Whether no neuron is better than the best of those that are known."""
        return self.all is not None and self.norm == "l1"

    def largest(self, dual: Tensor) -> float:
        r"""Return a bound of the largest feature under a dual, by all rays.

        Features are 1-Lipschitz in a neuron. The rays that were left out belong to
        hyperplanes of which one is within :math:`\sqrt d\,\sigma` of the span of the
        others. Without its kink there is a neuron on other hyperplanes that is as good,
        to within the change of the feature by so much, and at most n + q kinks are left
        out in turn.
        """
        if self.all is None or self.norm == "l2":
            return math.inf
        n, q = self.z.shape
        size = float(dual.abs().sum())
        noise = size * (n + q + 8) * (EPS + q * self.lost)
        prices = self._prices(self.all, dual).amax(0)
        return float((prices + size * self.errors).max()) + noise

    def kept(self, atoms: Tensor, c: Tensor, dual: Tensor) -> Tensor:
        """Return the ramps, the neurons in use, and others of the largest prices."""
        most = KEPT * len(self.X)
        if len(atoms) <= most:
            return atoms
        prices = self._prices(atoms, dual)[0]
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
        if self.all is None:
            v = drawn_rays(self.planes, self.draws, self.generator)
        else:
            v = self.all
        if not self.exhaustive:
            v = self._climbed(self._unit(v), dual, used)
        prices = self._prices(v, dual)
        top = max(float(prices.max()), math.ulp(0.0))
        if float(dual @ f) > self.low * top:
            self.low, self.center = float(dual @ f) / top, dual / top
        v = self._signed(v, prices)
        mean = self._prices(v, torch.lerp(dual, self.center, SMOOTH))[0]
        most = ENTER * len(self.X)
        v = v[mean.topk(min(len(v), COMPARED * most)).indices]
        if len(v):  # neighbours of a good neuron are good, and add little beside it
            v = v[distinct(v, NEAR).sort().values]
        return self._unit(v[:most])

    def _signed(self, v: Tensor, prices: Tensor) -> Tensor:
        """Return v and -v of prices (2, K) above 1, at most `SIGNED` of them."""
        prices = prices.flatten()
        count = int((prices > 1 + EXCESS).sum())
        order = prices.topk(min(count, SIGNED)).indices
        side = torch.where(order < len(v), 1.0, -1.0).to(v)
        return v[order % max(len(v), 1)] * side[:, None]

    def _prices(self, v: Tensor, dual: Tensor) -> Tensor:
        """Return the moduli of the features of v and of -v under a dual, (2, K)."""
        if not len(v):
            return v.new_zeros(2, 0)
        parts = []
        for part in torch.split(v, max(1, BLOCK // len(self.z))):
            t = part @ self.z.T
            straight = t @ dual
            plus = t.clamp_min_(0) @ dual
            parts.append(torch.stack([plus, plus - straight]).abs_())
        return torch.cat(parts, dim=1)

    def _climbed(self, v: Tensor, dual: Tensor, used: Tensor) -> Tensor:
        """Return neurons after ascents of their prices, from the best ones."""
        both = self._prices(v, dual)
        prices, side = both.max(0)
        order = prices.topk(min(WIDE * CLIMBERS, len(v))).indices
        v = v[order] * (1 - 2 * side[order, None])
        apart = v[distinct(v, APART).sort().values]
        v = torch.cat([v[:CLIMBERS], apart[:CLIMBERS], used])
        # At a kink the slope is that of one side; nearby places tell those of all.
        noise = torch.randn(v.shape, generator=self.generator, dtype=v.dtype)
        reach = 10 ** (-1 - 4 * torch.rand(len(v), 1, generator=self.generator))
        v = self._unit(torch.cat([v, v + reach * noise]))
        prices = self._prices(v, dual)[0]
        step = torch.ones_like(prices)
        for _ in range(ASCENTS):
            slope = self._slopes(v @ self.z.T, dual)
            goal = _over(slope, slope.norm(dim=1, keepdim=True), v)
            mixed = (1 - step)[:, None] * v + step[:, None] * goal
            new = _over(mixed, self._length(mixed), v)
            found = self._prices(new, dual)[0]
            rise = found > prices
            v = torch.where(rise[:, None], new, v)
            prices = torch.where(rise, found, prices)
            step = torch.where(rise, (2 * step).clamp_max(1), step / 2)
        return self._settled(v, dual)

    def _settled(self, v: Tensor, dual: Tensor) -> Tensor:
        """Return neurons on the kinks near those given, where they are the best.

        An ascent ends near a ridge. On the sphere in the intersection of the kinks of a
        ridge the best neuron of a linear piece is known.
        """
        prices = self._prices(v, dual)[0]
        lengths = self.z.norm(dim=1)
        most = min(RIDGES, self.X.shape[1] - 1, len(self.X))
        for k in [*range(1, most + 1)] * SETTLES:
            t = v @ self.z.T
            slope = self._slopes(t, dual)
            near = (t.abs() / lengths).topk(k, dim=1, largest=False).indices
            axes = torch.linalg.qr(self.z[near].mT).Q  # (B, q, k)
            part = axes.mT @ slope[:, :, None]
            goal = slope - (axes @ part)[:, :, 0]
            goal = _over(goal, self._length(goal), v)
            found = self._prices(goal, dual)[0]
            rise = found > prices
            v = torch.where(rise[:, None], goal, v)
            prices = torch.where(rise, found, prices)
        return v

    def _slopes(self, t: Tensor, dual: Tensor) -> Tensor:
        """Return the slopes of the prices of neurons of arguments t at the data."""
        active = (t > 0).to(t)
        sign = ((active * t) @ dual).sign()[:, None]
        return sign * ((active * dual) @ self.z)

    def _unit(self, v: Tensor) -> Tensor:
        length = self._length(v)
        some = length[:, 0] > 0
        return v[some] / length[some]

    def _length(self, v: Tensor) -> Tensor:
        order = 1 if self.norm == "l1" else 2
        length: Tensor = torch.linalg.vector_norm(v, order, dim=1, keepdim=True)
        return length


def _over(v: Tensor, length: Tensor, other: Tensor) -> Tensor:
    """Return rows over their lengths, and those of another tensor where these are 0."""
    return torch.where(length > 0, v / length.clamp_min(1e-300), other)
