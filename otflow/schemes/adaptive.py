"""Time steps chosen by the estimated error of each, around any scheme."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_function, check_kind, positive, true_or_false
from otflow.errors import Diverged, NonFinite, NotConverged, Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step
from otflow.schemes.reports import composed, converged

__all__ = ["Adaptive"]

# The next step is this share of the step that should just meet the tolerance, since the
# error is an estimate.
SAFETY = 0.9
# Limits of the change of the step from one trial to the next.
SHRINK = 0.2
GROW = 4.0


class Adaptive(Scheme):
    r"""Choose each time step so that its estimated error meets a tolerance.

    A trial step of length h is accepted if its estimated error e is at most the
    tolerance and the energy has not increased. Otherwise a shorter step is tried. The
    error is of order p + 1 in h, so the next length is

    .. math:: h \leftarrow h\,\min\Big(4, \max\big(0.2,\; 0.9\,
        (\mathrm{tolerance}/e)^{1/(p+1)}\big)\Big),

    the elementary controller of :cite:t:`hairer1993solving`. After a rejection h does
    not grow. Where the scheme reports ``info["error"]``, as ``JKO(order=2)`` does, e is
    that error. Otherwise the step is *doubled*: it is made once with h and once as two
    steps of h/2. Then e is the distance of the two results over :math:`2^p - 1`, and
    the two short steps are kept.

    Parameters
    ----------
    scheme : Scheme
        The scheme that makes the steps.
    tolerance : float
        Largest error of one step, in the units of `distance`.
    distance : callable, optional
        Distance of two measures, for doubled steps. The default is the length of
        ``displacement_to``. It is an upper bound on W2, equals W2 on `Gaussian`, and on
        `Quantiles` up to the second order in the cells. On cells fixed in space the
        default is half the L1 distance, a share of the mass; on `Parts` it is the root
        of the sum of squares of those of the parts.
    descent : bool
        Whether to reject a step that raises the energy.
    min_dt : float, optional
        Shortest step tried; by default 1e-10 of the longest step.

    Attributes
    ----------
    scheme, tolerance, distance, descent, min_dt
        As above.

    Raises
    ------
    NotConverged
        If the error is above the tolerance, or an inner solve fails, at every dt down
        to `min_dt`.
    Unsupported
        If the scheme draws random numbers.

    Notes
    -----
    The ``dt`` of the flow is the longest step, and the first one tried. The state
    carries the next trial. ``flow(..., until=T)`` ends exactly at T. ``info`` holds

    ``dt``, ``next_dt``, ``rejected``
        The time taken, the next trial, the number of rejected trials.
    ``error``, ``error_order``
        The estimate e and its p.
    ``energy_before``, ``energy_after``
        The energies at both ends.
    ``stalled``
        Whether no step down to `min_dt` lowers the energy, as at a minimum, where only
        round-off is left. The measure then does not move and no time passes.
    ``substeps``
        The reports of the one or two steps of the scheme. ``info`` repeats the words
        of one report and combines those of two; ``w2`` is then the sum of both.

    A trial that diverges, or whose inner solve does not converge, is rejected too.
    A scheme that draws random numbers raises Unsupported: one step and two half steps
    see different noise, so that their distance says nothing about dt.

    Cost: one step a trial, three if steps are doubled. If the scheme does not report
    ``energy_after``, each trial costs one more value of F.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1) / 2, modulus=1.0)
    >>> mu = of.Particles(torch.ones(1, 1, dtype=torch.float64))
    >>> scheme = of.schemes.Adaptive(of.JKO(order=2), tolerance=1e-3)
    >>> run = of.flow(F, mu, scheme, dt=1.0, steps=200, until=5.0)
    >>> bool(run.times[-1] == 5.0), len(run.info) < 50
    (True, True)
    >>> abs(run.final.points.item() - 2.718281828**-5) < 1e-3
    True
    """

    def __init__(
        self,
        scheme: Scheme,
        *,
        tolerance: float,
        distance: Callable[[Any, Any], Any] | None = None,
        descent: bool = True,
        min_dt: float | None = None,
    ) -> None:
        check_kind(scheme, Scheme, "scheme")
        self.scheme = scheme
        self.tolerance = positive(tolerance, "tolerance")
        if distance is not None:
            demand = "distance must be a function of two measures, e.g. "
            check_function(distance, demand + "otflow.metrics.wasserstein2")
        self.distance = distance
        self.descent = true_or_false(descent, "descent")
        self.min_dt = None if min_dt is None else positive(min_dt, "min_dt")

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the inner scheme."""
        return self.scheme.order

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Effects of the inner scheme."""
        return self.scheme.effects

    def init(self, F: Functional, mu: Measure) -> _State:
        return _State(self.scheme.init(F, mu), None)

    def state_dict(self, state: _State) -> Any:
        inner = self.scheme.state_dict(state.inner)
        return {"inner": inner, "next_dt": state.next_dt}

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> _State:
        return _State(self.scheme.load_state(F, mu, kept["inner"]), kept["next_dt"])

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: _State,
        generator: torch.Generator,
    ) -> Step[Any]:
        mu.refuse_graph(
            "a step of controlled length",
            "its length is found by trial",
            cure="mu.detach(), or the scheme itself with a fixed dt",
        )
        h = dt if state.next_dt is None else min(state.next_dt, dt)
        least = 1e-10 * dt if self.min_dt is None else min(self.min_dt, dt)
        rejected = 0
        while True:
            trial = self._try(F, mu, h, state.inner, generator)
            if trial.fault is None:
                growth = 1.0 if rejected else GROW
                following = h * min(growth, trial.factor(self.tolerance))
                # A trial cut to `dt` does not shorten a longer step that was planned.
                if not rejected and state.next_dt is not None:
                    following = max(following, state.next_dt if h == dt else 0.0)
                info = trial.info.also(next_dt=following, rejected=rejected)
                now = _State(trial.state, following)
                return Step(trial.measure, now, info, trial.energy)
            if h <= least:
                return self._give_up(mu, state, trial, h, rejected)
            rejected += 1
            h = max(h * min(0.5, trial.factor(self.tolerance)), least)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return self.scheme.energy(F, mu)

    def _give_up(
        self, mu: Measure, state: _State, trial: _Trial, h: float, rejected: int
    ) -> Step[Any]:
        if trial.rises:
            # Nothing is certified: the certificate at hand is of the rejected trial.
            before = trial.info.energy_before
            own = {k: trial.info[k] for k in ("error", "error_order")}
            own |= {"substeps": (), "next_dt": h, "rejected": rejected, "stalled": True}
            info = Certificate(before, before, dt=0.0, entries=own)
            return Step(mu, state, info, trial.energy)
        msg = (
            f"no step down to dt = {h:.3g} is good enough: {trial.fault}; loosen the "
            f"tolerance, refine the grid, which limits how exact a step can be, or "
            f"look for a kink or a singularity of the functional here"
        )
        raise NotConverged(msg, info=trial.info)

    def _try(
        self,
        F: Functional,
        mu: Measure,
        h: float,
        state: Any,
        generator: torch.Generator,
    ) -> _Trial:
        """Make a step of length h and judge it."""
        before = generator.get_state()
        try:
            step = self.scheme.step(F, mu, h, state, generator)
            substeps: tuple[Step[Any], ...] = (step,)
            error, order = step.info.get("error"), step.info.get("error_order")
            if error is None:
                half = self.scheme.step(F, mu, 0.5 * h, state, generator)
                rest = self.scheme.step(F, half.measure, 0.5 * h, half.state, generator)
                substeps, order = (half, rest), self.order
                error = self._distance(step.measure, rest.measure) / (2**order - 1)
                if step.taken(h) != h:  # then the two results belong to different times
                    error = math.inf
        except (Diverged, NonFinite) as fault:
            return _Trial.diverged(mu, state, h, fault)
        finally:
            drawn = not torch.equal(before, generator.get_state())
            if drawn:
                generator.set_state(before)
        if drawn:
            msg = (
                f"{self.scheme!r} draws random numbers, and the distance of two steps "
                f"with different noise says nothing of dt; use it with a fixed dt"
            )
            raise Unsupported(msg)
        assert order is not None
        return self._judge(F, mu, h, substeps, float(error), order)

    def _judge(
        self,
        F: Functional,
        mu: Measure,
        h: float,
        substeps: tuple[Step[Any], ...],
        error: float,
        order: int,
    ) -> _Trial:
        first, last = substeps[0], substeps[-1]
        infos = tuple(step.info for step in substeps)
        with torch.no_grad():
            energy = self.energy(F, mu) if first.energy is None else first.energy
            b = last.info.energy_after
            try:
                b = float(self.energy(F, last.measure)) if b is None else b
            except NonFinite as beyond:
                return _Trial.diverged(mu, last.state, h, beyond)
        a, eps = float(energy), torch.finfo(mu.dtype).eps
        # An energy is a long sum: its round-off is some tens of units.
        slack = 64 * eps * (abs(a) + abs(b))
        taken = sum(step.taken(h / len(substeps)) for step in substeps)
        info = replace(
            _common(infos, taken, eps), energy_before=a, energy_after=b, dt=taken
        ).also(error=error, error_order=order, stalled=False, substeps=infos)
        fault, rises = None, False
        # Two halves add up to h, but for round-off, unless the scheme shortens them.
        if len(substeps) > 1 and not math.isclose(taken, h, rel_tol=1e-9):
            fault, rises = "the scheme shortens its steps by itself", True
        elif not error <= self.tolerance:
            fault = f"its error {error:.3g} is above the tolerance {self.tolerance:.3g}"
        elif converged(info) is False:
            fault = "the inner solve does not converge"
        elif self.descent and not b <= a + slack:
            fault, rises = f"the energy rises from {a:.9g} to {b:.9g}", True
        return _Trial(
            last.measure, last.state, info, energy, error, order, fault, rises
        )

    def _distance(self, a: Measure, b: Measure) -> float:
        if self.distance is not None:
            return _number(self.distance(a, b))
        try:
            return a.change_to(b)
        except (ValueError, Unsupported) as error:
            msg = (
                f"one step and two halves cannot be compared ({error}); say how, e.g. "
                f"distance=otflow.metrics.wasserstein2"
            )
            raise Unsupported(msg) from error


def _number(distance: Any) -> float:
    """Return the answer of the user's distance as one number in [0, inf]."""
    if isinstance(distance, Tensor) and distance.numel() == 1:
        distance = distance.detach().cpu().numpy()
    try:
        value = math.nan if isinstance(distance, str) else float(distance)
    except (TypeError, ValueError, RuntimeError):
        value = math.nan
    if not value >= 0:
        msg = (
            f"distance must return one number >= 0, got {distance!r}; e.g. "
            f"distance=otflow.metrics.wasserstein2"
        )
        raise ValueError(msg)
    return value


@dataclass(frozen=True)
class _State:
    """The inner scheme's state and the step to try next."""

    inner: Any
    next_dt: float | None


@dataclass(frozen=True)
class _Trial:
    """A trial step and, if it is rejected, the reason."""

    measure: Measure
    state: Any
    info: Certificate
    energy: Tensor | None
    error: float | None
    order: int
    fault: str | None
    rises: bool

    @classmethod
    def diverged(cls, mu: Measure, state: Any, h: float, why: Exception) -> _Trial:
        """Return the trial of a step that is not finite."""
        what = f"it diverges ({why})"
        return cls(mu, state, Certificate(dt=h), None, None, 1, what, rises=False)

    def factor(self, tolerance: float) -> float:
        """Return the factor by which the controller changes the step."""
        if self.error is None or not self.error < float("inf"):
            return SHRINK
        if self.error == 0:
            return GROW
        wanted = SAFETY * math.pow(tolerance / self.error, 1 / (self.order + 1))
        return min(GROW, max(SHRINK, wanted))


def _common(infos: tuple[Certificate, ...], dt: float, eps: float) -> Certificate:
    """Return the one report, or the combined report of two successive steps."""
    if len(infos) == 1:
        return infos[0]
    verdicts = [converged(info) for info in infos]
    if None in verdicts:
        return Certificate()
    if any(info.guarantee is None for info in infos):
        return Certificate(converged=all(verdicts))
    lengths = [info.w2 for info in infos if info.w2 is not None]
    w2 = sum(lengths) if len(lengths) == len(infos) else None
    return composed(infos, dt=dt, w2=w2, eps=eps)
