"""Stochastic steps: resample the functional, then step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otflow._validation import check_kind
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.schemes.base import Scheme, Step

__all__ = ["Minibatch"]


class Minibatch(Scheme):
    """Run another scheme on a fresh draw ``F.resample(generator)`` at every step.

    With `meanfield.Risk` and a batch size this is stochastic gradient descent. The
    flow records the energy of the full F, at the cost of one value of F for each
    record. ``info["batch_energy"]`` is the energy of the draw, before the step,
    and ``info["batch_gap"]`` its gap, if the scheme tells one.

    Parameters
    ----------
    scheme : Scheme
        The scheme that steps on each draw.

    Attributes
    ----------
    scheme
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 64)[:, None]
    >>> risk = of.meanfield.Risk(
    ...     of.meanfield.TwoLayer("tanh"), X, X[:, 0], batch_size=8
    ... )
    >>> mu = of.Particles(
    ...     torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    ... )
    >>> scheme = of.schemes.Minibatch(of.ExplicitEuler())
    >>> run = of.flow(risk, mu, scheme, dt=0.1, steps=50, every=50, generator=0)
    >>> bool(run.records["energy"][-1] < run.records["energy"][0])
    True
    """

    def __init__(self, scheme: Scheme) -> None:
        check_kind(scheme, Scheme, "scheme")
        self.scheme = scheme

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the inner scheme, in expectation."""
        return self.scheme.order

    @property
    def effects(self) -> frozenset[str]:  # type: ignore[override]
        """Effects of the inner scheme."""
        return self.scheme.effects

    def init(self, F: Functional, mu: Measure) -> Any:
        return self.scheme.init(F, mu)

    def state_dict(self, state: Any) -> Any:
        return self.scheme.state_dict(state)

    def load_state(self, F: Functional, mu: Measure, kept: Any) -> Any:
        return self.scheme.load_state(F, mu, kept)

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        step = self.scheme.step(F.resample(generator), mu, dt, state, generator)
        info = step.info
        if info.energy_before is not None:
            info = info.also(batch_energy=info.energy_before)
        if "gap" in info.entries:
            info = info.also(batch_gap=info.entries["gap"])
        return Step(step.measure, step.state, info)

    def energy(self, F: Functional, mu: Measure) -> Tensor:
        return self.scheme.energy(F, mu)
