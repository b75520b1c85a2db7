r"""The duality gap of a risk with the path norm as a penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from otflow._validation import check_kind, check_option, non_negative_int, positive
from otflow.functionals import Functional
from otflow.functionals.reasons import not_convex
from otflow.meanfield.kinks import EPS, as_found
from otflow.meanfield.path_balls import BUDGET, largest_neuron, path_residual
from otflow.meanfield.residuals import (
    NORMS,
    SHARPNESS,
    check_network,
    check_risk,
    check_sharpness,
    reason_of,
    unbounded,
)
from otflow.meanfield.risk import Risk
from otflow.measures import Measure
from otflow.optimality import Gap, GapKind

__all__ = ["fenchel_gap"]


def fenchel_gap(
    risk: Risk,
    mu: Measure,
    penalty: float,
    norm: str = "l1",
    *,
    descend: int = 50,
    budget: int = BUDGET,
    sharpness: float = SHARPNESS,
) -> Gap:
    r"""Return the duality gap of a risk plus a multiple of the path norm.

    The objective over all measures of neurons is :math:`P(\mu) = \frac1n\sum_k
    \ell(f_\mu(x_k), y_k) + \lambda\int |a|\,|(w,b)|\,d\mu`. For any numbers p let

    .. math:: D(p) = \sum_k p_k c - \frac1n\sum_k \ell^*(n p_k, y_k)
        \qquad\text{if}\quad
        M(p) = \max_{|(w,b)|=1} \Bigl|\sum_k p_k\,\varphi(w\cdot x_k + b)\Bigr|
        \le \lambda,

    with c the offset of the network and :math:`\ell^*` the convex conjugate of the loss
    in its first argument. Then :math:`D(p) \le \inf P`: by Fenchel's inequality
    :math:`P(\nu) \ge \sum p_k f_\nu(x_k) - \frac1n\sum\ell^*(n p_k, y_k) +
    \lambda\int|a||(w,b)|\,d\nu`, and :math:`\sum_k p_k (f_\nu(x_k) - c) \ge -M(p)
    \int|a||(w,b)|\,d\nu`. The slopes :math:`q_k = \ell'(f_\mu(x_k), y_k)/n` are
    feasible after a rescaling :cite:p:`fercoq2015mind`:

    .. math:: P(\mu) - \inf P \le P(\mu) - D(\alpha q),
        \qquad \alpha = \min(1, \lambda / M(q)).

    An upper bound takes the place of M(q), so that :math:`\alpha q` is feasible by
    proof. The right-hand side is at least 0, and 0 at the optimum.

    Parameters
    ----------
    risk : Risk
        Of a `TwoLayer` with a homogeneous unit, in the scaling "mean-field", and the
        loss "square", "logistic" or "cross-entropy".
    mu : Measure
        Where to bound P.
    penalty : float
        The factor :math:`\lambda > 0`.
    norm : str
        "l1" or "l2", the norm of outer and of inner weights in the path norm.
    descend : int
        Steps of ascent to M from each start.
    budget : int
        Most cones of inner weights in which M is bounded.
    sharpness : float
        Share of the gap by which ``value`` may exceed ``found``, in [0, 1). The search
        ends there. With 0 it goes on to round-off.

    Returns
    -------
    Gap
        ``value`` is the right-hand side with its round-off; ``found`` is that of the
        largest value of M that was found. ``argmin`` is the neuron (a, w, b) that is
        best to add, :math:`|(w, b)| = |a| = 1`. The kind is "proved"; it is "none" for
        a loss of your own, for a risk that is not known to be convex, and where a
        number of the risk overflows.

    Raises
    ------
    ValueError
        If `penalty` is not positive.
    Unsupported
        If the unit is not homogeneous or the scaling is not "mean-field"; if the class
        of the risk or of the network evaluates otherwise than `Risk` and `TwoLayer`.

    See Also
    --------
    PathBall : The gap over a ball of the path norm.

    Notes
    -----
    Cost: as for `PathBall`.

    With the weight decay :math:`S(\mu) = \frac12\int |a|^2 + |(w,b)|^2\,d\mu` in place
    of the path norm "l2" the least value is the same, see `path_norm`. So with the
    penalty :math:`\lambda S` the excess is at most the gap plus
    :math:`\lambda\,(S(\mu) - \int|a||(w,b)|\,d\mu)`.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    >>> risk = of.meanfield.Risk(of.meanfield.TwoLayer("relu"), X, X[:, 0].relu())
    >>> zero = of.Particles(torch.zeros(1, 3, dtype=torch.float64))
    >>> gap = of.meanfield.fenchel_gap(risk, zero, 1.0)  # zero is optimal
    >>> gap.kind, gap.value < 1e-12
    ('proved', True)
    >>> round(of.meanfield.fenchel_gap(risk, zero, 0.1).value, 4)
    0.0427
    """
    check_kind(risk, Risk, "risk", cure="give the penalty as a number beside it")
    check_kind(mu, Measure, "mu")
    penalty = positive(penalty, "penalty")
    check_option(norm, "norm", NORMS)
    ascents = non_negative_int(descend, "descend")
    budget = non_negative_int(budget, "budget", minimum=1)
    sharpness = check_sharpness(sharpness)
    check_network(check_risk(risk).network, homogeneous=True)
    if not risk.mixture_convex:
        reason = not_convex(risk, Functional)
        return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
    if risk.loss not in CONJUGATES or not risk._loss.convex:
        reason = (
            f"the conjugate of the loss {risk.loss!r} is not known, only those of "
            f"{sorted(CONJUGATES)}"
        )
        return Gap(math.inf, None, GapKind.NONE, reason, math.inf)
    at = path_residual(risk, mu, norm)
    if at.overflow is not None:
        return at.overflow
    offset = torch.zeros_like(at.f)
    if at.network.offset is not None:
        offset = offset + offset.new_tensor(at.network.offset)
    conjugate = CONJUGATES[risk.loss]
    primal = at.value + penalty * at.size

    def gap(largest: float) -> float:
        share = min(1.0, penalty / largest) if largest > 0 else 1.0
        p = share * at.slopes
        return primal - float(((p * offset) - conjugate(p, at.y)).sum()) / len(at.z)

    def level(found: float) -> float:
        """Return an M at which the gap is sharp: it grows with M."""
        least, share = gap(found), 0.5
        while share > 1e-9 and gap(found * (1 + share)) * (1 - sharpness) > least:
            share /= 2
        return found * (1 + share) if share > 1e-9 and least > 0 else found

    top = largest_neuron(
        at, mu, norm, budget, ascents, level if sharpness else as_found
    )
    sizes = primal + float(at.q.abs().sum())
    terms = float((at.q * (at.f + offset).reshape(at.q.shape)).abs().sum())
    noise = (len(at.z) + 64) * EPS * (sizes + terms)
    # The computed slopes may stand for p as they are: round-off is that of P and D.
    value = gap(top.upper) + noise + at.slack(0.0)
    least = max(gap(top.lower), 0.0)
    if not (math.isfinite(value) and math.isfinite(least)):
        return unbounded("the gap")
    place = torch.cat([-top.direction, top.place]).to(mu.points)
    return Gap(max(value, least), place, GapKind.PROVED, reason_of(top), least)


# Convex conjugates of losses in f, at p: sums over outputs are left to the caller.


def _square(p: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`p^2/2 + p y`."""
    return 0.5 * p.square() + p * y


def _logistic(p: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`u\log u + (1 - u)\log(1 - u)` with :math:`u = -py \in [0, 1]`."""
    u = (-p * y).clamp(0, 1)
    return torch.xlogy(u, u) + torch.xlogy(1 - u, 1 - u)


def _cross_entropy(p: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`\sum_c s_c\log s_c` with :math:`s = p + e_y` in the simplex."""
    s = p.clone()
    index = y[:, None]
    s.scatter_add_(1, index, s.new_ones(1, 1).expand_as(index))
    s = s.clamp(0, 1)
    return torch.xlogy(s, s)


CONJUGATES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"square": _square, "logistic": _logistic, "cross-entropy": _cross_entropy}
)
