"""The relative entropy to a density on the line that is constant between quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow.errors import NonFinite, Unsupported
from otflow.functionals.base import Functional
from otflow.functionals.targets import check_space
from otflow.measures import GridDensity, Measure, Quantiles

__all__ = ["CrossEntropy"]


class CrossEntropy(Functional):
    r"""The integral :math:`-\int \log\nu\, d\mu` of two step densities, exact.

    Both densities are constant on cells, so the integral is a sum over the common
    cells. It has a kink where an edge of the measure meets an edge of the target; there
    the slope counts as the mean of those on both sides.

    Parameters
    ----------
    target : Quantiles
        The density nu.

    Raises
    ------
    Unsupported
        If the measure is no density on the line that is constant on cells.
    NonFinite
        If a cell of the measure reaches beyond the target.

    Notes
    -----
    Time O((n + m) log m), in float64.
    """

    def __init__(self, target: Quantiles) -> None:
        self.target = target

    def value(self, mu: Measure) -> Tensor:
        left, right, masses = self._cells(mu)
        return masses @ self._means(left, right).to(masses)

    def _cells(self, mu: Measure) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ends of the cells, float64, and their masses."""
        if isinstance(mu, Quantiles):
            check_space(mu, self.target)
            q = mu.edges.double()
            return q[:-1], q[1:], mu.weights
        if isinstance(mu, GridDensity):
            check_space(mu, self.target)
            h = mu.box.spacing[0]
            at = torch.arange(mu.n, dtype=torch.float64, device=mu.weights.device)
            left = (mu.box.lower[0] + h * at)[mu.is_free]
            return left, left + h, mu.weights[mu.is_free]
        msg = (
            f"the target is constant on cells, and the relative entropy to it is one "
            f"of Quantiles or of a GridDensity on the line, not of a "
            f"{type(mu).__name__}; give a smooth target, as "
            f"KL(Gaussian.from_samples(nu.sample(1000, generator)))"
        )
        raise Unsupported(msg)

    def _means(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the means of -log nu over intervals, (n,)."""
        edges, masses = self.target.edges.double(), self.target.weights.double()
        gaps = edges.diff()
        V = (gaps / masses).log()
        low, high = float(left.detach().min()), float(right.detach().max())
        start, end = float(edges[0].detach()), float(edges[-1].detach())
        eps = torch.finfo(self.target.dtype).eps
        slack = 4.0 * eps * max(abs(start), abs(end))
        if low < start - slack or high > end + slack:
            msg = (
                f"the measure reaches from {low:.6g} to {high:.6g}, beyond the target, "
                f"which lies between {start:.6g} and {end:.6g}, so the relative "
                f"entropy is infinite; give a target that is positive everywhere, as "
                f"KL(Gaussian.from_samples(nu.sample(1000, generator))), or use "
                f"SquaredDistanceTo(nu)"
            )
            raise NonFinite(msg)
        first = torch.nn.functional.pad((V * gaps).cumsum(0), (1, 0))
        ends = [_primitive(q, edges, first, V) for q in (left, right)]
        return (ends[1] - ends[0]) / (right - left)

    def __repr__(self) -> str:
        return f"CrossEntropy({self.target!r})"


def _primitive(q: Tensor, edges: Tensor, first: Tensor, V: Tensor) -> Tensor:
    """Return the integral of V from the first edge to places q.

    V is constant on cells, and `first` holds the integrals up to the edges.
    """
    places, at = edges.detach(), q.detach().contiguous()
    total = torch.zeros_like(q)
    for right in (False, True):
        cell = torch.searchsorted(places, at, right=right) - 1
        cell = cell.clamp(0, len(V) - 1)
        total = total + 0.5 * (first[cell] + V[cell] * (q - edges[cell]))
    return total
