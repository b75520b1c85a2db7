"""Annealing: the temperature, or the step length, changes along the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind, positive, true_or_false
from otflow.functionals import Entropy, Functional
from otflow.measures import Measure
from otflow.schemes.base import Scheme, Step, made_by
from otflow.schemes.langevin import split_noise

__all__ = ["Anneal", "Logarithmic"]


@dataclass(frozen=True)
class Logarithmic:
    r"""The schedule :math:`k \mapsto 1/\log(e + k\,dt)` of an `Anneal`.

    With ``F = G + C * Entropy()`` and steps of length dt the temperature at time t is
    :math:`C/\log(e + t)`. Under this schedule mean-field Langevin dynamics lowers G
    itself to its infimum, if C is large enough :cite:p:`chizat2022mean`.

    Parameters
    ----------
    dt : float
        The length of the steps, > 0.

    Attributes
    ----------
    dt
        As above.

    Raises
    ------
    ValueError
        If dt is not positive.

    Examples
    --------
    >>> from otflow.schemes import Logarithmic
    >>> schedule = Logarithmic(dt=0.1)
    >>> schedule(0), round(schedule(1000), 3)
    (1.0, 0.216)
    """

    dt: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "dt", positive(self.dt, "dt"))

    def __call__(self, count: int) -> float:
        """Return the factor at the step of number `count`."""
        return 1.0 / math.log(math.e + count * self.dt)


class Anneal(Scheme):
    r"""Run another scheme at a temperature that changes along the run.

    The step k = 0, 1, ... is one of the inner scheme for

    .. math:: F_k = G + f(k)\,\tau\,\mathrm{Entropy}, \qquad F = G +
        \tau\,\mathrm{Entropy},

    with the factor f, of the entropies of all parts in a measure of parts. With
    ``lengths=True`` it is a step for F of length :math:`\min(dt, f(k)\,dt_{\max})`
    instead, with the longest dt so far: that is :math:`f(k)\,dt`, or what is left until
    the end of the flow. Both at once are an `Anneal` of an `Anneal`.

    Parameters
    ----------
    scheme : Scheme
        The scheme that steps.
    factor : float or callable
        A function of the number of the step, :math:`f(k) \ge 0`, such as
        `Logarithmic`; or a number q in (0, 1], which means :math:`f(k) = q^k`.
    lengths : bool
        Whether the factor multiplies dt, and not the temperature. Then it must be
        positive, and one above 1 counts as 1. The time of the flow is the sum of the
        shorter steps.

    Attributes
    ----------
    scheme, factor, lengths
        As above.

    Raises
    ------
    ValueError
        If the number is not in (0, 1]; from `init`, if F holds no entropy to anneal;
        from `step`, if the factor is negative, or zero for lengths.
    TypeError
        If `scheme` is no scheme, or the factor is neither a number nor a function.

    Notes
    -----
    The recorded energy is that of F, at the temperature of the beginning, and takes one
    value of F for each record. For `Langevin` it is G. ``info["annealed"]`` is the
    factor of the temperature, ``info["length_factor"]`` that of dt. The state holds the
    number of the step, so that a resumed run goes on where the schedule was.

    Examples
    --------
    >>> import torch, otflow as of
    >>> V = lambda x: 0.5 * x.square().sum(-1)
    >>> F = of.Potential(V) + 1.0 * of.Entropy()
    >>> mu = of.Particles(torch.zeros(1000, 1))
    >>> scheme = of.schemes.Anneal(of.Langevin(), 0.97)
    >>> run = of.flow(F, mu, scheme, dt=0.1, steps=200, generator=0)
    >>> run.info[0]["temperature"], round(run.info[-1]["temperature"], 5)
    (1.0, 0.00233)
    >>> bool(run.final.points.var() < 0.02)
    True
    """

    def __init__(
        self,
        scheme: Scheme,
        factor: float | Callable[[int], float],
        *,
        lengths: bool = False,
    ) -> None:
        check_kind(scheme, Scheme, "scheme")
        if not callable(factor):
            factor = positive(factor, "factor")
            if factor > 1:
                msg = (
                    f"a number q as the factor means q ** k and must lie in (0, 1], "
                    f"got {factor:g}; give a function of k if it is to grow, e.g. "
                    f"lambda k: {factor:g}"
                )
                raise ValueError(msg)
        self.scheme, self.factor = scheme, factor
        self.lengths = true_or_false(lengths, "lengths")

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the inner scheme."""
        return self.scheme.order

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Effects of the inner scheme."""
        return self.scheme.effects

    def init(self, F: Functional, mu: Measure) -> Any:
        temperature, noise, _ = split_noise(F)
        if not self.lengths and not temperature and not noise:
            msg = (
                "F holds no entropy, so there is no temperature to anneal; add "
                "temperature * Entropy(), or anneal dt by lengths=True"
            )
            raise ValueError(msg)
        return 0, 0.0, self.scheme.init(F, mu)

    def state_dict(self, state: Any) -> Any:
        return [*state[:2], self.scheme.state_dict(state[2])]

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> Any:
        return (*kept[:2], self.scheme.load_state(F, mu, kept[2]))

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        count, longest, inner = state
        longest = max(longest, dt)
        factor = self.factor(count) if callable(self.factor) else self.factor**count
        factor = positive(factor, "factor", or_zero=not self.lengths)
        if self.lengths:
            # The last step of a flow is what is left: a share of it would never end.
            dt = min(dt, factor * longest)
            step = made_by(self.scheme, self.scheme.step(F, mu, dt, inner, generator))
            info = replace(step.info, dt=step.taken(dt)).also(length_factor=factor)
            return Step(
                step.measure, (count + 1, longest, step.state), info, step.energy
            )
        temperature, noise, rest = split_noise(F)
        heat = [*([(temperature, Entropy())] if temperature else []), *noise]
        if factor:  # entropies of parts keep the ratio of their temperatures
            rest = sum((factor * c * entropy for c, entropy in heat), rest)
        step = made_by(self.scheme, self.scheme.step(rest, mu, dt, inner, generator))
        info = step.info.also(annealed=factor)
        return Step(step.measure, (count + 1, longest, step.state), info)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return self.scheme.energy(F, mu)

    def __repr__(self) -> str:
        factor = self.factor
        named = isinstance(factor, (float, Logarithmic))
        name = getattr(factor, "__name__", None) or type(factor).__name__
        name = repr(factor) if named else name
        lengths = ", lengths=True" if self.lengths else ""
        return f"Anneal({self.scheme!r}, {name}{lengths})"
