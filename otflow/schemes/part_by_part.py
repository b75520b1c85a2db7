"""A scheme for each part of a measure, with the other parts frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind, true_or_false
from otflow.errors import Diverged
from otflow.functionals import Functional
from otflow.functionals.of_part import in_part, parts_of, terms_by_part
from otflow.measures import Measure, Parts
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step, made_by
from otflow.schemes.reports import converged

__all__ = ["PartByPart"]


class PartByPart(Scheme):
    r"""Step each part of a measure by a scheme of its own, with the others frozen.

    .. math:: \mu_k^{n+1} = S_k\bigl(F(\mu_1, \dots, \cdot, \dots, \mu_K),\;
        \mu_k^n,\; dt\bigr)

    All parts step from the old measure (as the Jacobi iteration does), or in turn, each
    from where those before it have come (Gauss-Seidel), in the order of `schemes`.
    Either way the scheme is of order 1 in dt. A part without a scheme stays where it
    is.

    A term `~otflow.functionals.OfPart` is one of its part alone: there it keeps its
    closed forms and its convexity. So `Langevin` takes the entropy of each part, with
    its own temperature, for noise.

    Parameters
    ----------
    schemes : mapping of str or int to Scheme, or Scheme
        The scheme of each part, by name or number; or one scheme that steps all parts,
        with a state for each.
    in_turn : bool
        Whether each part sees those before it where they have come.

    Attributes
    ----------
    schemes, in_turn
        As above.

    Raises
    ------
    ValueError
        If no scheme is given; from `init`, if two schemes are those of one part.
    TypeError
        If a scheme is none, e.g. the class in place of an instance; from `init`, if the
        measure is not made of parts.
    KeyError, IndexError
        From `init`, if the measure has no such part.
    Diverged
        From `step`, if a part diverges; the error names the part, and carries all.

    See Also
    --------
    otflow.ExplicitEuler : Steps all parts together, by one pass of F.
    otflow.JKO : Solves for all parts together.

    Notes
    -----
    ``info["parts"]`` holds the report of each part, with its name as ``part``. Its
    energies are F without the terms of other parts alone. In turn, proximal steps lower
    F whatever dt is; from the old measure each of them lowers F for frozen others, and
    all together may raise it.

    A part that takes less time than dt, as a step with backtracking does, lags behind
    the others. ``info["dt"]`` is the longest time that a part has taken.

    Cost: that of the schemes, each with derivatives in its own part alone.

    Examples
    --------
    >>> import torch, otflow as of
    >>> class Apart(of.Functional):  # the means should differ by 1
    ...     def value(self, mu):
    ...         means = [part.expectation(lambda x: x[:, 0]) for part in mu.parts]
    ...         return 0.5 * (means[0] - means[1] - 1).square()
    >>> left, right = (of.Particles(torch.zeros(3, 1)) for _ in range(2))
    >>> mu = of.measures.Parts({"left": left, "right": right})
    >>> scheme = of.schemes.PartByPart({"left": of.JKO(), "right": of.ExplicitEuler()})
    >>> run = of.flow(Apart(), mu, scheme, dt=0.5, steps=40)
    >>> run.final["left"].points[0] - run.final["right"].points[0]
    tensor([1.])
    """

    def __init__(
        self,
        schemes: Mapping[str | int, Scheme] | Scheme,
        *,
        in_turn: bool = False,
    ) -> None:
        each = schemes if isinstance(schemes, Scheme) else _checked(schemes)
        self.schemes: Mapping[str | int, Scheme] | Scheme = each
        self.in_turn = true_or_false(in_turn, "in_turn")

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Union of the effects of the schemes."""
        return frozenset().union(*(scheme.effects for scheme in self._given()))

    def _given(self) -> list[Scheme]:
        if isinstance(self.schemes, Scheme):
            return [self.schemes]
        return list(self.schemes.values())

    def _each(self, mu: Parts) -> list[tuple[int, Scheme]]:
        """Return the numbers of the parts that step, in turn, with their schemes."""
        if isinstance(self.schemes, Scheme):
            return [(k, self.schemes) for k in range(len(mu.parts))]
        found: dict[int, Scheme] = {}
        for key, scheme in self.schemes.items():
            k = mu.index(key)
            if k in found:
                msg = (
                    f"the part {mu.names[k]!r} has two schemes; give it one, or "
                    f"chain(first, second)"
                )
                raise ValueError(msg)
            found[k] = scheme
        return list(found.items())

    def init(self, F: Functional, mu: Measure) -> tuple[Any, ...]:
        mu = parts_of(mu)
        return tuple(
            scheme.init(in_part(F, mu, k), mu[k]) for k, scheme in self._each(mu)
        )

    def state_dict(self, state: Any) -> Any:
        schemes = self._given()
        if isinstance(self.schemes, Scheme):
            schemes = schemes * len(state)
        both = zip(schemes, state, strict=True)
        return [scheme.state_dict(own) for scheme, own in both]

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> Any:
        mu = parts_of(mu)
        return tuple(
            scheme.load_state(in_part(F, mu, k), mu[k], own)
            for (k, scheme), own in zip(self._each(mu), kept, strict=True)
        )

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        start = parts_of(mu)
        moved, steps, reports = start, [], []
        for (k, scheme), own in zip(self._each(start), state, strict=True):
            seen = moved if self.in_turn else start
            try:
                answer = scheme.step(in_part(F, seen, k), start[k], dt, own, generator)
            except Diverged as error:
                msg = f"part {start.names[k]!r}: {error.args[0]}"
                raise Diverged(msg, measure=start) from error
            step = made_by(scheme, answer)
            moved = moved.with_part(k, step.measure)
            steps.append(step)
            reports.append(step.info.also(part=start.names[k]))
        taken = max(step.taken(dt) for step in steps)
        info = Certificate(dt=taken, entries={"parts": tuple(reports)})
        info = replace(info, converged=converged(info))
        return Step(moved, tuple(step.state for step in steps), info)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        mu, schemes = parts_of(mu), dict(self._each(parts_of(mu)))
        total = mu.zeros()
        for k, own in terms_by_part(F, mu).items():
            if k is None:
                total = total + own.value(mu)
            elif k in schemes:
                total = total + schemes[k].energy(own, mu[k])
            else:
                total = total + own.value(mu[k])
        return total

    def __repr__(self) -> str:
        turn = ", in_turn=True" if self.in_turn else ""
        return f"{type(self).__name__}({self.schemes!r}{turn})"


def _checked(schemes: Any) -> Mapping[str | int, Scheme]:
    cure = "give one to each part, e.g. {'outer': JKO(), 'inner': ExplicitEuler()}"
    check_kind(schemes, Mapping, "schemes", cure=cure)
    if not schemes:
        msg = f"schemes is empty, so that nothing would step; {cure}"
        raise ValueError(msg)
    for key, scheme in schemes.items():
        check_kind(scheme, Scheme, f"the scheme of the part {key!r}")
    return dict(schemes)
