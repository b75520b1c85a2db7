"""Kernels of wide networks at initialisation and along training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from otflow._autodiff import gradient
from otflow._typing import ArrayLike
from otflow._validation import as_points, check_like, check_option
from otflow.errors import Unsupported
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.units import Unit
from otflow.measures import Measure

__all__ = ["empirical_ntk", "nngp_kernel", "ntk_kernel"]


def nngp_kernel(
    activation: str, X: ArrayLike, Z: ArrayLike | None = None, *, bias: bool = False
) -> Tensor:
    r"""Return the covariance :math:`E[\varphi(w\cdot x)\,\varphi(w\cdot z)]`.

    For :math:`w \sim N(0, I)` and a of mean 0 and variance 1 it is the covariance of
    the Gaussian process to which the scaling "ntk" tends at initialisation. With t the
    angle between x and z,

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
        The kernel, detached: its derivative is infinite where x = z.

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.meanfield.nngp_kernel("relu", torch.eye(2))
    tensor([[0.5000, 0.1592],
            [0.1592, 0.5000]])
    """
    return _kernels(activation, X, Z, bias)[0]


def ntk_kernel(
    activation: str, X: ArrayLike, Z: ArrayLike | None = None, *, bias: bool = False
) -> Tensor:
    r"""Return the neural tangent kernel of a wide two-layer network.

    .. math:: E[\varphi(w\cdot x)\,\varphi(w\cdot z)]
        + x\cdot z\; E[\varphi'(w\cdot x)\,\varphi'(w\cdot z)]

    for :math:`w \sim N(0, I)` and a of mean 0 and variance 1, both layers trained
    :cite:p:`jacot2018neural`. It is the limit of `empirical_ntk` at N independent such
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

    Examples
    --------
    >>> import torch, otflow as of
    >>> of.meanfield.ntk_kernel("relu", torch.eye(2))
    tensor([[1.0000, 0.1592],
            [0.1592, 1.0000]])
    """
    value, slopes, dot = _kernels(activation, X, Z, bias)
    return value + dot * slopes


def empirical_ntk(
    network: TwoLayer, mu: Measure, X: ArrayLike, Z: ArrayLike | None = None
) -> Tensor:
    r"""Return the tangent kernel of a network at a measure of neurons.

    .. math:: K_\mu(x, z) = \int \nabla_\theta\sigma(x;\theta)\cdot
        \nabla_\theta\sigma(z;\theta)\,d\mu(\theta)

    Along the flow of a risk on n data the outputs obey :math:`\dot f(x) =
    -\frac{s_N^2}n\sum_k K_\mu(x, x_k)\,g_k`, g the slope of the loss. On N equal atoms
    it is the tangent kernel of the usual parameters in the scaling "ntk"; in the mean
    field it changes along the flow :cite:p:`jacot2018neural,chizat2019lazy`.

    Parameters
    ----------
    network : TwoLayer
        A network of one output; its scaling does not matter.
    mu : Measure
        Measure over its neurons.
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
    X, Z = _pair(X, Z)
    check_like(X, mu.points, "X", "the measure")
    network._check_neurons(mu.points, X.shape[1])
    with torch.no_grad():
        a, w = network._split(mu.points.detach())
        x, z = network._inputs(X), network._inputs(Z)
        (h, s), (k, t) = (_value_and_slope(network, y @ w.T) for y in (x, z))
        outer = (h * mu.weights) @ k.T
        return outer + (x @ z.T) * ((s * (mu.weights * a[:, 0].square())) @ t.T)


def _value_and_slope(network: TwoLayer, z: Tensor) -> tuple[Tensor, Tensor]:
    value = network.activation(z)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[phi phi], E[phi' phi'] and x.z."""
    check_option(activation, "activation", ("erf", "relu"))
    same = Z is None
    X, Z = _pair(X, Z)
    dot = X @ Z.T + float(bias)
    x, z = ((y.square().sum(1) + float(bias)) for y in (X, Z))
    if activation == "erf":
        square = (1 + 2 * x)[:, None] * (1 + 2 * z)
        value = (2 / math.pi) * torch.asin((2 * dot / square.sqrt()).clamp(-1, 1))
        return value, (4 / math.pi) * (square - 4 * dot.square()).rsqrt(), dot
    norms = x.sqrt()[:, None] * z.sqrt()
    # Round-off takes the cosine out of [-1, 1]; the zero vector has no angle, and its
    # kernels are zero by the other factors.
    cosine = (dot / norms.clamp_min(torch.finfo(X.dtype).tiny)).clamp_(-1, 1)
    if same:
        cosine.fill_diagonal_(1.0)
    angle = torch.acos(cosine)
    value = norms / (2 * math.pi) * (angle.sin() + (math.pi - angle) * cosine)
    return value, (math.pi - angle) / (2 * math.pi), dot
