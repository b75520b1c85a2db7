"""Two bounds of a number, each with its proof."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

__all__ = ["NOISE", "Bracket"]

# Round-off of sums of products in float64, as a share of their terms.
NOISE = 8 * sys.float_info.epsilon


@dataclass(frozen=True)
class Bracket:
    r"""A number :math:`z` with :math:`\text{lower} \le z \le \text{upper}`.

    For :math:`W_2^2` any feasible plan gives an upper bound, its cost, and any
    potentials with :math:`f_i + g_j \le |x_i - y_j|^2` for all i and j give the lower
    bound :math:`\sum a_i f_i + \sum b_j g_j`. Both bounds are widened by the round-off
    of their sums, so `lower` may be below the value in its last digits.

    Parameters
    ----------
    lower, upper : float
        The bounds, in the units of the number.

    Attributes
    ----------
    lower, upper
        As above.

    Examples
    --------
    >>> from otflow.metrics import Bracket
    >>> bracket = Bracket(1.96, 2.0)
    >>> 1.99 in bracket
    True
    >>> round(bracket.relative, 3)
    0.02
    """

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """The number ``upper - lower``.

        Returns
        -------
        float
            In the units of the number.
        """
        return self.upper - self.lower

    @property
    def relative(self) -> float:
        """The width as a share of the upper bound, 0 for a bracket around 0 alone.

        Returns
        -------
        float
            At least 0. It exceeds 1 if the lower bound is negative.
        """
        return self.width / self.upper if self.width > 0 else 0.0

    def times_square(self, unit: float) -> Bracket:
        """Return the bracket of a square whose lengths are larger by a factor.

        Parameters
        ----------
        unit : float
            The factor of lengths, > 0. It is applied twice, since its square may
            overflow or vanish.

        Returns
        -------
        Bracket
            Both bounds, multiplied by the square of the factor, rounded outwards.
        """
        low, high = (unit * (unit * z) for z in (self.lower, self.upper))
        # A product with a power of two is exact, but for numbers near the least ones.
        if low / unit / unit > self.lower:
            low = math.nextafter(low, -math.inf)
        if high / unit / unit < self.upper:
            high = math.nextafter(high, math.inf)
        return Bracket(low, high)

    def __contains__(self, value: float) -> bool:
        return self.lower <= float(value) <= self.upper
