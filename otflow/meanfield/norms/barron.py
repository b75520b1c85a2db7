r"""The Barron norm of a function from its values at data, with its proof."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor, as_points, coordinate_limit
from otflow._graphs import refuse_graph
from otflow._typing import ArrayLike
from otflow._validation import (
    check_kind,
    check_like,
    check_option,
    non_negative_int,
)
from otflow.meanfield.dual_balls import data_in_ball
from otflow.meanfield.layers import TwoLayer
from otflow.meanfield.norms.linear_programs import Cheapest, cheapest
from otflow.meanfield.norms.twofold import relu_residual, two_product
from otflow.meanfield.path_balls import path_norm
from otflow.meanfield.residuals import NORMS
from otflow.measures import Measure, Particles
from otflow.metrics import Bracket

__all__ = ["BarronNorm", "as_data", "barron_norm"]

# Most data of one linear program, which is dense: its time grows like their cube.
MOST_DATA: Final = 2_000
# A bracket of this relative width is that of round-off.
SHARP: Final = 1e-6
ROUNDS: Final = 50
# Cones on which a dual is proved; those of 40 data in 3 dimensions are 20,000 or more.
MOST_CONES: Final = 200_000


@dataclass(frozen=True, eq=False)
class BarronNorm:
    r"""The least norm of a ReLU network through data, as bounds and as a network.

    Parameters
    ----------
    bracket : Bracket
        Bounds of the least path norm of all measures of neurons with the given outputs
        at the data. Round-off is in them.
    of_function : Bracket, optional
        Bounds of the Barron norm :math:`|f|_{\mathcal B}` of the function, if a
        representation was given. Without one ``bracket.lower`` bounds it from below.
    measure : Particles
        Neurons (a, w, b) for ``TwoLayer("relu")``, whose outputs are f at the data, and
        whose path norm is ``bracket.upper`` to round-off.
    how : str
        "exact" if the bracket is closed to one part in a million, else "proved".
    found : float
        The lower bound, if the search over neurons has missed none. It is proved where
        `how` is "exact" alone.
    dual : Tensor, shape (n,)
        Weights :math:`\lambda` of the data with :math:`\sum_i \lambda_i f_i` equal to
        ``bracket.lower``, and :math:`|\sum_i \lambda_i (w\cdot x_i + b)^+| \le 1` for
        all (w, b) of norm 1, both to round-off in the dtype of the data.
    outputs : Tensor, shape (n,)
        The outputs of the measure.
    norm : str
        "l1" or "l2", of (w, b).
    rounds : int
        Number of linear programs.

    Attributes
    ----------
    bracket, of_function, measure, how, found, dual, outputs, norm, rounds
        As above.

    See Also
    --------
    barron_norm : The function that makes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    >>> of.meanfield.barron_norm(X, (X[:, 0] - 0.5).abs())
    BarronNorm(3 by the norm 'l1', exact: 2 neurons through 3 data)
    """

    bracket: Bracket
    of_function: Bracket | None
    measure: Particles
    how: str
    found: float
    dual: Tensor
    outputs: Tensor
    norm: str
    rounds: int

    def __repr__(self) -> str:
        low, high = self.bracket.lower, self.bracket.upper
        number = f"{high:.6g}" if self.how == "exact" else f"{low:.6g} to {high:.6g}"
        neurons, n = self.measure.n, len(self.dual)
        return (
            f"BarronNorm({number} by the norm {self.norm!r}, {self.how}: {neurons} "
            f"neuron{'s' * (neurons > 1)} through {n} data)"
        )


def barron_norm(
    X: ArrayLike,
    f: ArrayLike,
    norm: str = "l1",
    *,
    representation: Measure | None = None,
    budget: int = MOST_CONES,
    rounds: int = ROUNDS,
) -> BarronNorm:
    r"""Return the least norm of ReLU networks with given outputs at data.

    With :math:`f_\mu(x) = \int a\,(w\cdot x + b)^+\,d\mu` it is the pair of linear
    programs

    .. math:: \min_\mu \Bigl\{\int |a|\,|(w, b)|\,d\mu : f_\mu(x_i) = f_i\Bigr\}
        = \max_\lambda \Bigl\{\sum_i \lambda_i f_i :
        \Bigl|\sum_i \lambda_i (w\cdot x_i + b)^+\Bigr| \le |(w, b)|\Bigr\}.

    The least norm over all measures that represent a function f everywhere is its
    Barron norm :math:`|f|_{\mathcal B}` :cite:p:`e2022barron`. So the number is a lower
    bound of it from finitely many values, and more data raise the bound.

    Parameters
    ----------
    X : Tensor or ndarray, shape (n, d)
        Data in the unit ball of the dual norm: :math:`|x|_\infty \le 1` for "l1", as
        in :math:`[0, 1]^d`, and :math:`|x|_2 \le 1` for "l2".
    f : Tensor or ndarray, shape (n,)
        Values of the function there.
    norm : str
        "l1", :math:`|w|_1 + |b|`, or "l2", :math:`\sqrt{|w|_2^2 + b^2}`.
    representation : Measure, optional
        Neurons (a, w, b) that represent f everywhere. Their path norm is then an upper
        bound of the Barron norm. Their outputs are compared with f at the data alone.
        For a trained network take its own outputs, ``f = network(mu, X)``.
    budget : int
        Most cones of inner weights on which the dual is proved, where not all rays are
        priced. They cost O(n d) each.
    rounds : int
        Most linear programs.

    Returns
    -------
    BarronNorm
        The bracket of the number, a cheapest measure, the dual, and how it was found.

    Raises
    ------
    ValueError
        If data lie outside the unit ball, two equal data have different values, there
        are more than 2,000 data, the outputs of the representation differ from f, or
        outer weights of the measure would overflow.
    NotConverged
        If data nearly coincide, so that no program through them is solved in float64.
    Unsupported
        If a tensor carries a graph. The derivative by f is the dual, where it is
        unique.

    See Also
    --------
    path_norm : The norm of a given network.
    norm_growth : The numbers for more and more data.

    Notes
    -----
    For "l1" the cheapest neurons are among finitely many, the extreme rays of the cones
    on which all features are linear: 2 (n + 2) in one dimension, and at most
    :math:`2\binom{n+d+1}{d}` in d. Up to 5,000,000 of them all are priced, and the
    number is exact: 2,000 data for d = 2, 240 for d = 3, 80 for d = 4, 44 for d = 5.
    Beyond that, and for "l2", neurons are generated by a search: ascents from rays, and
    from random ones, to the kinks and to where those meet.

    The lower bound divides the dual by a bound of the largest feature on the sphere.
    Where not all rays are priced it is proved on cones as for `PathBall`, and in more
    than 9 dimensions by a relaxation. For "l2" the cones suffice for d = 2, and for 100
    data in d = 3. From d = 4 on, or from d = 5 in "l1" with more data, the bracket may
    be wide: for 100 data in 5 dimensions it is [3.9, 11.0]. `found` is 10.5 there: it
    tells what the search says.

    The upper bound belongs to a measure whose outputs are f exactly. Its residual is
    computed with twice the digits, and neurons that repair it are paid for. So data
    that nearly coincide, to 1e-10 in [0, 1], hardly widen the bracket.

    The programs are solved by the simplex method of HiGHS, through SciPy, on the CPU
    and in float64; where it stops, with orthonormal combinations of the conditions. The
    measure is returned in the dtype of the data and on their device. In the scaling
    "mean-field" the neurons have masses of sum 1 and one size :math:`|a|\,|(w, b)|`,
    which is the norm.

    Time for 100 data and "l1": 1 s for d = 1, 2 s for d = 2 and 10 s for d = 3; 16 s
    for 40 data and d = 5. For "l2": 3 s, 16 s and 43 s. It grows like :math:`n^3`.
    Memory O(n K) for K neurons, at most 22 n of them in a program, and up to 1 GB for
    the rays.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    >>> ramp = (X[:, 0] - 0.5).relu()
    >>> least = of.meanfield.barron_norm(X, ramp)
    >>> least.how, round(least.bracket.lower, 8), round(least.bracket.upper, 8)
    ('exact', 1.5, 1.5)
    >>> network = of.meanfield.TwoLayer("relu")
    >>> bool((network(least.measure, X) - ramp).abs().max() < 1e-14)
    True
    """
    check_option(norm, "norm", NORMS)
    x, values = as_data(X, f)
    data_in_ball(x, norm)
    budget = non_negative_int(budget, "budget", minimum=1)
    rounds = non_negative_int(rounds, "rounds", minimum=1)
    if len(x) > MOST_DATA:
        msg = (
            f"a linear program of {len(x)} data is too large, above {MOST_DATA}; take "
            f"a part of them, X[::{-(-len(x) // MOST_DATA)}] and the same of f: the "
            f"number remains a lower bound"
        )
        raise ValueError(msg)
    keep = _distinct_data(x, values)
    z, y = x[keep].double().cpu(), values[keep].double().cpu()
    unit = float(y.abs().max())
    if unit == 0:
        return _nothing(x, representation, norm)
    answer = cheapest(z, y / unit, norm, budget, rounds)
    # Products round to the nearest number; bounds are rounded outwards.
    lower = max(math.nextafter(answer.lower * unit, -math.inf), 0.0)
    upper = math.nextafter(answer.upper * unit, math.inf)
    _check_range(answer, unit, x)
    measure = _measure(answer, unit, x)
    outputs = TwoLayer("relu")(measure, x)
    dual = x.new_zeros(len(x))
    dual[keep] = answer.dual.to(x)
    bracket = Bracket(lower, upper)
    how = "exact" if bracket.relative <= SHARP else "proved"
    whole = None
    if representation is not None:
        size = _upper(representation, x, values, norm, answer, keep)
        whole = Bracket(lower, size)
    return BarronNorm(
        bracket,
        whole,
        measure,
        how,
        answer.found * unit,
        dual,
        outputs,
        norm,
        answer.rounds,
    )


def as_data(X: ArrayLike, f: ArrayLike) -> tuple[Tensor, Tensor]:
    """Return data (n, d) and values (n,), checked; neither carries a graph."""
    x = as_points(X, "X")
    values = as_float_tensor(f, "f")
    check_like(values, x, "f", "X")
    if values.shape != x.shape[:1]:
        msg = (
            f"f must hold one value for each of the {len(x)} data, got shape "
            f"{tuple(values.shape)}; use f.reshape(-1), or one output at a time"
        )
        raise ValueError(msg)
    if not bool(torch.isfinite(values).all()):
        k = int((~torch.isfinite(values)).nonzero()[0])
        msg = (
            f"f must hold finite values, got {float(values[k])} at index {k}; leave "
            f"that datum out"
        )
        raise ValueError(msg)
    limit, largest = coordinate_limit(x.dtype), float(values.detach().abs().max())
    if not largest < limit:
        msg = (
            f"f must hold values below {limit:g} in {x.dtype}, got {largest:g}; divide "
            f"f by {largest:.3g} and multiply the norm by it"
        )
        raise ValueError(msg)
    refuse_graph(
        "a norm by linear programs",
        "autograd does not pass through them; the derivative by f is the dual",
        x,
        values,
        cure="X.detach() and f.detach()",
    )
    return x, values


def _distinct_data(x: Tensor, values: Tensor) -> Tensor:
    """Return the first index of each place; raise if it has two values."""
    _, place = torch.unique(x, dim=0, return_inverse=True)
    index = torch.arange(len(x), device=x.device)
    first = torch.full((int(place.max()) + 1,), len(x), device=x.device)
    first = first.scatter_reduce(0, place, index, "amin")
    other = values != values[first[place]]
    if bool(other.any()):
        k = int(other.nonzero()[0])
        j = int(first[place[k]])
        msg = (
            f"no function takes the values {float(values[j]):.9g} and "
            f"{float(values[k]):.9g} at one place, data {j} and {k}; leave one out, or "
            f"take their mean"
        )
        raise ValueError(msg)
    return first.sort().values


def _check_range(answer: Cheapest, unit: float, x: Tensor) -> None:
    """Raise ValueError if the neurons have outer weights that a measure cannot hold."""
    size, limit = float(answer.coefficients.abs().sum()), coordinate_limit(x.dtype)
    if not size * unit < limit:
        divisor = size * (unit / limit) * 1.01
        msg = (
            f"the neurons through the data have outer weights of {size:.3g} times "
            f"|f| = {unit:.3g}, above {limit:g} in {x.dtype}; divide f by "
            f"{divisor:.4g} and multiply the norm by it"
        )
        raise ValueError(msg)


def _measure(answer: Cheapest, unit: float, x: Tensor) -> Particles:
    """Return neurons of equal sizes, whose masses are the shares of the norm."""
    size = answer.coefficients.abs().sum()
    outer = answer.coefficients.sign() * size * unit
    theta = torch.cat([outer[:, None], answer.atoms], dim=1)
    shares = answer.coefficients.abs() / size
    return Particles(theta.to(x), shares.to(x), normalize=True)


def _nothing(x: Tensor, representation: Measure | None, norm: str) -> BarronNorm:
    """Return the answer for the function 0: one neuron of outer weight 0."""
    theta = x.new_zeros(1, x.shape[1] + 2)
    theta[0, -1] = 1.0
    zero = Bracket(0.0, 0.0)
    whole, nothing = None, x.new_zeros(len(x))
    if representation is not None:
        whole = Bracket(0.0, _upper(representation, x, nothing, norm))
    measure = Particles(theta)
    return BarronNorm(
        zero, whole, measure, "exact", 0.0, nothing, nothing.clone(), norm, 0
    )


def _upper(
    representation: Measure,
    x: Tensor,
    values: Tensor,
    norm: str,
    answer: Cheapest | None = None,
    keep: Tensor | None = None,
) -> float:
    """Return the path norm of a representation; raise if its outputs are not f."""
    check_kind(representation, Measure, "representation")
    check_like(representation.points, x, "representation", "X")
    network = TwoLayer("relu")
    with torch.no_grad():
        size = float(path_norm(network, representation, norm).double())
        gap = values - network(representation, x)
    terms = representation.n + x.shape[1] + 64
    allowed = terms * torch.finfo(x.dtype).eps * (size + float(values.abs().max()))
    worst = float(gap.abs().max())
    if worst > allowed:
        k = int(gap.abs().argmax())
        msg = (
            f"the representation has the output "
            f"{float(values[k] - gap[k]):.9g} at datum {k}, and f is "
            f"{float(values[k]):.9g}; give neurons (a, w, b) of which TwoLayer('relu') "
            f"makes f, or leave representation out"
        )
        raise ValueError(msg)
    upper = size * (1 + (representation.n + 8) * torch.finfo(x.dtype).eps)
    if answer is None or keep is None:
        return upper
    z = torch.cat([x, x.new_ones(len(x), 1)], dim=1)[keep].double().cpu()
    theta, masses = (
        t.detach().double().cpu()
        for t in (representation.points, representation.weights)
    )
    outer = two_product(theta[:, 0], masses)
    residual = relu_residual(z, theta[:, 1:], *outer, values[keep].double().cpu())
    return upper + answer.repair.cost(*residual)
