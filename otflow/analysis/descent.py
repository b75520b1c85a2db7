"""Descents of the curvature from many starts, within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._autodiff import value_and_gradient
from otflow.analysis.bends import NO_DERIVATIVE, Bend, Bends, OutOfTime
from otflow.analysis.regions import Region, is_geodesic, regions
from otflow.errors import Diverged, NonFinite
from otflow.functionals import Functional
from otflow.measures import Measure, Particles
from otflow.metrics import assignment
from otflow.numerics.lbfgs import Memory, Point, last_places, minimise

__all__ = ["Search", "Seen"]

# Draws of which the best is a start, and evaluations from each start.
DRAWS, EACH = 10, 150
# A descent ends at a gradient of this size, beside a curvature of 1.
FLAT = 1e-9
# Finite paths shorter than this share of the region are not rewarded.
SHORT = 1e-3
# A curvature must be lower by this share to be confirmed anew.
LOWER = 1e-8

# A confirmation takes the time of so many evaluations, at a guess; of the whole time at
# most this share is kept for it.
CONFIRMATION, KEPT = 400.0, 0.25

# Why a search ends.
EVALUATIONS, SECONDS, REFUTED = "evaluations", "seconds", "refuted"

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """A confirmed mean of the curvature."""

    bend: Bend
    region: Region
    is_geodesic: bool


class Over(Exception):
    """The search ends; the word says why."""


@dataclass(frozen=True)
class Spot(Point):
    """The objective at free numbers."""

    at: Tensor


@dataclass(frozen=True)
class Place:
    """Free numbers, and what they are numbers of: a pair, or a state and a tangent."""

    region: Region
    bends: Bends
    spot: Spot
    pair: bool


class Space:
    """The free numbers of a search, as a space for L-BFGS."""

    def __init__(self, evaluate: Callable[[Tensor], Spot]) -> None:
        self.evaluate = evaluate

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the scalar product."""
        return (u * v).sum()

    def norm(self, u: Tensor) -> float:
        """Return the length."""
        return float(torch.linalg.vector_norm(u))

    def move(self, point: Spot, vector: Tensor, length: float) -> Spot:
        """Return the objective elsewhere; angles never move by more than 1."""
        largest = length * float(vector.abs().max())
        return self.evaluate(point.at + length / max(1.0, largest) * vector)

    def difference(self, start: Spot, end: Spot) -> Tensor:
        """Return the vector between two places."""
        return end.at - start.at

    def unit(self, point: Spot) -> Tensor:
        """Return one unit in the last place of each number."""
        return last_places(point.at)


class Search:
    """A search for the least curvature of F among measures like one."""

    def __init__(
        self,
        F: Functional,
        like: Measure,
        generator: torch.Generator,
        evaluations: int,
        deadline: float,
        modulus: float,
        *,
        first: bool,
    ) -> None:
        self.functional, self.like, self.generator = F, like, generator
        self.modulus, self.first = modulus, first
        self.evaluations, self.deadline = evaluations, deadline
        self.begun, self.longest = time.perf_counter(), 0.0
        self.used = self.starts = 0
        self.least: Seen | None = None
        self.least_on_geodesics: Seen | None = None
        self.pending: Place | None = None
        # What F turned out not to have.
        self.has_third = self.has_second = True

    def run(self) -> str:
        """Search until the budget is spent; return why the search ended."""
        try:
            for region in regions(self.like):
                bends = Bends(self.functional, region.chart, self.deadline)
                tangents = self._tangents(region, bends)
                self._from_one_start(region, bends, tangents, pair=False)
                if region.straight:
                    pairs = self._pairs(region, bends)
                    self._from_one_start(region, bends, pairs, pair=True)
        except (Over, OutOfTime) as over:
            if self.pending is not None:
                self._confirm(self.pending)
            return str(over) if isinstance(over, Over) else SECONDS
        raise AssertionError  # regions never end

    def _tangents(self, region: Region, bends: Bends) -> Objective:
        """Return the quotient of the second derivative, of a state and a tangent."""

        def quotient(z: Tensor) -> Tensor:
            x, v = self._split(region, z)
            if self.has_third:
                return bends.derivatives(x, v)[2] / region.chart.square(v)
            with torch.no_grad():
                step = SHORT * region.scale / region.chart.square(v).sqrt()
            return self._mean(bends, x - step * v, x + step * v, 0.0)

        return quotient

    def _pairs(self, region: Region, bends: Bends) -> Objective:
        """Return the mean curvature between two states; short paths count less."""

        def mean(z: Tensor) -> Tensor:
            low, high = region.state(z[0]), region.state(z[1])
            return self._mean(bends, low, high, (SHORT * region.scale) ** 2)

        return mean

    def _mean(self, bends: Bends, low: Tensor, high: Tensor, floor: float) -> Tensor:
        """Return the mean curvature between two states, with its graph."""
        step = high - low
        square = bends.chart.square(step) + floor
        if self.has_second:
            first = (bends.derivatives(x, step)[1] for x in (low, high))
            before, after = first
            return (after - before) / square
        found = bends.mean(low.detach(), high.detach(), noise=False)
        return square.detach() * 0 + found.curvature

    def _split(self, region: Region, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state and the tangent of free numbers."""
        k = math.prod(region.free)
        x = region.state(z[:k].reshape(region.free))
        return x, region.tangent(x, z[k:].reshape(region.turns))

    def _drawn(self, region: Region, *, pair: bool) -> Tensor:
        """Draw free numbers."""
        if pair:
            return torch.stack([region.draw(self.generator) for _ in range(2)])
        z = region.draw(self.generator).flatten()
        size = math.prod(region.turns)
        y = torch.randn(size, generator=self.generator, dtype=torch.float64)
        return torch.cat([z, y.to(z)])

    def _from_one_start(
        self, region: Region, bends: Bends, objective: Objective, *, pair: bool
    ) -> None:
        """Descend from the best of some draws, and confirm where that ends."""
        self.starts += 1
        best: Spot | None = None

        def evaluate(z: Tensor) -> Spot:
            nonlocal best
            spot = self._spot(objective, z)
            if best is None or spot.objective < best.objective:
                best = spot
            return spot

        try:
            start = self._draw(region, bends, pair=pair)
            if start is None:
                return
            # A glance has no gradient; where F has none the descent ends at once.
            best = start
            with suppress(NonFinite, Diverged):
                minimise(
                    Space(evaluate),
                    evaluate(start.at),
                    Memory(),
                    converged=lambda p: p.size <= FLAT * max(1.0, abs(p.objective)),
                    budget=EACH,
                )
        finally:
            if best is not None:
                self._weigh(Place(region, bends, best, pair))
        if self.first and self.least is not None and self._refutes(self.least):
            raise Over(REFUTED)

    def _draw(self, region: Region, bends: Bends, *, pair: bool) -> Spot | None:
        """Return the place of least mean curvature of some draws, without gradient."""
        best: Spot | None = None
        for _ in range(DRAWS):
            self._count()
            z = self._drawn(region, pair=pair)
            try:
                low, high = self._path(Place(region, bends, Spot(0.0, z, 0.0, z), pair))
                mean = bends.mean(low, high, noise=False).curvature
            except (NonFinite, Diverged):
                continue
            except NO_DERIVATIVE:
                bends.by_values = True
                continue
            if math.isfinite(mean) and (best is None or mean < best.objective):
                best = Spot(mean, torch.zeros_like(z), 0.0, z)
        return best

    def _path(self, place: Place) -> tuple[Tensor, Tensor]:
        """Return the ends of the path that free numbers stand for."""
        region, z = place.region, place.spot.at
        with torch.no_grad():
            if place.pair:
                return region.state(z[0]), region.state(z[1])
            x, v = self._split(region, z)
            step = region.room(x, v)
            return x - step * v, x + step * v

    def _count(self) -> None:
        """Count an evaluation; end the search if the budget is spent."""
        if self.used >= self.evaluations:
            raise Over(EVALUATIONS)
        if time.perf_counter() > self.deadline - self._kept():
            raise Over(SECONDS)
        self.used += 1

    def _kept(self) -> float:
        """Return the time that is kept for the confirmation of the last place."""
        spent = time.perf_counter() - self.begun
        guess = CONFIRMATION * spent / max(self.used, 1)
        kept = self.longest if self.longest > 0 else guess
        return min(kept, KEPT * (self.deadline - self.begun))

    def _spot(self, objective: Objective, z: Tensor) -> Spot:
        """Evaluate an objective and its gradient, within the budget."""
        self._count()
        try:
            value, slope = value_and_gradient(objective, z, unused=True)
        except NO_DERIVATIVE:
            # The next kind of derivative is tried, down to none at all.
            if self.has_third:
                self.has_third = False
            elif self.has_second:
                self.has_second = False
            else:
                raise
            return self._spot(objective, z)
        size = float(torch.linalg.vector_norm(slope))
        return Spot(float(value), slope, size, z)

    def _weigh(self, place: Place) -> None:
        """Confirm a place that is lower than all before, at once if it refutes."""
        if place.spot.objective >= self.modulus:
            known = self.pending
            if known is None or place.spot.objective < known.spot.objective:
                self.pending = place
            return
        for seen in (self.least, self.least_on_geodesics):
            if seen is not None:
                level = seen.bend.curvature
                if place.spot.objective >= level - LOWER * abs(level):
                    continue
            self._confirm(place)
            return

    def _confirm(self, place: Place) -> None:
        """Measure the curvature at a place again, while there is time."""
        start = time.perf_counter()
        with suppress(OutOfTime):
            self._measure(place)
        self.longest = max(self.longest, time.perf_counter() - start)

    def _measure(self, place: Place) -> None:
        """Measure the curvature at a place again, beyond round-off."""
        region = place.region
        low, high = self._path(place)
        paths = [(low, high)]
        mu, nu = (region.chart.build(x) for x in (low, high))
        if place.pair and isinstance(mu, Particles) and mu.is_uniform:
            order = assignment(mu.points, nu.points)
            if not bool((order.diff() == 1).all()):
                paths.append((low, high[order]))
        enough = self.modulus if self.first else -math.inf
        for path in paths:
            bend = place.bends.confirmed(*path, enough=enough)
            if bend is not None:
                self._keep(Seen(bend, region, is_geodesic(region, bend.low, bend.high)))

    def _refutes(self, seen: Seen) -> bool:
        """Return whether the modulus is refuted."""
        return seen.bend.upper < self.modulus

    def _keep(self, seen: Seen) -> None:
        """Keep what is seen, if it is the least so far."""
        upper = seen.bend.upper
        if self.least is None or upper < self.least.bend.upper:
            self.least = seen
        known = self.least_on_geodesics
        if seen.is_geodesic and (known is None or upper < known.bend.upper):
            self.least_on_geodesics = seen
