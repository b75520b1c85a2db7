"""Margins of classifiers in the norms of networks, and a flow that enlarges them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from otflow._arrays import as_points
from otflow._typing import ArrayLike
from otflow._validation import (
    check_finite,
    check_kind,
    check_like,
    check_option,
    non_negative_int,
)
from otflow.analysis.generalisation.games import best_in_f1, best_in_f2
from otflow.errors import Unsupported
from otflow.functionals import OfExpectation
from otflow.meanfield.kinks import EPS
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.losses import as_loss
from otflow.meanfield.residuals import NORMS, check_network, inner_weights, kinks_of
from otflow.meanfield.sampling import neuron_sizes
from otflow.measures import Measure, Particles
from otflow.metrics import Bracket

__all__ = ["Margin", "f1_margin", "f2_margin", "soft_margin"]

# Sharpnesses of the weights of data, in units of the inverse spread of margins.
SHARPNESSES = (1.0, 4.0, 16.0, 64.0, 256.0)


@dataclass(frozen=True, eq=False)
class Margin:
    r"""The margin of a classifier in a norm, and how large one could be.

    Parameters
    ----------
    value : float
        The margin :math:`\min_k y_k f(x_k)` over the norm of f. It is negative where
        some datum is on the wrong side.
    best : Bracket
        Bounds of the largest margin of all functions of the space.
    norm : float
        The norm by which the margin is divided.
    errors : int
        Number of data on the wrong side, or on the boundary.
    space : str
        "F1" or "F2".

    Attributes
    ----------
    value, best, norm, errors, space
        As above.

    See Also
    --------
    f1_margin, f2_margin : Compute it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.TwoLayer("relu", bias=False)
    >>> mu = of.Particles(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))  # x / 2
    >>> X = torch.tensor([[-1.0], [1.0]])
    >>> of.analysis.f1_margin(network, mu, X, X[:, 0])
    Margin(0.5 in F1, the largest is in [0.5, 0.5], 0 errors)
    """

    value: float
    best: Bracket
    norm: float
    errors: int
    space: str

    def __repr__(self) -> str:
        low, high = self.best.lower, self.best.upper
        return (
            f"Margin({self.value:.4g} in {self.space}, the largest is in [{low:.4g}, "
            f"{high:.4g}], {self.errors} errors)"
        )


def f1_margin(
    network: TwoLayer,
    mu: Measure,
    X: ArrayLike,
    y: ArrayLike,
    *,
    norm: str = "l2",
    budget: int = 2000,
    rounds: int = 20,
) -> Margin:
    r"""Return the margin of a network over its path norm, and the largest there is.

    .. math:: \gamma(\mu) = \frac{\min_k y_k f_\mu(x_k)}
        {\int |a|\,|(w, b)|\,d\mu}, \qquad
        \max_\nu \gamma(\nu) = \min_{p \in \Delta} \max_{|(w, b)| = 1}
        \Bigl|\sum_k p_k y_k\,\varphi(w\cdot x_k + b)\Bigr| .

    Training both layers of a wide network with the exponential or the logistic loss
    leads to a classifier of the largest margin in this norm, that of the space F1, if
    it converges in direction :cite:p:`chizat2020implicit`.

    Parameters
    ----------
    network : TwoLayer
        Neurons of a homogeneous unit, of one output, in the scaling "mean-field".
    mu : Measure
        Measure of neurons.
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    y : Tensor or ndarray, shape (n,)
        Labels -1 and +1.
    norm : str
        "l1" or "l2", of (w, b).
    budget : int
        Most cones in which the right-hand side is bounded, for each trial of p.
    rounds : int
        Most rounds of the game by which the bracket is narrowed, to 0.1 %.

    Returns
    -------
    Margin
        The margin. ``best`` is a bracket: any network bounds the largest margin from
        below, any weights p from above.

    Raises
    ------
    ValueError
        If a label is neither -1 nor 1, or the norm of the measure is 0.
    Unsupported
        If the unit is not homogeneous, or there are several outputs, or an offset.
    NonFinite
        If the outputs overflow.

    See Also
    --------
    soft_margin : A functional whose flow makes the margin large.
    f2_margin : The margin if inner weights are fixed.

    Notes
    -----
    The margin depends on the scale of the data. A round of the game solves the linear
    program of the neurons found so far, by SciPy on the CPU, and adds the neuron that
    is best against its weights p. The upper bound is proved by cones in few dimensions,
    and by a convex relaxation beyond 10 inner weights, which may be far above. All is
    done in float64.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.tensor([[-1.0], [0.0], [1.0]]).double()
    >>> y = torch.tensor([1.0, -1.0, 1.0]).double()
    >>> theta = torch.tensor([[8.0, 1.0, 0.0], [8.0, -1.0, 0.0], [-6.0, 0.0, 0.5]])
    >>> mu = of.Particles(theta.double())
    >>> margin = of.analysis.f1_margin(of.meanfield.TwoLayer("relu"), mu, X, y)
    >>> round(margin.value, 3), margin.errors
    (0.158, 0)
    """
    _check(network, mu)
    check_option(norm, "norm", NORMS)
    most = non_negative_int(budget, "budget", minimum=1)
    games = non_negative_int(rounds, "rounds")
    x, labels = _data(network, mu, X, y)
    signed = _signed(network, mu, x, labels)
    theta, mass = mu.points.detach().double(), mu.weights.detach().double()
    size = float(mass @ neuron_sizes(network, theta, norm))
    value, weights = _weighted(signed, size)
    bounds = best_in_f1(
        network.encode(x).double(),
        labels,
        inner_weights(network, mu),
        weights,
        unit=kinks_of(network),
        norm=norm,
        budget=most,
        rounds=games,
    )
    return _margin(value, bounds, size, signed, "F1")


def f2_margin(network: TwoLayer, mu: Particles, X: ArrayLike, y: ArrayLike) -> Margin:
    r"""Return the margin of a network with fixed inner weights, and the largest.

    .. math:: \gamma(\mu) = \frac{\min_k y_k f_\mu(x_k)}
        {\bigl(\int |a|^2\,d\mu\bigr)^{1/2}}, \qquad
        \max_a \gamma = \min_{p\in\Delta}
        \Bigl(\sum_{kl} p_k p_l y_k y_l\, k_\rho(x_k, x_l)\Bigr)^{1/2},

    with the kernel of `otflow.meanfield.rkhs_kernel` for the law :math:`\rho` of the
    inner weights. Training outer weights alone, with the exponential or the logistic
    loss, leads to the largest margin in this norm, that of :math:`H_\rho`, which for
    uniform directions is the space F2 :cite:p:`chizat2020implicit`.

    Parameters
    ----------
    network : TwoLayer
        Neurons of one output, in the scaling "mean-field".
    mu : Particles
        Neurons.
    X : Tensor or ndarray, shape (n, d)
        Inputs.
    y : Tensor or ndarray, shape (n,)
        Labels -1 and +1.

    Returns
    -------
    Margin
        The margin. ``best`` is a bracket of the largest one over outer weights.

    Raises
    ------
    ValueError
        If a label is neither -1 nor 1, or all outer weights are 0.
    Unsupported
        If the unit is not homogeneous, or there are several outputs, or an offset.
    NonFinite
        If the outputs overflow.

    See Also
    --------
    f1_margin : The margin if both layers are trained.

    Notes
    -----
    The weights p are found by non-negative least squares, by SciPy on the CPU, of at
    most m = 1,000 data at a time: those that have weight and those of the least margin.
    Where 20 such problems do not suffice, steps that shift weight between two data
    follow. Time O(m^2 (m + N) + n N) a problem, memory O(n N + m^2). All is done in
    float64.

    Examples
    --------
    >>> import torch, otflow as of
    >>> mu = of.Particles(torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]]))
    >>> X = torch.tensor([[-1.0], [1.0]])
    >>> margin = of.analysis.f2_margin(of.meanfield.TwoLayer("relu"), mu, X, X[:, 0])
    >>> margin.value, round(margin.best.upper, 6)
    (0.5, 0.5)
    """
    _check(network, mu)
    check_kind(mu, Particles, "mu")
    x, labels = _data(network, mu, X, y)
    signed = _signed(network, mu, x, labels)
    outer, inner = network.split(mu.points.detach().double())
    roots = mu.weights.detach().double().sqrt()
    size = float(torch.linalg.vector_norm(roots * outer[:, 0]))
    value, weights = _weighted(signed, size)
    z, (straight, bent) = network.encode(x.double()), kinks_of(network)
    t = z @ inner.T
    rows = labels[:, None] * (straight * t + bent * t.clamp_min(0)) * roots
    # Round-off of the features, whose terms may cancel, and of mixtures of them.
    sizes = (abs(straight) + abs(bent)) * (z.abs() @ inner.abs().T) * roots
    check_finite(sizes, "a feature")
    # Squares of numbers of order 1 neither overflow nor underflow.
    unit = float(sizes.max()) or 1.0
    terms = len(x) + mu.n + z.shape[1] + 8
    noise = terms * EPS * float(torch.linalg.vector_norm(sizes / unit, dim=1).max())
    found = best_in_f2(rows / unit, weights, noise)
    bounds = unit * found[0], unit * found[1]
    return _margin(value, bounds, size, signed, "F2")


def soft_margin(network: TwoLayer, X: ArrayLike, y: ArrayLike) -> OfExpectation:
    r"""Return the functional whose flow makes the margin of a classifier large.

    .. math:: F(\mu) = \log\frac1n\sum_k e^{-y_k f_\mu(x_k)} .

    It is the logarithm of the exponential risk. Both have the same paths of the flow,
    but that of F does not slow down as the risk falls: its time is the logarithmic one
    in which directions converge :cite:p:`chizat2020implicit`. It is convex along
    mixtures, and between :math:`-\min_k y_k f(x_k) - \log n` and :math:`-\min_k y_k
    f(x_k)`.

    Parameters
    ----------
    network : TwoLayer
        A network of one output, in the scaling "mean-field".
    X : Tensor or ndarray, shape (n, d)
        Inputs; detached.
    y : Tensor or ndarray, shape (n,)
        Labels -1 and +1.

    Returns
    -------
    OfExpectation
        The functional. For outer weights alone step with `otflow.schemes.Mobility`.

    Raises
    ------
    ValueError
        If a label is neither -1 nor 1, or sizes differ.
    Unsupported
        If there are several outputs, or the scaling is not "mean-field".

    See Also
    --------
    f1_margin : The margin.

    Notes
    -----
    By autodiff, with memory O(n N).

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.tensor([[-1.0], [0.0], [1.0]]).double()
    >>> y = torch.tensor([1.0, -1.0, 1.0]).double()
    >>> network = of.meanfield.TwoLayer("relu")
    >>> F = of.analysis.soft_margin(network, X, y)
    >>> stream = torch.Generator().manual_seed(0)
    >>> mu = of.Particles(torch.randn(40, 3, generator=stream, dtype=torch.float64))
    >>> run = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=200, every=200)
    >>> before, after = (
    ...     of.analysis.f1_margin(network, nu, X, y) for nu in (mu, run.final)
    ... )
    >>> before.value < 0 < after.value < after.best.upper
    True
    """
    _one_output(check_network(network, homogeneous=False))
    x = as_points(X, "X").detach()
    labels = as_loss("logistic").targets(y, x, None)
    constant = 0.0 if network.offset is None else float(network.offset)  # type: ignore[arg-type]
    signed = _Signed(network, network.encode(x), labels)
    return OfExpectation(_Soft(constant * labels), signed, mixture="convex")


@dataclass(frozen=True, eq=False)
class _Signed:
    """The products of labels and outputs of neurons, (N, n); it can be pickled."""

    network: TwoLayer
    inputs: Tensor
    labels: Tensor

    def __call__(self, theta: Tensor) -> Tensor:
        return (self.labels[:, None] * self.network.sigma(self.inputs, theta)).T


@dataclass(frozen=True, eq=False)
class _Soft:
    """The logarithm of the mean of exponentials; it can be pickled."""

    shift: Tensor

    def __call__(self, m: Tensor) -> Tensor:
        return torch.logsumexp(-(m + self.shift), 0) - math.log(len(self.shift))


def _check(network: TwoLayer, mu: Measure) -> None:
    _one_output(check_network(network, homogeneous=True))
    check_kind(mu, Measure, "mu")
    if network.offset is not None:
        msg = (
            f"the norm of a margin does not count the constant of {network!r}, whose "
            f"outputs do not scale with their neurons; take offset=None"
        )
        raise Unsupported(msg)


def _one_output(network: TwoLayer) -> None:
    if network.outputs is not None:
        msg = (
            f"a margin is that of one output and two classes, got {network!r}; take "
            f"outputs=None"
        )
        raise Unsupported(msg)


def _data(
    network: TwoLayer, mu: Measure, X: ArrayLike, y: ArrayLike
) -> tuple[Tensor, Tensor]:
    """Return the inputs, and the labels in float64."""
    x = as_points(X, "X").detach()
    check_like(x, mu.points, "X", "the measure")
    network.check_neurons(mu.points, x.shape[1])
    return x, as_loss("logistic").targets(y, x, None).double()


def _signed(network: TwoLayer, mu: Measure, x: Tensor, labels: Tensor) -> Tensor:
    """Return the products of labels and outputs, in float64."""
    with torch.no_grad():
        masses = network.masses(mu.weights.double())
        f = network.evaluate(network.encode(x.double()), mu.points.double(), masses)
    check_finite(f, "an output")
    return labels * f


def _weighted(signed: Tensor, size: float) -> tuple[float, list[Tensor]]:
    """Return the margin, and weights of the data that are large where it is small."""
    if not size > 0:
        msg = (
            "the norm of the network is 0, and so is its output, which has no margin; "
            "train it first, or give neurons with outer and inner weights that are not "
            "0"
        )
        raise ValueError(msg)
    above = signed - signed.min()
    unit = max(float(above.mean()), torch.finfo(torch.float64).tiny)
    # The weights of the exponential risk are those of the dual where it is trained.
    scales = (1.0, 2.0, 4.0, *(s / unit for s in SHARPNESSES))
    weights = [torch.softmax(-s * above, 0) for s in scales]
    return float(signed.min()) / size, [torch.ones_like(signed) / len(signed), *weights]


def _margin(
    value: float, bounds: tuple[float, float], size: float, signed: Tensor, space: str
) -> Margin:
    errors = int((signed <= 0).sum())
    lower = max(0.0, value, bounds[0])
    return Margin(value, Bracket(lower, max(bounds[1], lower)), size, errors, space)
