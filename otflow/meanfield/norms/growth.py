r"""Whether norms at more and more data level off: evidence of a finite Barron norm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from otflow._arrays import as_points
from otflow._typing import ArrayLike, Ground
from otflow._validation import check_function, check_option
from otflow.meanfield.norms.barron import barron_norm
from otflow.meanfield.residuals import NORMS
from otflow.metrics import Bracket

__all__ = ["NormGrowth", "norm_growth"]

# Local slopes of a bounded sequence of norms go to 0; those of a power of n do not.
FLAT: Final = 0.1
STILL: Final = 0.01
FALLING: Final = 0.7
# A norm below this share of the next counts as this share.
TINY: Final = 1e-16
# A bracket of a smaller relative width is shown as one number of four digits.
SHOWN: Final = 1e-4


@dataclass(frozen=True, eq=False)
class NormGrowth:
    r"""Norms of one function at more and more data, and what they suggest.

    Parameters
    ----------
    sizes : tuple of int
        Numbers of data n.
    brackets : tuple of Bracket
        Bounds of the norms at the data.
    slopes : tuple of float
        Slopes :math:`\log(N_{k+1}/N_k)/\log(n_{k+1}/n_k)` of the upper bounds.
    verdict : str
        "levels off", "grows" or "undecided".
    text : str
        The verdict in a sentence.

    Attributes
    ----------
    sizes, brackets, slopes, verdict, text
        As above.

    See Also
    --------
    norm_growth : The function that makes it.

    Examples
    --------
    >>> import torch, otflow as of
    >>> data = [torch.linspace(0, 1, n, dtype=torch.float64)[:, None] for n in (6, 11)]
    >>> growth = of.meanfield.norm_growth(lambda x: x[:, 0].abs(), data)
    >>> growth.verdict, [round(norm, 6) for norm in growth.norms]
    ('levels off', [1.0, 1.0])
    """

    sizes: tuple[int, ...]
    brackets: tuple[Bracket, ...]
    slopes: tuple[float, ...]
    verdict: str
    text: str

    @property
    def norms(self) -> tuple[float, ...]:
        """The norms, of which the brackets are sharp: their upper bounds.

        Returns
        -------
        tuple of float
            One for each number of data.
        """
        return tuple(bracket.upper for bracket in self.brackets)

    def __str__(self) -> str:
        return self.text


def norm_growth(
    f: Ground, data: Sequence[ArrayLike], norm: str = "l1", **options: Any
) -> NormGrowth:
    r"""Return the norms of a function at more and more data, with their growth in n.

    The norm at data bounds :math:`|f|_{\mathcal B}` from below. If the data fill the
    domain and the norms stay bounded by C, then :math:`|f|_{\mathcal B} \le C` for a
    continuous f, by the inverse approximation theorem :cite:p:`e2022barron`. If they
    grow without bound, f has no finite Barron norm. Finitely many numbers tell neither:
    the verdict is evidence, and no proof.

    Parameters
    ----------
    f : callable
        Maps data (n, d) to values (n,).
    data : sequence of Tensor or ndarray, shapes (n_k, d)
        Two sets of data or more, of increasing numbers. Where each holds the one
        before, the norms do not decrease.
    norm : str
        "l1" or "l2", see `barron_norm`.
    **options
        Options of `barron_norm`, such as ``budget=`` and ``rounds=``.

    Returns
    -------
    NormGrowth
        Sizes, brackets, local slopes and the verdict. It is "levels off" if the last
        slope is below 0.1, and the one before, if there is one, is larger; "grows" if
        the last slope is at least 0.1 and at least 0.7 times the one before; else
        "undecided". It holds for all norms in the brackets: where those are wide, it is
        "undecided".

    Raises
    ------
    ValueError
        If there are fewer than two sets, or their numbers do not increase.
    TypeError
        If the data are no sequence.

    See Also
    --------
    barron_norm : The norm at one set of data.

    Notes
    -----
    On :math:`[0, 1]` the norm "l1" is at most :math:`|f(0)| + |f'(0)| + \int (1 +
    t)\,|f''|\,dt`, with equality for a convex f with :math:`f(0), f'(0) \ge 0`. For
    then that is :math:`2f(0) + 2f'(1) - f(1)`, a linear functional which is at most the
    norm for each neuron. So :math:`x^2` has the norm 3 and :math:`e^x` the norm
    :math:`2 + e`. For :math:`\sqrt x` the integral diverges, and on grids the norms
    grow like :math:`\sqrt n`.

    Some functions need no numbers. A function of norm B changes by at most
    :math:`B\,|x - y|_\infty` in "l1", and by :math:`B\,|x - y|_2` in "l2". So a
    function of unbounded slope has no finite norm.

    The cost is that of `barron_norm` for each set.

    Examples
    --------
    >>> import torch, otflow as of
    >>> sizes = (11, 26, 51)
    >>> data = [torch.linspace(0, 1, n, dtype=torch.float64)[:, None] for n in sizes]
    >>> growth = of.meanfield.norm_growth(lambda x: x[:, 0].sqrt(), data)
    >>> growth.verdict, [round(slope, 2) for slope in growth.slopes]
    ('grows', [0.43, 0.44])
    """
    check_function(f, "f must be a function of data (n, d)")
    check_option(norm, "norm", NORMS)
    if not isinstance(data, Iterable):
        msg = (
            f"data must be a sequence of tensors (n_k, d), got {type(data).__name__}; "
            f"give a list such as [X[::2], X]"
        )
        raise TypeError(msg)
    points = [as_points(x, f"data[{k}]") for k, x in enumerate(data)]
    sizes = tuple(len(x) for x in points)
    if len(sizes) < 2 or any(m <= n for n, m in itertools.pairwise(sizes)):
        msg = (
            f"data must hold two sets or more, of increasing numbers, got the numbers "
            f"{list(sizes)}; give for instance grids of 26, 51 and 101 points"
        )
        raise ValueError(msg)
    answers = [barron_norm(x, f(x), norm, **options) for x in points]
    brackets = tuple(answer.bracket for answer in answers)
    slopes = tuple(
        _slope(brackets[k].upper, brackets[k + 1].upper, sizes[k], sizes[k + 1])
        for k in range(len(sizes) - 1)
    )
    verdict = _verdict(sizes, brackets)
    return NormGrowth(
        sizes, brackets, slopes, verdict, _text(sizes, brackets, slopes, verdict)
    )


def _slope(one: float, two: float, n: int, m: int) -> float:
    """Return the local slope; where it starts from 0, that from a tiny norm."""
    if two == one:
        return 0.0
    tiny = TINY * max(one, two)
    return math.log(max(two, tiny) / max(one, tiny)) / math.log(m / n)


def _verdict(sizes: tuple[int, ...], brackets: tuple[Bracket, ...]) -> str:
    """Return the verdict that holds for all norms in their brackets."""
    pairs = list(
        zip(
            itertools.pairwise(brackets[-3:]),
            itertools.pairwise(sizes[-3:]),
            strict=True,
        )
    )
    least = [_slope(one.upper, two.lower, n, m) for (one, two), (n, m) in pairs]
    most = [_slope(one.lower, two.upper, n, m) for (one, two), (n, m) in pairs]
    if most[-1] < STILL or (
        most[-1] < FLAT and all(most[-1] <= slope for slope in least[:-1])
    ):
        return "levels off"
    if least[-1] >= FLAT and any(least[-1] >= FALLING * s for s in most[:-1]):
        return "grows"
    return "undecided"


def _text(
    sizes: tuple[int, ...],
    brackets: tuple[Bracket, ...],
    slopes: tuple[float, ...],
    verdict: str,
) -> str:
    sharp = all(bracket.relative < SHOWN for bracket in brackets)
    norms = [
        f"{bracket.upper:.4g}"
        if sharp
        else f"in [{bracket.lower:.4g}, {bracket.upper:.4g}]"
        for bracket in brackets
    ]
    which = "slopes" if len(slopes) > 1 else "slope"
    of = "" if sharp else " of the upper bounds"
    start = (
        f"The norm at {_list(map(str, sizes))} data is {_list(norms)}, with the local "
        f"{which} {_list(f'{slope:.3g}' for slope in slopes)}{of} in n: "
    )
    more = "More data" if sharp else "Sharper brackets or more data"
    return (
        start
        + {
            "levels off": (
                f"it levels off. That is evidence, not proof, of a finite Barron norm, "
                f"which is at least {brackets[-1].lower:.6g}."
            ),
            "grows": (
                "it grows like a power of n. That is evidence, not proof, that no "
                "network of finite norm represents the function."
            ),
            "undecided": f"undecided. {more} may decide it.",
        }[verdict]
    )


def _list(words: Any) -> str:
    *first, last = list(words)
    return f"{', '.join(first)} and {last}" if first else str(last)
