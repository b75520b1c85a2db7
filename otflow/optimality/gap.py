r"""What a gap :math:`\int F'[\mu]\,d\mu - \min F'[\mu]` is, and what it proves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from otflow._words import Word

__all__ = ["Gap", "GapKind", "shown_place"]

# A place with more coordinates is not shown.
SHOWN = 8


def shown_place(x: Tensor) -> str:
    """Return a place as a message shows it: six digits of each coordinate."""
    return repr([float(f"{coordinate:.6g}") for coordinate in x.tolist()])


class GapKind(Word):
    """What a gap proves; each member equals its string.

    Examples
    --------
    >>> import otflow as of
    >>> of.optimality.GapKind.PROVED == "proved"
    True
    """

    PROVED = "proved"
    """F(mu) - inf F is at most ``value``, round-off included, if what is declared of F
    is true; ``reason`` names what is declared, and not derived."""
    SEARCHED = "searched"
    """The minimum of F' is the least that was found, so the gap may be too small."""
    NONE = "none"
    """Nothing is bounded; ``reason`` says why."""


@dataclass(frozen=True, eq=False)
class Gap:
    r"""How far F can be above its infimum over a domain.

    .. math:: F(\mu) - \inf_\nu F(\nu) \le \int F'[\mu]\,d\mu - \min_x F'[\mu](x)

    for an F that is convex along mixtures.

    Parameters
    ----------
    value : float
        The right-hand side. With ``kind="proved"`` a lower bound replaces the minimum.
    argmin : Tensor, shape (d,), or None
        The place of the least :math:`F'[\mu]` that was found.
    kind : GapKind
        "proved", "searched" or "none".
    reason : str
        Why the kind is what it is.
    found : float
        The right-hand side with the least :math:`F'[\mu]` that was found: at most
        ``value``. A proved gap is sharp to ``value - found``.

    Attributes
    ----------
    value, argmin, kind, reason, found
        As above.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: x.square().sum(-1))
    >>> mu = of.Particles(torch.tensor([[1.0], [3.0]]))
    >>> gap = of.optimality.optimality_gap(F, mu, of.optimality.BoxDomain(0.0, 4.0))
    >>> gap.kind, round(gap.value, 4)  # the mean of 1 and 9, at least 0
    ('proved', 5.0)
    >>> float(gap) == gap.value
    True
    """

    value: float
    argmin: Tensor | None
    kind: GapKind
    reason: str
    found: float

    def __float__(self) -> float:
        """Return `value`; raise ValueError if nothing is bounded.

        Returns
        -------
        float
            The bound, proved or searched.

        Raises
        ------
        ValueError
            If the kind is "none", or the value infinite: that is no number to go on
            with, and `reason` says why.
        """
        if self.kind == GapKind.NONE or not math.isfinite(self.value):
            msg = (
                f"the gap bounds nothing, so it is no number: {self.reason}; "
                f"read gap.kind before, or gap.value, which is {self.value:g}"
            )
            raise ValueError(msg)
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON writes them; an infinite number is a text.

        Returns
        -------
        dict
            The fields by name; `argmin` is a list of numbers, or None.
        """
        return {
            "value": self.value if math.isfinite(self.value) else str(self.value),
            "argmin": None if self.argmin is None else self.argmin.tolist(),
            "kind": str(self.kind),
            "reason": self.reason,
            "found": self.found if math.isfinite(self.found) else str(self.found),
        }

    def __repr__(self) -> str:
        text = f"Gap({self.value:.6g}, kind={str(self.kind)!r}"
        if self.kind == GapKind.PROVED:
            text += f", found={self.found:.6g}"
        if self.argmin is not None and self.argmin.numel() <= SHOWN:
            text += f", argmin={shown_place(self.argmin)}"
        return f"{text}, reason={self.reason!r})"
