"""The kernels of the features of a network: Barron space as a union of their spaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor, as_points
from otflow._graphs import records
from otflow._typing import ArrayLike
from otflow._validation import check_finite, check_kind, check_like
from otflow.errors import NonFinite, Unsupported
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.model import redefined
from otflow.meanfield.residuals import check_network
from otflow.meanfield.sampling import neuron_sizes
from otflow.measures import Measure, Particles

__all__ = [
    "KernelNorm",
    "feature_law",
    "features_at",
    "kernel_alignment",
    "rkhs_kernel",
    "rkhs_norm",
]

# Largest share of f that an interpolant may miss: half of the digits.
MISSED = 0.5
# Share of its largest entry by which a kernel may differ from its transpose.
SKEW = 1e-3


@dataclass(frozen=True, eq=False)
class KernelNorm:
    r"""The least norm of :math:`H_\rho` with which data are interpolated.

    Parameters
    ----------
    value : float
        The norm, :math:`\|a\|_{L^2(\rho)}`.
    measure : Particles
        The network that attains it: neurons :math:`(a(v), v)` with the law
        :math:`\rho` of v.
    dual : Tensor, shape (n,)
        The coefficients :math:`\lambda` of the kernel: the network is :math:`\sum_k
        \lambda_k k_\rho(x_k, \cdot)`, and the square of the norm is
        :math:`\lambda\cdot f`.
    residual : float
        The largest error of its outputs at the data, with its weights in their dtype.

    Attributes
    ----------
    value, measure, dual, residual
        As above.

    See Also
    --------
    rkhs_norm : Computes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> rho = of.Particles(torch.tensor([[0.5, 0.5], [1.0, 0.0]]).double())
    >>> X = torch.tensor([[0.0], [1.0]]).double()
    >>> of.meanfield.rkhs_norm(network, rho, X, X[:, 0])
    KernelNorm(1.414, of 2 features)
    """

    value: float
    measure: Particles
    dual: Tensor
    residual: float

    def __repr__(self) -> str:
        return f"KernelNorm({self.value:.4g}, of {self.measure.n} features)"


def feature_law(network: TwoLayer, mu: Particles, norm: str = "l1") -> Particles:
    r"""Return the law of the directions of neurons, each with its share of the norm.

    A network of neurons (a, w, b) of masses m is :math:`\sum_i c_i\,\varphi(v_i\cdot
    (x, 1))` with :math:`v = (w, b)/|(w, b)|` and :math:`c = m a\,|(w, b)|`. The law is

    .. math:: \rho = \sum_i \frac{|c_i|}{\sum_j|c_j|}\,\delta_{v_i}.

    Among all laws of these directions it has the least norm of :math:`H_\rho`: with
    the outer weights :math:`a = c/\rho` that norm is :math:`\sum|c|`, the path norm of
    the network, and by the inequality of Cauchy and Schwarz no law has less.

    Parameters
    ----------
    network : TwoLayer
        Neurons of a homogeneous unit, in the scaling "mean-field".
    mu : Particles
        Measure of neurons (a, w, b).
    norm : str
        "l1" or "l2", of the outer and the inner weights.

    Returns
    -------
    Particles
        A law of inner weights (w, b) of norm 1; neurons without a path norm are left
        out. The graph of the measure is kept.

    Raises
    ------
    Unsupported
        If the unit is not homogeneous, or the scaling is not "mean-field".
    ValueError
        If the path norm of the measure is 0.

    See Also
    --------
    rkhs_norm : The norm of :math:`H_\rho`.
    rkhs_kernel : Its kernel.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[3.0, 2.0, 0.0], [-1.0, 1.0, -1.0]]))
    >>> rho = of.meanfield.feature_law(of.meanfield.TwoLayer("relu"), mu)
    >>> rho.points, rho.weights
    (tensor([[ 1.0000,  0.0000],
            [ 0.5000, -0.5000]]), tensor([0.7500, 0.2500]))
    """
    check_network(network, homogeneous=True)
    check_kind(mu, Particles, "mu")
    outer, v = network.split(mu.points)
    # Neurons of order 1: no product of a small outer and a small inner weight is 0.
    outer, v = outer / _unit(outer), v / _unit(v)
    theta = torch.cat([outer, v], dim=1)
    loads = mu.weights * neuron_sizes(network, theta, norm)
    kept = loads.detach() > 0
    if not bool(kept.any()):
        msg = (
            "all neurons have a path norm of 0, so that no direction has a share of "
            "it; give neurons with outer and inner weights that are not 0"
        )
        raise ValueError(msg)
    v = v[kept]
    lengths = torch.linalg.vector_norm(v, 1 if norm == "l1" else 2, dim=1)
    return Particles(v / lengths[:, None], loads[kept], normalize=True)


def rkhs_kernel(
    network: TwoLayer, rho: Measure, X: ArrayLike, Z: ArrayLike | None = None
) -> Tensor:
    r"""Return the kernel of features, whose law is that of their inner weights.

    .. math:: k_\rho(x, z) = \int \varphi(w\cdot x + b)\,\varphi(w\cdot z + b)\,
        d\rho(w, b).

    Its space :math:`H_\rho` are the functions :math:`f = \int a\,\varphi\,d\rho`, with
    the least :math:`\|a\|_{L^2(\rho)}` as the norm. Barron space is the union of
    :math:`H_\rho` over all laws on the unit sphere, and :math:`|f|_B = \inf_\rho
    |f|_{H_\rho}` :cite:p:`e2022barron`. Random features keep this kernel fixed; in the
    mean field the law moves, and so does the kernel.

    Parameters
    ----------
    network : TwoLayer
        The unit :math:`\varphi`, and whether there is a bias. Outer weights play no
        part.
    rho : Measure
        Law of the inner weights (w, b), or of w without a bias.
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    Z : Tensor or ndarray, shape (k, d), optional
        Other inputs; `X` by default.

    Returns
    -------
    Tensor, shape (n, k)
        The kernel, with the graph of the law and of the inputs.

    Raises
    ------
    ValueError
        If the law has another dimension than inner weights.
    Unsupported
        If the network is no `TwoLayer` of the library.
    NonFinite
        If the kernel overflows.

    See Also
    --------
    otflow.meanfield.empirical_ntk : The kernel that governs training.
    feature_law : The law of the neurons of a network.

    Notes
    -----
    Time O(M (n d + k d + n k)) for M atoms, memory O((n + k) M).

    Examples
    --------
    >>> import torch, otflow as of
    >>> rho = of.Particles(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> X = torch.tensor([[-1.0], [2.0]])
    >>> of.meanfield.rkhs_kernel(of.meanfield.TwoLayer("relu"), rho, X)
    tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]])
    """
    x = as_points(X, "X")
    z = x if Z is None else as_points(Z, "Z")
    check_like(z, x, "Z", "X")
    one = features_at(network, rho, x)
    other = one if Z is None else features_at(network, rho, z)
    kernel = (one * rho.weights) @ other.T
    check_finite(kernel, "the kernel")
    return kernel


def rkhs_norm(
    network: TwoLayer, rho: Particles, X: ArrayLike, f: ArrayLike
) -> KernelNorm:
    r"""Return the least norm of :math:`H_\rho` with which values are interpolated.

    .. math:: \min\Bigl\{\|a\|_{L^2(\rho)} :
        \int a(w, b)\,\varphi(w\cdot x_k + b)\,d\rho = f_k\Bigr\}
        = \sqrt{f^\top k_\rho^{+} f}.

    It bounds the norm in :math:`H_\rho` of any function with these values from below.
    If all inner weights have the norm 1, then by the inequality of Cauchy and Schwarz
    it is at least the path norm of ``measure``, so at least the least path norm with
    these values; at the law of `feature_law` of a cheapest network both are equal.

    Parameters
    ----------
    network : TwoLayer
        The unit, of one output, in the scaling "mean-field".
    rho : Particles
        Law of the inner weights (w, b).
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    f : Tensor or ndarray, shape (n,)
        Values at the inputs.

    Returns
    -------
    KernelNorm
        The norm and the network that attains it.

    Raises
    ------
    ValueError
        If a value is not finite. If no features of the law interpolate the values to
        half of the digits of the dtype, as where there are fewer features than data.
    Unsupported
        If the network has several outputs, or a tensor carries a graph.
    NonFinite
        If a feature or a coefficient overflows.

    See Also
    --------
    feature_law : The law with the least norm for given neurons.
    best_law : The law with the least norm for given directions.

    Notes
    -----
    By a singular value decomposition of :math:`\varphi(w_i\cdot x_k + b_i)
    \sqrt{\rho_i}` in float64, time O(n M min(n, M)). Singular values below round-off of
    the largest count as 0.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu")
    >>> X = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    >>> f = (X[:, 0] - 0.5).abs()  # 1/2 - x + 2 relu(x - 1/2), of norm 3
    >>> mu = of.Particles(
    ...     torch.tensor([[3.0, 1.0, -0.5], [3.0, -1.0, 0.5]]).double() * 2 / 3
    ... )
    >>> rho = of.meanfield.feature_law(network, mu)
    >>> round(of.meanfield.rkhs_norm(network, rho, X, f).value, 9)
    3.0
    """
    check_network(network, homogeneous=False)
    if network.outputs is not None:
        msg = f"the norm is that of one output, got {network!r}; take outputs=None"
        raise Unsupported(msg)
    check_kind(rho, Particles, "rho")
    x, values = as_points(X, "X"), as_float_tensor(f, "f")
    check_like(values, x, "f", "X")
    if values.shape != x.shape[:1]:
        msg = (
            f"f must hold one value for each of the {len(x)} inputs, got shape "
            f"{tuple(values.shape)}; take a vector, f[:, 0] or f.flatten()"
        )
        raise ValueError(msg)
    _check_values(values, "f")
    if records(x, values, rho.points, rho.weights):
        msg = (
            "the norm is found by a decomposition without derivative, and a graph "
            "would be lost; give .detach() of the law and of the data"
        )
        raise Unsupported(msg)
    roots = rho.weights.double().sqrt()
    features = features_at(network, rho, x, dtype=torch.float64)
    scaled = features * roots
    _check_numbers(scaled, "a feature")
    aim = network.offset
    wanted = values.double() - (0.0 if aim is None else float(aim))  # type: ignore[arg-type]
    size = _unit(wanted)
    wanted = wanted / size
    u, s, v = torch.linalg.svd(scaled, full_matrices=False)
    eps = torch.finfo(rho.dtype).eps
    rank = int((s > eps * max(scaled.shape) * s.max()).sum())
    along = (u[:, :rank].T @ wanted) / s[:rank]
    c = v[:rank].T @ along
    missed = float((scaled @ c - wanted).abs().max())
    if missed > eps**MISSED * float(wanted.abs().max()):
        msg = (
            f"no function of these {rho.n} features has the values f: the nearest one "
            f"misses them by {missed * float(size):.3g}; give a law of more features, "
            f"as of directions drawn at random, or less data"
        )
        raise ValueError(msg)
    outer = (size * torch.where(roots > 0, c / roots, 0.0)).to(rho.dtype)
    neurons = torch.cat([outer[:, None], rho.points], dim=1)
    dual = (size * (u[:, :rank] @ (along / s[:rank]))).to(rho.dtype)
    _check_numbers(dual, "a coefficient of the kernel")
    errors = features @ (rho.weights.double() * outer.double() / size) - wanted
    value, residual = size * c.norm(), size * errors.abs().max()
    return KernelNorm(
        float(value), Particles(neurons, rho.weights), dual, float(residual)
    )


def kernel_alignment(K: ArrayLike, y: ArrayLike) -> Tensor:
    r"""Return the alignment of a kernel with targets, both centred.

    .. math:: A(K, y) = \frac{\langle K_c,\ y_c y_c^\top\rangle_F}
        {\|K_c\|_F\,|y_c|^2}, \qquad K_c = HKH, \quad H = I - \tfrac1n 1 1^\top

    :cite:p:`cortes2012algorithms`. It is at most 1, and 1 for :math:`K = y y^\top`. A
    kernel that is aligned with the targets learns them from few data. Along training
    the kernel of features in the mean field turns towards the targets. In the scaling
    "ntk" neurons move by :math:`O(N^{-1/2})`, and the kernel by no more; with centred
    outer weights the moves of first order cancel, and it changes by O(1/N).

    Parameters
    ----------
    K : Tensor or ndarray, shape (n, n)
        A symmetric kernel matrix at n data, as of `rkhs_kernel` or `empirical_ntk`.
    y : Tensor or ndarray, shape (n,)
        Targets.

    Returns
    -------
    Tensor
        0-d, with the graph of the kernel and of the targets. At least 0 for a positive
        semidefinite kernel.

    Raises
    ------
    ValueError
        If shapes do not fit, if a number is not finite, if the kernel is not symmetric
        to three digits, or if the kernel or the targets are constant, so that nothing
        is left after the means are taken off.

    See Also
    --------
    rkhs_kernel : The kernel of features.

    Notes
    -----
    Time and memory O(n^2). It does not change if the kernel is multiplied by a
    positive number or if a constant is added to the targets.

    Examples
    --------
    >>> import torch, otflow as of
    >>> y = torch.tensor([1.0, -1.0, 1.0, 3.0])
    >>> of.meanfield.kernel_alignment(y[:, None] * y, y)
    tensor(1.)
    """
    kernel, targets = as_points(K, "K"), as_float_tensor(y, "y")
    check_like(targets, kernel, "y", "K")
    n = len(targets)
    if targets.ndim != 1 or kernel.shape != (n, n):
        msg = (
            f"K must be (n, n) and y (n,), got {tuple(kernel.shape)} and "
            f"{tuple(targets.shape)}; give the kernel of the data with themselves and "
            f"one target for each"
        )
        raise ValueError(msg)
    _check_values(targets, "y")
    kernel, targets = kernel / _unit(kernel), targets / _unit(targets)
    skew = float((kernel.detach() - kernel.detach().T).abs().max())
    if skew > SKEW:
        msg = (
            f"K must be symmetric, got a matrix that differs from its transpose by "
            f"{skew:.3g} of its largest entry; give the kernel of the data with "
            f"themselves, or its symmetric part (K + K.T) / 2"
        )
        raise ValueError(msg)
    centred = kernel - kernel.mean(0)
    centred = centred - centred.mean(1, keepdim=True)
    aims = targets - targets.mean()
    sizes = torch.stack([centred.norm() / n, aims.norm()]).detach()
    whole = torch.stack([kernel.norm() / n, targets.norm()]).detach()
    noise = 8 * n * torch.finfo(kernel.dtype).eps
    if bool((sizes <= noise * whole).any()):
        what = "y" if bool(sizes[1] <= noise * whole[1]) else "K"
        msg = (
            f"{what} is constant over the data, so that nothing of it is left without "
            f"its mean; give targets and a kernel that vary"
        )
        raise ValueError(msg)
    along = aims / aims.norm()
    found: Tensor = along @ (centred / centred.norm()) @ along
    return found


def features_at(
    network: TwoLayer,
    rho: Measure,
    X: ArrayLike,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the features at data, (n, M), of numbers that are cast first."""
    x = as_points(X, "X")
    if not isinstance(network, TwoLayer) or redefined(network) is not None:
        msg = (
            f"the kernel of features is there for a TwoLayer of the library, got "
            f"{network!r:.80}; take TwoLayer with an activation of your own"
        )
        raise Unsupported(msg)
    check_kind(rho, Measure, "rho")
    check_like(x, rho.points, "X", "the law rho")
    d, q = x.shape[1], x.shape[1] + int(network.bias)
    if rho.points.shape[1] != q:
        msg = (
            f"rho is a law of inner weights {'(w, b)' if network.bias else 'w'} of "
            f"{q} numbers for inputs of dimension d = {d}, got points of dimension "
            f"{rho.points.shape[1]}; of neurons (a, w, b) take "
            f"feature_law(network, mu)"
        )
        raise ValueError(msg)
    x, v = (x, rho.points) if dtype is None else (x.to(dtype), rho.points.to(dtype))
    zeros = v.new_zeros(len(v), network.outputs or 1)
    return network.hidden(network.encode(x), torch.cat([zeros, v], dim=1))


def _unit(t: Tensor) -> Tensor:
    """Return the largest modulus of entries, or 1 if all are 0: a scale without units.

    Squares of numbers in this unit neither overflow nor underflow altogether.
    """
    if not t.numel():
        return t.new_ones(())
    size = t.detach().abs().max()
    return torch.where(size > 0, size, 1.0)


def _check_values(t: Tensor, name: str) -> None:
    if not bool(torch.isfinite(t).all()):
        k = int((~torch.isfinite(t)).nonzero()[0])
        msg = (
            f"{name} must be finite, got {name}[{k}] = {float(t[k])}; leave out data "
            f"without a value"
        )
        raise ValueError(msg)


def _check_numbers(t: Tensor, what: str) -> None:
    if not bool(torch.isfinite(t).all()):
        msg = f"{what} overflows {t.dtype}; give data and directions of order 1"
        raise NonFinite(msg)
