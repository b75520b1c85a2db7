"""Composition of schemes: one after the other, each for the whole dt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal.certificate import Certificate
from otflow.schemes.base import Scheme, Step
from otflow.schemes.one_pass import by_one_pass, share_a_pass
from otflow.schemes.reports import converged

__all__ = ["Chain", "chain"]


class Chain(Scheme):
    """Lie splitting: every scheme in turn, each for the same dt.

    Parameters
    ----------
    schemes : tuple of Scheme
        The schemes, in the order in which they act.

    Attributes
    ----------
    schemes
        As above.

    Raises
    ------
    ValueError
        If two of them have an effect in common; see `chain`.

    See Also
    --------
    otflow.chain : The way to make one.

    Notes
    -----
    ``ExplicitEuler()`` directly before `BirthDeath` shares one pass of F with it on
    particles: both read the derivatives of F before the transport. So they act side by
    side, as do subclasses that leave the steps as they are. Every other scheme reads F
    where the scheme before it has ended.

    If the first scheme takes less time than dt, the others take the same time.
    ``info["parts"]`` holds the report of each scheme. ``info["converged"]`` says
    whether all solves of the parts converged; it is None if no part solves. A chain has
    no certificate of its own, only its parts have. The energy is that of the first.

    Examples
    --------
    >>> import otflow as of
    >>> of.chain(of.ExplicitEuler(), of.BirthDeath())
    chain(ExplicitEuler(...), BirthDeath(rate=1.0))
    """

    def __init__(self, schemes: tuple[Scheme, ...]) -> None:
        _check_effects(schemes)
        self.schemes = schemes

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Union of the effects of the schemes."""
        return frozenset().union(*(scheme.effects for scheme in self.schemes))

    def init(self, F: Functional, mu: Measure) -> tuple[Any, ...]:
        return tuple(scheme.init(F, mu) for scheme in self.schemes)

    def state_dict(self, state: Any) -> Any:
        both = zip(self.schemes, state, strict=True)
        return [scheme.state_dict(own) for scheme, own in both]

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> Any:
        both = zip(self.schemes, kept, strict=True)
        return tuple(scheme.load_state(F, mu, own) for scheme, own in both)

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        steps: list[Step[Any]] = []
        while len(steps) < len(self.schemes):
            here = slice(len(steps), len(steps) + 2)
            pair, own = self.schemes[here], state[here]
            if share_a_pass(pair, mu):
                steps += by_one_pass(pair, F, mu, dt, own, generator)
            else:
                steps.append(pair[0].step(F, mu, dt, own[0], generator))
            mu, dt = steps[-1].measure, steps[-1].taken(dt)
        parts = tuple(step.info for step in steps)
        info = Certificate(parts[0].energy_before, dt=dt, entries={"parts": parts})
        info = replace(info, converged=converged(info))
        return Step(mu, tuple(step.state for step in steps), info, steps[0].energy)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return self.schemes[0].energy(F, mu)

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.schemes))})"


def chain(*schemes: Scheme) -> Scheme:
    r"""Compose schemes into one: each acts in turn for the whole dt (Lie splitting).

    ``chain(ExplicitEuler(), BirthDeath())`` is the Wasserstein-Fisher-Rao flow
    :math:`\partial_t\mu = \nabla\cdot(\mu\nabla F') - \alpha\,\mu\,(F' - \bar F')`
    :cite:p:`rotskoff2019global`; on particles both schemes read F at the start of the
    step, in one pass. ``chain(S)`` is S. Order 1 in dt.

    Parameters
    ----------
    *schemes : Scheme
        At least one, in the order they act.

    Returns
    -------
    Scheme
        The composition.

    Raises
    ------
    ValueError
        If no scheme is given, or if two schemes have an effect in common. Two schemes
        that transport would advance the flow of F by 2 dt; so would two that react. A
        scheme of your own states its effects in `Scheme.effects`.
    TypeError
        If an argument is not a scheme, e.g. the class in place of an instance.

    Examples
    --------
    >>> import torch, otflow as of
    >>> scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(rate=5.0))
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0], [2.0]]))
    >>> of.flow(F, mu, scheme, dt=0.1, steps=3).final.weights
    tensor([0.9558, 0.0442])
    """
    if not schemes:
        msg = "chain needs at least one scheme"
        raise ValueError(msg)
    for scheme in schemes:
        cure = "give each as an argument of its own: chain(first, second)"
        check_kind(scheme, Scheme, "an argument of chain", cure=cure)
    return schemes[0] if len(schemes) == 1 else Chain(schemes)


def _check_effects(schemes: tuple[Scheme, ...]) -> None:
    """Raise ValueError for two schemes that advance the same part of the flow."""
    owner: dict[str, Scheme] = {}
    for scheme in schemes:
        for effect in sorted(scheme.effects):
            if effect in owner:
                first, second = type(owner[effect]).__name__, type(scheme).__name__
                msg = (
                    f"{first} and {second} both advance the {effect} of the flow by "
                    f"dt, which would run it twice as far as the time says; keep one "
                    f"of them, or, if {second} is your own and does not follow F, "
                    f"state effects = frozenset() in its class"
                )
                raise ValueError(msg)
            owner[effect] = scheme
