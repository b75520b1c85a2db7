"""The exact W2 distance between two Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from otflow._arrays import unit_of
from otflow._graphs import records
from otflow._validation import check_like
from otflow.measures import Gaussian
from otflow.measures.gaussian.covariance import optimal_rotation

__all__ = ["between_factors", "between_gaussians"]


def between_gaussians(mu: Gaussian, nu: Gaussian) -> Tensor:
    r"""Return a vector whose length is :math:`W_2` between two Gaussians.

    .. math:: W_2^2 = |m - m'|^2 + \min_O \|L'O - L\|_F^2, \qquad O^\top O = 1.

    This is the Bures distance :cite:p:`bhatia2019bures` as a sum of squares, which
    keeps the digits of the distance between close laws. Time O(d^3), in float64.

    Parameters
    ----------
    mu, nu : Gaussian
        Measures of one dimension and dtype on one device.

    Returns
    -------
    Tensor
        The entries of m' - m and L'O - L, (d + d^2,), float64, differentiable in means
        and factors up to three times.
    """
    check_like(nu.mean, mu.mean, "nu", "mu")
    if mu.dim != nu.dim:
        msg = (
            f"mu lies in dimension {mu.dim} but nu in dimension {nu.dim}; "
            f"a distance needs one space for both"
        )
        raise ValueError(msg)
    apart = between_factors(mu.factor.double(), nu.factor.double())
    return torch.cat([nu.mean.double() - mu.mean.double(), apart.reshape(-1)])


def between_factors(source: Tensor, target: Tensor) -> Tensor:
    """Return L'O - L for factors L and L' of covariances, (d, d), float64."""
    # Products of tiny factors would underflow. The rotation does not depend on units.
    s, t = (factor / unit_of(factor) for factor in (source, target))
    turn = optimal_rotation(s.detach(), t.detach())
    if records(source, target):
        turn = turn @ _turning(turn.T @ t.T @ s)
    apart: Tensor = target @ turn - source
    return apart


def _turning(n: Tensor) -> Tensor:
    r"""Return the rotation R that maximises :math:`\langle R, N\rangle`, to order 2.

    The value of R is 1; its graph carries the derivatives. At the maximum N is
    symmetric, :math:`\succeq 0`, and the derivative in R vanishes, so the derivatives
    of the distance are right up to order 3. Near the maximum :math:`R = e^\Omega` with
    :math:`\Omega N + N\Omega = N - N^\top`, solved in the eigenvectors of N.
    """
    values, vectors = torch.linalg.eigh(0.5 * (n + n.T).detach())
    skew = vectors.T @ (n - n.T) @ vectors
    sums = values[:, None] + values
    # If both eigenvalues are 0, as for laws on a line, so is the entry of skew.
    omega = skew / sums.masked_fill(sums <= 0, 1.0)
    omega = vectors @ (omega - omega.detach()) @ vectors.T
    turning: Tensor = torch.eye(len(n)).to(n) + omega + 0.5 * omega @ omega
    return turning
