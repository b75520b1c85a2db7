"""Gaps over all measures on a box."""

from __future__ import annotations

from typing import Any

import torch

from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.optimality.domains import Domain
from otflow.optimality.gap import Gap, GapKind

__all__ = ["BoxDomain"]


class BoxDomain(Domain):
    """All probability measures on the box with corners `lower` and `upper`.

    Parameters
    ----------
    lower, upper : float, sequence of float, Tensor or ndarray
        Corners: one number per axis, or one number for all axes.

    Attributes
    ----------
    lower, upper : tuple of float
        Corners; one number stands for all axes.

    Examples
    --------
    >>> import otflow as of
    >>> of.optimality.BoxDomain(0, [1, 2]).upper
    (1.0, 2.0)
    """

    def __init__(self, lower: Any, upper: Any) -> None:
        self.lower, self.upper = _corner(lower), _corner(upper)

    def gap(self, F: Functional, mu: Measure, descend: int) -> Gap:
        engine = torch.quasirandom.SobolEngine(mu.dim)  # type: ignore[no-untyped-call]
        draws = engine.draw(256, dtype=mu.dtype).to(mu.points)
        low = mu.points.new_tensor(self.lower).expand(mu.dim)
        high = mu.points.new_tensor(self.upper).expand(mu.dim)
        x = torch.cat([mu.points.detach(), low + (high - low) * draws])
        values = F.first_variation(mu, x)
        k = int(values.argmin())
        found = float(mu.weights @ F.first_variation(mu) - values[k])
        return Gap(found, x[k], GapKind.SEARCHED, "F' was evaluated at places", found)


def _corner(corner: Any) -> tuple[float, ...]:
    numbers = torch.as_tensor(corner, dtype=torch.float64).reshape(-1)
    return tuple(numbers.tolist())
