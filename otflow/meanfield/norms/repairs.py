r"""Neurons that make up for the round-off of a network at data, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow.errors import NotConverged
from otflow.meanfield.kinks import EPS
from otflow.meanfield.norms.twofold import relu_residual, two_sum

__all__ = ["Repair", "refined"]

# Steps of refinement, each of which gains the digits that the features leave.
STEPS = 3


@dataclass(frozen=True, eq=False)
class Repair:
    r"""What neurons cost that have given small outputs at data.

    Parameters
    ----------
    features : Tensor, shape (n, K)
        Features of K neurons of norm 1, K at least n.
    axes, triangle : Tensor, shapes (K, n) and (n, n)
        The factors of their transpose.
    least : float
        The least singular value of the features, from below.
    terms : int
        Number of products in a feature.
    """

    features: Tensor
    axes: Tensor
    triangle: Tensor
    least: float
    terms: int

    @classmethod
    def of(cls, z: Tensor, atoms: Tensor) -> Repair:
        """Return the repair by given neurons; raise if they do not span all outputs."""
        features = (z @ atoms.T).clamp_min(0)
        axes, triangle = torch.linalg.qr(features.T)
        values = torch.linalg.svdvals(triangle)
        noise = 8 * EPS * max(features.shape) * float(values[0])
        least = float(values[-1]) - noise
        if features.shape[1] < len(features) or least <= 0:
            i, j, apart = nearest(z)
            msg = (
                f"the features of {len(z)} data have no full rank in float64: data "
                f"{i} and {j} are {apart:.3g} apart; leave one of them out"
            )
            raise NotConverged(msg, info={"least singular value": float(values[-1])})
        return cls(features, axes, triangle, least, z.shape[1])

    def cost(self, outputs: Tensor, error: float) -> float:
        r"""Return a bound of the cost of neurons with given outputs at the data.

        Features of the least singular value s reach any r by coefficients c of
        :math:`|c|_1 \le \sqrt K\,|c|_2 \le \sqrt K\,|r|_2/s`. That bounds what the
        shortest such c leaves, in float64.

        Parameters
        ----------
        outputs : Tensor, shape (n,)
            The outputs.
        error : float
            A bound of their Euclidean distance from the true ones.
        """
        n, columns = self.features.shape
        move = torch.linalg.solve_triangular(
            self.triangle.T, outputs[:, None], upper=False
        )
        c = (self.axes @ move)[:, 0]
        size = float(c.abs().sum())
        noise = (columns + self.terms + 8) * EPS * size * math.sqrt(n)
        left = float((outputs - self.features @ c).norm()) + noise + error
        return (size + math.sqrt(columns) * left / self.least) * (
            1 + (columns + self.terms + 8) * EPS
        )


def refined(
    z: Tensor, atoms: Tensor, c: Tensor, f: Tensor, repair: Repair
) -> tuple[Tensor, float]:
    """Return better coefficients of neurons through (z, f), and a bound of the cost.

    The bound is that of a measure whose outputs are f exactly: of the same neurons, and
    of others that repair the outputs.
    """
    features = (z @ atoms.T).clamp_min(0)
    rest = torch.zeros_like(c)
    best: tuple[float, Tensor] | None = None
    for _ in range(STEPS):
        outputs, error = relu_residual(z, atoms, c, rest, f)
        cost = float(c.abs().sum()) + float(rest.abs().sum())
        cost = cost * (1 + (len(c) + z.shape[1] + 8) * EPS) + repair.cost(
            outputs, error
        )
        if best is None or cost < best[0]:
            best = cost, c
        move = torch.linalg.lstsq(features, outputs[:, None], driver="gelsd")
        c, lost = two_sum(c, move.solution[:, 0])
        rest = rest + lost
    assert best is not None
    return best[1], best[0]


def nearest(z: Tensor) -> tuple[int, int, float]:
    """Return the indices of the two nearest rows, and their distance."""
    far = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    far.fill_diagonal_(math.inf)
    k = int(far.argmin())
    i, j = sorted(divmod(k, len(z)))
    return i, j, float(far.flatten()[k])
