"""Resample atoms when birth-death has left few of them with mass."""

from __future__ import annotations

from typing import Any

import torch

from otflow._graphs import refuse_graph
from otflow._validation import positive
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.measures import Measure, Particles
from otflow.schemes.base import Scheme, Step, check_exchangeable

__all__ = ["Resample"]


class Resample(Scheme):
    r"""Draw n equal atoms from :math:`\mu` when its effective size falls too low.

    Systematic resampling copies atom i :math:`\lfloor n w_i\rfloor` or
    :math:`\lceil n w_i\rceil` times, without bias. The step resamples if
    :math:`1/\sum w_i^2 < \mathrm{threshold}\cdot n`; otherwise it returns the measure
    unchanged. ``info["resampled"]`` says which. The scheme takes no time. Chain it
    after `BirthDeath`, and with a scheme that moves the copies apart.

    Parameters
    ----------
    threshold : float
        Fraction of n, in (0, 1].

    Attributes
    ----------
    threshold
        As above.

    Raises
    ------
    Unsupported
        From `step`, if the measure has no atoms, or if its weights carry a graph.

    Examples
    --------
    >>> import torch, otflow as of
    >>> scheme = of.chain(of.ExplicitEuler(), of.BirthDeath(), of.schemes.Resample())
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> mu = of.Particles(torch.linspace(-3, 3, 40)[:, None])
    >>> run = of.flow(F, mu, scheme, dt=0.1, steps=20, generator=0)
    >>> 1 / float(run.final.weights.square().sum()) > 19
    True
    """

    effects: frozenset[str] = frozenset()

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = positive(threshold, "threshold")
        if self.threshold > 1:
            msg = f"threshold is a fraction of n, at most 1; got {threshold}"
            raise ValueError(msg)

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        if not isinstance(mu, Particles):
            msg = (
                f"Resample copies atoms and {type(mu).__name__} has none; "
                f"leave it out of the chain"
            )
            raise Unsupported(msg)
        check_exchangeable(F, self, does="copies atoms")
        refuse_graph(
            "resampling",
            "which atoms are copied has no derivative in their masses",
            mu.weights,
            cure="mu.detach()",
        )
        n = mu.n
        size = 1.0 / float(mu.weights.detach().square().sum())
        if size >= self.threshold * n:
            return Step(mu, state, {"resampled": False})
        # In (0, 1], so that no place selects an atom of weight zero.
        offset = 1.0 - torch.rand(
            1, generator=generator, dtype=mu.dtype, device=mu.device
        )
        places = (torch.arange(n, device=mu.device) + offset) / n
        edges = mu.weights.cumsum(0)
        index = torch.searchsorted(edges / edges[-1], places).clamp_(max=n - 1)
        return Step(Particles(mu.points[index]), state, {"resampled": True})
