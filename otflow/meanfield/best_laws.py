"""The law of features whose kernel has the least norm: Barron norms by kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from otflow._typing import ArrayLike
from otflow._validation import check_kind, check_option, non_negative_int, positive
from otflow.meanfield.feature_kernels import (
    KernelNorm,
    feature_law,
    features_at,
    rkhs_norm,
)
from otflow.meanfield.kinks import EPS
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.path_balls import path_norm
from otflow.meanfield.residuals import NORMS, check_network, kinks_of
from otflow.measures import Particles
from otflow.metrics import Bracket

__all__ = ["BestLaw", "best_law"]


@dataclass(frozen=True, eq=False)
class BestLaw:
    r"""A law of directions with nearly the least norm of its kernel.

    Parameters
    ----------
    law : Particles
        The law of the inner weights, that of the least of the norms.
    kernel : KernelNorm
        The norm for this law, and the network that attains it.
    bracket : Bracket
        Bounds of the least norm over all laws of the given directions.
    norms : tuple of float
        The norms of the laws on the way. They do not increase but for the round-off of
        the decomposition, which data that nearly coincide make large.
    converged : bool
        Whether the norm is as close to the lower bound as was asked for.

    Attributes
    ----------
    law, kernel, bracket, norms, converged
        As above.

    See Also
    --------
    best_law : Finds it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> X = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    >>> rho = of.Particles(of.meanfield.extreme_rays(X))
    >>> best = of.meanfield.best_law(network, rho, X, X[:, 0] ** 2)
    >>> round(best.kernel.value, 4), best.converged
    (2.75, True)
    """

    law: Particles
    kernel: KernelNorm
    bracket: Bracket
    norms: tuple[float, ...]
    converged: bool

    def __repr__(self) -> str:
        low, high = self.bracket.lower, self.bracket.upper
        verb = "converged" if self.converged else "stopped"
        return (
            f"BestLaw(norm in [{low:.4g}, {high:.4g}], {verb} after "
            f"{len(self.norms)} laws)"
        )


def best_law(
    network: TwoLayer,
    rho: Particles,
    X: ArrayLike,
    f: ArrayLike,
    *,
    norm: str = "l1",
    tolerance: float = 1e-6,
    steps: int = 200,
) -> BestLaw:
    r"""Return the law of given directions whose kernel gives values the least norm.

    Barron space is the union of the spaces :math:`H_\rho`, and :math:`|f|_B =
    \inf_\rho |f|_{H_\rho}` :cite:p:`e2022barron`. Over the laws of given directions
    :math:`v_i` of norm 1

    .. math:: \min_\rho \min_c \Bigl\{\sum_i \frac{c_i^2}{\rho_i} :
        \sum_i c_i\,\varphi(v_i\cdot(x_k, 1)) = f_k\Bigr\}
        = \min_c \Bigl(\sum_i |c_i|\Bigr)^2,

    the square of the least path norm. The left-hand side is convex in both, and is
    minimised in turn: over c it is `rkhs_norm`, over the law :math:`\rho_i =
    |c_i|/\sum|c|`, which is `feature_law` :cite:p:`bach2012optimization`. The norm does
    not increase.

    Parameters
    ----------
    network : TwoLayer
        A homogeneous unit, of one output, in the scaling "mean-field".
    rho : Particles
        The law at the start, of inner weights (w, b). Its directions are the given
        ones, those with mass alone. With `extreme_rays` of the data the norm "l1" is
        that over all directions.
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    f : Tensor or ndarray, shape (n,)
        Values at the inputs.
    norm : str
        "l1" or "l2", of inner weights.
    tolerance : float
        Share by which the norm may exceed the lower bound.
    steps : int
        Most laws to try.

    Returns
    -------
    BestLaw
        The law, and a bracket of the least norm. The upper end is the path norm of the
        network found, which has the values up to ``kernel.residual``. The lower one is
        that of the dual problem, less its round-off: with the coefficients
        :math:`\lambda` of the kernel, :math:`\lambda\cdot f / \max_i|\sum_k
        \lambda_k\varphi(v_i\cdot(x_k, 1))|`. Data that nearly coincide make it
        inexact, and the bracket wider.

    Raises
    ------
    ValueError
        If no features of the law interpolate the values, or no direction is left.
    Unsupported
        If the unit is not homogeneous, there are several outputs, or a tensor carries a
        graph.

    See Also
    --------
    rkhs_norm : The norm for one law.

    Notes
    -----
    Each law costs one singular value decomposition, see `rkhs_norm`. A direction whose
    mass has become 0 stays without mass; the lower bound knows it nevertheless.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> X = torch.linspace(0, 1, 41, dtype=torch.float64)[:, None]
    >>> rho = of.Particles(of.meanfield.extreme_rays(X))
    >>> best = of.meanfield.best_law(network, rho, X, (6 * X[:, 0]).sin())
    >>> [round(value, 3) for value in best.norms[:3]], round(best.kernel.value, 3)
    ([44.444, 36.861, 35.895], 35.71)
    """
    check_network(network, homogeneous=True)
    check_kind(rho, Particles, "rho")
    check_option(norm, "norm", NORMS)
    width = positive(tolerance, "tolerance")
    most = non_negative_int(steps, "steps", minimum=1)
    law = _directions(rho, norm)
    kernel = rkhs_norm(network, law, X, f)
    dual = _Dual(network, law, X, f)
    lower = dual.bound(kernel)
    norms, best = [kernel.value], (law, kernel)
    while len(norms) < most and kernel.value - lower > width * kernel.value:
        law = feature_law(network, kernel.measure, norm)
        kernel = rkhs_norm(network, law, X, f)
        lower = max(lower, dual.bound(kernel))
        norms.append(kernel.value)
        if kernel.value < best[1].value:
            best = law, kernel
    law, kernel = best
    upper = min(kernel.value, float(path_norm(network, kernel.measure, norm)))
    converged = kernel.value - lower <= width * kernel.value
    return BestLaw(
        law, kernel, Bracket(min(lower, upper), upper), tuple(norms), converged
    )


class _Dual:
    """The lower bound of the path norm over given directions, for any coefficients."""

    def __init__(
        self, network: TwoLayer, law: Particles, X: ArrayLike, f: ArrayLike
    ) -> None:
        self.phi = features_at(network, law, X, dtype=torch.float64)
        values = torch.as_tensor(f).double()
        shift = network.add_offset(torch.zeros_like(values))
        self.values = values - shift
        # Round-off is a share of these sums, in which nothing cancels.
        self.heights = values.abs() + shift.abs()
        z = network.encode(torch.as_tensor(X).double())
        steep = sum(map(abs, kinks_of(network)))
        self.sizes = steep * (z.abs() @ law.points.double().abs().T)
        self.terms = (len(z) + z.shape[1] + 8) * EPS

    def bound(self, kernel: KernelNorm) -> float:
        """Return the bound by the coefficients of a kernel."""
        dual = kernel.dual.double()
        dual = dual / dual.abs().max().clamp_min(torch.finfo(dual.dtype).tiny)
        share = dual.abs()
        heights = (dual @ self.phi).abs() + self.terms * (share @ self.sizes)
        value = float(dual @ self.values - self.terms * (share @ self.heights))
        tallest = float(heights.max())
        return value / tallest if tallest > 0 and value > 0 else 0.0


def _directions(rho: Particles, norm: str) -> Particles:
    """Return the law of the same directions, of norm 1."""
    order = 1 if norm == "l1" else 2
    lengths = torch.linalg.vector_norm(rho.points, order, dim=1)
    kept = (lengths > 0) & (rho.weights > 0)
    if not bool(kept.any()):
        msg = (
            "all inner weights of the law are 0, and none has a direction; give inner "
            "weights that are not 0, such as meanfield.extreme_rays(X)"
        )
        raise ValueError(msg)
    v = rho.points[kept] / lengths[kept, None]
    return Particles(v, rho.weights[kept], normalize=True)
