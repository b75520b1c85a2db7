"""Bounds of the generalisation of networks by their norms, with their constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from otflow._validation import check_option, non_negative_int, positive, real
from otflow.errors import NonFinite
from otflow.meanfield.dual_balls import ordinary, reach
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.residuals import NORMS

__all__ = ["RiskBound", "apriori_bound", "rademacher_bound", "weight_size_bound"]

# More neurons, data or dimensions than any computer has; all sums stay finite.
MOST = 10**100


@dataclass(frozen=True, eq=False)
class RiskBound:
    """A bound, whether its hypotheses hold, and the numbers that it is made of.

    Parameters
    ----------
    value : float
        The bound.
    applies : bool
        Whether what the bound needs is true of the arguments.
    why : str
        What it needs, or what is missing.
    terms : mapping of str to float
        The summands and the constants.

    Attributes
    ----------
    value, applies, why, terms
        As above.

    See Also
    --------
    apriori_bound : Of minimisers with the path norm as a penalty.
    weight_size_bound : Of all networks of a path norm.
    rademacher_bound : The complexity that both rest on.

    Examples
    --------
    >>> import otflow as of
    >>> of.analysis.weight_size_bound(2.0, 10_000, 20)
    RiskBound(0.1598, applies: it holds for all networks of path norm at most 2)
    """

    value: float
    applies: bool
    why: str
    terms: Mapping[str, float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value, self.applies, self.why, dict(self.terms))

    def __repr__(self) -> str:
        verb = "applies" if self.applies else "does not apply"
        return f"RiskBound({self.value:.4g}, {verb}: {self.why})"


def rademacher_bound(
    radius: float, n: int, d: int, *, norm: str = "l1", network: TwoLayer | None = None
) -> RiskBound:
    r"""Return the bound of Theorem 3.1 on the Rademacher complexity of a Barron ball.

    Let :math:`\mathcal B_R` be the functions of Barron norm at most R, with neurons
    measured by :math:`|a|\,(|w|_1 + |b|)`, and data in :math:`[-1, 1]^d`. Then

    .. math:: \mathrm{Rad}_n(\mathcal B_R) = E_\xi \sup_{|f|_B \le R}
        \frac1n\sum_k \xi_k f(x_k) \le R\sqrt{\frac{2\ln(4(d+1))}n}
        \le 2R\sqrt{\frac{2\ln(2d)}n}.

    The last one is the theorem :cite:p:`e2022barron`. It is true with the bias, which
    makes :math:`d + 1` coordinates, since :math:`4(d+1) \le (2d)^4`.

    Parameters
    ----------
    radius : float
        The radius R >= 0.
    n : int
        Number of data.
    d : int
        Dimension of the inputs.
    norm : str
        "l1" as above; "l2" for :math:`|a|\,|(w, b)|_2` and data in the Euclidean unit
        ball.
    network : TwoLayer, optional
        A network of homogeneous units, in the scaling "mean-field"; ReLU neurons with a
        bias by default.

    Returns
    -------
    RiskBound
        The value is the theorem's. ``terms["sharp"]`` is the number in the middle; for
        "l2" both are :math:`2\kappa R/\sqrt n`.

    Raises
    ------
    ValueError
        If the radius is negative, or n or d is below 1.
    Unsupported
        If the unit is not homogeneous, or there are several outputs.
    NonFinite
        If the bound overflows.

    See Also
    --------
    rademacher : The complexity at given data.

    Notes
    -----
    Proof. By homogeneity the supremum is :math:`R\,\max(A_+, A_-)` with :math:`A_\pm =
    \sup_{|v|\le 1} \pm\frac1n\sum_k\xi_k\varphi(v\cdot z_k)`, z = (x, 1). Both have one
    law. So for :math:`\lambda > 0`, by Jensen's inequality and by the contraction of
    Ledoux and Talagrand :cite:p:`ledoux1991probability` for the convex increasing
    function :math:`e^{\lambda t}`,

    .. math:: e^{\lambda E\max(A_+, A_-)} \le E e^{\lambda A_+} + E e^{\lambda A_-}
        \le 2\,E e^{\lambda\,|\frac1n\sum_k\xi_k z_k|_\infty}
        \le 4(d+1)\,e^{\lambda^2/2n},

    and the best :math:`\lambda` gives the number in the middle. The factor 2 for both
    signs is inside of the logarithm, as in :cite:t:`golowich2018size`; outside of it is
    the factor of the theorem. In l2, :math:`E\max \le 2 E A_+ \le
    \frac2n E|\sum_k\xi_k z_k|_2 \le 2\kappa/\sqrt n`, :math:`\kappa^2 = 2` with a bias.
    A unit of another slope multiplies all by its Lipschitz constant.

    Examples
    --------
    >>> import otflow as of
    >>> bound = of.analysis.rademacher_bound(1.0, 100, 20)
    >>> round(bound.value, 4), round(bound.terms["sharp"], 4)
    (0.5432, 0.2977)
    """
    R = positive(radius, "radius", or_zero=True)
    count, inputs = _counts(n, d)
    check_option(norm, "norm", NORMS)
    layer = ordinary(network)
    steep = reach(layer, norm)
    if norm == "l2":
        value = sharp = 2 * steep * R / math.sqrt(count)
    else:
        value = steep * R * _unit_complexity(count, inputs)
        rows = inputs + int(layer.bias)
        sharp = steep * R * math.sqrt(2 * math.log(4 * rows) / count)
    ball = "[-1, 1]^d" if norm == "l1" else "the Euclidean unit ball"
    why = f"it holds for all data in {ball}"
    return _finite(RiskBound(value, True, why, {"sharp": sharp, "radius": R}))


def weight_size_bound(
    A: float,
    n: int,
    d: int,
    *,
    delta: float = 0.05,
    complexity: float | None = None,
    lipschitz: float = 1.0,
    largest: float = 1.0,
    norm: str = "l1",
    network: TwoLayer | None = None,
) -> RiskBound:
    r"""Return a bound on the test risk less the training risk, by the size of weights.

    .. math:: L(f) - L_n(f) \le 2\,\Lambda\,\mathrm{Rad}_n(\mathcal B_A)
        + 3\,M\sqrt{\frac{\ln(2/\delta)}{2n}}

    for all networks of path norm at most A at once, of any number of neurons, with a
    probability of at least :math:`1 - \delta` over the n independent data
    :cite:p:`bartlett2002rademacher`. That the size of the weights counts, not their
    number, is due to :cite:t:`bartlett1998sample`.

    Parameters
    ----------
    A : float
        The path norm. It must be fixed before the data are seen.
    n : int
        Number of data.
    d : int
        Dimension of the inputs.
    delta : float
        Probability of failure, in (0, 1).
    complexity : float, optional
        An upper bound of the Rademacher complexity of the ball of radius 1 at the data,
        such as ``rademacher(X).upper_at(0.01)``. That one fails with a probability of
        0.01, to be added to `delta`; a mean over some draws of signs is no bound. By
        default the sharp bound of `rademacher_bound`, which holds at all data.
    lipschitz : float
        Lipschitz constant :math:`\Lambda` of the loss as a function of the output.
    largest : float
        A bound M: the loss has values in [0, M].
    norm : str
        "l1" or "l2", see `rademacher_bound`.
    network : TwoLayer, optional
        A network of homogeneous units; ReLU neurons with a bias by default.

    Returns
    -------
    RiskBound
        The bound. The summands are ``terms["complexity"]`` and ``terms["chance"]``.

    Raises
    ------
    ValueError
        If a number is negative or not finite, n or d below 1, or `delta` outside of (0,
        1).
    Unsupported
        If the unit is not homogeneous, or there are several outputs.
    NonFinite
        If the bound overflows.

    See Also
    --------
    apriori_bound : A bound on the test risk itself, of minimisers.

    Notes
    -----
    Proof. By McDiarmid's inequality the supremum of :math:`L - L_n` exceeds its mean by
    at most :math:`M\sqrt{\ln(2/\delta)/2n}`, and the complexity at the data is below
    its mean by at most as much, each but for :math:`\delta/2`. The mean is at most
    twice the mean complexity of the losses, by symmetrisation, and that is at most
    :math:`\Lambda` times the one of the networks, by contraction. A loss that is not
    bounded, as the square one, must be cut: :math:`\min(\ell, M)`.

    Examples
    --------
    >>> import otflow as of
    >>> bound = of.analysis.weight_size_bound(2.0, 1000, 5, delta=0.01)
    >>> {name: round(value, 3) for name, value in bound.terms.items()}
    {'complexity': 0.319, 'chance': 0.154}
    """
    size = positive(A, "A", or_zero=True)
    count, inputs = _counts(n, d)
    chance = probability(delta)
    steep = positive(lipschitz, "lipschitz", or_zero=True)
    top = positive(largest, "largest", or_zero=True)
    unit = rademacher_bound(1.0, count, inputs, norm=norm, network=network)
    rad = unit.terms["sharp"]
    if complexity is not None:
        rad = positive(complexity, "complexity", or_zero=True)
    parts = {
        "complexity": steep * size * rad * 2,
        "chance": 3 * top * math.sqrt((math.log(2) - math.log(chance)) / (2 * count)),
    }
    value = sum(parts.values())
    why = f"it holds for all networks of path norm at most {size:g}"
    if value >= top:
        why += f", but says nothing: the loss is at most {top:g}"
    return _finite(RiskBound(value, True, why, parts))


def apriori_bound(
    B: float,
    N: int,
    n: int,
    d: int,
    penalty: float,
    *,
    delta: float = 0.05,
    labels: tuple[float, float] = (0.0, 1.0),
    objective: float | None = None,
    norm: str = "l1",
    network: TwoLayer | None = None,
) -> RiskBound:
    r"""Return the bound of Theorem 3.2 on the error of minimisers with a path norm.

    Let :math:`f^*` have a Barron norm below B and values in an interval of length r,
    and let a network of N neurons minimise

    .. math:: J(\theta) = \frac1{2n}\sum_k (f_\theta(x_k) - f^*(x_k))^2
        + \lambda\,|\theta|_P

    over independent data. If :math:`\lambda \ge \lambda_n = 4r\sqrt{2\ln(2d)/n}`, then
    with a probability of at least :math:`1 - \delta` its outputs T f, truncated to the
    interval, satisfy

    .. math:: E\,|Tf_\theta - f^*|^2 \le \frac{2\kappa^2B^2}N + 4\lambda B
        + r^2\sqrt{\frac{\ln(1/\delta)}{2n}}

    :cite:p:`e2019priori`. The survey has :math:`\lambda_n` without the 2 under the
    root, and leaves out the truncation.

    Parameters
    ----------
    B : float
        The path norm of a measure that represents :math:`f^*`, at least its Barron
        norm.
    N : int
        Number of neurons of the network.
    n : int
        Number of data.
    d : int
        Dimension of the inputs.
    penalty : float
        The factor :math:`\lambda > 0` of the path norm.
    delta : float
        Probability of failure, in (0, 1).
    labels : tuple of float
        The interval of the values of :math:`f^*`.
    objective : float, optional
        The value J >= 0 that training has reached. By default the network is taken at
        the word of the theorem, that it is a global minimiser.
    norm : str
        "l1" with data in :math:`[-1, 1]^d`, or "l2" with data in the Euclidean unit
        ball. Then :math:`\lambda_n = 2r` times the complexity :math:`2\kappa/\sqrt n`.
    network : TwoLayer, optional
        A network of homogeneous units; ReLU neurons with a bias by default.

    Returns
    -------
    RiskBound
        The bound. ``terms["least penalty"]`` is :math:`\lambda_n`. For a smaller
        :math:`\lambda` the value is computed, but it is no bound, and ``applies`` is
        False; ``terms["any penalty"]`` is a bound for every :math:`\lambda`. Where
        `objective` is above ``terms["reached"]``, what any minimiser reaches, neither
        is one.

    Raises
    ------
    ValueError
        If a number is out of range.
    Unsupported
        If the unit is not homogeneous, or there are several outputs.
    NonFinite
        If the bound overflows.

    See Also
    --------
    weight_size_bound : A bound for all networks of a path norm, trained or not.
    otflow.meanfield.barron_sample : The network of the proof.

    Notes
    -----
    Proof. Neurons that are drawn as in `otflow.meanfield.barron_sample` have the path
    norm B, and a mean square error over the data of at most :math:`\kappa^2B^2/N` in
    the mean over draws. So some draw has, whatever the data are,

    .. math:: J(\theta) \le J^* = \frac{\kappa^2 B^2}{2N} + \lambda B .

    The minimiser has no larger J. Its path norm is at most :math:`Q = J^*/\lambda`,
    which is fixed before the data are seen. Over the ball of radius Q the truncated
    loss :math:`\frac12|Tf - f^*|^2` is r-Lipschitz and at most :math:`r^2/2`, so that
    the population risk is above the empirical one by at most :math:`2rQ\rho +
    \frac{r^2}2\sqrt{\ln(1/\delta)/2n}`, with any bound :math:`\rho` of
    `rademacher_bound` for the radius 1. For every :math:`\lambda` therefore

    .. math:: E\,|Tf_\theta - f^*|^2 \le \Bigl(1 + \frac{2r\rho}\lambda\Bigr)
        \Bigl(\frac{\kappa^2B^2}N + 2\lambda B\Bigr)
        + r^2\sqrt{\frac{\ln(1/\delta)}{2n}} .

    With :math:`\rho = 2\sqrt{2\ln(2d)/n}` the first factor is at most 2 for
    :math:`\lambda \ge \lambda_n`: that is the value. ``terms["any penalty"]`` has the
    sharp one. Only that J is at most :math:`J^*` was used: training need not end at a
    global minimum. Truncation does not increase any error, and training does not need
    it.

    Examples
    --------
    >>> import otflow as of
    >>> bound = of.analysis.apriori_bound(1.0, 100, 50_000, 5, 0.05)
    >>> round(bound.value, 3), bound.applies
    (0.225, True)
    >>> of.analysis.apriori_bound(1.0, 100, 50_000, 5, 0.001).applies
    False
    """
    size = positive(B, "B", or_zero=True)
    neurons = _count(N, "N")
    count, inputs = _counts(n, d)
    factor = positive(penalty, "penalty")
    chance = probability(delta)
    span = _span(labels)
    kappa = reach(ordinary(network), norm)
    unit = rademacher_bound(1.0, count, inputs, norm=norm, network=network)
    least, sharp = 2 * span * unit.value, 2 * span * unit.terms["sharp"]
    sampling = kappa * size * kappa * size / neurons
    luck = span * span * math.sqrt(-math.log(chance) / (2 * count))
    reached = sampling / 2 + factor * size
    terms = {
        "neurons": 2 * sampling,
        "penalty": 4 * factor * size,
        "chance": luck,
        "least penalty": least,
        "reached": reached,
        "any penalty": 2 * (1 + sharp / factor) * reached + luck,
    }
    value = terms["neurons"] + terms["penalty"] + luck
    applies, why = True, f"the penalty {factor:.4g} is at least {least:.4g}"
    if factor < least:
        applies = False
        why = (
            f"the penalty {factor:.4g} is below {least:.4g}, what the theorem asks "
            f"for; terms['any penalty'] is a bound"
        )
    final = 0.0
    if objective is not None:
        final = positive(objective, "objective", or_zero=True)
    if final > reached:
        applies = False
        why = (
            f"training stopped at {final:.4g}, above {reached:.4g}, which every "
            f"minimiser reaches"
        )
    if applies and value >= span * span:
        why += f", but it says nothing: the square of labels' range is {span * span:g}"
    return _finite(RiskBound(value, applies, why, terms))


def _finite(bound: RiskBound) -> RiskBound:
    """Return a bound, all of whose numbers are finite."""
    numbers = {"the bound": bound.value, **bound.terms}
    for name, number in numbers.items():
        if not math.isfinite(number):
            msg = (
                f"{name} overflows float64, so that nothing is bounded; take numbers "
                f"of ordinary size, such as labels in [0, 1]"
            )
            raise NonFinite(msg)
    return bound


def _unit_complexity(n: int, d: int) -> float:
    """Return the bound of Theorem 3.1 for R = 1."""
    return 2 * math.sqrt(2 * math.log(2 * d) / n)


def _counts(n: int, d: int) -> tuple[int, int]:
    return _count(n, "n"), _count(d, "d")


def _count(n: int, name: str) -> int:
    count = non_negative_int(n, name, minimum=1)
    if count > MOST:
        msg = f"{name} must be at most {MOST:.0e}, got more; take {name}=10**15"
        raise ValueError(msg)
    return count


def probability(delta: float) -> float:
    """Return a probability as a float; raise ValueError outside of (0, 1)."""
    chance = real(delta, "delta")
    if not 0 < chance < 1:
        msg = (
            f"delta is a probability of failure in (0, 1), got {chance:g}; take "
            f"delta=0.05"
        )
        raise ValueError(msg)
    return chance


def _span(labels: tuple[float, float]) -> float:
    """Return the length of the interval of labels."""
    pair = tuple(labels) if isinstance(labels, (tuple, list)) else ()
    if len(pair) == 2:
        low, high = (real(value, "labels") for value in pair)
        if low < high:
            return high - low
    msg = (
        f"labels must be the interval (lowest, highest) of the labels, got {labels!r}; "
        f"give for example (0.0, 1.0)"
    )
    raise ValueError(msg)
