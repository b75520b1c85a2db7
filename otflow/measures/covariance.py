"""Covariances by their factors: checks at the door, and the optimal map of two."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow._validation import as_float_tensor, as_points, check_like, coordinate_limit

__all__ = ["check_state", "cholesky", "optimal_rotation"]


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


def optimal_rotation(source: Tensor, target: Tensor) -> Tensor:
    r"""Return the orthogonal O with TL = L'O, T the optimal map; float64.

    T is symmetric, >= 0 and :math:`T\Sigma T = \Sigma'`; O is the orthogonal factor of
    :math:`L'^\top L`, so that no root and no inverse is formed. It is the identity, to
    the last digit, where that is proved to be as short: :math:`|L' - L| \le
    |L'O - L|` up to the round-off of L and L' in their own dtype.

    Parameters
    ----------
    source, target : Tensor, shape (d, d)
        Factors L and L' of one dtype.

    Returns
    -------
    Tensor, shape (d, d)
        float64: in float32 the sum of d squares that O makes small would be lost.
    """
    # Half of the last digit of every entry.
    slack = 0.5 * torch.finfo(source.dtype).eps
    source, target = source.double(), target.double()
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


def cholesky(covariance: ArrayLike, mean: Tensor) -> Tensor:
    """Return the Cholesky factor of a covariance, or say what is wrong with it."""
    S = as_float_tensor(covariance, "covariance").detach()
    d = len(mean)
    if S.shape != (d, d):
        cure = "; use torch.diag(covariance)" if S.shape == (d,) else ""
        msg = f"covariance must have shape ({d}, {d}), got {tuple(S.shape)}{cure}"
        raise ValueError(msg)
    check_like(S, mean, "covariance", "mean")
    as_points(S, "covariance")
    eps = torch.finfo(S.dtype).eps
    largest = float(S.abs().max())
    skew = float((S - S.T).abs().max())
    if skew > 16 * d * eps * largest:
        msg = (
            f"covariance must be symmetric, entries differ from their mirror images by "
            f"{skew:.3g}; use 0.5 * (covariance + covariance.T)"
        )
        raise ValueError(msg)
    S = 0.5 * (S + S.T)
    factor, failure = torch.linalg.cholesky_ex(S)
    least = float(torch.linalg.eigvalsh(S)[0])
    if bool(failure) or least <= d * eps * largest:
        msg = (
            f"covariance must be positive definite, its smallest eigenvalue is "
            f"{least:.3g} and its largest entry {largest:.3g}; add a multiple of the "
            f"identity above {max(-least, 0.0) + 2 * d * eps * largest:.3g}, or drop "
            f"the directions without spread"
        )
        raise ValueError(msg)
    result: Tensor = factor
    return result
