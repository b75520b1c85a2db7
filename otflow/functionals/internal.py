"""Internal energies: functions of the density."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.functionals.base import Functional, Sum
from otflow.measures import Measure

__all__ = ["Entropy"]


class Entropy(Functional):
    r"""Negative differential entropy :math:`F(\mu) = \int \rho \log\rho`.

    It is minimised by spreading out; its gradient flow is the heat equation
    :math:`\partial_t\rho = \Delta\rho` :cite:p:`jordan1998variational`. Displacement
    convex: modulus 0 :cite:p:`mccann1997convexity`. It needs a density; particles have
    none and refuse it, except under `Langevin`, which turns a temperature
    :math:`\tau` into noise of variance :math:`2\tau\,dt`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1)) + 0.1 * of.Entropy()
    >>> F.split_entropy()[0]
    0.1
    """

    def value(self, mu: Measure) -> Tensor:
        r"""Return :math:`\int \log\rho\, d\mu`.

        Raises
        ------
        Unsupported
            If `mu` has no density.
        """
        return mu.internal(torch.log)

    def split_entropy(self) -> tuple[float, Functional]:
        """Return temperature 1 and nothing else."""
        return 1.0, Sum(())

    @property
    def displacement_modulus(self) -> float:
        """Zero: McCann's condition holds for the entropy in every dimension."""
        return 0.0

    def __repr__(self) -> str:
        return "Entropy()"
