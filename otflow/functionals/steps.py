"""The relative entropy to a density on the line that is constant between quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._algebra import Curvature
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

    def mixture_curvature(self) -> Curvature:
        return Curvature.LINEAR

    def why_mixture(self) -> str:
        return "as every integral of a function"

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
        # Ends that meet an edge of the target lie on one side of it and on the other.
        within, across = (
            _means_of_steps(left, right, edges, V, ties=ties) for ties in (False, True)
        )
        return 0.5 * (within + across)

    def __repr__(self) -> str:
        return f"CrossEntropy({self.target!r})"


def _means_of_steps(
    left: Tensor, right: Tensor, edges: Tensor, V: Tensor, *, ties: bool
) -> Tensor:
    """Return the means over intervals of what is constant between edges, (n,).

    It is the first value, and each jump times the share of the interval behind it: a
    short interval loses no digits, as it would to a difference of integrals. With
    `ties`, an end that meets an edge lies outside of the cell of its interval.
    """
    places, last = edges.detach(), len(V) - 1
    start, end = (
        (torch.searchsorted(places, z.detach().contiguous(), right=side) - 1)
        for z, side in ((left, not ties), (right, ties))
    )
    start, end = start.clamp(0, last), end.clamp(0, last)
    count = (end - start).clamp_min(0)
    row = torch.arange(len(left), device=left.device).repeat_interleave(count)
    rank = torch.arange(len(row), device=left.device) - (count.cumsum(0) - count)[row]
    edge = start[row] + 1 + rank
    share = (right[row] - edges[edge]) / (right - left)[row]
    return V[start].index_add(0, row, (V[edge] - V[edge - 1]) * share)
