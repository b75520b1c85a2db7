r"""What a gap :math:`\int F'[\mu]\,d\mu - \min F'[\mu]` is, and what it proves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

__all__ = ["Gap", "GapKind"]


class GapKind(StrEnum):
    """What a gap proves; each member equals its string.

    Examples
    --------
    >>> import otflow as of
    >>> of.optimality.GapKind.PROVED == "proved"
    True
    """

    PROVED = "proved"
    """F(mu) - inf F is at most ``value``, round-off included."""
    SEARCHED = "searched"
    """The minimum of F' is the least that was found, so the gap may be too small."""
    NONE = "none"
    """Nothing is bounded; ``reason`` says why."""

    def __repr__(self) -> str:
        return repr(str(self))


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
    >>> round(gap.found, 4)  # the mean of 1 and 9, at least 0
    5.0
    """

    value: float
    argmin: Tensor | None
    kind: GapKind
    reason: str
    found: float
