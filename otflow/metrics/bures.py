"""The exact W2 distance between two Gaussians."""

from __future__ import annotations

from torch import Tensor

from otflow._validation import check_like
from otflow.measures import Gaussian
from otflow.measures.covariance import optimal_rotation

__all__ = ["between_gaussians"]


def between_gaussians(mu: Gaussian, nu: Gaussian) -> Tensor:
    r"""Return :math:`W_2^2 = |m - m'|^2 + \min_O \|L'O - L\|_F^2`, O orthogonal.

    The distance of Bures :cite:p:`bhatia2019bures`, as a sum of squares: close laws
    keep their digits. Time O(d^3); the work is done in float64.

    Parameters
    ----------
    mu, nu : Gaussian
        Measures of one dimension and dtype on one device.

    Returns
    -------
    Tensor
        0-d, float64, differentiable in means and factors; second derivatives are those
        at a fixed map.
    """
    check_like(nu.mean, mu.mean, "nu", "mu")
    if mu.dim != nu.dim:
        msg = (
            f"mu lies in dimension {mu.dim} but nu in dimension {nu.dim}; "
            f"a distance needs one space for both"
        )
        raise ValueError(msg)
    source, target = mu.factor.double(), nu.factor.double()
    # At the minimum the derivative in O vanishes: it may be held fixed.
    turn = optimal_rotation(source.detach(), target.detach())
    apart = target @ turn - source
    return (nu.mean.double() - mu.mean.double()).square().sum() + apart.square().sum()
