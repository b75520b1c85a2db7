r"""Three norms of functions on the unit interval, and the inequalities between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from otflow._typing import ArrayLike
from otflow.meanfield.norms.barron import as_data, barron_norm
from otflow.metrics import Bracket
from otflow.metrics.bracket import NOISE

__all__ = ["NormTable", "norm_table"]

# A bracket of a smaller relative width is shown as one number.
SHOWN: Final = 1e-6


@dataclass(frozen=True)
class NormTable:
    r"""Norms of one function at data on [0, 1], in one order.

    Parameters
    ----------
    slope_variation : Bracket
        The total variation S of the slope, :math:`\int |f''|\,dt`.
    weighted_variation : Bracket
        The weighted one W, :math:`\int (1 + t)\,|f''|\,dt`.
    f1 : Bracket
        The least path norm "l2".
    barron : Bracket
        The least path norm "l1".
    explicit : Bracket
        :math:`|f(0)| + |f'(0)| + W`, the norm of a network known in closed form.

    Attributes
    ----------
    slope_variation, weighted_variation, f1, barron, explicit
        As above.

    See Also
    --------
    norm_table : The function that makes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    >>> print(of.meanfield.norm_table(X, (X[:, 0] - 0.5).abs()))
    total variation of the slope    2
    the same, weighted by 1 + t     3
    least path norm "l2" (F1)       2.23607
    least path norm "l1" (Barron)   3
    of the network in closed form   4.5
    """

    slope_variation: Bracket
    weighted_variation: Bracket
    f1: Bracket
    barron: Bracket
    explicit: Bracket

    def __str__(self) -> str:
        rows = {
            "total variation of the slope": self.slope_variation,
            "the same, weighted by 1 + t": self.weighted_variation,
            'least path norm "l2" (F1)': self.f1,
            'least path norm "l1" (Barron)': self.barron,
            "of the network in closed form": self.explicit,
        }
        return "\n".join(f"{name:<31} {_digits(row)}" for name, row in rows.items())


def _digits(row: Bracket) -> str:
    """Return six digits of a number, or of both bounds where those differ."""
    if row.relative < SHOWN:
        return f"{row.upper:.6g}"
    return f"{row.lower:.6g} to {row.upper:.6g}"


def norm_table(X: ArrayLike, f: ArrayLike, **options: Any) -> NormTable:
    r"""Return norms of a function on [0, 1] that bound one another.

    Let S be the total variation of the slope of f, which is the norm of the second
    derivative as a measure, and :math:`W = \int (1 + t)\,|f''|\,dt`. Let
    :math:`|f|_{F_1}` and :math:`|f|_{\mathcal B}` be the least path norms "l2" and
    "l1". Then

    .. math:: S \le W \le |f|_{\mathcal B} \le |f(0)| + |f'(0)| + W, \qquad
        S \le |f|_{F_1} \le |f|_{\mathcal B} \le \sqrt{d + 1}\;|f|_{F_1}, \qquad
        \max |f| \le |f|_{\mathcal B}.

    Of all functions with given values at data the piecewise linear one has the least S
    and the least W, so the same holds for the least norms at data.

    Parameters
    ----------
    X : Tensor or ndarray, shape (n, 1)
        Data in :math:`[0, 1]`, two or more places.
    f : Tensor or ndarray, shape (n,)
        Values.
    **options
        Options of `barron_norm`, such as ``budget=`` and ``rounds=``.

    Returns
    -------
    NormTable
        Brackets of all five numbers, with round-off. A sum is computed in float64.

    Raises
    ------
    ValueError
        If the data do not lie in [0, 1], or have one place only; and as `barron_norm`.

    See Also
    --------
    barron_norm : Two of the norms, in any dimension.

    Notes
    -----
    The proofs. A neuron :math:`a\,(wx + b)^+` with a kink t in (0, 1) has
    :math:`|b| = |w|\,t`, so its norm "l1" is :math:`(1 + t)` times its variation
    :math:`|a|\,|w|`: this gives :math:`W \le |f|_{\mathcal B}`. The formula of Taylor,
    :math:`f(x) = f(0) + f'(0)\,x + \int (x - t)^+ f''\,dt`, is a network of the norm on
    the right. As :math:`|v|_2 \le |v|_1 \le \sqrt{d + 1}\,|v|_2` in :math:`\mathbb
    R^{d+1}`, the two path norms are equivalent in any dimension d. A datum x at a kink
    of the interpolation has the change of slope :math:`\int h\,f''\,dt` with the hat
    function h of x, and the sum of the hats times :math:`\pm(1 + x)` is at most
    :math:`1 + t`: so no other function with the values has a smaller W. Finally
    :math:`|a|\,(w\cdot x + b)^+ \le |a|\,(|w|_1 + |b|)` where :math:`|x|_\infty \le 1`.

    ``f1`` is the variation norm of Bach :cite:p:`bach2017breaking`, with the radius 1
    of the data. S is the norm of networks whose biases cost nothing, up to affine
    functions :cite:p:`savarese2019infinite`. Its analogue in d dimensions is the total
    variation in the Radon domain; it has no function here.

    Examples
    --------
    >>> import torch, otflow as of
    >>> X = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None]
    >>> table = of.meanfield.norm_table(X, X[:, 0].sqrt())
    >>> table.weighted_variation.upper < table.barron.upper < table.explicit.upper
    True
    """
    x, values = as_data(X, f)
    if x.shape[1] != 1:
        msg = (
            f"the total variation of a slope is that of functions on [0, 1], and X has "
            f"{x.shape[1]} columns; use barron_norm(X, f, 'l1') and (X, f, 'l2')"
        )
        raise ValueError(msg)
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1 or low == high:
        msg = (
            f"X must lie in [0, 1] and hold two places or more, got data from {low:g} "
            f"to {high:g}; map them by (X - X.min()) / (X.max() - X.min())"
            if low < high
            else f"X must hold two places or more, got {low:g} alone; add data"
        )
        raise ValueError(msg)
    barron = barron_norm(x, values, "l1", **options).bracket
    f1 = barron_norm(x, values, "l2", **options).bracket
    plain, weighted, affine = _variations(x[:, 0].double(), values.double())
    explicit = Bracket(affine.lower + weighted.lower, affine.upper + weighted.upper)
    return NormTable(plain, weighted, f1, barron, explicit)


def _variations(x: Tensor, f: Tensor) -> tuple[Bracket, Bracket, Bracket]:
    """Return S, W and |f(0)| + |f'(0)| of the piecewise linear interpolation."""
    x, order = torch.sort(x)
    f = f[order]
    keep = torch.cat([x.new_ones(1, dtype=torch.bool), x.diff() > 0])
    x, f = x[keep], f[keep]
    slope = f.diff() / x.diff()
    # Values count as exact; each difference, quotient and sum rounds once.
    size = (f[1:].abs() + f[:-1].abs()) / x.diff() + slope.abs()
    jumps, noise = slope.diff().abs(), NOISE * (size[1:] + size[:-1])
    start, first = f[0] - slope[0] * x[0], slope[0]
    affine = float(start.abs() + first.abs())
    error = NOISE * float(f[0].abs() + size[0] * (1 + x[0]))
    return (
        _sum(jumps, noise),
        _sum((1 + x[1:-1]) * jumps, 2 * noise),
        Bracket(max(affine - error, 0.0), affine + error),
    )


def _sum(terms: Tensor, noise: Tensor) -> Bracket:
    total = math.fsum(terms.tolist())
    error = math.fsum(noise.tolist()) + NOISE * total
    return Bracket(max(total - error, 0.0), total + error)
