"""Birth-death dynamics: reaction in the masses, no transport."""

from __future__ import annotations

from typing import Any

import torch

from otflow._validation import positive
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.schemes.base import Scheme, Step

__all__ = ["BirthDeath"]


class BirthDeath(Scheme):
    r"""Birth-death on the weights, :math:`\dot w_i = -\alpha w_i (F'(x_i) - \bar F')`.

    .. math:: w_i \leftarrow \frac{w_i\, e^{-\alpha\,dt\,F'[\mu](x_i)}}
        {\sum_j w_j\, e^{-\alpha\,dt\,F'[\mu](x_j)}}

    Atoms of high first variation lose mass to atoms of low first variation
    :cite:p:`rotskoff2019global`. The equation is the Fisher-Rao gradient flow of F at
    speed :math:`\alpha`. A chain with a transport scheme is the Wasserstein-Fisher-Rao
    flow, along which :math:`\frac{dF}{dt} =
    -\int|\nabla F'|^2 d\mu - \alpha\,\mathrm{Var}_\mu F'`. Birth-death alone keeps the
    support, and its mass concentrates on few atoms. ``info["effective_size"]``
    :math:`= 1/\sum_i w_i^2` shows it; a chain with transport or `Resample` prevents it.

    Parameters
    ----------
    rate : float
        Speed :math:`\alpha > 0` of the reaction, per unit of time.

    Attributes
    ----------
    rate
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[0.0], [1.0]]))
    >>> run = of.flow(F, mu, of.BirthDeath(rate=2.0), dt=0.5, steps=10)
    >>> bool(run.final.weights[0] > 0.99)
    True
    """

    effects = frozenset({"reaction"})

    def __init__(self, rate: float = 1.0) -> None:
        self.rate = positive(rate, "rate")

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step[Any]:
        moved = mu.reweight(-self.rate * F.first_variation(mu), dt)
        size = 1.0 / float(moved.weights.detach().square().sum())
        return Step(moved, state, {"effective_size": size})
