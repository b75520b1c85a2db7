"""Means of the curvature of a functional along a segment, beyond round-off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from otflow._autodiff import along, value_and_gradient
from otflow.analysis.charts import Chart
from otflow.analysis.roundoff import roughness, shaken
from otflow.errors import Diverged, InvalidFunctional, NonFinite, Unsupported
from otflow.functionals import Functional
from otflow.numerics.lbfgs import GOLDEN

__all__ = ["NO_DERIVATIVE", "Bend", "Bends", "OutOfTime"]

# The round-off of a number is taken to be MARGIN times its largest change under
# DRAWS changes, by up to two last places, of the positions and of the results of all
# operations, term by term, or its roughness; and at least FLOOR times the round-off of
# the sum of the sizes of its terms.
MARGIN, DRAWS, FLOOR = 8.0, 6, 16.0
# How many parts of a segment in a row may fail to lower the mean beyond round-off.
PATIENCE = 3
# Shortest path, in units in the last place of its ends, and beside the path at first:
# means over a kink grow without a bound as the path shrinks.
LONG, SHORTEST = 4096.0, 2.0**-16
# A wider segment is preferred to one whose mean is lower by this share only.
WIDER = 1e-9
# A mean of slopes and one of values, over a short segment, differ by a smaller share.
APART = 1e-3
# Shares of a path over which a second derivative is compared with means.
FINE = (2e-3, 1e-3)
# What says that F has no derivative, or no second one, by automatic differentiation.
NO_DERIVATIVE = (RuntimeError, NotImplementedError, InvalidFunctional, Unsupported)


class OutOfTime(Exception):
    """The deadline of evaluations is over."""


@dataclass(frozen=True)
class Bend:
    """The mean curvature over a segment of states, and its round-off.

    Parameters
    ----------
    low, high : Tensor
        The ends.
    square : float
        The squared length.
    curvature : float
        The mean.
    noise : float
        Bound on the round-off of the mean.
    shares : Tensor
        Parts of the rows of the state in the mean.
    is_kink : bool
        Whether the mean comes from a concave kink on the segment.
    """

    low: Tensor
    high: Tensor
    square: float
    curvature: float
    noise: float
    shares: Tensor
    is_kink: bool = False

    @property
    def upper(self) -> float:
        """What the least curvature on the segment does not exceed."""
        return self.curvature + self.noise

    @property
    def middle(self) -> Tensor:
        """The state half way."""
        return torch.lerp(self.low, self.high, 0.5)


# Parts of a segment, by their ends.
Parts = Callable[[Bend], list[tuple[Tensor, Tensor]]]


class Bends:
    r"""Mean curvatures of one functional in one chart.

    For states :math:`x_-`, :math:`x_+` and :math:`v = x_+ - x_-` the mean curvature is
    :math:`\langle \nabla F(x_+) - \nabla F(x_-), v\rangle / |v|^2`, kinks included. A
    modulus along every coupling bounds it from below at these very numbers: so the
    round-off of positions cannot refute. That inside F is measured, by moves of the
    last places of the positions and of all that F computes from them.

    Every evaluation after the `deadline`, a time of ``time.perf_counter()``, raises
    `OutOfTime`.
    """

    def __init__(self, F: Functional, chart: Chart, deadline: float = math.inf) -> None:
        self.functional, self.chart, self.deadline = F, chart, deadline
        self.by_values = False
        # Roughness of slopes and values near the path that is being confirmed.
        self.rough_slope: Tensor | None = None
        self.rough_value = 0.0

    def value(self, x: Tensor) -> float:
        """Return F at a state."""
        self._check_time()
        with torch.no_grad():
            return float(self.functional.value(self.chart.build(x)))

    def slope(self, x: Tensor) -> tuple[float, Tensor]:
        """Return F and its derivative in the state, in float64."""
        self._check_time()
        F, chart = self.functional, self.chart
        if chart.masses is None:
            value, slope = value_and_gradient(lambda y: F.value(chart.build(y)), x)
            return float(value), slope.double()
        value, velocity = F.value_and_velocity(chart.build(x))
        return float(value), -chart.masses.double() * velocity.double()

    def derivatives(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return F and its first two derivatives along v at x, with their graphs."""
        self._check_time()
        return along(lambda y: self.functional.value(self.chart.build(y)), x, v)

    def _check_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise OutOfTime

    def feel(self, low: Tensor, high: Tensor) -> None:
        """Measure the roughness of F near a path, for the means that follow."""

        def both(x: Tensor) -> Tensor:
            value, slope = self.slope(x)
            return torch.cat([slope.flatten(), slope.new_tensor([value])])

        if self.by_values:
            values = roughness(
                lambda x: torch.tensor(self.value(x)).double(), low, high
            )
            self.rough_slope, self.rough_value = None, float(values)
            return
        rough = roughness(both, low, high)
        self.rough_slope = rough[:-1].reshape(low.shape)
        self.rough_value = float(rough[-1])

    def near(self, x: Tensor) -> list[Tensor]:
        """Return states whose entries are up to two last places away.

        Of signs alone, opposite ones might cancel in every state.
        """
        count = torch.arange(1, DRAWS * x.numel() + 1, dtype=torch.float64)
        places = (4.0 * ((count * GOLDEN) % 1.0) - 2.0).to(x)
        unit = self.chart.units(x)
        return [x + s * unit for s in places.reshape(DRAWS, *x.shape)]

    def mean(self, low: Tensor, high: Tensor, *, noise: bool = True) -> Bend:
        """Return the mean curvature between two states."""
        # In units of the longest entry, no square of it underflows.
        size, square = self._squared(low, high)
        if not 0 < size * square * size < math.inf:
            square = size * square * size
            nothing = torch.zeros(len(low), dtype=torch.float64, device=low.device)
            return Bend(low, high, square, math.nan, math.inf, nothing)
        if self.by_values:
            return self.of_values(low, high, noise=noise)
        step = (high.double() - low.double()) / size
        ends = [(x, self.slope(x)[1]) for x in (low, high)]
        rows = (ends[1][1] - ends[0][1]) / size * step / square
        error = 0.0
        for x, slope in ends if noise else ():
            others = [
                shaken(self.slope, y, k)[1] - slope for k, y in enumerate(self.near(x))
            ]
            if self.rough_slope is not None:
                others.append(self.rough_slope)
            changes = [float((change * step).abs().sum()) for change in others]
            error += (
                FLOOR * torch.finfo(low.dtype).eps * float((slope * step).abs().sum())
            )
            error += MARGIN * max(changes)
        parts, error = rows.flatten(1).sum(1), error / size / square
        square = size * square * size
        return Bend(low, high, square, float(rows.sum()), error, parts)

    def _squared(self, low: Tensor, high: Tensor) -> tuple[float, float]:
        """Return the longest entry of a step, and its square in units of it."""
        step = high - low
        size = float(step.abs().max()) or 1.0
        return size, float(self.chart.square(step / size))

    def of_values(self, low: Tensor, high: Tensor, *, noise: bool = True) -> Bend:
        """Return the second difference of values: a mean that weighs the middle most.

        It has no parts, and the round-off of the middle counts as that of F.
        """
        states = (low, torch.lerp(low, high, 0.5), high)
        values = [
            (x, self.value(x), c) for x, c in zip(states, (1, -2, 1), strict=True)
        ]
        square = float(self.chart.square(high - low))
        if square < torch.finfo(torch.float64).smallest_normal:
            nothing = torch.zeros(len(low), dtype=torch.float64, device=low.device)
            return Bend(low, high, square, 0.0, math.inf, nothing)
        change, error = sum(c * f for _, f, c in values), 0.0
        for x, f, c in values if noise else ():
            near = enumerate(self.near(x))
            moves = max(abs(shaken(self.value, y, k) - f) for k, y in near)
            moves = max(moves, self.rough_value)
            # A number below the smallest normal one is off by a unit of that.
            info = torch.finfo(low.dtype)
            own = FLOOR * info.eps * (abs(f) + info.smallest_normal)
            error += abs(c) * (MARGIN * moves + own)
        nothing = torch.zeros(len(low), dtype=torch.float64, device=low.device)
        shares = (4 * change / square, 4 * error / square)
        return Bend(low, high, square, *shares, nothing)

    def confirmed(
        self,
        low: Tensor,
        high: Tensor,
        at: float = 0.5,
        *,
        kinks: bool = True,
        enough: float = -math.inf,
    ) -> Bend | None:
        """Return a segment, here or within, of the least mean beyond round-off.

        Ever shorter segments about the share `at` of the way are tried, and if `kinks`
        also those where the mean is least, until one is below `enough`. None if F is
        not finite there, or if values contradict the slopes of F.
        """
        try:
            self.feel(low, high)
            best = self.mean(low, high)
            if not math.isfinite(best.upper):
                return None
            ways: list[Parts] = [partial(_about, at)]
            for parts in [*ways, _parts] if kinks else ways:
                if best.upper < enough:
                    break
                chosen = self._best_of(best, parts)
                best = min(best, chosen, key=lambda bend: bend.upper)
            if not math.isfinite(best.upper):
                return None
            best = replace(best, is_kink=self._is_kink(best))
            return best if self._values_agree(best) else None
        except (NonFinite, Diverged):
            return None

    def believes(self, second: float, low: Tensor, high: Tensor, at: float) -> bool:
        """Return whether slopes near a share of a path allow a second derivative there.

        Where a function states its first derivative alone, the second one of automatic
        differentiation lacks a part, in silence.
        """
        try:
            self.feel(low, high)
            near = [self.mean(*_part(low, high, at, share)) for share in FINE]
        except (NonFinite, Diverged):
            return True
        # Over a kink both means differ by their own size.
        varied = 4 * abs(near[0].curvature - near[1].curvature)
        slack = APART * abs(second) + varied + near[1].noise
        return not abs(second - near[1].curvature) > slack

    def _is_kink(self, bend: Bend) -> bool:
        """Return whether a half has nearly twice the mean, as over a concave kink."""
        low, middle, high = bend.low, bend.middle, bend.high
        pairs = ((low, middle), (middle, high))
        least = min(self.mean(*pair, noise=False).curvature for pair in pairs)
        return least < 1.5 * bend.curvature < 0

    def _values_agree(self, bend: Bend) -> bool:
        """Return whether values of F, but for round-off, allow the mean of slopes.

        They do not if the slope of F is wrong, as that of a value that was detached in
        part, or at a point exactly on a kink.
        """
        low, high = bend.low, bend.high
        if not bend.is_kink:
            # Both means differ by less than that of the middle half does.
            inside = (torch.lerp(low, high, q) for q in (0.25, 0.75))
            varied = abs(self.mean(*inside, noise=False).curvature - bend.curvature)
            values = self.of_values(low, high)
            slack = varied + bend.noise + APART * abs(bend.curvature)
            return values.curvature - values.noise <= bend.curvature + slack
        # A second difference over a path three times as long weighs all of this one.
        values = self.of_values(low - (high - low), high + (high - low))
        return values.curvature - values.noise <= 0.25 * bend.curvature

    def _best_of(self, first: Bend, parts: Parts) -> Bend:
        """Follow the part of the least mean until the round-off wins; return the best.

        A wider segment is preferred to one that is lower by next to nothing.
        """
        # The round-off of a slope along a segment is proportional to its length.
        power = 1.0 if self.by_values else 0.5
        bend, best, worse, within = first, first.upper, 0, [first]
        while worse < PATIENCE and self._is_long(bend, first.square):
            found = [self.mean(*pair, noise=False) for pair in parts(bend)]
            if not all(math.isfinite(part.curvature) for part in found):
                break
            bend = min(found, key=lambda part: part.curvature)
            noise = first.noise * (first.square / bend.square) ** power
            bend = replace(bend, noise=noise)
            within.append(bend)
            worse = 0 if bend.upper < best - WIDER * abs(best) else worse + 1
            best = min(best, bend.upper)
        near = [bend for bend in within if bend.upper <= best + WIDER * abs(best)]
        widest = max(near, key=lambda bend: bend.square)
        return self.mean(widest.low, widest.high)

    def _is_long(self, bend: Bend, whole: float) -> bool:
        """Return whether moves of the ends by last places hardly change a path."""
        if bend.square < SHORTEST**2 * whole:
            return False
        step = (bend.high - bend.low).abs()
        return bool((step > LONG * self.chart.units(bend.middle)).any())


def _about(at: float, bend: Bend) -> list[tuple[Tensor, Tensor]]:
    """Return a quarter about a share of the way: a smooth curvature is as there."""
    return [_part(bend.low, bend.high, at, 0.25)]


def _part(low: Tensor, high: Tensor, at: float, share: float) -> tuple[Tensor, Tensor]:
    """Return a share of a path, of which as much is before `at` as of the whole."""
    start = (1.0 - share) * at
    return torch.lerp(low, high, start), torch.lerp(low, high, start + share)


def _parts(bend: Bend) -> list[tuple[Tensor, Tensor]]:
    """Return the middle and the halves: a kink stays inside of one of them."""
    low, middle, high = bend.low, bend.middle, bend.high
    left, right = (torch.lerp(low, high, q) for q in (0.25, 0.75))
    # The first one wins if all are equal: then a kink stays away from the ends.
    return [(left, right), (low, middle), (middle, high)]
