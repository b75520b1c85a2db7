"""Kernels of wide networks at initialisation and along training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._autodiff import gradient
from otflow._typing import ArrayLike
from otflow._validation import check_finite, check_kind, check_like, check_option
from otflow.errors import Unsupported
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.units import Unit, applied
from otflow.measures import Measure

__all__ = ["empirical_ntk", "nngp_kernel", "ntk_kernel"]


def nngp_kernel(
    activation: str, X: ArrayLike, Z: ArrayLike | None = None, *, bias: bool = False
) -> Tensor:
    r"""Return the covariance :math:`E[\varphi(w\cdot x)\,\varphi(w\cdot z)]`.

    Let :math:`w \sim N(0, I)`, and let a have mean 0 and variance 1. Then this is the
    covariance of the Gaussian process to which the network of scaling "ntk" tends at
    initialisation. With t the angle between x and z,

    .. math:: \text{relu}: \frac{|x||z|}{2\pi}\bigl(\sin t + (\pi - t)\cos t\bigr),
        \qquad \text{erf}: \frac2\pi\arcsin
        \frac{2\,x\cdot z}{\sqrt{(1 + 2|x|^2)(1 + 2|z|^2)}}

    :cite:p:`cho2009kernel,williams1997computing`.

    Parameters
    ----------
    activation : str
        "relu" or "erf".
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    Z : Tensor or ndarray, shape (k, d), optional
        Other inputs; `X` by default.
    bias : bool
        Whether neurons have a bias :math:`b \sim N(0, 1)`: inputs get a last entry 1.

    Returns
    -------
    Tensor, shape (n, k)
        The kernel, detached: its derivative is infinite at x = z.

    Notes
    -----
    The kernel is computed in float64 from angles and lengths, without cancellation. Its
    error is the round-off of the directions of x and z, which the arcsine may magnify
    by the smaller of both lengths. Time O(n k d), memory O(n k).

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.meanfield.nngp_kernel("relu", torch.eye(2))
    tensor([[0.5000, 0.1592],
            [0.1592, 0.5000]])
    """
    value, _, dtype = _kernels(activation, X, Z, bias)
    return value.to(dtype)


def ntk_kernel(
    activation: str, X: ArrayLike, Z: ArrayLike | None = None, *, bias: bool = False
) -> Tensor:
    r"""Return the neural tangent kernel of a wide two-layer network.

    .. math:: E[\varphi(w\cdot x)\,\varphi(w\cdot z)]
        + x\cdot z\; E[\varphi'(w\cdot x)\,\varphi'(w\cdot z)]

    for :math:`w \sim N(0, I)` and a of mean 0 and variance 1, with both layers trained
    :cite:p:`jacot2018neural`. It is the limit of `empirical_ntk` for N independent
    neurons, at the rate :math:`N^{-1/2}`. The second mean is :math:`(\pi - t)/2\pi` for
    relu, t the angle between x and z :cite:p:`cho2009kernel`, and for erf
    :math:`\frac4\pi\bigl((1 + 2|x|^2)(1 + 2|z|^2) - 4(x\cdot z)^2\bigr)^{-1/2}`.

    Parameters
    ----------
    activation : str
        "relu" or "erf".
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    Z : Tensor or ndarray, shape (k, d), optional
        Other inputs; `X` by default.
    bias : bool
        Whether neurons have a bias :math:`b \sim N(0, 1)`: inputs get a last entry 1.

    Returns
    -------
    Tensor, shape (n, k)
        The kernel, detached.

    Notes
    -----
    The kernel is computed in float64 from angles and lengths, without cancellation. Its
    error is the round-off of the directions of x and z, which for erf the root may
    magnify by the smaller of both lengths. Time O(n k d), memory O(n k).

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.meanfield.ntk_kernel("relu", torch.eye(2))
    tensor([[1.0000, 0.1592],
            [0.1592, 1.0000]])
    """
    value, slopes, dtype = _kernels(activation, X, Z, bias)
    return (value + slopes).to(dtype)


def empirical_ntk(
    network: TwoLayer, mu: Measure, X: ArrayLike, Z: ArrayLike | None = None
) -> Tensor:
    r"""Return the tangent kernel of a network at a measure of neurons.

    .. math:: K_\mu(x, z) = \int \nabla_\theta\sigma(x;\theta)\cdot
        \nabla_\theta\sigma(z;\theta)\,d\mu(\theta)

    Along the flow of a risk on n data the outputs obey :math:`\dot f(x) =
    -\frac{s_N^2}n\sum_k K_\mu(x, x_k)\,g_k`, where g is the slope of the loss. On N
    equal atoms K is the tangent kernel of the usual parameters in the scaling "ntk". In
    the mean field K changes along the flow :cite:p:`jacot2018neural,chizat2019lazy`.

    Parameters
    ----------
    network : TwoLayer
        A network of one output. The kernel does not depend on its scaling.
    mu : Measure
        Measure over neurons.
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    Z : Tensor or ndarray, shape (k, d), optional
        Other inputs; `X` by default.

    Returns
    -------
    Tensor, shape (n, k)
        The kernel, detached.

    Raises
    ------
    Unsupported
        If the network has several outputs, or is not a `TwoLayer`.
    NonFinite
        If the kernel overflows the dtype of the data.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu", bias=False)
    >>> mu = of.Particles(torch.tensor([[2.0, 1.0]]))  # one neuron, 2 relu(x)
    >>> x = torch.tensor([[3.0]])
    >>> of.meanfield.empirical_ntk(network, mu, x)  # relu(x)^2 + (2 x)^2
    tensor([[45.]])
    """
    if not isinstance(network, TwoLayer) or network.outputs is not None:
        msg = (
            f"the tangent kernel is there for a TwoLayer of one output, got "
            f"{network!r:.80}; take outputs=None"
        )
        raise Unsupported(msg)
    check_kind(mu, Measure, "mu")
    X, Z = _pair(X, Z)
    check_like(X, mu.points, "X", "the measure")
    network.check_neurons(mu.points, X.shape[1])
    with torch.no_grad():
        a, w = network.split(mu.points.detach())
        x, z = network.encode(X), network.encode(Z)
        (h, s), (k, t) = (_value_and_slope(network, y @ w.T) for y in (x, z))
        outer = (h * mu.weights) @ k.T
        kernel = outer + (x @ z.T) * ((s * (mu.weights * a[:, 0].square())) @ t.T)
    check_finite(kernel, "the empirical tangent kernel")
    return kernel


def _value_and_slope(network: TwoLayer, z: Tensor) -> tuple[Tensor, Tensor]:
    value = applied(network.activation, z)
    if isinstance(network.activation, Unit):
        return value, network.activation.slope(z, value, torch.empty_like(z))
    return value, gradient(network.activation, z)


def _pair(X: ArrayLike, Z: ArrayLike | None) -> tuple[Tensor, Tensor]:
    X = as_points(X, "X").detach()
    if Z is None:
        return X, X
    Z = as_points(Z, "Z").detach()
    check_like(Z, X, "Z", "X")
    if Z.shape[1] != X.shape[1]:
        msg = f"Z must have shape (k, {X.shape[1]}) as X has, got {tuple(Z.shape)}"
        raise ValueError(msg)
    return X, Z


def _kernels(
    activation: str, X: ArrayLike, Z: ArrayLike | None, bias: bool
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return E[phi phi] and x.z E[phi' phi'] in float64, and the dtype of the data."""
    check_option(activation, "activation", ("erf", "relu"))
    X, Z = _pair(X, Z)
    (p, u), (q, v) = (_polar(y.double(), bias) for y in (X, Z))
    # The angle by Kahan's formula: near 1 or -1 the arccosine loses half of its digits.
    mode = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(u, v, compute_mode=mode)
    across = torch.cdist(u, -v, compute_mode=mode)
    cosine = u @ v.T
    if activation == "erf":
        return *_erf(p, q, cosine, 0.5 * apart * across), X.dtype
    # The angle pi - t. The zero vector has no angle, but its factors are 0.
    rest = 2.0 * torch.atan2(across, apart)
    half = p[:, None] * q / (2.0 * math.pi)
    return half * _arc(rest), half * cosine * rest, X.dtype


def _polar(y: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Return the norms of rows, with a last entry 1 if biased, and their directions."""
    if bias:
        y = torch.cat([y, y.new_ones(len(y), 1)], dim=1)
    largest = y.abs().amax(dim=1)
    # Scale first, so that no square overflows or underflows.
    y = y / largest.masked_fill(largest == 0, 1.0)[:, None]
    norms = y.norm(dim=1)
    return largest * norms, y / norms.masked_fill(norms == 0, 1.0)[:, None]


def _erf(p: Tensor, q: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Return 2/pi times the arcsine and its tangent.

    The determinant is the sum of squares 1 + 2 p^2 + 2 q^2 + 4 p^2 q^2 sin^2, in which
    nothing cancels. All terms are divided by (1 + 2 p^2)(1 + 2 q^2).
    """
    flat, steep = [], []
    for norm in (p, q):
        x = math.sqrt(2.0) * norm
        flat.append(1.0 / torch.hypot(torch.ones_like(x), x))
        steep.append(x * flat[-1])
    both = steep[0][:, None] * steep[1]
    either = torch.hypot(steep[0][:, None] * flat[1], flat[0][:, None] * steep[1])
    rest = torch.hypot(flat[0][:, None] * flat[1], both * sine)
    opposite, adjacent = both * cosine, torch.hypot(either, rest)
    scale = 2.0 / math.pi
    return scale * torch.atan2(opposite, adjacent), scale * (opposite / adjacent)


def _arc(r: Tensor) -> Tensor:
    """Return sin r - r cos r, also near 0, where it is r^3/3, without cancellation."""
    square = r.square()
    # Alternating series with the terms (-1)^(k + 1) 2k r^(2k + 1) / (2k + 1)!.
    series = torch.zeros_like(r)
    for k in range(10, 0, -1):
        series = 2.0 * k / math.factorial(2 * k + 1) - square * series
    return torch.where(r < 1.0, r * square * series, r.sin() - r * r.cos())
