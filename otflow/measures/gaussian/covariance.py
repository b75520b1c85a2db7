"""Covariances and their factors: checks of the input, and the optimal map of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor, as_points, coordinate_limit
from otflow._bounds import at_least
from otflow._graphs import records
from otflow._typing import ArrayLike
from otflow._validation import check_like
from otflow.errors import NotConverged

__all__ = [
    "check_state",
    "cholesky",
    "optimal_rotation",
    "representable",
    "widened",
]

# Most steps of Newton's iteration for an orthogonal factor, and the change below which
# it converges quadratically.
POLAR_STEPS = 40
CLOSE = 1e-3


def check_state(state: Tensor) -> str | None:
    """Return what is wrong with a mean above a transposed factor, None if nothing."""
    largest = float(torch.linalg.vector_norm(state, ord=torch.inf))
    # With NaN the comparison is False.
    if not largest < coordinate_limit(state.dtype):
        return (
            "mean or covariance left the finite numbers; take a smaller dt, or use "
            "JKO or ExplicitEuler(backtracking=True)"
        )
    s = torch.linalg.svdvals(state[1:])
    least, largest = float(s[-1]), float(s[0])
    if not least > len(s) * torch.finfo(state.dtype).eps * largest:
        return (
            f"the covariance became singular: standard deviations along its axes from "
            f"{least:.3g} to {largest:.3g}; take a smaller dt, or use JKO, whose steps "
            f"keep it regular"
        )
    return None


def representable(state: Tensor) -> Tensor:
    """Return a state after a change of dtype; raise ValueError if it is no longer one.

    A covariance may be singular to the round-off of the coarser dtype.
    """
    as_points(state, "the mean and the factor")
    if check_state(state.detach()) is not None:
        msg = (
            f"the covariance is singular to round-off of {state.dtype}; keep "
            f"torch.float64"
        )
        raise ValueError(msg)
    return state


def optimal_rotation(source: Tensor, target: Tensor) -> Tensor:
    r"""Return the orthogonal O with TL = L'O, T the optimal map; float64.

    T is symmetric, >= 0 and :math:`T\Sigma T = \Sigma'`. O is the orthogonal factor of
    :math:`L'^\top L`, so that no root and no inverse is formed. O is exactly the
    identity if the identity is proved to be as short: :math:`|L' - L| \le |L'O - L|` up
    to the round-off of L and L' in their own dtype.

    Parameters
    ----------
    source, target : Tensor, shape (d, d)
        Factors L and L' of one dtype.

    Returns
    -------
    Tensor, shape (d, d)
        float64: O makes a sum of d squares small, and float32 would lose it.
    """
    # Half of the last digit of every entry.
    slack = 0.5 * torch.finfo(source.dtype).eps
    recorded = records(source, target)
    source, target = source.double(), target.double()
    if recorded:
        # Where the map is optimal by itself the rotation still has a derivative.
        return polar_factor(target.T @ source)
    u, _, vh = torch.linalg.svd(target.T @ source)
    rotation: Tensor = u @ vh
    kept, best = (
        float(torch.linalg.matrix_norm(m - source)) for m in (target, target @ rotation)
    )
    sizes = torch.linalg.matrix_norm(source) + torch.linalg.matrix_norm(target)
    # The rotation has its own round-off, of the product of two (d, d) matrices.
    own = 2 * len(source) ** 0.5 * torch.finfo(torch.float64).eps
    if kept <= best + max(slack, own) * float(sizes):
        return torch.eye(len(source), dtype=torch.float64, device=source.device)
    return rotation


def widened(factor: Tensor, variance: float) -> Tensor:
    r"""Return a factor of :math:`LL^\top + vI`, by the optimal map from :math:`L`.

    That is :math:`(LL^\top + vI)^{1/2} O` with O the orthogonal factor of L.
    """
    if not records(factor):
        u, s, vh = torch.linalg.svd(factor)
        widths = torch.hypot(s, s.new_tensor(math.sqrt(variance)))
        wider: Tensor = (u * widths) @ vh
        return wider
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    root = torch.linalg.cholesky(factor @ factor.T + variance * identity)
    # Of a square root C its orthogonal factor U gives the symmetric one, C U^T.
    turned: Tensor = root @ polar_factor(root).T @ polar_factor(factor)
    return turned


def polar_factor(matrix: Tensor) -> Tensor:
    r"""Return the orthogonal factor of a regular matrix, differentiable to any order.

    Newton's iteration :math:`X \leftarrow \frac12(\gamma X + X^{-\top}/\gamma)` finds
    it. The derivative of a singular value decomposition would divide by differences of
    singular values, which are 0 for the identity.
    """

    def step(x: Tensor, *, scaled: bool) -> Tensor:
        inverse: Tensor = torch.linalg.inv(x).T
        if not scaled:
            return 0.5 * (x + inverse)
        # Every scale leads to the same limit, so it needs no derivative.
        with torch.no_grad():
            norms = torch.linalg.matrix_norm(torch.stack([inverse, x]))
            ratio = (norms[0] / norms[1]).sqrt()
        scaled_mean: Tensor = 0.5 * (ratio * x + inverse / ratio)
        return scaled_mean

    x = matrix
    for _ in range(POLAR_STEPS):
        before, x = x, step(x, scaled=True)
        if float((x - before).detach().abs().max()) <= CLOSE:
            break
    else:
        msg = (
            "the orthogonal factor of a covariance's factor was not found: it is next "
            "to singular; detach the measure, or add a multiple of the identity"
        )
        raise NotConverged(msg)
    # Two steps take the value from 1e-3 to round-off. Two more do so for derivatives,
    # which lag behind.
    for _ in range(4):
        x = step(x, scaled=False)
    return x


def cholesky(covariance: ArrayLike, mean: Tensor) -> Tensor:
    """Return the Cholesky factor of a covariance; raise ValueError if there is none."""
    S = as_float_tensor(covariance, "covariance")
    d = len(mean)
    if S.shape != (d, d):
        cure = "; use torch.diag(covariance)" if S.shape == (d,) else ""
        msg = f"covariance must have shape ({d}, {d}), got {tuple(S.shape)}{cure}"
        raise ValueError(msg)
    check_like(S, mean, "covariance", "mean")
    as_points(S, "covariance")
    eps = torch.finfo(S.dtype).eps
    largest = float(S.detach().abs().max())
    skew = float((S - S.T).detach().abs().max())
    if skew > 16 * d * eps * largest:
        msg = (
            f"covariance must be symmetric, entries differ from their mirror images by "
            f"{skew:.3g}; use 0.5 * (covariance + covariance.T)"
        )
        raise ValueError(msg)
    S = 0.5 * (S + S.T)
    factor, failure = torch.linalg.cholesky_ex(S)
    least = float(torch.linalg.eigvalsh(S.detach())[0])
    if bool(failure) or least <= d * eps * largest:
        lacking = max(-least, 0.0) + 2 * d * eps * largest
        msg = (
            f"covariance must be positive definite, its smallest eigenvalue is "
            f"{least:.3g} and its largest entry {largest:.3g}; add a multiple of the "
            f"identity above {at_least(lacking, 3)}, or drop "
            f"the directions without spread"
        )
        raise ValueError(msg)
    result: Tensor = factor
    return result
