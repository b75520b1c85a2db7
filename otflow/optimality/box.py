"""Gaps over all measures on a box."""

from __future__ import annotations

from typing import Any

import torch

from otflow._arrays import as_float_tensor
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.optimality.domains import Domain
from otflow.optimality.gap import Gap, GapKind

__all__ = ["BoxDomain"]


class BoxDomain(Domain):
    """All probability measures on the box with corners `lower` and `upper`.

    Parameters
    ----------
    lower, upper : Tensor or ndarray, shape (d,)
        Corners.

    Attributes
    ----------
    lower, upper
        As above.
    """

    def __init__(self, lower: Any, upper: Any) -> None:
        self.lower = as_float_tensor(lower, "lower").detach()
        self.upper = as_float_tensor(upper, "upper").detach()

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        draws = torch.quasirandom.SobolEngine(mu.dim).draw(256, dtype=mu.dtype)
        places = self.lower + (self.upper - self.lower) * draws.to(self.lower)
        x = torch.cat([mu.points.detach(), places])
        values = F.first_variation(mu, x)
        k = int(values.argmin())
        found = float(mu.weights @ F.first_variation(mu) - values[k])
        return Gap(found, x[k], GapKind.SEARCHED, "F' was evaluated at places", found)
