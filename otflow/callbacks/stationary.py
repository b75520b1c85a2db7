"""Stop where a flow has come to rest, by its speed or by its loss of energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch

from otflow._validation import check_function, check_option, non_negative_int, positive
from otflow._warn import warn
from otflow.callbacks.base import Callback, Event
from otflow.errors import Unsupported
from otflow.measures import Measure
from otflow.metrics import wasserstein2
from otflow.proximal.certificate import round_off
from otflow.schemes import reports
from otflow.trajectory import Trajectory

__all__ = ["Stationary"]


class Stationary(Callback):
    r"""Stop a flow whose steps are slow.

    .. math:: \mathrm{speed} = \frac{W_2(\mu^k, \mu^{k+1})}{dt}, \qquad
        \mathrm{decrease} = \frac{|F(\mu^k) - F(\mu^{k+1})|}{dt}

    The speed is a length per time. It is the norm of the Wasserstein gradient of F that
    the step has followed. The decrease is an energy per time, about the square of the
    speed. To each the round-off of its numerator is added, so that a step that is too
    short to be seen is not taken for rest.

    Parameters
    ----------
    tolerance : float
        The flow stops where the speed, or the decrease, is at most this, > 0.
    by : {"speed", "decrease"}
        Which of both is compared.
    patience : int
        Number of successive slow steps that it takes, >= 1.
    distance : callable, optional
        A function of two measures, in place of :math:`W_2`, for ``by="speed"``.

    Attributes
    ----------
    rate : float or None
        Speed or decrease of the last step. None if it is not known.

    Raises
    ------
    Unsupported
        In the flow, if no distance is known between two measures. The message names the
        cure.

    Warns
    -----
    UserWarning
        At the end, if round-off alone was above the tolerance in every step, so that
        the flow could not stop.

    Notes
    -----
    A step that did not converge does not count, and neither does one that took no time:
    there the measure may have stayed because the solver failed.

    The length of a step is ``w2`` of its report. If the report has none, it is the
    length of the natural coupling (`Measure.displacement_to`), which is at least
    :math:`W_2`; and if masses have changed it is the exact distance, of cost O(n^3).
    Energies are those of the reports. If a report has the energy at its start alone,
    the step is judged after the next one.

    A resumed flow counts anew.

    A slow step is near a critical point of F, which need not be a minimiser. Steps with
    noise (`otflow.Langevin`) are never slow; but their energies before and after a step
    may agree by chance, so that ``by="decrease"`` needs a larger `patience`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    >>> rest = of.callbacks.Stationary(1e-3)
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.5, steps=99, on_step=[rest])
    >>> len(run.info), round(rest.rate, 6)
    (11, 0.000977)
    """

    rate: float | None

    def __init__(
        self,
        tolerance: float,
        *,
        by: Literal["speed", "decrease"] = "speed",
        patience: int = 1,
        distance: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.tolerance = positive(tolerance, "tolerance")
        self.by = check_option(by, "by", ("speed", "decrease"))
        self.patience = non_negative_int(patience, "patience", minimum=1)
        if distance is not None:
            check_function(distance, "distance must be a function of two measures")
            if by != "speed":
                msg = "a distance is used by='speed' alone; leave it out"
                raise ValueError(msg)
        self.distance = distance
        self._forget()

    def _forget(self) -> None:
        self.rate = None
        self._slow = 0
        self._least = math.inf  # the least round-off of a rate
        # A step whose energy at its end the next step tells.
        self._waiting: tuple[Event[Any], float] | None = None

    def start(self, run: Trajectory[Any] | None) -> None:
        self._forget()

    def __call__(self, event: Event[Any]) -> bool:
        if self.by == "speed":
            return self._judge(event, self._speed(event))
        return self._by_energy(event)

    def _judge(self, event: Event[Any], rate: float | None) -> bool:
        """Count a step whose rate is known; say whether it is time to stop."""
        self.rate = rate
        slow = rate is not None and rate <= self.tolerance
        at_rest = slow and not reports.failed(event.step.info)
        self._slow = self._slow + 1 if at_rest else 0
        return self._slow >= self.patience

    def _speed(self, event: Event[Any]) -> float | None:
        if event.dt == 0:
            return None
        start: Measure = event.start
        with torch.no_grad():
            noise = torch.finfo(start.dtype).eps * start.radius()
        return self._rate(event, self._length(event), noise)

    def _rate(self, event: Event[Any], change: float, noise: float) -> float:
        """Return an upper bound of a change per time."""
        self._least = min(self._least, noise / event.dt)
        return (change + noise) / event.dt

    def _length(self, event: Event[Any]) -> float:
        start, end = event.start, event.step.measure
        with torch.no_grad():
            if self.distance is not None:
                return positive(
                    float(self.distance(start, end)), "distance", or_zero=True
                )
            if event.step.info.w2 is not None:
                return event.step.info.w2
            try:
                return float(start.norm(start.displacement_to(end)))
            except (ValueError, Unsupported):
                return _exact(start, end)

    def _by_energy(self, event: Event[Any]) -> bool:
        info = event.step.info
        before = info.energy_before
        if before is None and event.step.energy is not None:
            before = float(event.step.energy)
        if before is None and event.row is not None:
            before = float(event.row["energy"])
        stop = False
        if self._waiting is not None and before is not None:
            stop = self._judge(self._waiting[0], self._loss(*self._waiting, before))
        self._waiting = None
        if before is None:
            return self._judge(event, None)
        if info.energy_after is None:
            self._waiting = (event, before)
            return stop
        loss = self._loss(event, before, info.energy_after)
        return self._judge(event, loss) or stop

    def _loss(self, event: Event[Any], before: float, after: float) -> float | None:
        if event.dt == 0:
            return None
        noise = round_off(before, after, torch.finfo(event.start.dtype).eps)
        return self._rate(event, abs(before - after), noise)

    def end(self, run: Trajectory[Any]) -> None:
        if self._least > self.tolerance and math.isfinite(self._least):
            msg = (
                f"{self!r} could not stop the flow: round-off alone is a {self.by} of "
                f"{self._least:.3g}; take a larger tolerance, a longer dt, or float64"
            )
            warn(msg, UserWarning)

    def __str__(self) -> str:
        rate = "unknown" if self.rate is None else f"{self.rate:.3g}"
        return f"Stationary stopped the flow ({self.by} {rate})"

    def __repr__(self) -> str:
        return f"Stationary({self.tolerance:g}, by={self.by!r})"


def _exact(start: Measure, end: Measure) -> float:
    """Return W2 where no coupling is at hand."""
    try:
        return float(wasserstein2(start, end))  # type: ignore[arg-type]
    except (TypeError, ValueError, Unsupported) as error:
        msg = (
            f"the length of a step is not known here ({error}); use Stationary(..., "
            f"by='decrease'), or say how: Stationary(..., distance=function)"
        )
        raise Unsupported(msg) from error
